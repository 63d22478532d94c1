"""The nights of a matrix as series: what moved, when, and what has not moved although it should."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar, final

from harness.interfaces import Results
from harness.record import Observation, Record
from harness.reporters import canvas
from harness.reporters.export import Flat, write_csv
from harness.reporters.frame import Row, rows
from harness.reporters.text import NOTHING, number, plain, table
from harness.statistics.trend import Change, changes, frozen, normalized

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

NOON = timedelta(hours=12)
"""What runs from one noon to the next is one night."""
FROZEN_NIGHTS = 3
SEED = 20260101
"""Of the shuffles; the same records give the same page."""
WORDS = ("Series", "Measure", "Moved", "Note")


@dataclass(frozen=True)
class Measure:
    """A number a night; `canary` says that the reference of the same night cancels the machine in it."""

    key: str
    name: str
    canary: bool
    is_noisy: bool


SCORE = Measure("score", "mean score", False, False)
KL = Measure("kl_mean", "KL (nats)", False, False)
DECODE = Measure("decode_tps", "decode, of the reference's", True, True)
PREFILL = Measure("prefill_tps", "prefill, of the reference's", True, True)
MEASURES = (SCORE, KL, DECODE, PREFILL)


@dataclass(frozen=True)
class Series:
    """One measure of one configuration over all nights; None where a night has no number."""

    label: str
    measure: Measure
    values: tuple[float | None, ...]
    compared: tuple[float | None, ...]
    moved: tuple[Change, ...] = ()
    still: int | None = None

    @property
    def known(self) -> list[float]:
        """The numbers there are."""
        return [value for value in self.values if value is not None]


@final
@dataclass(frozen=True)
class Trend:
    """Writes `trend.md`, `trend.csv` and the figure `trend`.

    Does:   Draws each configuration's mean score, divergence and speed night by night, and notes changes of level
            and noisy numbers that are the very same several nights running.
    Needs:  Records of two nights or more, as a nightly run keeps them; nothing is written for one.
    Why:    A loss too small for any one night's gate adds up, and a number that never moves was not measured.
    Known:  Notes never fail anything. A night is what began between two noons (UTC); of several runs in it the last one
            counts. Speeds are ratios to the family's reference of the same night, runtime and device, which takes a
            slow machine out. Steps in the last four nights are not seen yet.
    Source: Circular binary segmentation with a permutation test: Olshen et al. 2004 (see `statistics.trend`).
    """

    version: ClassVar[str] = "1"
    requirements: ClassVar[tuple[str, ...]] = ("matplotlib", "pandas", "scipy", "tabulate")
    extra: ClassVar[str | None] = "analysis"

    def render(self, results: Results, out: Path) -> Iterable[Path]:
        nights = by_night(results.records)
        if len(nights) < 2:
            return []
        found = list(series_of(nights))
        with canvas.style():
            figures = canvas.save(_draw(found, list(nights)), out, "trend") if found else []
        page = out / "trend.md"
        page.write_text("\n\n".join(_page(found, list(nights))) + "\n", encoding="utf-8", newline="\n")
        return [page, write_csv(_flat(found, list(nights)), out / "trend.csv"), *figures]


@dataclass(frozen=True)
class _Night:
    """One night's records as a reporter reads them; a trend needs no rows."""

    records: Sequence[Record]

    def observations(self, record: Record) -> Sequence[Observation]:
        return ()


def by_night(records: Iterable[Record]) -> dict[str, list[Record]]:
    """Groups records by the date on which their night began, oldest first; of a cell's records the last one counts."""
    nights: dict[str, dict[str, Record]] = defaultdict(dict)
    for record in sorted((one for one in records if one.started_at), key=lambda one: one.started_at):
        began = datetime.fromisoformat(record.started_at) - NOON
        nights[began.date().isoformat()][record.cell.id] = record
    return {night: list(found.values()) for night, found in sorted(nights.items())}


def series_of(nights: Mapping[str, Sequence[Record]]) -> Iterator[Series]:
    """Yields every series that has a number in two nights or more."""
    import numpy as np

    measured = {night: _numbers(records) for night, records in nights.items()}
    labels = sorted({label for found in measured.values() for label, _, _ in found})
    for label in labels:
        for measure in MEASURES:
            values = [measured[night].get((label, measure.key, "own")) for night in nights]
            if sum(value is not None for value in values) < 2:
                continue
            compared = tuple(values)
            if measure.canary:
                canary = [measured[night].get((label, measure.key, "reference")) for night in nights]
                compared = normalized(values, canary, scale="ratio")
                if label.endswith("(reference)") or not any(value is not None for value in compared):
                    continue
            yield Series(
                label,
                measure,
                tuple(values),
                compared,
                changes(compared, generator=np.random.default_rng(SEED)),
                frozen(values, FROZEN_NIGHTS) if measure.is_noisy else None,
            )


def _numbers(records: Sequence[Record]) -> dict[tuple[str, str, str], float]:
    """Gives each configuration's numbers of a night, and those of its reference in the same place."""
    found = rows(_Night(records))
    numbers: dict[tuple[str, str, str], float] = {}
    references = {_place(row): row for row in found if row.is_reference}
    for row in found:
        label = f"{row.family} / {row.label} / {row.runtime}{' (reference)' if row.is_reference else ''}"
        for measure in MEASURES:
            if (value := _value(row, measure)) is not None:
                numbers[label, measure.key, "own"] = value
            other = references.get(_place(row))
            if other is not None and (value := _value(other, measure)) is not None:
                numbers[label, measure.key, "reference"] = value
    return numbers


def _place(row: Row) -> tuple[str, str, str, int]:
    return (row.family, row.cell.runtime.id, row.cell.hardware.id, row.cell.seed)


def _value(row: Row, measure: Measure) -> float | None:
    """Gives a row's number: the mean of the tasks' scores, or the first metric of that name."""
    if measure is SCORE:
        scores = [metric.value for metric in row.metrics if metric.name == "score"]
        return sum(scores) / len(scores) if scores else None
    if measure.canary and row.is_emulated:
        return None
    found = next((metric.value for metric in row.metrics if metric.name == measure.key), None)
    return found if found is None or not measure.canary or found > 0 else None


def _page(found: Sequence[Series], nights: Sequence[str]) -> Iterator[str]:
    yield f"# {len(nights)} nights, {nights[0]} to {nights[-1]}"
    yield (
        "Changes of level are notes and fail nothing: alpha .001 for each series each time this page is made. Speeds "
        "are shown as measured and tested as ratios to the reference of the same night."
    )
    if not found:
        yield "No series has a number in two nights."
        return
    noted = sorted(found, key=lambda one: (not one.moved, one.still is None))
    yield table([_told(one, nights) for one in noted], left=WORDS)
    yield "![Every series, night by night](trend.png)"


def _told(one: Series, nights: Sequence[str]) -> dict[str, str]:
    moved = "; ".join(f"{nights[change.night_index]}: {_level(one, change)}" for change in one.moved)
    still = f"the very same number for {one.still} nights: was it measured?" if one.still else NOTHING
    return {
        "Series": plain(one.label),
        "Measure": one.measure.name.partition(",")[0],
        "Nights": str(len(one.known)),
        "First": number(one.known[0]),
        "Last": number(one.known[-1]),
        "Moved": moved or NOTHING,
        "Note": still,
    }


def _level(one: Series, change: Change) -> str:
    if one.measure.canary:
        return f"{100 * (change.after - change.before):+.1f} % against the reference"
    return f"{number(change.before)} to {number(change.after)}"


def _flat(found: Sequence[Series], nights: Sequence[str]) -> list[Flat]:
    return [
        {
            "series": one.label,
            "measure": one.measure.key,
            "night": night,
            "value": value,
            "against_reference": other if one.measure.canary else None,
            "level_changed": any(nights[change.night_index] == night for change in one.moved),
        }
        for one in found
        for night, value, other in zip(nights, one.values, one.compared, strict=True)
    ]


def _draw(found: Sequence[Series], nights: Sequence[str]) -> Figure:
    """Draws one panel a measure, a line a configuration, and a mark where a level changed."""
    panels = [measure for measure in MEASURES if any(one.measure == measure for one in found)]
    drawn = canvas.figure(8.0, 2.6 * len(panels) + 0.6)
    for index, measure in enumerate(panels, start=1):
        axes = drawn.add_subplot(len(panels), 1, index)
        _panel(axes, [one for one in found if one.measure == measure], nights)
    drawn.tight_layout()
    return drawn


def _panel(axes: Axes, found: Sequence[Series], nights: Sequence[str]) -> None:
    places = range(len(nights))
    for index, one in enumerate(found):
        colour = canvas.COLOURS[index % len(canvas.COLOURS)]
        marker = canvas.MARKERS[index % len(canvas.MARKERS)]
        shown = one.compared if one.measure.canary else one.values
        known = [(place, value) for place, value in zip(places, shown, strict=True) if value is not None]
        axes.plot(*zip(*known, strict=True), color=colour, marker=marker, markersize=3.5, linewidth=1, label=one.label)
        for change in one.moved:
            axes.axvline(change.night_index - 0.5, color=colour, linestyle="--", linewidth=1)
    unit = "ln ratio to the reference" if found[0].measure.canary else found[0].measure.name
    axes.set_title(found[0].measure.name)
    axes.set_ylabel(unit)
    step = max(1, len(nights) // 6)
    axes.set_xticks(list(places)[::step], [night[5:] for night in nights][::step])
    axes.grid(color=canvas.GRID)
    axes.set_axisbelow(True)
    axes.legend(fontsize=7, loc="upper left", bbox_to_anchor=(1.0, 1.0))
