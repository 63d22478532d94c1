"""The child process: build one artifact, or open one and observe it.

This is the only module that knows the order of things: verify, open, observe, summarize. It is started fresh for
every step, under the interpreter the plan chose, and answers through files (see `job`). Progress goes to the parent
as JSON lines on an inherited pipe. It dies with its parent.
"""

from __future__ import annotations

import ctypes
import os
import platform
import resource
import signal
import sys
import time
import traceback
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol, TextIO

from harness import machine, plugins
from harness.cache import Cache
from harness.errors import CorruptArtifact, HarnessError, Unsupported, UserError
from harness.interfaces import (
    SAME,
    Artifact,
    BuildReport,
    Evaluation,
    EvaluationContext,
    Progress,
    Session,
    StageContext,
)
from harness.job import JOB, PROGRESS_FD, Answer, BuildJob, MeasureJob, Note
from harness.record import ArtifactFacts, Failure, Gap, Metric, Observation, Outcome, Phase, StageCost
from harness.spec import Use


def main() -> None:
    """Runs the job whose file is the only argument; the exit code is 0 whenever an answer was written."""
    job_file = Path(sys.argv[1])
    die_with_the_parent()
    job = JOB.validate_json(job_file.read_text(encoding="utf-8"))
    if job.memory_gib is not None:
        limit = int(job.memory_gib * 2**30)
        resource.setrlimit(resource.RLIMIT_DATA, (limit, limit))
    progress = progress_to_parent()
    work = _Measuring(job, progress) if isinstance(job, MeasureJob) else _Building(job, progress)
    answer = guarded(work)
    aside = job_file.with_name("answer.json.partial")
    aside.write_text(answer.model_dump_json(), encoding="utf-8")
    aside.rename(job_file.with_name("answer.json"))


class Work(Protocol):
    """What can be answered for: it runs, and says what became of it when it could not."""

    phase: Phase
    reading: str | None

    def run(self) -> Answer: ...
    def answer(self, outcome: Outcome, failure: Failure, *, corrupt: str | None = None) -> Answer: ...


def attempt(do: Callable[[], object]) -> Answer:
    """Does something that a plug-in may fail at, and gives what came of it."""
    return guarded(_Attempt(do))


@dataclass
class _Attempt:
    do: Callable[[], object]
    phase: Phase = "build"
    reading: str | None = None

    def run(self) -> Answer:
        self.do()
        return Answer(outcome=Outcome.OK)

    def answer(self, outcome: Outcome, failure: Failure, *, corrupt: str | None = None) -> Answer:
        return Answer(outcome=outcome, error=failure, corrupt=corrupt)


def guarded(work: Work) -> Answer:
    """Turns whatever a plug-in raises into an answer; the one place where everything is caught."""
    try:
        return work.run()
    except Unsupported as error:
        failure = Failure(phase=work.phase, reason=error.reason, advice=error.remedy)
        return work.answer(Outcome.UNSUPPORTED, failure)
    except CorruptArtifact as error:
        return work.answer(Outcome.FAILED, Failure(phase=work.phase, reason=str(error)), corrupt=work.reading)
    except Exception as error:
        text = traceback.format_exc()
        print(text, file=sys.stderr, flush=True)
        outcome = classify(error)
        reason, advice = f"{type(error).__name__}: {error}", ""
        if isinstance(error, UserError):
            reason, advice = error.reason, error.remedy
        elif isinstance(error, HarnessError):
            reason = str(error)
        failure = Failure(phase=work.phase, reason=reason, advice=advice or outcome.advice, traceback=text)
        return work.answer(outcome, failure)


def classify(error: BaseException) -> Outcome:
    """Tells running out of memory, on the host or on a device, from other failures."""
    names = {kind.__name__ for kind in type(error).__mro__}
    said = str(error).lower()
    if names & {"MemoryError", "OutOfMemoryError"} or "can't allocate memory" in said or "std::bad_alloc" in said:
        return Outcome.OUT_OF_MEMORY
    return Outcome.FAILED


@dataclass
class _Building:
    """One build step: fetch a source or apply a stage, then put the result into the cache."""

    job: BuildJob
    progress: Progress
    phase: Phase = "build"
    reading: str | None = None

    def answer(self, outcome: Outcome, failure: Failure, *, corrupt: str | None = None) -> Answer:
        return Answer(outcome=outcome, error=failure, corrupt=corrupt)

    def run(self) -> Answer:
        job, cache = self.job, Cache(self.job.cache)
        with cache.building(job.key) as out:
            if cache.get(job.key) is not None:
                return Answer(outcome=Outcome.OK)
            artifacts = {name: self._artifact(cache, key) for name, key in job.needs.items()}
            report = BuildReport()
            context = StageContext(artifacts, job.hardware, job.seed, cache.scratch(job.key), self.progress, report)
            if job.stage is None:
                source = plugins.source(job.origin)
                facts = self._timed(
                    lambda: source.fetch(out, context=context), report, produces=source.format, parent=None
                )
            else:
                assert job.parent is not None
                stage, parent = plugins.stage(job.stage), self._artifact(cache, job.parent)
                produces = parent.format if stage.produces == SAME else stage.produces
                facts = self._timed(
                    lambda: stage.apply(parent, out, context=context), report, produces=produces, parent=parent
                )
            cache.commit(job.key, facts)
        return Answer(outcome=Outcome.OK)

    def _artifact(self, cache: Cache, key: str) -> Artifact:
        self.reading = key
        if cache.get(key) is not None:
            cache.verify(key)
        found = cache.get(key)
        if found is None:
            raise CorruptArtifact(f"artifact {key} is gone from the cache")
        return found

    def _timed(
        self,
        work: Callable[[], None],
        report: BuildReport,
        *,
        produces: str,
        parent: Artifact | None,
    ) -> ArtifactFacts:
        started, cpu, origin = time.perf_counter(), _cpu_s(), self.job.origin
        work()
        cost = StageCost(
            step=str(self.job.stage) if self.job.stage else f"fetch {Use(use=origin.source, args=origin.args)}",
            wall_s=time.perf_counter() - started,
            cpu_s=_cpu_s() - cpu,
            peak_bytes=_peak_bytes(),
            tokens=report.tokens,
            notes=dict(report.notes),
        )
        before = parent.facts if parent else None
        labels = (*(before.labels if before else ()), *report.labels)
        return ArtifactFacts(
            lineage=(*(before.lineage if before else ()), *([self.job.stage] if self.job.stage else ())),
            format=produces,
            digest="",
            size_bytes=0,
            nominal_bytes=report.nominal_bytes or (before.nominal_bytes if before and self.job.emulated else None),
            emulated=self.job.emulated,
            labels=tuple(dict.fromkeys(labels)),
            costs=(*(before.costs if before else ()), cost),
        )


@dataclass
class _Measuring:
    """One measurement: verify the bytes, open them, run every evaluation of the suite."""

    job: MeasureJob
    progress: Progress
    phase: Phase = "open"
    reading: str | None = None
    partial: dict[str, object] = field(default_factory=dict)
    metrics: list[Metric] = field(default_factory=list)
    gaps: list[Gap] = field(default_factory=list)
    seconds: dict[str, float] = field(default_factory=dict)

    def answer(self, outcome: Outcome, failure: Failure | None, *, corrupt: str | None = None) -> Answer:
        return Answer(
            outcome=outcome,
            metrics=tuple(self.metrics),
            gaps=tuple(self.gaps),
            seconds=self.seconds,
            machine_after=machine.fingerprint(),
            error=failure,
            corrupt=corrupt,
            **self.partial,  # type: ignore[arg-type]  # identity and machine, once known
        )

    def run(self) -> Answer:
        self.partial["machine"] = machine.fingerprint()
        cache, cell = Cache(self.job.cache), self.job.cell
        self.progress(None, "verify")
        artifact = self._verified(cache, self.job.artifact)
        evaluations = [plugins.evaluation(use) for use in cell.suite.evaluations]
        needs = [{name: self._verified(cache, key) for name, key in keys.items()} for keys in self.job.needs]
        self.progress(None, "open")
        with ExitStack() as stack:
            started = time.perf_counter()
            session = stack.enter_context(plugins.runtime(cell.runtime).open(artifact, hardware=cell.hardware))
            self.seconds["open"] = time.perf_counter() - started
            identity = session.identity
            self.partial["identity"] = identity
            rows = stack.enter_context((self.job.folder / "observations.jsonl").open("w", encoding="utf-8"))
            for index, evaluation in enumerate(evaluations):
                context = EvaluationContext(
                    artifacts=needs[index],
                    artifact=artifact,
                    hardware=cell.hardware,
                    seed=cell.seed,
                    load_s=self.seconds["open"],
                    scratch=self.job.folder,
                    progress=_part(self.progress, index, len(evaluations), cell.suite.evaluations[index]),
                )
                self._evaluate(cell.suite.evaluations[index], (evaluation, session, context), rows)
        is_emulated = artifact.facts.emulated or identity.unpacked
        return self.answer(Outcome.EMULATED if is_emulated else Outcome.OK, None)

    def _evaluate(self, use: Use, parts: tuple[Evaluation, Session, EvaluationContext], rows: TextIO) -> None:
        evaluation, session, context = parts
        self.phase, started = "observe", time.perf_counter()
        seen: list[Observation] = []
        try:
            context.progress(0.0, "")
            for row in evaluation.observe(session, context=context):
                rows.write(row.model_dump_json() + "\n")
                rows.flush()
                seen.append(row)
        except Unsupported as error:
            self.gaps.append(Gap(evaluation=str(use), reason=error.reason, remedy=error.remedy))
        self.seconds[f"observe {use}"] = time.perf_counter() - started
        self.phase = "summarize"
        if seen:
            self.metrics.extend(evaluation.summarize(seen))

    def _verified(self, cache: Cache, key: str) -> Artifact:
        self.reading = key
        cache.verify(key)
        artifact = cache.get(key)
        assert artifact is not None
        return artifact


def _part(progress: Progress, index: int, count: int, use: Use) -> Progress:
    """Gives a progress that covers the index-th of `count` equal parts."""

    def report(fraction: float | None, message: str) -> None:
        progress((index + (fraction or 0.0)) / count, f"{use} {message}".rstrip())

    return report


def progress_to_parent() -> Progress:
    """Gives a progress that writes JSON lines to the inherited pipe, at most five a second."""
    descriptor = os.environ.get(PROGRESS_FD)
    if descriptor is None:
        return lambda fraction, message: None
    pipe = os.fdopen(int(descriptor), "w", buffering=1, encoding="utf-8")
    last = 0.0

    def report(fraction: float | None, message: str) -> None:
        nonlocal last
        now = time.monotonic()
        if now - last >= 0.2:
            last = now
            pipe.write(Note(fraction=fraction, message=message).model_dump_json() + "\n")

    return report


def die_with_the_parent() -> None:
    """Asks the kernel to kill this process when the parent dies, however it dies (Linux)."""
    if platform.system() == "Linux":
        parent_death_signal = 1  # PR_SET_PDEATHSIG, <linux/prctl.h>
        ctypes.CDLL(None).prctl(parent_death_signal, signal.SIGKILL)
        if os.getppid() == 1:
            sys.exit("the parent is gone")


def _cpu_s() -> float:
    own, children = resource.getrusage(resource.RUSAGE_SELF), resource.getrusage(resource.RUSAGE_CHILDREN)
    return own.ru_utime + own.ru_stime + children.ru_utime + children.ru_stime


def _peak_bytes() -> int:
    """Gives the largest resident size so far of this process or one of its children: the kernel's high-water mark."""
    unit = 1 if platform.system() == "Darwin" else 1024
    return unit * max(resource.getrusage(who).ru_maxrss for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))


if __name__ == "__main__":
    main()
