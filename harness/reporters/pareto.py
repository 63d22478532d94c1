"""Retention against what is gained: size or speed, with intervals, names and the frontier."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import TYPE_CHECKING

from harness.reporters.canvas import COLOURS, FAINT, GRID, INK, MARKERS, figure
from harness.reporters.labels import Box, Label, Scene
from harness.reporters.summary import Entry, Summary, by_size, by_speed

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from matplotlib.transforms import Transform

WIDTH, HEIGHT = 7.6, 5.2
DODGE = 3.5
"""Points (1/72 inch) between marks of two runtimes, which often stand at the same size and retention."""
TICKS = (1.0, 1.5, 2.0, 3.0, 5.0, 7.0)
LETTERS_IN_A_LINE = 85
"""What the names in a legend may have together before they take two lines."""


@dataclass(frozen=True)
class View:
    """What stands on the horizontal axis; `frontier` picks what nothing beats, within a place or among all."""

    title: str
    axis: str
    x: Callable[[Entry], float | None]
    frontier: Callable[[Sequence[Entry]], list[Entry]]
    steps: str
    within_place: bool


@dataclass(frozen=True)
class Mark:
    """One plotted entry: where, how sure, in which look."""

    entry: Entry
    x: float
    value: float
    ends: tuple[float, float]
    colour: str
    shape: str
    dodge: float


def _megabytes(entry: Entry) -> float | None:
    return None if entry.row.size_bytes is None else entry.row.size_bytes / 1e6


def _speedup(entry: Entry) -> float | None:
    is_timed_reference = entry.row.is_reference and entry.decode.reason == "reference"
    return 1.0 if is_timed_reference else entry.decode.value


SIZE = View(
    title="Retention against size",
    axis="weights on disk (MB), less is better",
    x=_megabytes,
    frontier=by_size,
    steps="steps-post",
    within_place=False,
)
SPEED = View(
    title="Retention against decode speed-up",
    axis="decode speed over the reference's on the same runtime and machine (×), more is better",
    x=_speedup,
    frontier=by_speed,
    steps="steps-pre",
    within_place=True,
)


def draw(summary: Summary, view: View) -> Figure | None:
    """Gives a figure with a panel a family, or None when no family has two numbers to plot."""
    marks = {family: found for family in summary.families if (found := _marks(summary, family, view))}
    if not marks:
        return None
    made = figure(WIDTH, HEIGHT * len(marks))
    panels = made.subplots(len(marks), 1, squeeze=False)[:, 0]
    for (family, found), axes in zip(marks.items(), panels, strict=True):
        _panel(summary, family, (view, found), axes)
    made.tight_layout(h_pad=2.5)
    made.canvas.draw()
    for found, axes in zip(marks.values(), panels, strict=True):
        _name(found, axes)
    return made


def _marks(summary: Summary, family: str, view: View) -> list[Mark]:
    shown = [entry for entry in summary.of(family) if entry.retention and view.x(entry) is not None]
    places = sorted({summary.place(entry) for entry in shown})
    marks = []
    for entry in shown:
        found, x, index = entry.retention, view.x(entry), places.index(summary.place(entry))
        assert found is not None
        assert found.value is not None
        assert x is not None
        ends = (found.interval.low, found.interval.high) if found.interval else (found.value, found.value)
        look = (COLOURS[index % len(COLOURS)], MARKERS[index % len(MARKERS)])
        marks.append(Mark(entry, x, found.value, ends, *look, dodge=DODGE * (2 * index - len(places) + 1) / 2))
    return marks


def _panel(summary: Summary, family: str, drawn: tuple[View, list[Mark]], axes: Axes) -> None:
    view, marks = drawn
    axes.axhline(1, color=FAINT, linewidth=0.9, linestyle=(0, (4, 3)), zorder=1)
    for place in sorted({summary.place(mark.entry) for mark in marks}):
        here = [mark for mark in marks if summary.place(mark.entry) == place]
        for mark in here:
            _point(mark, axes)
        axes.plot([], [], here[0].shape, color=here[0].colour, markersize=6, label=place)
        if view.within_place:
            _line(view, here, axes, here[0].colour)
    if not view.within_place:
        _line(view, marks, axes, FAINT)
    _references([entry for entry in summary.of(family) if entry.row.is_reference], view, axes)
    _frame(family, view, marks, axes)


def _shifted(mark: Mark, axes: Axes) -> Transform:
    from matplotlib.transforms import ScaledTranslation

    assert axes.figure is not None
    return axes.transData + ScaledTranslation(mark.dodge / 72, 0, axes.figure.dpi_scale_trans)


def _point(mark: Mark, axes: Axes) -> None:
    at = _shifted(mark, axes)
    axes.plot([mark.x] * 2, mark.ends, color=mark.colour, linewidth=1.2, alpha=0.55, zorder=3, transform=at)
    fill = "white" if mark.entry.row.is_emulated else mark.colour
    axes.plot(
        [mark.x],
        [mark.value],
        mark.shape,
        color=mark.colour,
        markerfacecolor=fill,
        markersize=5.5,
        zorder=4,
        transform=at,
    )
    # A shifted transform is not seen by autoscaling; an invisible line at the same place is.
    axes.plot([mark.x] * 2, mark.ends, alpha=0)


def _line(view: View, marks: Sequence[Mark], axes: Axes, colour: str) -> None:
    chosen = view.frontier([mark.entry for mark in marks])
    points = sorted((mark.x, mark.value) for mark in marks if mark.entry in chosen)
    if len(points) > 1:
        x, y = zip(*points, strict=True)
        axes.plot(x, y, color=colour, linewidth=1.4, alpha=0.4, drawstyle=view.steps, zorder=2, gid="frontier")


def _references(entries: Sequence[Entry], view: View, axes: Axes) -> None:
    places = sorted({x for entry in entries if entry.row.items and (x := view.x(entry)) is not None})
    if places:
        label = "reference (1 by definition)"
        axes.plot(places, [1.0] * len(places), "*", color=INK, markersize=11, zorder=5, label=label, clip_on=False)


def _frame(family: str, view: View, marks: Sequence[Mark], axes: Axes) -> None:
    counts = sorted({mark.entry.retention.n for mark in marks if mark.entry.retention})
    items = f"n = {counts[0]:,}" if len(counts) == 1 else f"n = {counts[0]:,} to {counts[-1]:,}"
    axes.set_title(f"{view.title}: {family}", pad=22)
    told = (
        f"{items} paired items; vertical lines are 95 % intervals, the stepped line is the frontier of point estimates"
    )
    axes.text(0, 1.025, told, transform=axes.transAxes, color=FAINT, fontsize=8)
    axes.set_xlabel(view.axis)
    axes.set_ylabel("retention (score over the reference's, same items)")
    axes.grid(color=GRID, linewidth=0.6)
    axes.set_axisbelow(True)
    axes.margins(x=0.09, y=0.1)
    _scale(axes)
    if any(mark.entry.row.is_emulated for mark in marks):
        axes.plot([], [], "o", color=FAINT, markerfacecolor="white", markersize=6, label="emulated (size as if packed)")
    _, names = axes.get_legend_handles_labels()
    axes.legend(
        loc="upper left",
        bbox_to_anchor=(-0.02, -0.12),
        ncols=4 if sum(map(len, names)) <= LETTERS_IN_A_LINE else 2,
        fontsize=8,
        handletextpad=0.3,
        columnspacing=1.6,
    )


def _scale(axes: Axes) -> None:
    """Makes the horizontal axis logarithmic where its values span more than a factor of three."""
    from matplotlib.ticker import LogLocator, NullFormatter, NullLocator, StrMethodFormatter

    low, high = axes.dataLim.intervalx
    if low > 0 and high / low > 3:
        axes.set_xscale("log")
        axes.xaxis.set_major_locator(LogLocator(subs=TICKS))
        axes.xaxis.set_minor_locator(NullLocator())
        axes.xaxis.set_major_formatter(StrMethodFormatter("{x:g}"))
        axes.xaxis.set_minor_formatter(NullFormatter())


def _name(marks: Sequence[Mark], axes: Axes) -> None:
    """Writes each pipeline's name where it covers least, with a thin line where it had to go far."""
    frame, to_data = axes.get_window_extent(), axes.transData.inverted().transform
    texts = [axes.text(0, 0, mark.entry.row.label, fontsize=8, color=mark.colour, zorder=6) for mark in marks]
    labels, obstacles = [], _lines(axes)
    for mark, text in zip(marks, texts, strict=True):
        (x, y), extent = _shifted(mark, axes).transform((mark.x, mark.value)), text.get_window_extent()
        labels.append(Label(x, y, extent.width + 4, extent.height))
        low, high = (float(axes.transData.transform((mark.x, end))[1]) for end in mark.ends)
        obstacles += [Box(x - 7, y - 7, x + 7, y + 7), Box(x - 2, low, x + 2, high)]
    scene = Scene(tuple(obstacles), Box(frame.x0 + 2, frame.y0 + 2, frame.x1 - 2, frame.y1 - 2))
    for label, text, box in zip(labels, texts, scene.place(labels), strict=True):
        x, y = to_data((box.left + 2, box.bottom + 3))
        text.set_position((float(x), float(y)))
        near = (min(max(label.x, box.left), box.right), min(max(label.y, box.bottom), box.top))
        if (near[0] - label.x) ** 2 + (near[1] - label.y) ** 2 > 16**2:
            (x0, y0), (x1, y1) = to_data((label.x, label.y)), to_data(near)
            axes.plot([x0, x1], [y0, y1], color=text.get_color(), linewidth=0.5, alpha=0.7, zorder=2.5)


def _lines(axes: Axes) -> list[Box]:
    """Gives the frontiers, the line at 1 and the references' stars as thin boxes that names should leave readable."""
    found = []
    for line in axes.lines:
        if line.get_gid() == "frontier":
            corners = axes.transData.transform(line.get_path().vertices)
            for (x0, y0), (x1, y1) in pairwise(corners):
                found.append(Box(min(x0, x1) - 1, min(y0, y1) - 1, max(x0, x1) + 1, max(y0, y1) + 1))
        elif line.get_marker() == "*":
            stars = axes.transData.transform(line.get_xydata())
            found += [Box(x - 12, y - 12, x + 12, y + 12) for x, y in stars]
    one = float(axes.transData.transform((1.0, 1.0))[1])
    left, right = (float(end) for end in axes.get_window_extent().intervalx)
    return [*found, Box(left, one - 1, right, one + 1)]
