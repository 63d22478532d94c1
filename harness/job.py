"""What a parent tells a child and what the child tells back: two small JSON files.

The parent writes `job.json` and starts `python -m harness.worker job.json`; the child answers with `answer.json`
beside it, written aside and renamed. A child that dies leaves no answer, and the parent then writes the record
itself.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field, JsonValue, TypeAdapter

from harness.record import Failure, Gap, Identity, Metric, Outcome
from harness.spec import Cell, Hardware, Model, Need, Use, Value


class BuildJob(Value):
    """Fetch a source (`stage` is None) or apply one stage to a built artifact, and put it into the cache."""

    kind: Literal["build"] = "build"
    key: str
    origin: Model | Need
    stage: Use | None = None
    parent: str | None = None
    needs: dict[str, str] = Field(default_factory=dict)
    emulated: bool = False
    hardware: Hardware
    seed: int = 0
    cache: Path
    folder: Path
    memory_gib: float | None = None


class MeasureJob(Value):
    """Open an artifact on a runtime and run a suite; rows go to `observations.jsonl` in `folder` as they come."""

    kind: Literal["measure"] = "measure"
    cell: Cell
    artifact: str
    needs: tuple[dict[str, str], ...] = ()
    cache: Path
    folder: Path
    memory_gib: float | None = None


Job = Annotated[BuildJob | MeasureJob, Field(discriminator="kind")]
JOB: TypeAdapter[BuildJob | MeasureJob] = TypeAdapter(Job)


PROGRESS_FD = "HARNESS_PROGRESS_FD"
"""Environment variable that names the inherited pipe on which a child writes notes, one JSON document a line."""


class Note(Value):
    """How far a child is: a fraction when known, and a few words."""

    fraction: float | None = None
    message: str = ""


class Answer(Value):
    """What a child found out. `corrupt` is the key of an artifact whose bytes are not what was built."""

    outcome: Outcome
    metrics: tuple[Metric, ...] = ()
    gaps: tuple[Gap, ...] = ()
    identity: Identity | None = None
    machine: dict[str, JsonValue] = Field(default_factory=dict)
    machine_after: dict[str, JsonValue] = Field(default_factory=dict)
    seconds: dict[str, float] = Field(default_factory=dict)
    error: Failure | None = None
    corrupt: str | None = None
