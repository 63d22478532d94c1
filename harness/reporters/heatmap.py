"""Retention by task and pipeline: where a compressed model breaks, at a glance.

Orange is less than the reference, purple is more, white is as much. A hatched cell's interval holds 1: its colour may
be luck. A cell without a number was not compared.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import TYPE_CHECKING

from harness.reporters.canvas import FAINT, INK, figure
from harness.reporters.summary import Entry, Summary
from harness.statistics.paired import Estimate

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

ROW, LETTER, LINE = 0.34, 0.082, 0.16
"""Inches: the height of a row, the width of a letter, the height of a line."""
LETTERS = 13
"""Task names are broken where lines would grow longer than this."""
ABOVE, BELOW, RIGHT = 1.2, 0.75, 0.35
"""Inches around the cells: titles and column names, the colour key, and air."""
REACH = 0.3
"""Retentions further from 1 than this have the strongest colour."""
STRENGTH = 0.7
"""How much of the map is used: its ends are too dark to read black numbers on."""


@dataclass(frozen=True)
class _Grid:
    """What is shown: a row an entry, a column a task after one for all tasks."""

    entries: tuple[Entry, ...]
    rows: tuple[str, ...]
    columns: tuple[str, ...]
    cells: tuple[tuple[Estimate | None, ...], ...]


def draw(summary: Summary) -> Figure | None:
    """Gives the heat map, or None when nothing was compared."""
    grid = _grid(summary)
    if not grid.entries:
        return None
    left = 0.35 + LETTER * max(map(len, grid.rows))
    column = max(0.9, 0.2 + LETTER * max(len(line) for name in grid.columns for line in name.split("\n")))
    width = max(6.4, left + column * len(grid.columns) + RIGHT)
    height = ABOVE + LINE * max(name.count("\n") - 1 for name in grid.columns) + ROW * len(grid.rows) + BELOW
    made = figure(width, height)
    axes = made.add_axes(
        (left / width, BELOW / height, column * len(grid.columns) / width, ROW * len(grid.rows) / height)
    )
    for y, row in enumerate(grid.cells):
        for x, found in enumerate(row):
            _cell((x, y), found, axes)
    _frame(grid, axes)
    _words(summary, made)
    _key(made, left / width)
    return made


def _grid(summary: Summary) -> _Grid:
    entries = tuple(entry for entry in summary.entries if entry.retention)
    tasks = [task for task in summary.tasks if any(e.comparison and e.comparison.of(task) for e in entries)]
    several = len(summary.families) > 1
    rows, cells = [], []
    for entry in entries:
        assert entry.comparison is not None
        found = [entry.comparison.of(task) for task in tasks]
        cells.append((entry.retention, *(task.retention if task else None for task in found)))
        rows.append(f"{entry.row.family + ': ' if several else ''}{entry.row.label} ({summary.place(entry)})")
    columns = ["all tasks"]
    for index, task in enumerate(tasks, 1):
        counts = [estimate.n for row in cells if (estimate := row[index])]
        columns.append(f"{_broken(summary.name(task))}\n{_items(counts)}")
    columns[0] += f"\n{_items([row[0].n for row in cells if row[0]])}"
    return _Grid(entries, tuple(rows), tuple(columns), tuple(cells))


def _broken(name: str) -> str:
    """Breaks a name behind underscores and blanks into lines of at most LETTERS, where it can."""
    lines = [""]
    for part in re.findall(r"[^_ ]*[_ ]?", name):
        if lines[-1] and len(lines[-1]) + len(part) > LETTERS:
            lines.append("")
        lines[-1] += part
    return "\n".join(lines)


def _items(counts: Sequence[int]) -> str:
    if not counts:
        return ""
    return f"n = {counts[0]:,}" if min(counts) == max(counts) else f"n = {min(counts):,}-{max(counts):,}"


def _shade(value: float) -> tuple[float, float, float, float]:
    from matplotlib import colormaps

    share = (min(max(value, 1 - REACH), 1 + REACH) - 1) / (2 * REACH)
    red, green, blue, alpha = colormaps["PuOr"](0.5 + STRENGTH * share)
    return red, green, blue, alpha


def _cell(at: tuple[int, int], found: Estimate | None, axes: Axes) -> None:
    from matplotlib.patches import Rectangle

    x, y = at
    if found is None or found.value is None:
        axes.add_patch(Rectangle(at, 1, 1, facecolor="#f2f2f2", edgecolor="white", linewidth=1.5))
        axes.text(x + 0.5, y + 0.5, "–", ha="center", va="center", color=FAINT)
        return
    shade, unsure = _shade(found.value), not found.excludes(1)
    axes.add_patch(Rectangle(at, 1, 1, facecolor=shade, edgecolor="none"))
    if unsure:
        axes.add_patch(Rectangle(at, 1, 1, fill=False, hatch="////", edgecolor="#b9b9b9", linewidth=0))
    axes.add_patch(Rectangle(at, 1, 1, fill=False, edgecolor="white", linewidth=2))
    box = {"facecolor": shade, "edgecolor": "none", "pad": 1.2} if unsure else None
    ink = "white" if _luminance(shade) < 0.4 else INK
    axes.text(x + 0.5, y + 0.5, f"{found.value:.2f}", ha="center", va="center", color=ink, fontsize=8.5, bbox=box)


def _luminance(shade: tuple[float, float, float, float]) -> float:
    """Gives the perceived brightness from 0 to 1 (ITU-R BT.709 weights)."""
    return 0.2126 * shade[0] + 0.7152 * shade[1] + 0.0722 * shade[2]


def _frame(grid: _Grid, axes: Axes) -> None:
    axes.set_xlim(0, len(grid.columns))
    axes.set_ylim(len(grid.rows), 0)
    axes.set_xticks([index + 0.5 for index in range(len(grid.columns))], list(grid.columns))
    axes.set_yticks([index + 0.5 for index in range(len(grid.rows))], list(grid.rows))
    axes.tick_params(length=0, top=True, labeltop=True, bottom=False, labelbottom=False)
    for spine in axes.spines.values():
        spine.set_visible(False)
    axes.axvline(1, color="white", linewidth=6)
    for y, (above, below) in enumerate(pairwise(grid.entries), 1):
        if above.row.family != below.row.family:
            axes.axhline(y, color="white", linewidth=6)


def _words(summary: Summary, made: Figure) -> None:
    height = made.get_figheight()
    family = summary.families[0] if len(summary.families) == 1 else f"{len(summary.families)} families"
    title = f"Retention by task and pipeline: {family}"
    made.text(0.02, 1 - 0.25 / height, title, fontsize=11, fontweight="bold", va="center")
    told = "same items as the reference; orange lost, purple gained; hatched: the 95 % interval holds 1"
    made.text(0.02, 1 - 0.48 / height, told, fontsize=8, color=FAINT, va="center")


def _key(made: Figure, left: float) -> None:
    """Draws the colour scale below the cells."""
    width, height = made.get_size_inches()
    axes = made.add_axes((left, 0.38 / height, 2.6 / width, 0.13 / height))
    shades = [[_shade(1 + REACH * (step / 60 - 1)) for step in range(121)]]
    axes.imshow(shades, aspect="auto", extent=(1 - REACH, 1 + REACH, 0, 1))
    axes.set_yticks([])
    ticks = [1 - REACH, 1 - REACH / 2, 1, 1 + REACH / 2, 1 + REACH]
    axes.set_xticks(ticks, [f"≤ {ticks[0]:.2f}", f"{ticks[1]:.2f}", "1", f"{ticks[3]:.2f}", f"≥ {ticks[4]:.2f}"])
    axes.tick_params(labelsize=7.5, length=2)
    for spine in axes.spines.values():
        spine.set_visible(False)
