"""The first lines of a report: what is worth choosing, what cannot be told apart, and what breaks.

Wording matters more than anywhere else. An interval that holds 1 says that these items cannot tell two models apart,
not that they are the same; it comes with the loss it still allows. Of many comparisons a few look like losses by chance
alone; how many is said.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from harness.reporters.comparison import TaskComparison
from harness.reporters.summary import Entry, Summary, by_size, by_speed
from harness.reporters.text import count, estimate, listed, megabytes, plain, times


def answer(summary: Summary) -> list[str]:
    """Gives the paragraphs: for every family its caveats, then its sentences."""
    found: list[str] = []
    for family in summary.families:
        entries = summary.of(family)
        found.append(f"**{plain(family)}**")
        found += [f"> **Caveat about the reference itself:** {plain(label)}" for label in _caveats(entries)]
        sentences = list(_sentences(summary, entries))
        found.append("\n".join(f"- {sentence}" for sentence in sentences))
    return found


def _caveats(entries: Sequence[Entry]) -> list[str]:
    labels = [label for entry in entries if entry.row.is_reference for label in entry.row.labels]
    return list(dict.fromkeys(labels))


def _sentences(summary: Summary, entries: Sequence[Entry]) -> Iterator[str]:
    compared = [entry for entry in entries if entry.retention]
    if not compared:
        yield _why_nothing(entries)
        return
    yield from _frontiers(summary, entries)
    yield from _indistinct(summary, compared)
    yield from _broken(summary, compared)


def _why_nothing(entries: Sequence[Entry]) -> str:
    if not any(entry.row.measured for entry in entries):
        return "Nothing ran: the reasons are below."
    if not any(entry.row.is_reference and entry.row.items for entry in entries):
        return "Nothing can be said about what was kept: no task of the family's reference was measured."
    return "Nothing can be said about what was kept: no compressed model answered the reference's items."


def _name(summary: Summary, entry: Entry) -> str:
    return f"{plain(entry.row.label)} on {plain(summary.place(entry))}"


def _frontiers(summary: Summary, entries: Sequence[Entry]) -> Iterator[str]:
    small = by_size(entries)
    if small:
        shown = [
            f"{_name(summary, e)} ({megabytes(e.row.size_bytes)} MB, keeps {estimate(e.retention)})" for e in small
        ]
        yield f"Smallest for what it keeps (nothing measured is both smaller and keeps more): {listed(shown)}."
    for place in sorted({summary.place(entry) for entry in entries}):
        fast = by_speed([entry for entry in entries if summary.place(entry) == place])
        if fast:
            shown = [f"{plain(e.row.label)} ({times(e.decode.value)}, keeps {estimate(e.retention)})" for e in fast]
            yield f"Fastest decoding for what it keeps on {plain(place)}: {listed(shown)}."
    if small:
        yield "These lists go by point estimates: where intervals overlap, the order may be luck."


def _indistinct(summary: Summary, compared: Sequence[Entry]) -> Iterator[str]:
    same = [entry for entry in compared if entry.is_indistinct]
    if not same:
        yield "No compressed model's interval over all tasks holds 1: each differs measurably, or has no interval."
        return
    shown = []
    for entry in same:
        assert entry.retention is not None
        assert entry.retention.interval is not None
        lost = f"{100 * (1 - entry.retention.interval.low):.1f} %"
        shown.append(f"{_name(summary, entry)} (n = {entry.retention.n:,}; may have lost up to {lost})")
    yield f"Not distinguishable from the reference over all tasks, which is not the same as lossless: {listed(shown)}."


def _broken(summary: Summary, compared: Sequence[Entry]) -> Iterator[str]:
    worse, better, tested = [], [], 0
    for entry in compared:
        assert entry.comparison is not None
        known = [found for found in entry.comparison.tasks if found.retention.interval is not None]
        away = sorted((found for found in known if found.retention.excludes(1)), key=_task_value)
        tested += len(known)
        losses, gains = [t for t in away if _task_value(t) < 1], [t for t in away if _task_value(t) > 1]
        if losses:
            shown = f"worst {plain(summary.name(losses[0].task))} {estimate(losses[0].retention)}"
            told = f"{_name(summary, entry)} ({len(losses)} of {count(len(known), 'task')}, {shown})"
            worse.append((_task_value(losses[0]), told))
        better += [
            f"{_name(summary, entry)} on {plain(summary.name(gain.task))} ({estimate(gain.retention)})"
            for gain in gains
        ]
    if worse:
        yield f"What breaks (tasks whose interval lies wholly below 1): {listed([told for _, told in sorted(worse)])}."
    else:
        yield "No single task shows a loss that these items can tell from luck."
    if better:
        yield f"Wholly above 1, to be doubted before believed: {listed(better, most=4)}."
    yield (
        f"Of {count(tested, 'comparison')} of a single task, about {0.025 * tested:.1f} would lie wholly below 1, and "
        "as many above, by chance alone if nothing had changed."
    )


def _task_value(found: TaskComparison) -> float:
    assert found.retention.value is not None
    return found.retention.value
