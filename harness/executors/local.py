"""Runs a plan on this machine, one child process at a time, so that nothing disturbs what is measured.

For each cell: build what is not cached, measure, store the record. A build that fails is tried once per run, and
every cell that stands on it gets a record with the same reason. An artifact whose bytes changed on disk is thrown
away and built again, once. Whatever ends a child, the run goes on with the next cell; Ctrl-C stores what the running
cell had and stops.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from pathlib import Path
from time import perf_counter
from typing import final

from pydantic import JsonValue

from harness.cache import Cache
from harness.display import Display
from harness.errors import CorruptArtifact
from harness.job import Answer, BuildJob, MeasureJob
from harness.launch import Launcher
from harness.plan import Build, Item, Plan
from harness.record import Failure, Outcome, Record
from harness.store import Store


@final
@dataclass(frozen=True)
class Local:
    """The executor for one machine."""

    cache: Cache
    store: Store
    display: Display

    def map(self, plan: Plan) -> Iterator[Record]:
        """Yields each new record as soon as it is stored; refused cells first, they cost nothing."""
        self.store.recover()
        for item in plan.with_status("refused"):
            if record := self._refuse(item):
                yield record
        run = Run(plan, self.cache, self.store, self.display)
        items = plan.with_status("run")
        for number, item in enumerate(items, start=1):
            self.display.begin(str(item.cell), number, len(items))
            record = run.cell(item)
            self.display.end(record)
            yield record

    def _refuse(self, item: Item) -> Record | None:
        """Stores a refusal unless the newest record already says the same."""
        failure = Failure(phase="plan", reason=item.reason, advice=item.remedy)
        record = Record(cell=item.cell, outcome=Outcome.UNSUPPORTED, error=failure, versions=dict(item.versions))
        before = self.store.latest(item.cell)
        if before and before.error == failure:
            return None
        with self.store.attempt(item.cell) as folder:
            self.store.put(record, folder)
        return record


@dataclass
class Run:
    """One pass over a plan; remembers the builds that failed."""

    plan: Plan
    cache: Cache
    store: Store
    display: Display
    failed: dict[str, Answer] = field(default_factory=dict)

    def cell(self, item: Item, *, facts: Mapping[str, JsonValue] | None = None) -> Record:
        """Builds, measures and stores one cell; `facts` join what its record says about the machine."""
        started, at = perf_counter(), datetime.now(UTC).isoformat(timespec="seconds")
        with self.store.attempt(item.cell) as folder:
            try:
                answer = self._answer(item, folder)
            except KeyboardInterrupt:
                failure = Failure(phase="launch", reason="interrupted", advice="run again to go on")
                self.store.put(self._record(item, Answer(outcome=Outcome.FAILED, error=failure), at), folder)
                raise
            seconds = {**answer.seconds, "total": perf_counter() - started}
            told = {"seconds": seconds, "machine": {**answer.machine, **(facts or {})}}
            record = self._record(item, answer.model_copy(update=told), at)
            self.store.put(record, folder)
        return record

    def _answer(self, item: Item, folder: Path) -> Answer:
        """Measures, building first; once more from the start when the cache turns out to be damaged."""
        answer = self._once(item, folder)
        if answer.corrupt:
            self.display.say(f"{answer.error.reason if answer.error else 'damaged'}: building it again")
            self.cache.discard(answer.corrupt)
            self.failed.clear()
            answer = self._once(item, folder)
        return answer

    def build(self, item: Item, folder: Path) -> Answer:
        """Builds what a cell stands on and is not cached; `folder` gets the log.

        An artifact that the plan does not make, as one that was pinned by an earlier plan, is left to the cache.
        """
        planned = item if item.artifact in self.plan.builds else replace(item, artifact=None)
        for build in self.plan.builds_for(planned):
            answer = self._build(build, item, folder)
            if answer.outcome is not Outcome.OK:
                return answer
        return Answer(outcome=Outcome.OK)

    def _once(self, item: Item, folder: Path) -> Answer:
        built = self.build(item, folder)
        if built.outcome is not Outcome.OK:
            return built
        assert item.artifact is not None
        assert item.environment is not None
        job = MeasureJob(
            cell=item.cell,
            artifact=item.artifact,
            needs=tuple(dict(needs) for needs in item.needs),
            cache=self.cache.root,
            folder=folder,
            memory_gib=self.plan.matrix.memory_gib,
        )
        launcher = Launcher(item.environment.python, self.plan.matrix.timeout_s)
        return launcher.run(job, progress=self.display.step("measure"))

    def _build(self, build: Build, item: Item, folder: Path) -> Answer:
        if build.key in self.failed:
            return self.failed[build.key]
        try:
            if self.cache.get(build.key) is not None:
                return Answer(outcome=Outcome.OK)
        except CorruptArtifact as error:
            self.display.say(f"{error}: building it again")
            self.cache.discard(build.key)
        job = BuildJob(
            key=build.key,
            origin=build.origin,
            stage=build.stage,
            parent=build.parent,
            needs=dict(build.needs),
            emulated=build.emulated,
            hardware=item.cell.hardware.for_building,
            seed=item.cell.seed,
            cache=self.cache.root,
            folder=folder,
            memory_gib=self.plan.matrix.memory_gib,
        )
        launcher = Launcher(build.environment.python, self.plan.matrix.timeout_s)
        answer = launcher.run(job, progress=self.display.step(build.label))
        if answer.outcome is not Outcome.OK and not answer.corrupt:
            self.failed[build.key] = answer
        return answer

    def _record(self, item: Item, answer: Answer, at: str) -> Record:
        try:
            artifact = self.cache.get(item.artifact) if item.artifact else None
        except CorruptArtifact:
            artifact = None
        return Record(
            cell=item.cell,
            outcome=answer.outcome,
            metrics=answer.metrics,
            gaps=answer.gaps,
            artifact=artifact.facts if artifact else None,
            identity=answer.identity,
            machine=answer.machine,
            machine_after=answer.machine_after,
            versions=dict(item.versions),
            artifacts=dict(item.artifacts),
            seconds=answer.seconds,
            started_at=at,
            error=answer.error,
        )
