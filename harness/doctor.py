"""What this machine can do, checked rather than assumed, with a remedy for each thing it cannot."""

from __future__ import annotations

import os
import shutil
import socket
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit

from harness import environments, machine, plan, plugins
from harness.matrix import suites_dir

HUB = "https://huggingface.co"


@dataclass(frozen=True)
class Check:
    """One thing looked at: `good` None means that it is information and neither good nor bad."""

    topic: str
    found: str
    good: bool | None = None
    remedy: str = ""


def examine(home: Path, results: Path) -> Iterator[Check]:
    """Yields hardware, disk, hub, environments and plug-ins, in this order."""
    yield from _hardware()
    yield from _folders(home, results)
    yield _hub()
    yield from _environments(home)
    yield from _plugins(home)


def _hardware() -> Iterator[Check]:
    facts = machine.fingerprint()
    for part in ("hard", "soft"):
        section = facts.get(part)
        for key, value in section.items() if isinstance(section, dict) else ():
            if value not in (None, "", {}, []):
                yield Check(key.replace("_", " "), str(value))
    for device, is_there in plan.DEVICES.items():
        if device != "cpu":
            yield Check(f"device {device}", "present" if is_there() else "none: its cells will be `unsupported`")


def _folders(home: Path, results: Path) -> Iterator[Check]:
    for name, folder in (("home", home), ("results", results)):
        there = next(parent for parent in (folder, *folder.absolute().parents) if parent.exists())
        free = shutil.disk_usage(there).free / 2**30
        writable = os.access(there, os.W_OK)
        remedy = "" if writable else f"choose another folder: --{name}"
        yield Check(
            f"{name} folder", f"{folder}, {free:.0f} GiB free", writable and free > 2, remedy or "free some space"
        )
    yield Check("suites", str(suites_dir()), suites_dir().is_dir(), "install the harness again")


def _hub() -> Check:
    if os.environ.get("HF_HUB_OFFLINE", "").lower() in ("1", "true", "yes", "on"):
        return Check("hub", "switched off by HF_HUB_OFFLINE", None, "unset HF_HUB_OFFLINE to use hub models and tasks")
    address = urlsplit(os.environ.get("HF_ENDPOINT", HUB))
    try:
        socket.create_connection((address.hostname or "", address.port or 443), timeout=3).close()
    except OSError as error:
        remedy = "models from packages, paths and the shipped offline suites still work"
        return Check("hub", f"{address.hostname} cannot be reached ({error})", False, remedy)
    return Check("hub", f"{address.hostname} answers", True)


def _environments(home: Path) -> Iterator[Check]:
    for environment in environments.found(home):
        names = sorted(name for kind, name in environment.serves if kind == "runtimes")
        yield Check(f"environment {environment.name}", f"{environment.python}: runtimes {', '.join(names) or 'none'}")


def _plugins(home: Path) -> Iterator[Check]:
    served = {pair for environment in environments.found(home) for pair in environment.serves}
    for item in plugins.listings():
        if item.broken:
            yield Check(
                f"{item.kind[:-1]} {item.name}", f"broken: {item.broken}", False, f"reinstall {item.distribution}"
            )
        elif (item.kind, item.name) not in served:
            refusal = plan.missing(item.kind, item.name)
            yield Check(f"{item.kind[:-1]} {item.name}", f"lacks {', '.join(item.missing)}", False, refusal.remedy)
