"""What a user sees while cells run: a live line on a terminal, plain lines otherwise.

Plain output prints a step when it begins and then at most one line every ten seconds, so that a nightly log stays
short and still shows that something moves.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Protocol, final

from rich.console import Console
from rich.progress import BarColumn, Progress, SpinnerColumn, TaskID, TextColumn, TimeElapsedColumn

from harness import interfaces
from harness.record import Record

PLAIN_EVERY_S = 10.0


class Display(Protocol):
    """Shows cells, their steps and what came of them."""

    def begin(self, cell: str, number: int, count: int) -> None: ...
    def step(self, name: str) -> interfaces.Progress: ...
    def say(self, text: str) -> None: ...
    def end(self, record: Record) -> None: ...


def summary(record: Record) -> str:
    """Gives a record in one line: the outcome, how long it took, and the reason where there are no numbers."""
    took = f" in {record.seconds['total']:.0f} s" if "total" in record.seconds else ""
    reason = f": {record.error.reason.splitlines()[0]}" if record.error and record.error.reason else ""
    gaps = f" (could not answer {', '.join(gap.evaluation for gap in record.gaps)})" if record.gaps else ""
    return f"{record.outcome}{took}{reason}{gaps}"


@final
@dataclass
class Plain:
    """Lines for a log."""

    console: Console
    started: float = field(default_factory=time.monotonic)

    def begin(self, cell: str, number: int, count: int) -> None:
        self.say(f"[{number}/{count}] {cell}")

    def step(self, name: str) -> interfaces.Progress:
        self.say(f"    {name}")
        last = time.monotonic()

        def report(fraction: float | None, message: str) -> None:
            nonlocal last
            if time.monotonic() - last >= PLAIN_EVERY_S:
                last = time.monotonic()
                done = f"{fraction:4.0%} " if fraction is not None else ""
                self.say(f"      {done}{message}")

        return report

    def say(self, text: str) -> None:
        elapsed = time.monotonic() - self.started
        self.console.print(f"{elapsed:6.0f} s  {text}", markup=False, highlight=False, soft_wrap=True)

    def end(self, record: Record) -> None:
        self.say(f"    {summary(record)}")


@final
@dataclass
class Live:
    """A bar for the running step, and a line for every finished cell above it."""

    console: Console
    bar: Progress = field(init=False)
    task: TaskID | None = None

    def __post_init__(self) -> None:
        columns = (SpinnerColumn(), TextColumn("{task.description}"), BarColumn(bar_width=24), TimeElapsedColumn())
        self.bar = Progress(*columns, TextColumn("{task.fields[note]}"), console=self.console, transient=True)
        self.bar.start()

    def begin(self, cell: str, number: int, count: int) -> None:
        self.say(f"[{number}/{count}] {cell}")

    def step(self, name: str) -> interfaces.Progress:
        if self.task is not None:
            self.bar.remove_task(self.task)
        task = self.task = self.bar.add_task(name, total=None, note="")

        def report(fraction: float | None, message: str) -> None:
            total = 1.0 if fraction is not None else None
            self.bar.update(task, completed=fraction or 0.0, total=total, note=message[:100])

        return report

    def say(self, text: str) -> None:
        self.bar.console.print(text, markup=False, highlight=False)

    def end(self, record: Record) -> None:
        self.say(f"      {summary(record)}")

    def close(self) -> None:
        """Takes the bar away."""
        self.bar.stop()


@contextmanager
def opened(console: Console) -> Iterator[Display]:
    """Gives the display that suits a console, and takes it away afterwards."""
    if not console.is_terminal:
        yield Plain(console)
        return
    live = Live(console)
    try:
        yield live
    finally:
        live.close()
