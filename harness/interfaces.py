"""The Protocols a plug-in implements: seven kinds, one or two methods each.

A plug-in is a final frozen dataclass whose fields are its arguments. Constructors validate and store: they never load,
download, seed or import anything heavy, because the plan builds every plug-in of a matrix before the first cell runs.
Class attributes say what a plug-in can do and what it asks for, so that the plan can refuse what cannot run:

    version       changes when the same arguments would give other numbers; part of every cache key and record
    requirements  modules that must be importable (`("torch", "transformers")`); looked up, not imported, by the plan
    extra         the extra of this distribution that installs them, for the remedy and for `harness env create`

Token-id sequences are plain lists of int. Log-probabilities are natural logarithms.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar, Literal, Protocol

from pydantic import JsonValue

from harness.record import ArtifactFacts, Identity, Metric, Observation, Record
from harness.spec import Hardware, Need, Use

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

    from harness.plan import Plan

Progress = Callable[[float | None, str], None]
"""Called with the fraction done (None when unknown) and a short message; cheap, call it as often as you like."""


@dataclass(frozen=True)
class Artifact:
    """A folder of files that was fetched or built, with its facts. `path` is the folder.

    Formats: `hf` a Hugging Face model directory, `grid` the same with linear weights on declared integer grids,
    `packed` the same with weights packed as the `quantization_config` in its configuration says, `gguf` a folder with
    exactly one `*.gguf`, `text` a corpus (`train.txt` and `heldout.txt`, documents separated by a form
    feed, and where it has questions with answers `train.pairs.jsonl` and `heldout.pairs.jsonl`), `files` anything else.
    """

    path: Path
    facts: ArtifactFacts

    @property
    def format(self) -> str:
        return self.facts.format

    @property
    def digest(self) -> str:
        return self.facts.digest

    @property
    def size_bytes(self) -> int:
        return self.facts.size_bytes

    @property
    def lineage(self) -> tuple[Use, ...]:
        return self.facts.lineage


class Plugin(Protocol):
    """What every plug-in of every kind declares on its class."""

    version: ClassVar[str]
    requirements: ClassVar[tuple[str, ...]]
    extra: ClassVar[str | None]


@dataclass
class BuildReport:
    """What a source or a stage tells about its work; becomes part of the artifact's facts.

    `nominal_bytes` is the size the weights would have if an emulated quantization were packed. `labels` are sentences
    every report repeats ("dequantized from a 4-bit file"). `notes` are facts for the record (layers removed, last
    loss).
    """

    tokens: int = 0
    nominal_bytes: int | None = None
    labels: list[str] = field(default_factory=list)
    notes: dict[str, JsonValue] = field(default_factory=dict)


@dataclass(frozen=True)
class StageContext:
    """What a source or a stage is given beside its input.

    `scratch` survives a killed attempt and belongs to this build alone: checkpoints go there. `artifacts` holds what
    the plug-in's `needs` asked for, by name.
    """

    artifacts: Mapping[str, Artifact]
    hardware: Hardware
    seed: int
    scratch: Path
    progress: Progress
    report: BuildReport


class Source(Plugin, Protocol):
    """Where bytes come from. Built as `cls(reference, revision=..., **args)` from `scheme:reference`."""

    @property
    def format(self) -> str:
        """The format the fetched artifact will have, known before fetching."""

    @property
    def fingerprint(self) -> str:
        """What the bytes depend on beside the reference (file times, package versions); empty when it is pinned."""

    def fetch(self, out: Path, *, context: StageContext) -> None:
        """Puts the files into the empty folder `out`. Raises SourceError when they cannot be had."""


SAME = "same"
"""What a stage `produces` whose output has the format of its input."""


class Stage(Plugin, Protocol):
    """One compression step.

    `consumes` are formats, `produces` is one, or `same` (SAME): the one that came in. `emulated` says that the stage
    quantizes and leaves the weights unpacked; what comes after keeps that name as long as the format stays. A stage
    that packs is not emulated: whether a runtime computes with what is packed shows when it has loaded it
    (`Identity.unpacked`).
    """

    consumes: ClassVar[frozenset[str]]
    produces: ClassVar[str]
    emulated: ClassVar[bool]

    @property
    def needs(self) -> tuple[Need, ...]:
        """Other artifacts (teachers, corpora, tools) to build first."""

    def apply(self, source: Artifact, out: Path, *, context: StageContext) -> None:
        """Writes the compressed model into the empty folder `out`; never touches `source`."""


@dataclass(frozen=True)
class ScoreRequest:
    """Tokens to score given tokens before them. `context` has at least one token (the prefix token if need be)."""

    context: Sequence[int]
    continuation: Sequence[int]


@dataclass(frozen=True)
class Scored:
    """For each continuation token its log-probability and whether it was the most likely one."""

    logprobs: Sequence[float]
    greedy: Sequence[bool]


@dataclass(frozen=True)
class GenerateRequest:
    """A prompt to continue. Temperature 0 is greedy. `stop` strings end the text and are not part of it.

    With `ignore_eos` exactly `max_tokens` tokens come, which is what speed probes need.
    """

    prompt: Sequence[int]
    max_tokens: int
    stop: tuple[str, ...] = ()
    ignore_eos: bool = False
    temperature: float = 0.0
    seed: int = 0


Finish = Literal["stop", "eos", "length"]


@dataclass(frozen=True)
class Token:
    """One generated token as it comes; `finish` is set on the last one of its request.

    `text` is set on the last token only: the whole generated text, cut before a stop string and without the end token.
    """

    request: int
    token: int
    finish: Finish | None = None
    text: str | None = None


class Session(Protocol):
    """A loaded model. The harness holds the clock: a call returns when its results are in host memory.

    `max_length` counts context and continuation together. `prefix_token` starts a text that has no context (BOS, else
    EOS). `encode` parses special tokens inside the text and adds none; with `bos` it adds the BOS where the model's own
    tokenizer does so.
    """

    @property
    def identity(self) -> Identity: ...
    @property
    def max_length(self) -> int: ...
    @property
    def vocabulary_size(self) -> int: ...
    @property
    def prefix_token(self) -> int: ...
    @property
    def end_tokens(self) -> frozenset[int]: ...

    def encode(self, text: str, *, bos: bool = False) -> list[int]: ...
    def decode(self, tokens: Sequence[int]) -> str: ...

    def chat(self, messages: Sequence[Mapping[str, str]], *, add_generation_prompt: bool = True) -> str:
        """Gives the prompt as rendered by the model's own chat template. Raises Unsupported when it has none."""

    def score(self, requests: Sequence[ScoreRequest]) -> list[Scored]:
        """Scores every request, in the order given, however they were batched."""

    def generate(self, requests: Sequence[GenerateRequest]) -> Iterator[Token]:
        """Yields tokens of all requests as they come; requests run together as far as the runtime can."""

    def logits(self, tokens: Sequence[int]) -> npt.NDArray[np.float32]:
        """Gives logits (T, V) after each of T tokens; only with the capability `logits`."""


class Runtime(Plugin, Protocol):
    """An engine that can open artifacts.

    `formats` maps a format it accepts to the stages that bring it there first: `{"gguf": (), "hf":
    (Use("convert.gguf"),)}`. Capabilities: `score`, `generate`, `logits`, `chat`, `batch` (several requests really
    run together).
    """

    capabilities: ClassVar[frozenset[str]]
    devices: ClassVar[frozenset[str]]

    @property
    def formats(self) -> Mapping[str, tuple[Use, ...]]: ...

    def open(self, artifact: Artifact, *, hardware: Hardware) -> AbstractContextManager[Session]:
        """Loads the model; the caller times it apart from everything else."""


@dataclass(frozen=True)
class EvaluationContext:
    """What an evaluation is given beside the session. `load_s` is what opening took."""

    artifacts: Mapping[str, Artifact]
    artifact: Artifact
    hardware: Hardware
    seed: int
    load_s: float
    scratch: Path
    progress: Progress


class Evaluation(Plugin, Protocol):
    """A measure: task, agent episode, fidelity or speed probe. `requires` are runtime capabilities."""

    requires: ClassVar[frozenset[str]]

    @property
    def needs(self) -> tuple[Need, ...]:
        """Artifacts to build first (the reference's logits, a data set)."""

    def observe(self, session: Session, *, context: EvaluationContext) -> Iterator[Observation]:
        """Touches the model; rows are stored as they are yielded."""

    def summarize(self, observations: Sequence[Observation]) -> tuple[Metric, ...]:
        """Turns this evaluation's rows into metrics. Pure: the order of rows must not matter."""


class Results(Protocol):
    """Records and their rows, as a reporter reads them."""

    @property
    def records(self) -> Sequence[Record]:
        """The latest record of every cell."""

    def observations(self, record: Record) -> Sequence[Observation]:
        """The rows of one record, in the order they were seen."""


class Executor(Protocol):
    """Who runs the cells of a plan. Yields each record as soon as it is stored."""

    def map(self, plan: Plan) -> Iterator[Record]:
        """Runs what the plan says must run, in an order of its own."""


class Reporter(Plugin, Protocol):
    """Writes files from records. Pure: reads records, runs nothing, gives the same bytes for the same records."""

    def render(self, results: Results, out: Path) -> Iterable[Path]:
        """Writes into the folder `out` and gives the files written."""


@dataclass(frozen=True)
class Imported:
    """A record made from a foreign log, and its rows in the order of the log."""

    record: Record
    rows: tuple[Observation, ...]


class Importer(Plugin, Protocol):
    """Reads one foreign format.

    It says only what the log says: weights that nobody hashed have no digest, a machine that nobody described has no
    facts, and a number that is not in the log is absent.
    """

    def recognizes(self, file: Path) -> bool:
        """True when the file or folder looks like this format; reads its beginning at most."""

    def read(self, file: Path) -> Iterator[Imported]:
        """Yields what the file or folder holds, oldest first. Raises SourceError with file and line."""


class Exporter(Plugin, Protocol):
    """Writes one foreign format. Pure: the same bytes for the same records."""

    def write(self, results: Results, out: Path) -> list[Path]:
        """Writes into the folder `out` and gives the files written; none where no record has such numbers."""
