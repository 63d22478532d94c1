"""Launches of two artifacts by turns, so that a night that slows the machine down slows both sides.

A speed of yesterday and one of today differ by what the machine did; a baseline and a candidate that take turns in one
session differ by what they are. Each launch is a fresh child process that opens one side's artifact and runs the speed
suite; four launches are a block, baseline, candidate, candidate, baseline and then the other way round, in which a
steady drift cancels. Launches are stored as attempts of their cells like any other, and all of them are kept. What
says where in the series one belongs is in its record, written with it in one rename, so a night that was killed goes on
at the next missing launch.

The baseline is an artifact, not a recipe. One that was pinned and is no longer in the cache is built again by its plan;
when the bytes are others than those pinned, nothing is launched and the answer is a mismatch.

A block whose launches of one side lie too far apart, or that the machine says was disturbed, is run again, at most
`reruns` times; the rule never looks at which side won. The last run of a block counts, whatever it showed, and what was
run again is said. Both sides may be the same item: what comes out is the noise of this machine.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from fnmatch import fnmatchcase
from pathlib import Path
from tempfile import TemporaryDirectory

from harness import machine
from harness.errors import CorruptArtifact
from harness.executors.local import Local, Run
from harness.gate.measured import key_of
from harness.gate.speed import Speeds
from harness.gate.verdict import Mismatch
from harness.plan import Item, Plan
from harness.record import Outcome, Record
from harness.series import MARK, Launched, Mark, by_metric, disturbances, newest, stored
from harness.spec import digest
from harness.statistics.launches import BASELINE, CANDIDATE, Side, abba, contaminated

A_BLOCK = 4


@dataclass(frozen=True)
class Pinned:
    """The artifact that a baseline was measured on: its key in the cache and the digest of its bytes."""

    key: str
    digest: str


@dataclass(frozen=True)
class Arm:
    """One side: a plan and the item of it whose cell has the speed suite; `pinned` where only certain bytes will do."""

    plan: Plan
    item: Item
    pinned: Pinned | None = None


@dataclass(frozen=True)
class Schedule:
    """How many blocks of four launches, and under what name a killed night finds them again.

    `series` names the occasion, such as a date: the same name on the same two artifacts goes on where it stopped,
    another begins anew. `reruns` bounds how often a block, or a launch that failed, is run again. `metrics` are shell
    patterns of the metrics whose spread decides that a block was disturbed.
    """

    series: str
    blocks: int = 5
    reruns: int = 1
    metrics: tuple[str, ...] = ("*",)

    def __post_init__(self) -> None:
        if self.blocks < 1 or self.reruns < 0:
            raise ValueError(f"{self.blocks} blocks, {self.reruns} reruns; allowed: at least 1 block and 0 reruns")

    @property
    def sides(self) -> tuple[Side, ...]:
        """The sides in order of launching, four a block."""
        return abba(self.blocks)


@dataclass(frozen=True)
class Interleaved:
    """What a series gave. `speeds` holds the launches that count, by what they timed.

    It is empty where something forbade or ended the series: `mismatches` says what differs, `reason` what failed.
    `records` are all launches of the series that have numbers, in the order they ran.
    """

    speeds: Speeds
    records: tuple[Record, ...] = ()
    mismatches: tuple[Mismatch, ...] = ()
    reason: str = ""


def interleave(candidate: Arm, *, baseline: Arm, schedule: Schedule, executor: Local) -> Interleaved:
    """Launches both sides by turns, or what is missing of it; the launches go into the executor's store."""
    executor.store.recover()
    unlike = _unlike(candidate.item, baseline.item)
    if unlike:
        return Interleaved(Speeds({}), mismatches=unlike)
    sides: dict[Side, _Side] = {
        BASELINE: _Side(BASELINE, baseline, executor),
        CANDIDATE: _Side(CANDIDATE, candidate, executor),
    }
    series = _Series(sides, schedule, executor)
    try:
        for side in sides.values():
            side.prepare()
        series.find()
        series.launch_all()
    except _Ended as end:
        return Interleaved(Speeds({}), series.records, end.mismatches, end.reason)
    return Interleaved(Speeds(by_metric(series.counting), tuple(series.notes())), series.records)


class _Ended(Exception):
    """A series that cannot go on: what differs, or what failed."""

    def __init__(self, reason: str = "", *mismatches: Mismatch) -> None:
        self.reason, self.mismatches = reason, mismatches
        super().__init__(reason)


def _unlike(candidate: Item, baseline: Item) -> tuple[Mismatch, ...]:
    """Gives in what two cells differ that must be alike before their times say anything."""
    ours, theirs, remedy = candidate.cell, baseline.cell, "interleave cells of one suite on one device"
    values = {
        "suite.evaluations": (theirs.suite.evaluations, ours.suite.evaluations),
        "cell.hardware": (theirs.hardware.canonical(), ours.hardware.canonical()),
    }
    return tuple(_mismatch(candidate, name, both, remedy=remedy) for name, both in values.items() if both[0] != both[1])


def _mismatch(item: Item, name: str, values: tuple[object, object], *, remedy: str) -> Mismatch:
    before, after = (", ".join(map(str, one)) if isinstance(one, tuple) else str(one) for one in values)
    return Mismatch(
        label=" / ".join(key_of(item.cell)[:4]),
        suite=item.cell.suite.name,
        field=name,
        baseline=before,
        candidate=after,
        hard=True,
        remedy=remedy,
    )


@dataclass
class _Side:
    """One side of a series: what it launches, and the digest that what it launches must have."""

    name: Side
    arm: Arm
    executor: Local
    digest: str | None = None
    run: Run = field(init=False)
    item: Item = field(init=False)

    def __post_init__(self) -> None:
        self.run = Run(self.arm.plan, self.executor.cache, self.executor.store, self.executor.display)
        self.item = self.arm.item

    def prepare(self) -> None:
        """Builds what is not cached, so that nothing is built between two launches. Raises _Ended."""
        pinned, item = self.arm.pinned, self.item
        if item.artifact is None or item.environment is None:
            raise _Ended(f"the {self.name} cannot run: {item.reason or 'its plan makes no artifact for it'}")
        if pinned and self._digest(pinned.key) == pinned.digest:
            item = replace(item, artifact=pinned.key, artifacts={**item.artifacts, "model": pinned.key})
            self.item = item
        with TemporaryDirectory(prefix="harness-build-") as folder:
            built = self.run.build(item, Path(folder))
        if built.outcome is not Outcome.OK:
            why = built.error.reason if built.error else built.outcome.value
            raise _Ended(f"the {self.name} cannot be built: {why}")
        self.digest = pinned.digest if pinned else self._digest(str(item.artifact))
        self.check(self._digest(str(item.artifact)))

    def check(self, found: str | None) -> None:
        """Raises _Ended when an artifact has other bytes than it must have."""
        if found != self.digest:
            remedy = "the build does not repeat itself here: pin the baseline anew, or bring its artifact back"
            raise _Ended("", _mismatch(self.item, "artifact", (self.digest, found or "not there"), remedy=remedy))

    def _digest(self, key: str) -> str | None:
        try:
            artifact = self.executor.cache.get(key)
        except CorruptArtifact:
            return None
        return artifact.digest if artifact else None


@dataclass
class _Series:
    """A series on its way: what was launched, and what is next."""

    sides: Mapping[Side, _Side]
    schedule: Schedule
    executor: Local
    launched: list[Launched] = field(default_factory=list)
    failures: Counter[Mark] = field(default_factory=Counter)

    @property
    def name(self) -> str:
        """The series in the records: the occasion, the two cells and their bytes."""
        both = [(side.item.cell.id, side.digest) for side in self.sides.values()]
        return digest([self.schedule.series, both])

    @property
    def records(self) -> tuple[Record, ...]:
        return tuple(one.record for one in self.launched)

    @property
    def counting(self) -> list[Launched]:
        """The launches of every block's last run."""
        return [one for one in self.launched if one.mark.again == self._again(one.mark.block)]

    def find(self) -> None:
        """Finds what was launched before the night was killed, with the right bytes and on the machine it began on."""
        cells = [side.item.cell for side in self.sides.values()]
        found = stored(self.executor.store, cells, self.name)
        right = [one for one in found if one.digest == self.sides[one.mark.side].digest]
        self.launched = [one for one in right if not machine.differences(right[0].record.machine, one.record.machine)]

    def launch_all(self) -> None:
        """Launches what is missing, then the disturbed blocks again. Raises _Ended."""
        while (mark := self._next()) is not None:
            self._launch(mark)

    def notes(self) -> Iterator[str]:
        """Yields what a reader should know: blocks that were run again and what disturbed those that count."""
        for block in range(self.schedule.blocks):
            if again := self._again(block):
                yield f"block {block}: disturbed and run again, {again + 1} runs in all; the last one counts"
        left = {key for one in self.counting for key in one.timed} - by_metric(self.counting).keys()
        for evaluation, task, metric in sorted(left):
            yield f"{evaluation} {task} {metric}: not every launch timed it, so it is left out"
        for one in self.counting:
            for told in disturbances(one.record):
                yield f"block {one.mark.block}: during a launch of the {one.mark.side} {told}"

    def _next(self) -> Mark | None:
        there = {one.mark for one in self.launched}
        for block in range(self.schedule.blocks):
            missing = (mark for mark in self._marks(block, self._again(block)) if mark not in there)
            if (mark := next(missing, None)) is not None:
                return mark
        for block in self._disturbed():
            if (again := self._again(block)) < self.schedule.reruns:
                return self._marks(block, again + 1)[0]
        return None

    def _marks(self, block: int, again: int) -> list[Mark]:
        turns = self.schedule.sides[A_BLOCK * block : A_BLOCK * (block + 1)]
        return [
            Mark(series=self.name, side=side, block=block, turn=turn, again=again) for turn, side in enumerate(turns)
        ]

    def _again(self, block: int) -> int:
        """Gives how often a block was begun again."""
        return max((one.mark.again for one in self.launched if one.mark.block == block), default=0)

    def _disturbed(self) -> Sequence[int]:
        """Gives the blocks whose last run should not be trusted."""
        judged = {
            key: launches
            for key, launches in by_metric(self.counting).items()
            if any(fnmatchcase(key[2], pattern) for pattern in self.schedule.metrics)
        }
        apart = {one.block for launches in judged.values() for one in contaminated(launches)}
        told = {one.mark.block for one in self.counting if any(disturbances(one.record))}
        return sorted(apart | told)

    def _launch(self, mark: Mark) -> None:
        side, display = self.sides[mark.side], self.executor.display
        blocks = self.schedule.blocks + sum(self._again(block) for block in range(self.schedule.blocks))
        again = ", again" if mark.again else ""
        label = f"{side.item.cell}: {mark.side}, block {mark.block}{again}"
        display.begin(label, len(self.launched) + 1, A_BLOCK * (blocks + (mark.turn == 0 and mark.again > 0)))
        record = side.run.cell(side.item, facts={MARK: mark.model_dump()})
        display.end(record)
        if not record.outcome.is_measured:
            self._failed(mark, record)
            return
        launched = newest(self.executor.store, side.item.cell)
        assert launched is not None
        assert launched.mark == mark
        side.check(launched.digest)
        self.launched.append(launched)
        self._one_machine()

    def _failed(self, mark: Mark, record: Record) -> None:
        self.failures[mark] += 1
        if self.failures[mark] > self.schedule.reruns:
            why = record.error.reason if record.error else record.outcome.value
            raise _Ended(f"the {mark.side} failed in block {mark.block}: {why}")

    def _one_machine(self) -> None:
        """Raises _Ended when the series began on another machine."""
        found = machine.differences(self.launched[0].record.machine, self.launched[-1].record.machine)
        if found:
            remedy, item = "go on where the series began, or begin another", self.sides[CANDIDATE].item
            told = (_mismatch(item, "machine", ("where the series began", one), remedy=remedy) for one in found)
            raise _Ended("", *told)
