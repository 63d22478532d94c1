"""The suite as the command line runs it: one child process a stage, with a time limit, under the right interpreter."""

from __future__ import annotations

import os
import subprocess
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Final

from harness import environments, launch, plan, plugins
from harness.conformance.verdicts import Finding, Report
from harness.environments import Environment
from harness.errors import Unsupported, UserError
from harness.interfaces import Progress
from harness.job import PROGRESS_FD
from harness.spec import Use

TIMEOUT_S: Final = 3600.0
CHILD: Final = "harness.conformance.child"
PACKED: Final = ("packed", "gguf")
"""Formats that hold nothing but quantized weights, so a stage that writes one quantizes."""


def environment_for(use: Use, home: Path) -> Environment:
    """Gives the environment a plan would build the stage in.

    Raises UserError for a stage that is not there, refuses its arguments, is no quantizer or can run nowhere here.
    """
    stage = plugins.stage(use)
    if not stage.emulated and stage.produces not in PACKED:
        raise UserError(
            f"{use.use} says that it does not quantize (emulated is False and it produces {stage.produces!r})",
            remedy="a quantizer that leaves weights unpacked declares `emulated = True`; other stages have no suite",
        )
    if "hf" not in stage.consumes:
        raise UserError(
            f"{use.use} starts from {', '.join(sorted(stage.consumes))}, and the suite's models are of the format hf",
            remedy="the suite is for quantizers of Hugging Face folders",
        )
    found = environments.choose("stages", use.use, environments.found(home))
    if found is None:
        try:
            raise plan.missing("stages", use.use)
        except Unsupported as refusal:
            raise UserError(refusal.reason, remedy=refusal.remedy) from None
    return found


def check(use: Use, environment: Environment, *, timeout_s: float = TIMEOUT_S, progress: Progress) -> Report:
    """Runs the suite on a stage and gives all that was found, also when the process did not live to its end."""
    from harness.conformance.child import FINDINGS, JOB

    started = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="harness-check-") as name:
        folder = Path(name)
        for each in ("world", "builds"):
            (folder / each).mkdir()
        (folder / JOB).write_text(use.model_dump_json(), encoding="utf-8")
        ended = run_watched([str(environment.python), "-m", CHILD, name], folder / "log.txt", timeout_s, progress)
        lines = (folder / FINDINGS).read_text(encoding="utf-8").splitlines() if (folder / FINDINGS).exists() else []
        findings = [Finding.model_validate_json(line) for line in lines]
        if ended:
            log = (folder / "log.txt").read_text(encoding="utf-8", errors="replace")
            findings.append(Finding(check="runs to its end", verdict="FAILED", seen=ended, traceback=log[-4000:]))
    return Report(
        stage=use,
        version=plugins.stage(use).version,
        environment=environment.name,
        seconds=time.monotonic() - started,
        findings=tuple(findings),
    )


def run_watched(command: Sequence[str], log: Path, timeout_s: float, progress: Progress) -> str:
    """Runs the child; gives why it did not end well, or nothing."""
    last = ""

    def tell(fraction: float | None, message: str) -> None:
        nonlocal last
        last = message
        progress(fraction, message)

    reading, writing = os.pipe()
    with log.open("wb") as output:
        child = subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=output,
            env={**launch.environment(threads=1), PROGRESS_FD: str(writing)},
            pass_fds=(writing,),
            start_new_session=True,
        )
        os.close(writing)
        try:
            in_time = launch.finishes(child, reading, tell, time.monotonic() + timeout_s)
        finally:
            os.close(reading)
            launch.kill_group(child)
    if not in_time:
        return f"not finished after {timeout_s:g} s; last seen at: {last}"
    return f"the process ended with exit code {child.returncode}; last seen at: {last}" if child.returncode else ""
