"""What a model's numbers do by themselves: the reference measured again, and what changed although nothing did.

Batches of another size round differently, and an item on the edge falls to the other side; a process gets another
place in memory and is a percent slower. A comparison that reports what changed should know how much changes anyway.
The floor is estimated from records of references under other conditions (see `harness.noise.aa_matrix`): what is
compared are runs that agree on model, runtime, device and suite and differ in the seed, in the order in which items
were asked, in the part a record holds, or in how many requests share a batch. Runs on two runtimes are compared too and
kept apart: what a runtime changes is not noise to those who measure on one.

Flips are counted over all pairs of runs. A flip is a flip whatever its direction, so the rate bounds nothing about
loss: it is subtracted from what is reported and from power, and never from evidence. Pairs of runs share the same
borderline items and are no independent draws, so the interval of the rate is Wilson's for the number of items.

Known: not varied are the arithmetic (types, attention kernels, the cache's type), threads, the machine, the versions of
libraries, and what else ran at the time. Noise from those has to be measured by those who let them differ.
"""

from __future__ import annotations

import itertools
import math
import statistics
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

from harness.gate.measured import Key, key_of, without_parts
from harness.gate.verdict import Number, Place
from harness.interfaces import Results
from harness.record import Record
from harness.spec import Cell, Use, Value
from harness.statistics.contrasts import Pairs
from harness.statistics.intervals import wilson_interval
from harness.statistics.items import Item, Task, pair, scored

NOISE_SCHEMA = 1
ORDER = "order_seed"
"""The argument of an evaluation that draws the order of its requests; the questions stay the same."""
BATCHING = frozenset({"batch_tokens", "max_batch_tokens", "sequences"})
"""Arguments of runtimes that say how many requests share a batch, and should change no answer."""
TIMED = frozenset({"s", "tokens/s"})
"""Units of times and rates."""

Items = Mapping[Task, Mapping[str, Item]]


class AnswerNoise(Value):
    """How a reference's answers to one task differ between runs, none of which changed the model.

    `runtimes` are the runtimes as their cells spell them. With `against` the runs of `runtime` were compared with those
    of that other one, else with each other. `n` items were answered by two runs or more, in `compared` pairs of
    answers, of which `flips` were right in one and wrong in the other; `flips` and `flip_rate` are absent where answers
    are not right or wrong. `max_abs_difference` is the largest difference of two runs' mean scores on the same items.
    """

    family: str
    runtime: str
    runtimes: tuple[str, ...]
    against: str = ""
    hardware: str
    suite: str
    evaluation: str
    task: str
    runs: int
    n: int
    compared: int
    flips: int | None = None
    flip_rate: Number | None = None
    max_abs_difference: float


class SpeedNoise(Value):
    """How one metric differs between launches of the same artifact, on the scale of logarithms.

    `sd_log_ratio` is the standard deviation of the logarithm of two launches' ratio, estimated from `launches` separate
    launches; it tells as much as `blocks` blocks of launches by turns would.
    """

    family: str
    runtime: str
    hardware: str
    suite: str
    evaluation: str
    task: str
    metric: str
    launches: int
    blocks: int
    sd_log_ratio: float

    @property
    def block_sd(self) -> float:
        """The same of a block, whose two sides are means of two launches each."""
        return self.sd_log_ratio / math.sqrt(2)


class NoiseFloor(Value):
    """What was seen of answers and of speeds; stored beside a baseline."""

    schema_version: int = NOISE_SCHEMA
    answers: tuple[AnswerNoise, ...] = ()
    speeds: tuple[SpeedNoise, ...] = ()

    def of(self, key: Key, place: Place) -> AnswerNoise | None:
        """Gives what is known of a cell's task, from runs of its family's reference on its runtime."""
        family, _, runtime, hardware, suite, _ = key
        known = (
            one
            for one in self.answers
            if not one.against
            and _is_of(family, one.family)
            and runtime in one.runtimes
            and (one.hardware, one.suite) == (hardware, suite)
            and (one.evaluation, one.task) == (place.evaluation, place.task)
        )
        return next(known, None)

    def excess_flips(self, key: Key, place: Place, *, won: int, lost: int, n: int) -> float | None:
        """Gives the share of a task's items that flipped beyond what the reference does by itself, or None."""
        return excess_flips(self.of(key, place), won=won, lost=lost, n=n)

    def speed(self, key: Key, place: Place) -> SpeedNoise | None:
        """Gives what is known of a cell's times or rates, from the launches of its family's reference."""
        family, _, runtime, hardware, suite, _ = key
        wanted = (runtime, hardware, suite, place.evaluation, place.task, place.metric)
        known = (
            one
            for one in self.speeds
            if _is_of(family, one.family)
            and (one.runtime, one.hardware, one.suite, one.evaluation, one.task, one.metric) == wanted
        )
        return next(known, None)


def excess_flips(floor: AnswerNoise | None, *, won: int, lost: int, n: int) -> float | None:
    """Gives the share of items that flipped, less the floor's; negative where less flipped than does by itself.

    None without a floor or items.
    """
    assert 0 <= won + lost <= n
    rate = floor.flip_rate.value if floor is not None and floor.flip_rate is not None else None
    return None if rate is None or n == 0 else (won + lost) / n - rate


def noise_floor(results: Results) -> NoiseFloor:
    """Estimates the floor from the records of references; anything else among the records is left alone."""
    known = [record for record in results.records if record.cell.is_reference and record.outcome.is_measured]
    answers = [
        found
        for group in _grouped((_place(record.cell), record) for record in known).values()
        for found in _answers([_run(records, results) for records in _runs(group)])
    ]
    timed = _grouped(((_place(record.cell), str(record.cell.runtime)), record) for record in known)
    return NoiseFloor(answers=tuple(answers), speeds=tuple(one for group in timed.values() for one in _speeds(group)))


def comparable(runtime: Use) -> Use:
    """Gives a runtime without what only says how many requests share a batch."""
    return Use(use=runtime.use, args={name: value for name, value in runtime.args.items() if name not in BATCHING})


def _is_of(family: str, reference: str) -> bool:
    """True for a family and for its variants, which `key_of` names after it."""
    return family == reference or family.startswith(f"{reference} (")


def _place(cell: Cell) -> tuple[str, ...]:
    """Names what runs must agree on to be compared; what a suite asks may differ, and what is paired is then less."""
    return cell.model.family, cell.model.id, cell.hardware.name, cell.hardware.id, cell.suite.name, cell.suite.version


def _grouped(pairs: Iterable[tuple[object, Record]]) -> dict[object, list[Record]]:
    groups: dict[object, list[Record]] = defaultdict(list)
    for key, record in pairs:
        groups[key].append(record)
    return {key: groups[key] for key in sorted(groups, key=str)}


def _runs(records: Iterable[Record]) -> list[list[Record]]:
    """Puts the records together that are parts of one run: alike in all but the part."""

    def condition(cell: Cell) -> tuple[str, int, str]:
        return str(cell.runtime), cell.seed, without_parts(cell.suite).id

    return list(_grouped((condition(record.cell), record) for record in records).values())


@dataclass(frozen=True)
class _Run:
    """One run of a suite on a reference: a cell that was run, and all its items."""

    cell: Cell
    items: Items

    @property
    def runtime(self) -> str:
        return str(comparable(self.cell.runtime))


def _run(records: Sequence[Record], results: Results) -> _Run:
    return _Run(records[0].cell, scored(row for record in records for row in results.observations(record)))


def _answers(runs: Sequence[_Run]) -> Iterator[AnswerNoise]:
    """Yields the noise of every task, within each runtime and between each two."""
    groups = {name: [run for run in runs if run.runtime == name] for name in sorted({run.runtime for run in runs})}
    for task in sorted({task for run in runs for task in run.items}):
        having = {name: [run for run in group if task in run.items] for name, group in groups.items()}
        for group in having.values():
            if found := _compared(task, (group, ()), list(itertools.combinations(group, 2))):
                yield found
        for one, other in itertools.combinations(having, 2):
            both = (having[one], having[other])
            if found := _compared(task, both, list(itertools.product(*both))):
                yield found


def _compared(
    task: Task, groups: tuple[Sequence[_Run], Sequence[_Run]], couples: Sequence[tuple[_Run, _Run]]
) -> AnswerNoise | None:
    paired = [pair(one.items[task], other.items[task]) for one, other in couples]
    found = [each.pairs for each in paired if each.pairs is not None]
    if not found:
        return None
    own, others = groups
    family, _, _, hardware, suite, _ = key_of(own[0].cell)
    n, compared = len({name for each in paired for name in each.names}), sum(pairs.n for pairs in found)
    flips = sum(map(_flips, found)) if all(pairs.is_binary for pairs in found) else None
    rate = None
    if flips is not None:
        rate = Number(value=flips / compared, interval=wilson_interval(round(n * flips / compared), n))
    return AnswerNoise(
        family=family,
        runtime=own[0].runtime,
        runtimes=tuple(sorted({str(run.cell.runtime) for run in own})),
        against=others[0].runtime if others else "",
        hardware=hardware,
        suite=suite,
        evaluation=task[0],
        task=task[1],
        runs=len(own) + len(others),
        n=n,
        compared=compared,
        flips=flips,
        flip_rate=rate,
        max_abs_difference=max(map(_apart, found)),
    )


def _flips(pairs: Pairs) -> int:
    _, won, lost, _ = pairs.counts
    return won + lost


def _apart(pairs: Pairs) -> float:
    return abs(math.fsum(pairs.candidate) - math.fsum(pairs.reference)) / pairs.n


def _speeds(records: Sequence[Record]) -> Iterator[SpeedNoise]:
    """Yields the noise of every time and rate that two launches or more gave."""
    values: dict[tuple[str, str, str], list[float]] = defaultdict(list)
    for record in records:
        for metric in record.metrics:
            if metric.unit in TIMED and metric.value > 0:
                values[metric.evaluation, metric.task, metric.name].append(math.log(metric.value))
    family, _, runtime, hardware, suite, _ = key_of(records[0].cell)
    for (evaluation, task, name), found in sorted(values.items()):
        if len(found) > 1:
            yield SpeedNoise(
                family=family,
                runtime=runtime,
                hardware=hardware,
                suite=suite,
                evaluation=evaluation,
                task=task,
                metric=name,
                launches=len(found),
                blocks=len(found),
                sd_log_ratio=statistics.stdev(found) * math.sqrt(2),
            )
