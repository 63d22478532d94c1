"""What the command line prints, as lines and tables made from values; prints nothing itself."""

from __future__ import annotations

import dataclasses
import inspect
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path

from rich.table import Table

from harness import environments, plugins, successors
from harness.errors import PluginNotFound, closest
from harness.estimate import Estimate
from harness.plan import Item, Plan, Status
from harness.record import Record
from harness.statistics.power import required_items


def table(columns: Sequence[str], rows: Sequence[Sequence[str]]) -> Table:
    """Gives a plain table."""
    made = Table(*columns, box=None, pad_edge=False, header_style="bold")
    for row in rows:
        made.add_row(*row)
    return made


def plan_lines(plan: Plan, estimate: Estimate | None) -> Iterator[str]:
    """Yields a plan for reading: counts, the cells with their builds, refusals and exclusions with reasons."""
    counts = Counter(item.status for item in plan.items)
    told = ", ".join(f"{counts[status]} {word}" for status, word in _STATUS.items() if counts[status])
    yield f"{plan.matrix.name}: {told}"
    yield from (f"  {note}" for note in plan.matrix.notes)
    shown: set[str] = set(plan.cached)
    for item in plan.with_status("run"):
        yield f"  run       {item.cell}"
        for build in plan.builds_for(item):
            if build.key not in shown:
                shown.add(build.key)
                yield f"              build  {build.label}  [{build.environment.name}]"
    cached = [build for build in plan.builds.values() if build.key in plan.cached]
    for build in cached:
        yield f"  cached    {build.label}  ({build.key})"
    for status in ("refused", "excluded", "done"):
        reasons = dict.fromkeys(_why(item) for item in plan.with_status(status))
        for reason in reasons:
            yield f"  {status:9} {reason}".rstrip()
            yield from (f"              {item.cell}" for item in plan.with_status(status) if _why(item) == reason)
    if estimate is not None:
        yield f"time: {estimate}"
        yield from _power_lines()


_STATUS: dict[Status, str] = {"run": "to run", "done": "done", "refused": "refused", "excluded": "excluded"}


def _why(item: Item) -> str:
    return item.reason + (f" -> {item.remedy}" if item.remedy else "")


def _power_lines() -> Iterator[str]:
    """Yields how many items a comparison needs: paired, one-sided 5 %, 80 % power, when the true loss is zero."""
    yield "items each comparison needs to show a loss below a margin (answers that differ: 2 %, 10 % of items):"
    for margin in (0.01, 0.02, 0.05):
        few, many = (required_items(discordance=share, margin=margin) for share in (0.02, 0.10))
        yield f"  margin {margin:.0%}: {few:,} to {many:,} items"


def plugin_table(home: Path) -> Table:
    """Gives every installed plug-in, what it requires and whether, and where, it can run here."""
    found = environments.found(home)
    rows = []
    for item in plugins.listings():
        where = [environment.name for environment in found if (item.kind, item.name) in environment.serves]
        state = f"broken: {item.broken}" if item.broken else ", ".join(where) or f"no: lacks {', '.join(item.missing)}"
        rows.append([item.kind[:-1], item.name, ", ".join(item.requirements) or "-", state, item.distribution])
    return table(["kind", "name", "needs", "runs in environment", "from"], rows)


def explanation(name: str) -> str:
    """Gives a plug-in's docstring and its arguments with defaults. Raises PluginNotFound."""
    if name in successors.STAGES:
        successor = successors.STAGES[name]
        return f"{name}: {successor.status}.\n\n{explanation(successor.stage)}"
    kinds = [kind for kind in plugins.KINDS if name in plugins.installed(kind)]
    if not kinds:
        every = [other for kind in plugins.KINDS for other in plugins.installed(kind)]
        remedy = closest(name, every) or "`harness list` shows what is installed"
        raise PluginNotFound(f"there is no plug-in {name!r}", found=name, allowed=every, remedy=remedy)
    return "\n\n".join(_explained(kind, name) for kind in kinds)


def _explained(kind: plugins.Kind, name: str) -> str:
    plugin = plugins.load(kind, name)
    lines = [f"{name} ({kind[:-1]}, version {plugin.version})", "", inspect.getdoc(plugin) or "", "", "Arguments:"]
    for field in dataclasses.fields(plugin):
        default = "" if field.default is dataclasses.MISSING else f" = {field.default!r}"
        shape = field.type if isinstance(field.type, str) else inspect.formatannotation(field.type)
        lines.append(f"  {field.name}: {shape}{default}")
    return "\n".join(lines)


def ending(plan: Plan, records: Sequence[Record], root: Path) -> Iterator[str]:
    """Yields what came of a run: counts by outcome, each failure with its advice, and where the records are."""
    counts = Counter(str(record.outcome) for record in records)
    skipped = len(plan.with_status("done"))
    told = ", ".join(f"{count} {outcome}" for outcome, count in sorted(counts.items()))
    yield f"{told or 'nothing new'}{f', {skipped} recorded before' if skipped else ''}; records in {root}"
    for record in records:
        if record.error:
            yield f"  {record.outcome}: {record.cell}: {record.error.reason}"
            if record.error.advice:
                yield f"      -> {record.error.advice}"
        for gap in record.gaps:
            yield f"  gap: {record.cell}: {gap.evaluation}: {gap.reason}{f' -> {gap.remedy}' if gap.remedy else ''}"
