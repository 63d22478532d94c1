"""Options that several verbs share, exit codes, and how a verb prints."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

if TYPE_CHECKING:
    from contextlib import AbstractContextManager

    from rich.console import Console

    from harness.display import Display

HOME_HELP = "Folder of artifacts and environments.  [default: HARNESS_HOME or .harness]"
FOLDER = click.Path(path_type=Path, file_okay=False)
EXIT_USER, EXIT_HOLES, EXIT_CRASH, EXIT_INTERRUPTED, EXIT_PIPE = 2, 4, 70, 130, 141

results = click.option("--results", type=FOLDER, default="results", show_default=True, help="Folder of the records.")
home = click.option("--home", type=FOLDER, default=None, help=HOME_HELP)
out = click.option("--out", type=FOLDER, default="reports", show_default=True, help="Folder of the report.")


def where(command: Callable[..., Any]) -> Callable[..., Any]:
    """Adds the options that say where things are."""
    return home(results(command))


def display() -> AbstractContextManager[Display]:
    """Gives the display of a run."""
    from harness.display import opened

    return opened(console())


def console() -> Console:
    """Gives where tables are printed."""
    from rich.console import Console

    # Into a pipe or a file a table keeps its columns whole.
    return Console() if sys.stdout.isatty() else Console(width=240)


def show(lines: Iterable[str]) -> None:
    """Prints lines."""
    for line in lines:
        click.echo(line)
