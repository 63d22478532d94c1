"""Runs reporters over a store: each writes into one folder, and what it wrote is known."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

from harness import document, plugins
from harness.errors import UserError
from harness.store import Store, disk_errors


def write(store: Store, out: Path, names: Sequence[str]) -> list[Path]:
    """Writes a report with the named reporters, or with all that can run here. Raises UserError."""
    store.latest_with_folders()  # raises when there is nothing to report, before a folder is made
    with disk_errors(out, what="the report", option="--out"):
        out.mkdir(parents=True, exist_ok=True)
        written: list[Path] = []
        for name in names or default_reporters():
            written.extend(plugins.reporter(document.use(name, option="--with")).render(store, out))
    return written


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
