"""What is stored: observations as they were seen, metrics computed from them, and the record of a cell.

A metric is a pure function of observations, so a better statistic can be computed from an old run. A number that was
not measured is absent; there are no sentinels. Records carry `schema_version`; a store refuses records of another
version.
"""

from __future__ import annotations

import math
from enum import StrEnum
from typing import Literal

from pydantic import Field, JsonValue, field_validator

from harness.spec import Cell, Use, Value

SCHEMA_VERSION = 1


class Outcome(StrEnum):
    """How a cell ended. `ok` and `emulated` carry numbers; the others carry a reason and advice."""

    OK = "ok"
    EMULATED = "emulated"
    UNSUPPORTED = "unsupported"
    OUT_OF_MEMORY = "out_of_memory"
    TIMEOUT = "timeout"
    FAILED = "failed"

    @property
    def is_measured(self) -> bool:
        """True when the record carries numbers."""
        return self in (Outcome.OK, Outcome.EMULATED)

    @property
    def advice(self) -> str:
        """Says what a user can do about it."""
        return _ADVICE[self]


_ADVICE = {
    Outcome.OK: "",
    Outcome.EMULATED: "accuracy is real, speed and memory are those of the unpacked weights: do not quote them",
    Outcome.UNSUPPORTED: "see the reason; install what it names or leave the cell out with an exclusion",
    Outcome.OUT_OF_MEMORY: "use a smaller batch or context, a smaller model, or a machine with more memory",
    Outcome.TIMEOUT: "raise `timeout_s` in the matrix or ask for fewer items",
    Outcome.FAILED: "read the cell's log.txt; run again to try once more",
}

Scalar = float | int | bool | str | None


class Observation(Value):
    """One row that an evaluation saw: one item answered, one request timed.

    `values["score"]`, where present, is the item's result on a scale where 1 is right and 0 is wrong, and
    `values["chance"]` what guessing would give: these two are what retention is computed from.
    """

    evaluation: str
    task: str
    sample: str
    values: dict[str, Scalar]

    @field_validator("values")
    @classmethod
    def _finite(cls, values: dict[str, Scalar]) -> dict[str, Scalar]:
        bad = [key for key, value in values.items() if isinstance(value, float) and not math.isfinite(value)]
        if bad:
            raise ValueError(f"not a finite number: {', '.join(f'{key}={values[key]}' for key in bad)}")
        return values


class Interval(Value):
    """A confidence interval and the method that gave it."""

    low: float
    high: float
    level: float = 0.95
    method: str


class Metric(Value):
    """A number with its unit, direction, count and interval; a pure function of observations."""

    evaluation: str
    task: str
    name: str
    unit: str
    value: float = Field(allow_inf_nan=False)
    n: int = Field(ge=0)
    higher_is_better: bool
    interval: Interval | None = None
    chance: float | None = None
    caveats: tuple[str, ...] = ()


class Identity(Value):
    """What was really loaded, read from the loaded weights and never from a configuration.

    `tensor_types` counts weights by storage type as packed (`{"q4_K": 88_000_000, "f32": 35_000}`). `unpacked` says
    that weights lie packed in the files and were unpacked to be computed with, once or in every pass: speed and memory
    are then not theirs.
    """

    weights_digest: str
    weights_disk_bytes: int
    weights_memory_bytes: int
    parameters: int
    tensor_types: dict[str, int]
    kernel: str
    tokenizer_hash: str
    chat_template_hash: str | None = None
    runtime_version: str = ""
    unpacked: bool = False
    caveats: tuple[str, ...] = ()

    @property
    def bits_per_weight(self) -> float:
        """8 × bytes in memory, scales and embeddings included, over the number of parameters."""
        return 8 * self.weights_memory_bytes / self.parameters


class StageCost(Value):
    """What one build step cost: "time to deploy" is a result."""

    step: str
    wall_s: float
    cpu_s: float
    peak_bytes: int
    tokens: int = 0
    notes: dict[str, JsonValue] = Field(default_factory=dict)


class ArtifactFacts(Value):
    """The part of an artifact that a record keeps: where it came from, what it weighs, what it cost."""

    lineage: tuple[Use, ...]
    format: str
    digest: str
    size_bytes: int
    nominal_bytes: int | None = None
    emulated: bool = False
    labels: tuple[str, ...] = ()
    costs: tuple[StageCost, ...] = ()


Phase = Literal["plan", "build", "open", "observe", "summarize", "launch"]


class Failure(Value):
    """Why a cell has no numbers: the phase, the reason in a sentence, and advice."""

    phase: Phase
    reason: str
    advice: str = ""
    traceback: str = ""


class Gap(Value):
    """An evaluation of the suite that this cell could not answer, and why; the others were measured."""

    evaluation: str
    reason: str
    remedy: str = ""


class Record(Value):
    """Everything known about one attempt at one cell.

    `versions` are those of the plug-ins that took part; `artifacts` are the cache keys of what was measured and needed.
    """

    schema_version: int = SCHEMA_VERSION
    cell: Cell
    outcome: Outcome
    metrics: tuple[Metric, ...] = ()
    gaps: tuple[Gap, ...] = ()
    artifact: ArtifactFacts | None = None
    identity: Identity | None = None
    machine: dict[str, JsonValue] = Field(default_factory=dict)
    machine_after: dict[str, JsonValue] = Field(default_factory=dict)
    versions: dict[str, str] = Field(default_factory=dict)
    artifacts: dict[str, str] = Field(default_factory=dict)
    seconds: dict[str, float] = Field(default_factory=dict)
    started_at: str = ""
    error: Failure | None = None
