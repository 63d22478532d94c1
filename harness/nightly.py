"""A night: measure everything anew, judge it against the baseline, time it by turns, report, and answer with one code.

Suites are asked tier by tier, the cheap ones first; a cell that a tier proves to have regressed is spared the rest. A
suite whose policy takes several looks is asked part by part, and a cell stops as soon as it is proven good or bad. Last
come the speeds: launches of the candidate and of the pinned baseline's artifact by turns, in the same night, for only
those can be compared. What is measured is never measured twice, so a night that was killed goes on where it stopped and
says the same.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from functools import cached_property
from pathlib import Path
from typing import get_args

from harness import baselines, gating, plan, plugins, reporting
from harness.cache import Cache
from harness.display import Display, summary
from harness.errors import StoreError
from harness.executors.local import Local
from harness.gate.judge import Evidence, Judgement, judge, planned_tests
from harness.gate.measured import PART, Key, Measured, key_of, measured
from harness.gate.noise import NoiseFloor
from harness.gate.policy import Policy, SuiteRule
from harness.gate.speed import Speeds
from harness.gate.verdict import EXIT_NOT_COMPARABLE, EXIT_REGRESSED, Decision, Kind, Verdict
from harness.interleaving import Arm, Pinned, Schedule, interleave
from harness.matrix import Matrix
from harness.matrix import load as load_matrix
from harness.nights import SUFFIX, Nights
from harness.plan import Item, Plan
from harness.record import Observation, Record
from harness.spec import Suite, Use
from harness.store import Store

KEPT_NIGHTS = 30
SPEED = "probes.speed"
SERIES = "night"


@dataclass(frozen=True)
class Night:
    """What a night needs: the matrix, the policy, the baseline if there is one, its own folder and the artifacts'."""

    matrix: Matrix
    policy: Policy
    baseline: baselines.Baseline | None
    folder: Path
    home: Path

    @property
    def store(self) -> Store:
        """The store of tonight's records."""
        return Store(self.folder)

    @property
    def cache(self) -> Cache:
        """The artifacts, which nights share."""
        return Cache(self.home)


@dataclass(frozen=True)
class Places:
    """Where a night reads and writes, and how it shows what it does."""

    results: Path
    home: Path
    out: Path
    display: Display


@dataclass(frozen=True)
class Started:
    """What came of a night: the decision (None without a baseline), the exit code, its folder and what was written."""

    decision: Decision | None
    exit_code: int
    folder: Path
    files: tuple[Path, ...]
    baseline: str


@dataclass(frozen=True)
class AllNights:
    """The records of all nights as one, for the trend."""

    stores: tuple[Store, ...]

    @property
    def records(self) -> list[Record]:
        """The newest record of every cell of every night, oldest night first."""
        return [record for store in self.stores if _has_records(store) for record in store.records]

    def observations(self, record: Record) -> Sequence[Observation]:
        """Gives nothing: a trend is made of metrics, and old nights have no rows."""
        return []


@dataclass
class Progressing:
    """What a night has found out so far."""

    night: Night
    display: Display
    failed: list[Record] = field(default_factory=list)
    regressed: set[tuple[str, ...]] = field(default_factory=set)

    def measure(self) -> None:
        """Asks every suite, tier by tier and look by look."""
        for suites in _tiers(self.night.matrix.suites, self.night.policy):
            for suite in suites:
                self._ask(suite)
            self._spare()

    def _ask(self, suite: Suite) -> None:
        looks = _looks(suite, self.night.policy)
        stopped: set[Key] = set()
        for look in range(1, looks + 1):
            asked = suite if looks == 1 else part_of(suite, look, looks)
            self._run(asked, without=frozenset(stopped))
            if look < looks and self.night.baseline is not None:
                stopped |= self._decided(suite.name)

    def _run(self, suite: Suite, *, without: frozenset[Key]) -> None:
        made = self._plan(suite)
        chosen = [item for item in made.items if key_of(item.cell) not in without and self._is_alive(item)]
        executor = Local(self.night.cache, self.night.store, self.display)
        for record in executor.map(replace(made, items=tuple(chosen))):
            if record.outcome in ("failed", "timeout", "out_of_memory"):
                self.failed.append(record)

    def _plan(self, suite: Suite) -> Plan:
        matrix = self.night.matrix.model_copy(update={"suites": (suite,)})
        return plan.make(matrix, cache=self.night.cache, store=self.night.store, home=self.night.home)

    def _is_alive(self, item: Item) -> bool:
        return _without_suite(key_of(item.cell)) not in self.regressed

    def _decided(self, suite: str) -> set[Key]:
        """Gives the cells that the parts so far prove to be good or bad."""
        sides = [side for side in measured(self.night.store) if side.cell.suite.name == suite]
        found = self._so_far(sides)
        settled = {Verdict.NON_INFERIOR, Verdict.REGRESSED}
        by_cell = {side.cell.id: side.key for side in sides}
        return {
            by_cell[one.place.candidate]
            for one in found.suites
            if one.place.metric == "accuracy" and one.verdict in settled
        }

    def _spare(self) -> None:
        """Notes the cells that what was measured so far proves to have regressed."""
        if self.night.baseline is None or not _has_records(self.night.store):
            return
        sides = measured(self.night.store)
        found = self._so_far(sides)
        by_cell = {side.cell.id: side.key for side in sides}
        bad = [one for one in found.suites if one.verdict is Verdict.REGRESSED and one.place.candidate]
        self.regressed |= {_without_suite(by_cell[one.place.candidate]) for one in bad}

    def _so_far(self, sides: Sequence[Measured]) -> Judgement:
        """Judges what is there, as strictly as the whole night will be."""
        return judge(sides, self._before, self.night.policy, evidence=Evidence(tests=self._planned))

    @cached_property
    def _before(self) -> list[Measured]:
        """The baseline's sides; none without one."""
        return measured(self.night.baseline.store) if self.night.baseline else []

    @cached_property
    def _planned(self) -> int:
        """How many numbers the whole night will be corrected for."""
        return planned_tests(self._before, self.night.policy)

    def time(self) -> dict[Key, Speeds]:
        """Launches the timed cells by turns with the baseline's artifacts; gives what came of it by cell."""
        pinned = {side.key: side for side in self._before}
        speeds: dict[Key, Speeds] = {}
        for suite in self.night.matrix.suites:
            rule = self.night.policy.rule(suite.name, "speed")
            timed = tuple(use for use in suite.evaluations if use.use == SPEED)
            if rule is None or not timed or self.night.policy.against != "cell":
                continue
            made = self._plan(Suite(name=f"{suite.name} by turns", version=suite.version, evaluations=timed))
            # A suite of speeds alone is done already, as one launch; by turns it is launched again.
            for item in (*made.with_status("run"), *made.with_status("done")):
                key = (*key_of(item.cell)[:4], suite.name, item.cell.seed)
                if key in pinned and not pinned[key].failure and not pinned[key].is_emulated and self._is_alive(item):
                    speeds[key] = self._by_turns(Arm(made, item), pinned[key], rule)
        return speeds

    def _by_turns(self, arm: Arm, baseline: Measured, rule: SuiteRule) -> Speeds:
        record = baseline.records[0]
        assert record.artifact is not None
        held = Pinned(record.artifacts["model"], record.artifact.digest)
        built = self.night.cache.get(str(arm.item.artifact))
        if built is not None and built.digest == held.digest:
            return Speeds({}, same_artifact=True)
        schedule = Schedule(SERIES, blocks=rule.blocks, metrics=tuple(limit.metric for limit in rule.limits))
        executor = Local(self.night.cache, Store(self.night.folder / "by-turns"), self.display)
        found = interleave(arm, baseline=replace(arm, pinned=held), schedule=schedule, executor=executor)
        why = found.reason or ", ".join(f"{one.field} differs" for one in found.mismatches)
        if not why:
            return found.speeds
        self.display.say(f"{baseline.label}: not timed by turns: {why}")
        told = tuple(one.model_copy(update={"suite": baseline.cell.suite.name}) for one in found.mismatches)
        return Speeds({}, notes=(why,), mismatches=told)


def _without_suite(key: Key) -> tuple[str, ...]:
    family, pipeline, runtime, hardware, _, seed = key
    return (family, pipeline, runtime, hardware, str(seed))


def _has_records(store: Store) -> bool:
    try:
        return bool(store.records)
    except StoreError:
        return False


def _tiers(suites: Sequence[Suite], policy: Policy) -> Iterator[list[Suite]]:
    """Yields the suites by the lowest tier that a rule of the policy gives them; those without a rule come last."""
    tiers: dict[int, list[Suite]] = {}
    for suite in suites:
        rules = [found for kind in get_args(Kind) if (found := policy.rule(suite.name, kind))]
        tiers.setdefault(min((rule.tier for rule in rules), default=10**6), []).append(suite)
    yield from (tiers[tier] for tier in sorted(tiers))


def _looks(suite: Suite, policy: Policy) -> int:
    rule = policy.rule(suite.name, "accuracy")
    return rule.looks if rule is not None and any(map(_can_be_cut, suite.evaluations)) else 1


def _can_be_cut(use: Use) -> bool:
    return any(one.name == PART for one in fields(plugins.load("evaluations", use.use)))


def part_of(suite: Suite, look: int, looks: int) -> Suite:
    """Gives one part of a suite: that share of what can be cut and, with the first part, all that cannot."""
    cut = tuple(
        Use(use=use.use, args={**use.args, PART: [look, looks]}) for use in suite.evaluations if _can_be_cut(use)
    )
    whole = tuple(use for use in suite.evaluations if not _can_be_cut(use))
    return suite.model_copy(update={"evaluations": (*whole, *cut) if look == 1 else cut})


def decide(night: Night, speeds: Mapping[Key, Speeds], *, strict: bool) -> Decision | None:
    """Judges what a night measured; None without a baseline."""
    if night.baseline is None:
        return None
    noise = NoiseFloor.model_validate_json(night.baseline.noise) if night.baseline.noise else None
    evidence = Evidence(noise=noise, speeds=dict(speeds))
    return gating.decide(night.store, night.baseline, night.policy, strict=strict, evidence=evidence)


def answer(decision: Decision | None, failed: Sequence[Record]) -> int:
    """Gives the night's one exit code: a regression first, then cells without numbers, then what the gate says."""
    if decision is None:
        return EXIT_NOT_COMPARABLE
    if failed and decision.exit_code != EXIT_REGRESSED:
        return EXIT_NOT_COMPARABLE
    return decision.exit_code


def answered(decision: Decision, code: int, failed: Sequence[Record]) -> Decision:
    """Gives the decision with the night's exit code; where failed cells that it does not judge made it, says which."""
    if decision.exit_code == code:
        return decision
    told = tuple(f"{record.cell}: {summary(record)}" for record in failed)
    return decision.model_copy(update={"exit_code": code, "warnings": (*decision.warnings, *told)})


def run(night: Night, display: Display, *, strict: bool) -> tuple[Decision | None, int]:
    """Runs or goes on with a night, up to its answer."""
    progressing = Progressing(night, display)
    progressing.measure()
    decision = decide(night, progressing.time(), strict=strict)
    code = answer(decision, progressing.failed)
    return decision and answered(decision, code, progressing.failed), code


def start(name: str, policy: Policy, baseline: str | None, places: Places, *, strict: bool) -> Started:
    """Begins a night of a matrix, or goes on with one that was killed, and brings it to its end.

    Raises SpecError for a mistake in the matrix and StoreError while another night of it runs.
    """
    matrix = load_matrix(name)
    nights = Nights((places.results / f"{matrix.name}{SUFFIX}").absolute())
    wanted = baseline or matrix.name
    # A baseline that was asked for by name must be there; the first night of a matrix has none.
    is_wanted = baseline is not None or wanted in baselines.names(places.results)
    known = baselines.load(wanted, results=places.results) if is_wanted else None
    with nights.locked():
        folder = nights.begin()
        night = Night(matrix, policy, known, folder, places.home.absolute())
        decision, code = run(night, places.display, strict=strict)
        files = _told(decision, night, nights, places.out)
        nights.thin_out(keep=KEPT_NIGHTS)
        nights.end(folder, code)
    return Started(decision, code, folder, tuple(files), wanted)


def _told(decision: Decision | None, night: Night, nights: Nights, out: Path) -> Iterator[Path]:
    """Writes the night's decision and report, and the trend over all nights."""
    here = out / night.folder.name
    if decision is not None:
        yield from gating.write(decision, here)
        gating.write_decision(decision, night.folder)
    if _has_records(night.store):
        yield from reporting.write(night.store, here, ())
        yield from plugins.reporter(Use(use="trend")).render(AllNights(tuple(nights.stores())), out)
