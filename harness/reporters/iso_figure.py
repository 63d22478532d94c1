"""What is left against bytes, one line for each way to get there: the picture of "best at equal size"."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from harness.record import Interval
from harness.reporters.canvas import COLOURS, FAINT, GRID, INK, MARKERS, figure
from harness.reporters.isobytes import AS_IT_CAME, ORDER, SAID, classes, way
from harness.reporters.labels import Box, Label, Scene
from harness.reporters.pareto import TICKS
from harness.reporters.variants import KL, SCORE, Measure, Names, Variant, aligned, places, reference_of
from harness.statistics.attribution import effect
from harness.statistics.intervals import mean_interval

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

WIDTH, HEIGHT = 7.6, 4.6
AXES = {SCORE: "mean score, more is better", KL: "KL from the reference (nats a token), less is better"}
TOLD = {
    SCORE: "bars: 95 % interval of the paired difference from the reference; lines join a way's best of each size",
    KL: "bars: 95 % interval over windows of text; lines join a way's best of each size",
}
WAYS = tuple(f"{SAID[kind]} only" for kind in ORDER)
"""The ways that have a colour of their own in every figure; combinations take those that are left, by name."""


@dataclass(frozen=True)
class Point:
    """A variant in the picture: bytes in MB, the number, and how sure it is."""

    variant: Variant
    megabytes: float
    value: float
    ends: tuple[float, float] | None


def draw(found: Sequence[Variant], names: Names) -> Figure | None:
    """Gives a panel for each place and measure in which compressed variants have sizes; None when there is none."""
    each = [(measure, _points(here, measure)) for here in places(found) for measure in (SCORE, KL)]
    panels = [(measure, points) for measure, points in each if len(_ways(points) - {AS_IT_CAME}) > 1]
    if not panels:
        return None
    made = figure(WIDTH, HEIGHT * len(panels))
    drawn = made.subplots(len(panels), 1, squeeze=False)[:, 0]
    looks = _looks([point for _, points in panels for point in points])
    for (measure, points), axes in zip(panels, drawn, strict=True):
        _panel(measure, points, looks, axes)
        axes.set_title(
            f"{'Score' if measure is SCORE else 'KL'} at equal size: {names.place(points[0].variant)}", pad=22
        )
    made.tight_layout(h_pad=2.5)
    made.canvas.draw()
    for (_, points), axes in zip(panels, drawn, strict=True):
        _name(points, looks, axes)
    return made


def _points(here: Sequence[Variant], measure: Measure) -> list[Point]:
    reference = reference_of(here[0], here)
    found = []
    for variant in here:
        shared, size = aligned([variant], measure), variant.row.size_bytes
        # The reference is at no distance from itself, which has no place on a logarithmic axis.
        if shared and size and not (measure is KL and variant.row.is_reference):
            value = shared.means[0]
            found.append(Point(variant, size / 1e6, value, _ends(variant, reference, measure, value)))
    return sorted(found, key=lambda point: (point.megabytes, point.variant.row.label))


def _ends(variant: Variant, reference: Variant | None, measure: Measure, value: float) -> tuple[float, float] | None:
    interval: Interval | None = None
    if measure is SCORE and reference and reference is not variant:
        shared = aligned([reference, variant], measure)
        if shared and (interval := effect(shared.tasks).interval):
            base = shared.means[0]
            return (base + interval.low, base + interval.high)
    if measure is KL:
        shared = aligned([variant], measure)
        interval = mean_interval(shared.tasks[0].columns[0]) if shared and len(shared.tasks) == 1 else None
        return (max(0.0, interval.low), interval.high) if interval else None
    return None


def _ways(points: Sequence[Point]) -> set[str]:
    return {way(point.variant) for point in points}


Looks = dict[str, tuple[str, str]]


def _looks(points: Sequence[Point]) -> Looks:
    """Gives every way a colour and a mark."""
    found = _ways(points)
    ordered = [one for one in WAYS if one in found] + sorted(found - {AS_IT_CAME, *WAYS})
    looks = {one: (COLOURS[i % len(COLOURS)], MARKERS[i % len(MARKERS)]) for i, one in enumerate(ordered)}
    return {**looks, AS_IT_CAME: (FAINT, "p")}


def _panel(measure: Measure, points: Sequence[Point], looks: Looks, axes: Axes) -> None:
    for one, (colour, mark) in looks.items():
        own = [point for point in points if way(point.variant) == one]
        line = _best(own, measure)
        axes.plot(
            [p.megabytes for p in line], [p.value for p in line], color=colour, linewidth=1.3, alpha=0.5, zorder=2
        )
        for point in own:
            _draw_point(point, colour, mark, axes)
        if any(not point.variant.row.is_reference for point in own):
            axes.plot([], [], mark, color=colour, markersize=6, label=one)
    if any(point.variant.row.is_reference for point in points):
        axes.plot([], [], "*", color=INK, markersize=10, label="reference")
    if any(point.variant.row.is_emulated for point in points):
        axes.plot([], [], "o", color=FAINT, markerfacecolor="white", markersize=6, label="emulated (size as if packed)")
    _frame(measure, points, axes)


def _best(points: Sequence[Point], measure: Measure) -> list[Point]:
    """Gives the best point of each class of sizes, smallest first."""
    by_variant = {id(point.variant): point for point in points}
    pick = max if measure.higher_is_better else min
    sizes = classes([point.variant for point in points])
    return [pick((by_variant[id(one)] for one in members), key=lambda point: point.value) for members in sizes]


def _draw_point(point: Point, colour: str, mark: str, axes: Axes) -> None:
    if point.ends:
        axes.plot([point.megabytes] * 2, point.ends, color=colour, linewidth=1.1, alpha=0.5, zorder=3)
    is_reference = point.variant.row.is_reference
    axes.plot(
        [point.megabytes],
        [point.value],
        "*" if is_reference else mark,
        color=INK if is_reference else colour,
        markerfacecolor="white" if point.variant.row.is_emulated else INK if is_reference else colour,
        markersize=11 if is_reference else 5.5,
        zorder=4,
    )


def _frame(measure: Measure, points: Sequence[Point], axes: Axes) -> None:
    from matplotlib.ticker import LogLocator, NullFormatter, StrMethodFormatter

    axes.text(0, 1.025, TOLD[measure], transform=axes.transAxes, color=FAINT, fontsize=8)
    sizes, values = [point.megabytes for point in points], [point.value for point in points]
    if max(sizes) > 3 * min(sizes):
        axes.set_xscale("log")
        axes.xaxis.set_major_locator(LogLocator(subs=TICKS))
        axes.xaxis.set_major_formatter(StrMethodFormatter("{x:g}"))
        axes.xaxis.set_minor_formatter(NullFormatter())
    if measure is KL and min(values) > 0 and max(values) > 10 * min(values):
        axes.set_yscale("log")
        axes.yaxis.set_major_formatter(StrMethodFormatter("{x:g}"))
        axes.yaxis.set_minor_formatter(NullFormatter())
    axes.set_xlabel("weights on disk (MB), less is better")
    axes.set_ylabel(AXES[measure])
    axes.grid(color=GRID, linewidth=0.6)
    axes.set_axisbelow(True)
    axes.margins(x=0.09, y=0.12)
    axes.legend(loc="upper left", bbox_to_anchor=(-0.02, -0.13), ncols=3, fontsize=8, handletextpad=0.3)


def _name(points: Sequence[Point], looks: Looks, axes: Axes) -> None:
    """Writes each pipeline's name where it covers least."""
    frame, to_pixels = axes.get_window_extent(), axes.transData.transform
    labels, texts, obstacles = [], [], []
    for point in points:
        colour = INK if point.variant.row.is_reference else looks[way(point.variant)][0]
        text = axes.text(0, 0, point.variant.row.label, fontsize=7.5, color=colour, zorder=6)
        (x, y), extent = to_pixels((point.megabytes, point.value)), text.get_window_extent()
        texts.append(text)
        labels.append(Label(float(x), float(y), extent.width + 4, extent.height))
        obstacles.append(Box(x - 7, y - 7, x + 7, y + 7))
        # A bar that ends at zero has no end on a logarithmic axis; it counts from the point down to the frame.
        ends = point.ends or (point.value, point.value)
        low, high = (float(to_pixels((point.megabytes, end or point.value))[1]) for end in ends)
        obstacles.append(Box(x - 2, low, x + 2, high))
    scene = Scene(tuple(obstacles), Box(frame.x0 + 2, frame.y0 + 2, frame.x1 - 2, frame.y1 - 2))
    for text, box in zip(texts, scene.place(labels), strict=True):
        x, y = axes.transData.inverted().transform((box.left + 2, box.bottom + 3))
        text.set_position((float(x), float(y)))
