"""The tables of a report, each small enough to be read: summary, tasks, speed and memory, cost, and what did not run.

A mark behind a number leads to a note below the table. `†` the reference ran on another runtime or device, `‡` the two
did not answer the same items, numbers in parentheses are what emulated weights would weigh if they were packed.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from harness.reporters.summary import Entry, Summary
from harness.reporters.text import NOTHING, count, estimate, megabytes, metric, number, plain, seconds, table, times
from harness.statistics.items import Task

WORDS = ("Pipeline", "Runtime", "Outcome", "Reason", "What to do", "Steps", "Evaluation")
ELSEWHERE, PARTIAL = "†", "‡"
REFERENCE = "1 (reference)"
EMULATED = "emulated"
SPEEDS = (
    "Decode (tok/s)",
    "Decode speed-up",
    "Prefill (tok/s)",
    "Prefill speed-up",
    "TTFT",
    "Bandwidth used",
    "Peak memory (MB)",
    "Load",
)
COLUMNS = 6
"""Tasks side by side in one table."""


def summary_rows(summary: Summary, entries: Sequence[Entry]) -> list[dict[str, str]]:
    """Gives the main table's rows."""
    return [
        {
            **_names(summary, entry),
            "Bits/weight": _nominal(entry, number(entry.row.bits_per_weight)),
            "Size (MB)": _nominal(entry, megabytes(entry.row.size_bytes)),
            "Accuracy": _mean_accuracy(entry),
            "Retention [95 %]": retention(entry),
            "KL (nats)": metric(entry.row.first("kl_mean", evaluation="fidelity")),
            "Decode speed-up": speed(entry, "decode"),
            "Prefill speed-up": speed(entry, "prefill"),
            "Memory (MB)": EMULATED if entry.row.is_emulated else megabytes(_peak(entry)),
            "Time to deploy": seconds(entry.row.deploy_s),
            "Outcome": plain(entry.row.outcome),
        }
        for entry in entries
    ]


def summary_section(summary: Summary) -> Iterator[str]:
    """Yields a table a family, with the notes that its marks ask for."""
    for family in summary.families:
        entries = summary.of(family)
        yield f"### {plain(family)}"
        yield table(summary_rows(summary, entries), left=WORDS)
        notes = list(_marks(entries))
        if notes:
            yield "\n".join(f"- {note}" for note in notes)


def _marks(entries: Sequence[Entry]) -> Iterator[str]:
    elsewhere = sorted(
        {entry.comparison.reference.runtime for entry in entries if _is_elsewhere(entry) and entry.comparison}
    )
    if elsewhere:
        yield (
            f"{ELSEWHERE} no reference ran in the same place, so the one on {', '.join(map(plain, elsewhere))} "
            "stands in: the number holds the change of runtime too."
        )
    if any(entry.retention and entry.comparison and entry.comparison.is_partial for entry in entries):
        yield f"{PARTIAL} not all items were answered by both; the section on items says which were left out."
    if any(entry.row.is_emulated for entry in entries):
        yield (
            "Emulated: the weights were rounded but ran unpacked. Accuracy is real; sizes in parentheses are what "
            "packing would give; there is no speed to report."
        )


def _is_elsewhere(entry: Entry) -> bool:
    return entry.retention is not None and entry.comparison is not None and not entry.comparison.same_place


def _names(summary: Summary, entry: Entry) -> dict[str, str]:
    return {"Pipeline": plain(entry.row.label), "Runtime": plain(summary.place(entry))}


def _nominal(entry: Entry, shown: str) -> str:
    return f"({shown})" if entry.row.is_emulated and shown != NOTHING else shown


def _mean_accuracy(entry: Entry) -> str:
    means = [mean for task in entry.row.items if (mean := entry.row.accuracy(task)) is not None]
    return f"{sum(means) / len(means):.3f}" if means else NOTHING


def retention(entry: Entry) -> str:
    """Gives the suite-level retention with its marks."""
    if entry.row.is_reference:
        return REFERENCE if entry.row.items else NOTHING
    if entry.retention is None or entry.comparison is None:
        return NOTHING
    marks = (ELSEWHERE if _is_elsewhere(entry) else "") + (PARTIAL if entry.comparison.is_partial else "")
    return f"{estimate(entry.retention)} {marks}".rstrip()


def speed(entry: Entry, phase: str) -> str:
    """Gives a speed-up; `1 (reference)` for a reference that was timed."""
    found = entry.decode if phase == "decode" else entry.prefill
    if found.value is None and found.reason == "reference":
        return REFERENCE
    return EMULATED if entry.row.is_emulated else times(found.value)


def task_sections(summary: Summary) -> Iterator[str]:
    """Yields accuracy by task, retention by task and what was left out of them."""
    for family in summary.families:
        entries = [entry for entry in summary.of(family) if entry.row.items]
        tasks = [task for task in summary.tasks if any(task in entry.row.items for entry in entries)]
        for start in range(0, len(tasks), COLUMNS):
            shown = tasks[start : start + COLUMNS]
            yield f"### {plain(family)}: accuracy"
            yield table([_accuracies(summary, entry, shown) for entry in entries], left=WORDS)
        for start in range(0, len(tasks), COLUMNS - 1):
            shown = tasks[start : start + COLUMNS - 1]
            yield f"### {plain(family)}: retention, 95 % interval"
            yield table([_retentions(summary, entry, shown, start == 0) for entry in entries], left=WORDS)


def _accuracies(summary: Summary, entry: Entry, tasks: Sequence[Task]) -> dict[str, str]:
    cells = {}
    for task in tasks:
        mean = entry.row.accuracy(task)
        n = max(len(other.row.items.get(task, ())) for other in summary.of(entry.row.family))
        cells[f"{plain(summary.name(task))} (n = {n:,})"] = NOTHING if mean is None else f"{mean:.3f}"
    return {**_names(summary, entry), **cells}


def _retentions(summary: Summary, entry: Entry, tasks: Sequence[Task], with_all: bool) -> dict[str, str]:
    cells = {**_names(summary, entry)}
    is_compared = entry.retention is not None and entry.comparison is not None
    if with_all:
        cells["All tasks"] = retention(entry)
        cells["Above chance"] = REFERENCE if entry.row.is_reference else _above_chance(entry)
    for task in tasks:
        found = entry.comparison.of(task) if is_compared and entry.comparison else None
        own = REFERENCE if entry.row.is_reference and task in entry.row.items else NOTHING
        cells[plain(summary.name(task))] = estimate(found.retention) if found else own
    return cells


def _above_chance(entry: Entry) -> str:
    comparison = entry.comparison
    if entry.retention is None or comparison is None or comparison.corrected.value is None:
        return NOTHING
    known, tasks = comparison.with_chance, len(comparison.tasks)
    return estimate(comparison.corrected) + (f" ({known} of {count(tasks, 'task')})" if known < tasks else "")


def speed_section(summary: Summary) -> Iterator[str]:
    """Yields speed and memory, a table a family; emulated rows have no numbers here."""
    for family in summary.families:
        rows = [_speeds(summary, entry) for entry in summary.of(family) if entry.row.measured]
        if rows:
            yield f"### {plain(family)}"
            yield table(rows, left=WORDS)


def _speeds(summary: Summary, entry: Entry) -> dict[str, str]:
    row = entry.row
    if row.is_emulated:
        return {**_names(summary, entry), **dict.fromkeys(SPEEDS, EMULATED)}
    share = row.first("mbu", evaluation="probes.speed")
    first = {name: row.first(name, evaluation="probes.speed") for name in ("decode_tps", "prefill_tps", "ttft_s")}
    load = row.first("load_warm_s", evaluation="probes.load")
    return {
        **_names(summary, entry),
        "Decode (tok/s)": metric(first["decode_tps"]),
        "Decode speed-up": _with_ends(entry, "decode"),
        "Prefill (tok/s)": metric(first["prefill_tps"]),
        "Prefill speed-up": _with_ends(entry, "prefill"),
        "TTFT": seconds(first["ttft_s"].value if first["ttft_s"] else None),
        "Bandwidth used": f"{100 * share.value:.0f} %" if share else NOTHING,
        "Peak memory (MB)": megabytes(_peak(entry)),
        "Load": seconds(load.value if load else None),
    }


def _peak(entry: Entry) -> float | None:
    peak = entry.row.first("peak_bytes", evaluation="probes.memory")
    return peak.value if peak else None


def _with_ends(entry: Entry, phase: str) -> str:
    found = entry.decode if phase == "decode" else entry.prefill
    if found.interval is None:
        return speed(entry, phase)
    return f"{times(found.value)} [{found.interval.low:.2f}, {found.interval.high:.2f}]"


def cost_section(summary: Summary) -> Iterator[str]:
    """Yields what compressing cost: every step after the fetch, and the time to deploy."""
    rows = [_costs(summary, entry) for entry in summary.entries if entry.row.artifact and entry.row.artifact.costs]
    if rows:
        yield table(rows, left=("Family", *WORDS))


def _costs(summary: Summary, entry: Entry) -> dict[str, str]:
    artifact = entry.row.artifact
    assert artifact is not None
    steps = artifact.costs[1:]
    return {
        "Family": plain(entry.row.family),
        **_names(summary, entry),
        "Steps": " → ".join(f"{plain(cost.step)} {seconds(cost.wall_s)}" for cost in steps) or "none",
        "Time to deploy": seconds(entry.row.deploy_s),
        "CPU": seconds(sum(cost.cpu_s for cost in steps)),
        "Peak memory (MB)": megabytes(max((cost.peak_bytes for cost in steps), default=None)),
        "Tokens": f"{sum(cost.tokens for cost in steps):,}",
    }


def trouble_section(summary: Summary) -> Iterator[str]:
    """Yields what did not run and why, cells and single evaluations."""
    rows = [
        {
            "Pipeline": f"{plain(entry.row.family)} / {plain(entry.row.label)}",
            "Runtime": plain(summary.place(entry)),
            "Evaluation": evaluation,
            "Outcome": outcome,
            "Reason": plain(reason) or NOTHING,
            "What to do": plain(advice) or NOTHING,
        }
        for entry in summary.entries
        for evaluation, outcome, reason, advice in _troubles(entry)
    ]
    if rows:
        yield table(rows, left=WORDS)


def _troubles(entry: Entry) -> Iterator[tuple[str, str, str, str]]:
    for record in entry.row.records:
        if not record.outcome.is_measured:
            error = record.error
            reason = f"{error.phase}: {error.reason}" if error else ""
            advice = (error.advice if error else "") or record.outcome.advice
            yield f"all of {plain(record.cell.suite.name)}", record.outcome.value, reason, advice
        for gap in record.gaps:
            yield plain(gap.evaluation), "gap", gap.reason, gap.remedy


def items_section(summary: Summary) -> Iterator[str]:
    """Yields the items that could not be compared, by row and task; nothing where all could."""
    lines = []
    for entry in summary.entries:
        if entry.comparison is None or entry.row.is_reference:
            continue
        where = f"{plain(entry.row.family)} / {plain(entry.row.label)} on {plain(summary.place(entry))}"
        lines += [f"{where}, {plain(summary.name(task))}: not answered at all" for task in entry.comparison.absent]
        for found in entry.comparison.tasks:
            parts = (
                (found.missing, "missing here"),
                (found.extra, "missing in the reference"),
                (found.unlike, "asked with another prompt"),
            )
            told = [f"{count(items, 'item')} {what}" for items, what in parts if items]
            if told:
                lines.append(f"{where}, {plain(summary.name(found.task))}: {', '.join(told)}; {found.n:,} compared")
    if lines:
        yield "\n".join(f"- {line}" for line in lines)


def runtime_section(summary: Summary) -> Iterator[str]:
    """Yields what a change of runtime alone does to the uncompressed references: noise that any difference may hold."""
    rows = []
    for family in summary.families:
        references = [entry for entry in summary.of(family) if entry.row.is_reference and entry.row.items]
        for entry in references[1:]:
            if entry.comparison is not None and entry.comparison.reference is references[0].row:
                changed = [found.changed_share for found in entry.comparison.tasks if found.changed_share is not None]
                rows.append(
                    {
                        "Family": plain(family),
                        "Runtime": plain(summary.place(entry)),
                        "Against": plain(summary.place(references[0])),
                        "Retention [95 %]": estimate(entry.comparison.retention),
                        "Answers changed": f"{100 * sum(changed) / len(changed):.1f} %" if changed else NOTHING,
                        "Items": f"{entry.comparison.retention.n:,}",
                    }
                )
    if rows:
        yield table(rows, left=("Family", "Against", *WORDS))
