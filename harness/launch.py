"""One fresh process per step: the right interpreter, a timeout, and the whole group killed when it ends badly.

The parent sleeps in `select` while the child works, so it takes no core from what is being timed. Threads are set
explicitly for every numeric library, and OpenMP's waiting threads sleep instead of spinning: with spinning, two
threads on a busy machine were measured 3 to 20 times slower than one.
"""

from __future__ import annotations

import os
import selectors
import signal
import subprocess
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from pydantic import ValidationError

from harness.interfaces import Progress
from harness.job import PROGRESS_FD, Answer, BuildJob, MeasureJob, Note
from harness.record import Failure, Outcome, Phase

GRACE_S = 5.0


@dataclass(frozen=True)
class Launcher:
    """Starts children under an interpreter and waits for their answers."""

    python: Path
    timeout_s: float

    def run(self, job: BuildJob | MeasureJob, *, progress: Progress) -> Answer:
        """Runs a job in a child and gives its answer, or the answer a dead child could not give."""
        job_file, answer_file = job.folder / "job.json", job.folder / "answer.json"
        answer_file.unlink(missing_ok=True)
        job_file.write_text(job.model_dump_json(), encoding="utf-8")
        hardware = job.cell.hardware if isinstance(job, MeasureJob) else job.hardware
        kills_before = _oom_kills()
        with (job.folder / "log.txt").open("ab") as log:
            timed_out, code = self._wait(job_file, log.fileno(), environment(hardware.threads), progress)
        if timed_out:
            return _dead(job, Outcome.TIMEOUT, f"not finished after {self.timeout_s:g} s")
        if not answer_file.exists():
            return _died(job, code, out_of_memory=_oom_kills() > kills_before)
        try:
            return Answer.model_validate_json(answer_file.read_text(encoding="utf-8"))
        except ValidationError as error:
            return _dead(job, Outcome.FAILED, f"the child's answer cannot be read: {error.errors()[0]['msg']}")

    def _wait(self, job_file: Path, log: int, env: Mapping[str, str], progress: Progress) -> tuple[bool, int]:
        reading, writing = os.pipe()
        child = subprocess.Popen(
            [str(self.python), "-m", "harness.worker", str(job_file)],
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            env={**env, PROGRESS_FD: str(writing)},
            pass_fds=(writing,),
            start_new_session=True,
        )
        os.close(writing)
        try:
            timed_out = not finishes(child, reading, progress, time.monotonic() + self.timeout_s)
        finally:
            os.close(reading)
            kill_group(child)
        return timed_out, child.returncode


def environment(threads: int) -> dict[str, str]:
    """Gives a child's environment: this one's, with thread counts set and telemetry off."""
    counts = (
        "OMP_NUM_THREADS",
        "MKL_NUM_THREADS",
        "OPENBLAS_NUM_THREADS",
        "VECLIB_MAXIMUM_THREADS",
        "NUMEXPR_NUM_THREADS",
    )
    return {
        **os.environ,
        **dict.fromkeys(counts, str(threads)),
        "OMP_WAIT_POLICY": "passive",
        "TOKENIZERS_PARALLELISM": "false",
        "HF_HUB_DISABLE_TELEMETRY": "1",
        "PYTHONUNBUFFERED": "1",
    }


def kill_group(child: subprocess.Popen[bytes]) -> None:
    """Ends a child and everything it started: politely, then for certain. Harmless when all are gone."""
    for sign, patience in ((signal.SIGTERM, GRACE_S), (signal.SIGKILL, None)):
        try:
            os.killpg(child.pid, sign)
        except ProcessLookupError:
            break
        except PermissionError:  # macOS says this of a group of zombies
            break
        try:
            child.wait(patience)
        except subprocess.TimeoutExpired:
            continue
    child.wait()


def finishes(child: subprocess.Popen[bytes], pipe: int, progress: Progress, deadline: float) -> bool:
    """Passes notes on until the child is gone; False when the deadline came first.

    The end of the pipe alone says nothing: a grandchild may hold it, a child may close it and hang. So the child is
    looked at once a second as well.
    """
    pending = b""
    with selectors.DefaultSelector() as selector:
        selector.register(pipe, selectors.EVENT_READ)
        while (left := deadline - time.monotonic()) > 0:
            ready = selector.select(min(left, 1.0))
            chunk = os.read(pipe, 65536) if ready else b""
            if not chunk:
                if ready:
                    time.sleep(0.01)  # an ended pipe is always ready: give the child a moment to be gone
                if child.poll() is not None:
                    return True
                continue
            *lines, pending = (pending + chunk).split(b"\n")
            for line in lines:
                note = Note.model_validate_json(line)
                progress(note.fraction, note.message)
    return False


def _died(job: BuildJob | MeasureJob, code: int, *, out_of_memory: bool) -> Answer:
    if out_of_memory:
        return _dead(job, Outcome.OUT_OF_MEMORY, "the kernel killed the process for memory")
    if code < 0:
        name = signal.Signals(-code).name
        hint = (
            " (an illegal or unaligned instruction, or a bug in a native library)"
            if name in ("SIGSEGV", "SIGILL")
            else ""
        )
        return _dead(job, Outcome.FAILED, f"the process was killed by {name}{hint}")
    return _dead(job, Outcome.FAILED, f"the process ended with exit code {code} and no answer")


def _dead(job: BuildJob | MeasureJob, outcome: Outcome, reason: str) -> Answer:
    phase: Phase = "build" if isinstance(job, BuildJob) else "launch"
    return Answer(outcome=outcome, error=Failure(phase=phase, reason=reason, advice=outcome.advice))


def _oom_kills() -> int:
    """Counts the kernel's out-of-memory kills so far, from /proc/vmstat; 0 where there is no such file."""
    try:
        text = Path("/proc/vmstat").read_text(encoding="ascii")
    except OSError:
        return 0
    return next((int(line.split()[1]) for line in text.splitlines() if line.startswith("oom_kill ")), 0)
