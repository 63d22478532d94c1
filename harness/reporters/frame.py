"""From records to rows: one row is one compressed model on one runtime and device, whatever suites measured it.

Accuracy and speed often come from different suites and so from different cells; a reader wants them in one line. Where
two suites ask the same task, one of them speaks for all rows alike, so that nobody is compared with another's prompts.
Only cells that carry numbers give any; the others stay as rows with a reason.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

from harness.interfaces import Results
from harness.record import ArtifactFacts, Identity, Metric, Outcome, Record
from harness.spec import Cell
from harness.statistics.items import Item, Task, scored


@dataclass(frozen=True, eq=False)
class Row:
    """The records of one configuration, one a suite, with the items and metrics that count.

    `label` names the pipeline, and the model too where a family has several.
    """

    records: tuple[Record, ...]
    label: str
    runtime: str
    items: Mapping[Task, Mapping[str, Item]]
    metrics: tuple[Metric, ...]

    @property
    def cell(self) -> Cell:
        """The first suite's cell; all of a row's cells agree on everything but the suite."""
        return self.records[0].cell

    @property
    def family(self) -> str:
        """The family's name."""
        return self.cell.model.family

    @property
    def is_reference(self) -> bool:
        """True for a family's reference as it came."""
        return self.cell.is_reference

    @property
    def measured(self) -> tuple[Record, ...]:
        """The records that carry numbers."""
        return tuple(record for record in self.records if record.outcome.is_measured)

    @property
    def is_emulated(self) -> bool:
        """True when the weights that ran were not packed: speed and memory are not those of the method."""
        return any(record.outcome is Outcome.EMULATED for record in self.records)

    @property
    def outcome(self) -> str:
        """The outcome in a word, or every suite's where they differ."""
        if len({record.outcome for record in self.records}) == 1:
            return self.records[0].outcome.value
        return ", ".join(f"{record.cell.suite.name}: {record.outcome.value}" for record in self.records)

    @property
    def artifact(self) -> ArtifactFacts | None:
        """The artifact's facts, when it was built."""
        return next((record.artifact for record in self.records if record.artifact), None)

    @property
    def identity(self) -> Identity | None:
        """What was loaded, when something was."""
        return next((record.identity for record in self.measured if record.identity), None)

    @property
    def bits_per_weight(self) -> float | None:
        """Bits per weight as loaded; for emulated rows what they would be if packed."""
        identity = self.identity
        if identity is None:
            return None
        if not self.is_emulated:
            return identity.bits_per_weight
        nominal = self.artifact.nominal_bytes if self.artifact else None
        return None if nominal is None else 8 * nominal / identity.parameters

    @property
    def size_bytes(self) -> int | None:
        """Bytes of weights on disk; for emulated rows what they would be if packed."""
        if self.is_emulated:
            return self.artifact.nominal_bytes if self.artifact else None
        return self.identity.weights_disk_bytes if self.identity else None

    @property
    def deploy_s(self) -> float | None:
        """Seconds from the fetched source to a model that can be opened: all steps but the fetch, which comes first."""
        if self.artifact is None or not self.artifact.costs:
            return None
        return sum(cost.wall_s for cost in self.artifact.costs[1:])

    @property
    def labels(self) -> tuple[str, ...]:
        """Sentences that every report must repeat."""
        return self.artifact.labels if self.artifact else ()

    @cached_property
    def _by_name(self) -> dict[str, list[Metric]]:
        found: dict[str, list[Metric]] = defaultdict(list)
        for metric in self.metrics:
            found[metric.name].append(metric)
        return found

    def named(self, name: str, *, evaluation: str) -> list[Metric]:
        """Gives an evaluation's metrics of a name, one a task, in the order of `task_order`."""
        found = [metric for metric in self._by_name.get(name, []) if metric.evaluation == evaluation]
        return sorted(found, key=lambda metric: task_order(metric.task))

    def first(self, name: str, *, evaluation: str) -> Metric | None:
        """Gives the first of `named`."""
        return next(iter(self.named(name, evaluation=evaluation)), None)

    def accuracy(self, task: Task) -> float | None:
        """Gives the mean score of a task over the items this row answered."""
        items = self.items.get(task)
        return sum(item.score for item in items.values()) / len(items) if items else None


def task_order(task: str) -> tuple[int, list[int], str]:
    """Orders tasks by the numbers in their names where they have some: `decode 128x1` before `decode 1024x1`."""
    numbers = [int(part) for part in "".join(c if c.isdigit() else " " for c in task).split() if len(part) < 18]
    shape = "x" in task and len(numbers) >= 2
    return (0 if shape else 1, numbers if shape else [], task)


def rows(results: Results) -> list[Row]:
    """Gives all rows: families by name, references first, then by falling bits per weight, unmeasured ones last."""
    records = sorted(results.records, key=lambda record: (record.cell.suite.name, str(record.cell), record.cell.id))
    speaks = _speakers(records)
    groups: dict[tuple[str | int, ...], list[Record]] = defaultdict(list)
    for record in records:
        groups[_configuration(record.cell)].append(record)
    labels, runtimes = _Labels(records), _runtime_names(records)
    made = [
        Row(
            records=tuple(group),
            label=labels.of(group[0].cell),
            runtime=runtimes[group[0].cell.runtime.id],
            items=_items(group, results, speaks),
            metrics=tuple(
                metric
                for record in group
                if record.outcome.is_measured
                for metric in record.metrics
                if speaks[record.cell.model.family, metric.evaluation, metric.task] == record.cell.suite.id
            ),
        )
        for group in groups.values()
    ]
    return sorted(made, key=_order)


def _order(row: Row) -> tuple[object, ...]:
    bits = row.bits_per_weight
    return (
        row.family,
        not row.is_reference,
        bits is None,
        -(bits or 0.0),
        row.label,
        row.runtime,
        row.cell.hardware.name,
        row.cell.seed,
        row.cell.id,
    )


def _configuration(cell: Cell) -> tuple[str | int, ...]:
    return (cell.model.family, cell.model.id, cell.pipeline.id, cell.runtime.id, cell.hardware.id, cell.seed)


def _speakers(records: Sequence[Record]) -> dict[tuple[str, str, str], str]:
    """Gives for every family's task the suite whose answers count: the one most cells have, then the first by name."""
    votes: dict[tuple[str, str, str], dict[str, int]] = defaultdict(lambda: defaultdict(int))
    for record in records:
        for task in {(record.cell.model.family, metric.evaluation, metric.task) for metric in record.metrics}:
            votes[task][record.cell.suite.id] += 1
    # Records come sorted by suite name, dictionaries keep that order, and max takes the first of equals.
    return {task: max(found, key=lambda suite: found[suite]) for task, found in votes.items()}


def _items(
    records: Iterable[Record], results: Results, speaks: Mapping[tuple[str, str, str], str]
) -> dict[Task, dict[str, Item]]:
    found: dict[Task, dict[str, Item]] = defaultdict(dict)
    for record in records:
        for task, items in scored(results.observations(record) if record.outcome.is_measured else ()).items():
            if speaks.get((record.cell.model.family, *task), record.cell.suite.id) == record.cell.suite.id:
                found[task].update(items)
    return dict(sorted(found.items()))


class _Labels:
    """Names of pipelines, with the model's in front where a family has variants."""

    def __init__(self, records: Sequence[Record]) -> None:
        self._models: dict[str, set[str]] = defaultdict(set)
        for record in records:
            self._models[record.cell.model.family].add(record.cell.model.id)

    def of(self, cell: Cell) -> str:
        if cell.model.role == "reference" and not cell.pipeline.stages:
            return cell.pipeline.name
        if len(self._models[cell.model.family]) == 1:
            return cell.pipeline.name
        short = cell.model.source.partition(":")[2].rstrip("/").rsplit("/", 1)[-1]
        return short if not cell.pipeline.stages else f"{short} + {cell.pipeline.name}"


def _runtime_names(records: Sequence[Record]) -> dict[str, str]:
    """Names runtimes by their plug-in, and by their arguments too where one plug-in runs in two ways."""
    uses = {record.cell.runtime.id: record.cell.runtime for record in records}
    plain = [use.use for use in uses.values()]
    return {key: use.use if plain.count(use.use) == 1 else str(use) for key, use in uses.items()}
