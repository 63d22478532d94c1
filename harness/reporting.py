"""Runs reporters over a store: each writes into one folder, and what it wrote is known."""

from __future__ import annotations

import errno
from collections.abc import Iterator, Sequence
from pathlib import Path

from harness import document, plugins
from harness.errors import StoreError, UserError
from harness.spec import Use
from harness.store import Store


def write(store: Store, out: Path, names: Sequence[str]) -> list[Path]:
    """Writes a report with the named reporters, or with all that can run here. Raises UserError."""
    store.latest_with_folders()  # raises when there is nothing to report, before a folder is made
    try:
        out.mkdir(parents=True, exist_ok=True)
        written: list[Path] = []
        for name in names or default_reporters():
            written.extend(plugins.reporter(_use(name)).render(store, out))
    except OSError as error:
        if error.errno not in (
            errno.ENOSPC,
            errno.EROFS,
            errno.EACCES,
            errno.EPERM,
            errno.EDQUOT,
            errno.ENOTDIR,
            errno.EEXIST,
        ):
            raise
        raise StoreError(
            f"the report cannot be written: {error.strerror}",
            file=error.filename or out,
            remedy="choose another folder with --out",
        ) from error
    return written


def _use(said: str) -> Use:
    """Gives a reporter from its name or, with arguments, from what a matrix would say: `{use: ..., args: {...}}`."""
    return document.read(said, Use, origin=Path("--with")) if said.startswith("{") else Use(use=said)


def default_reporters() -> list[str]:
    """Gives the installed reporters whose requirements are here. Raises UserError when there is none."""
    found = [
        name for name in plugins.installed("reporters") if not plugins.missing_modules(plugins.load("reporters", name))
    ]
    if not found:
        raise UserError("no reporter can run here", remedy="pip install 'compression-harness[analysis]'")
    return found


def first_screen(out: Path) -> Iterator[str]:
    """Yields the report's answer and first table, for the terminal."""
    report = out / "report.md"
    if report.exists():
        for line in report.read_text(encoding="utf-8").splitlines():
            if line.startswith("## ") and not line.startswith("## Answer") and not line.startswith("## Summary"):
                break
            yield line
        yield f"the whole report: {report}"
