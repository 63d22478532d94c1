"""Compressed models as variants of one another: the same model in the same place, one stage more or less.

A row of the report is one seed; a variant is all seeds of one model, pipeline, runtime and device. Variants are
compared on the items that all of them answered, under the seeds that all of them have: an item's number is its mean
over those seeds, so that seeds are not mistaken for more items. Stages are the same when their arguments are; a
conversion of the file format is no compression and does not count as a stage.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property

from harness.interfaces import Results
from harness.reporters.frame import Row, rows
from harness.reporters.text import plain
from harness.spec import Model, Use
from harness.statistics.attribution import Table
from harness.statistics.items import Item, Task

Answers = Mapping[Task, Mapping[str, Item]]


@dataclass(frozen=True)
class Measure:
    """Something each item has a number of; `name` is its heading, `key` its name in files."""

    key: str
    name: str
    higher_is_better: bool


SCORE = Measure("score", "Score", True)
KL = Measure("kl", "KL (nats)", False)
NLL = Measure("nll", "ln perplexity (nats)", False)
MEASURES = (SCORE, KL, NLL)


def kind(stage: Use) -> str:
    """Gives the room a stage's plug-in is in: `prune`, `distill`, `quantize`."""
    return stage.use.partition(".")[0]


@dataclass(frozen=True, eq=False)
class Variant:
    """One model under one pipeline in one place, by seed."""

    rows: Mapping[int, Row]
    answers: Mapping[int, Mapping[Measure, Answers]]

    @property
    def row(self) -> Row:
        """The first seed's row; names, sizes and parameters are taken from it."""
        return self.rows[min(self.rows)]

    @property
    def model(self) -> Model:
        """The model before compression."""
        return self.row.cell.model

    @cached_property
    def stages(self) -> tuple[Use, ...]:
        """The pipeline's stages without conversions of the file format."""
        return tuple(stage for stage in self.row.cell.pipeline.stages if kind(stage) != "convert")

    @property
    def kinds(self) -> frozenset[str]:
        """The kinds of its stages."""
        return frozenset(kind(stage) for stage in self.stages)

    @property
    def place(self) -> tuple[str, str, str]:
        """The family, the runtime and the device: what must agree for any comparison."""
        cell = self.row.cell
        return (self.row.family, cell.runtime.id, cell.hardware.id)

    def at(self, seed: int) -> Variant:
        """Gives the variant under one seed alone."""
        return replace(self, rows={seed: self.rows[seed]}, answers={seed: self.answers[seed]})


@dataclass(frozen=True)
class Aligned:
    """Items that several variants answered, a table a task with a column a variant, averaged over shared seeds."""

    seeds: tuple[int, ...]
    tasks: tuple[Table, ...]
    chances: tuple[float | None, ...]

    @property
    def means(self) -> list[float]:
        """The variants' numbers for the suite: means over tasks of the tasks' means."""
        by_task = [[sum(column) / table.n for column in table.columns] for table in self.tasks]
        return [sum(column) / len(self.tasks) for column in zip(*by_task, strict=True)]


def aligned(variants: Sequence[Variant], measure: Measure) -> Aligned | None:
    """Gives the shared items, or None when the variants share no seed or no item."""
    seeds = sorted(set.intersection(*(set(variant.answers) for variant in variants)))
    cells = [[variant.answers[seed].get(measure, {}) for seed in seeds] for variant in variants]
    everyone = [answers for row in cells for answers in row]
    shared = sorted(set.intersection(*(set(answers) for answers in everyone))) if everyone else []
    tables, chances = [], []
    for task in shared:
        names = _common([answers[task] for answers in everyone])
        if names:
            columns = tuple(
                tuple(sum(answers[task][name].score for answers in row) / len(row) for name in names) for row in cells
            )
            tables.append(Table(columns, continuous=measure is not SCORE))
            known = [chance for name in names if (chance := cells[0][0][task][name].chance) is not None]
            chances.append(sum(known) / len(known) if len(known) == len(names) else None)
    return Aligned(tuple(seeds), tuple(tables), tuple(chances)) if tables else None


def _common(answers: Sequence[Mapping[str, Item]]) -> list[str]:
    """Gives the items that all answered and none was asked with another prompt."""
    names = sorted(set.intersection(*(set(items) for items in answers)))
    return [name for name in names if len({items[name].prompt for items in answers} - {None}) <= 1]


def variants(results: Results) -> list[Variant]:
    """Gives all variants that carry numbers, in the order of a report's rows."""
    by_seed: dict[tuple[str, ...], dict[int, Row]] = defaultdict(dict)
    for row in rows(results):
        cell = row.cell
        if row.measured:
            key = (cell.model.family, cell.model.id, cell.pipeline.id, cell.runtime.id, cell.hardware.id)
            by_seed[key][cell.seed] = row
    return [Variant(one, {seed: _answers(row, results) for seed, row in one.items()}) for one in by_seed.values()]


def _answers(row: Row, results: Results) -> dict[Measure, Answers]:
    """Gives a row's items by measure: scores, and what the fidelity evaluation saw of each window of text."""
    found: dict[Measure, dict[Task, dict[str, Item]]] = {KL: defaultdict(dict), NLL: defaultdict(dict)}
    for record in row.measured:
        for seen in results.observations(record):
            kl, nll, tokens = (seen.values.get(name) for name in ("kl_mean", "nll", "tokens"))
            if isinstance(kl, (int, float)) and isinstance(nll, (int, float)) and isinstance(tokens, (int, float)):
                task = (seen.evaluation, seen.task)
                # Where two suites read the same text, the first by name speaks.
                found[KL][task].setdefault(seen.sample, Item(float(kl), None, None))
                found[NLL][task].setdefault(seen.sample, Item(nll / tokens, None, None))
    return {SCORE: row.items, **found}


@dataclass(frozen=True)
class Group:
    """All variants of one model in one place: those that stages can be told apart by."""

    variants: tuple[Variant, ...]

    @cached_property
    def _by_stages(self) -> dict[tuple[str, ...], Variant]:
        found: dict[tuple[str, ...], Variant] = {}
        for variant in self.variants:
            found.setdefault(tuple(stage.id for stage in variant.stages), variant)
        return found

    def with_stages(self, stages: Iterable[Use]) -> Variant | None:
        """Gives the variant with exactly these stages in this order, if it was measured."""
        return self._by_stages.get(tuple(stage.id for stage in stages))


def groups(found: Sequence[Variant]) -> list[Group]:
    """Gives the groups in the order of their first variants."""
    by_model: dict[tuple[str, ...], list[Variant]] = defaultdict(list)
    for variant in found:
        by_model[*variant.place, variant.model.id].append(variant)
    return [Group(tuple(members)) for members in by_model.values()]


def places(found: Sequence[Variant]) -> list[list[Variant]]:
    """Gives the variants by family, runtime and device, whatever their model."""
    by_place: dict[tuple[str, str, str], list[Variant]] = defaultdict(list)
    for variant in found:
        by_place[variant.place].append(variant)
    return list(by_place.values())


def reference_of(variant: Variant, found: Sequence[Variant]) -> Variant | None:
    """Gives the family's reference in the same place, if it was measured."""
    return next((other for other in found if other.row.is_reference and other.place == variant.place), None)


class Names:
    """Short names: a stage by its plug-in, with those arguments that differ between the report's pipelines."""

    def __init__(self, found: Sequence[Variant]) -> None:
        self._places = {variant.place for variant in found}
        self._uses: dict[str, dict[str, Use]] = defaultdict(dict)
        for variant in found:
            for stage in variant.stages:
                self._uses[stage.use][stage.id] = stage
        self._hardware = {variant.row.cell.hardware.id for variant in found}
        self._models: dict[str, set[str]] = defaultdict(set)
        for variant in found:
            self._models[variant.row.family].add(variant.model.id)

    def stage(self, stage: Use) -> str:
        """Gives a stage's name."""
        others = [use.canonical().get("args", {}) for use in self._uses[stage.use].values()]
        differing = {key for args in others for key in args if any(args.get(key) != more.get(key) for more in others)}
        return plain(str(Use(use=stage.use, args={k: v for k, v in stage.args.items() if k in differing})))

    def stages(self, stages: Sequence[Use], *, strong: frozenset[int] = frozenset()) -> str:
        """Gives stages with arrows between them, some in bold; `nothing` for none."""
        shown = [f"**{self.stage(use)}**" if index in strong else self.stage(use) for index, use in enumerate(stages)]
        return " → ".join(shown) or "nothing"

    def place(self, variant: Variant) -> str:
        """Names the family and where it ran."""
        parts = [variant.row.family, variant.row.runtime]
        if len(self._hardware) > 1:
            parts.append(variant.row.cell.hardware.name)
        return plain(", ".join(parts))

    def pipeline(self, variant: Variant, shown: str) -> str:
        """Gives what is shown of a pipeline with its place, and its model, where the report has several."""
        where = self.model(variant)
        is_alone = len(self._places) == 1 and where == self.place(variant)
        return shown if is_alone else f"{where}: {shown}"

    def label(self, variant: Variant) -> str:
        """Gives the label of a pipeline, which tells its model, with its place where the report has several."""
        label = plain(variant.row.label)
        return label if len(self._places) == 1 else f"{self.place(variant)}: {label}"

    def model(self, variant: Variant) -> str:
        """Names the place, and the model where a family has several."""
        if len(self._models[variant.row.family]) == 1:
            return self.place(variant)
        short = variant.model.source.partition(":")[2].rstrip("/").rsplit("/", 1)[-1]
        return f"{self.place(variant)}: {plain(short)}"
