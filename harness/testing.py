"""Fakes of every plug-in kind, and the checks every plug-in must pass: for our tests and for plug-in authors.

The fakes form a complete tiny world: a source whose model is a table of next-character logits, a stage that blurs
the table, a runtime that answers from it in microseconds, an evaluation and a reporter. They are real plug-ins,
run by real child processes; `installed` makes them visible through ordinary entry points. Their `fail` argument breaks
them on purpose.

    with harness.testing.installed(tmp_path):            # entry points for this process and its children
        matrix = ...                                      # models: fake:x, stages: fake.blur, runtime: fake ...

The `check_*` functions assert the contract of `harness.interfaces`; call them from your own tests. A quantizer is tried
as a whole by `harness check-plugin NAME`.
"""

from __future__ import annotations

import inspect
import itertools
import json
import os
import signal
import sys
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, fields, is_dataclass
from pathlib import Path
from typing import ClassVar, Literal, final

import numpy as np
import numpy.typing as npt

from harness import plugins
from harness.cache import file_digest
from harness.errors import ModelError, Unsupported
from harness.interfaces import (
    Artifact,
    EvaluationContext,
    GenerateRequest,
    Results,
    Scored,
    ScoreRequest,
    Session,
    StageContext,
    Token,
)
from harness.record import Identity, Metric, Observation, Scalar
from harness.spec import Hardware, Need, Use

Fail = Literal["kill", "hang", "memory", "hoard", "exit", "raise", "unsupported"]
VOCABULARY = 128
END = 0
FORMAT = "fake"

ENTRY_POINTS = """
[harness.sources]
fake = harness.testing:FakeSource
[harness.stages]
fake.blur = harness.testing:FakeBlur
[harness.runtimes]
fake = harness.testing:FakeRuntime
[harness.evaluations]
fake.greedy = harness.testing:FakeGreedy
[harness.reporters]
fake.count = harness.testing:FakeCount
"""
HEADINGS: Mapping[plugins.Kind, tuple[str, ...]] = dict.fromkeys(
    plugins.KINDS, ("Does:", "Needs:", "Why:", "Known:", "Source:")
) | {"evaluations": ("Measures:", "Needs:", "Why:", "Known:", "Source:")}
"""What the docstring of a plug-in explains, in this order."""


@contextmanager
def installed(folder: Path, entry_points: str = ENTRY_POINTS) -> Iterator[Path]:
    """Makes entry points visible to this process and to its children for the length of a `with` block."""
    info = folder / "harness_testing_fakes-0.dist-info"
    info.mkdir(parents=True, exist_ok=True)
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: harness-testing-fakes\nVersion: 0\n", encoding="utf-8")
    (info / "entry_points.txt").write_text(entry_points, encoding="utf-8")
    before = os.environ.get("PYTHONPATH")
    os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, (str(folder), before)))
    sys.path.insert(0, str(folder))
    plugins.installed.cache_clear()
    try:
        yield folder
    finally:
        sys.path.remove(str(folder))
        if before is None:
            del os.environ["PYTHONPATH"]
        else:
            os.environ["PYTHONPATH"] = before
        plugins.installed.cache_clear()


def break_now(fail: Fail | None) -> None:
    """Breaks this process in the way asked for, or does nothing."""
    match fail:
        case "kill":
            os.kill(os.getpid(), signal.SIGKILL)
        case "hang":
            time.sleep(3600)
        case "memory":
            raise MemoryError("asked to run out of memory")
        case "hoard":
            hoard = [np.ones(2**24) for _ in itertools.count()]
            raise AssertionError(len(hoard))
        case "exit":
            os._exit(3)
        case "raise":
            raise RuntimeError("asked to fail")
        case "unsupported":
            raise Unsupported("asked to be unsupported", remedy="ask for something else")
        case None:
            pass


@final
@dataclass(frozen=True)
class FakeSource:
    """Does: makes a table of next-character logits from a name.

    Needs: nothing. Why: tests without a model. Known: not a language model. Source: ours.
    """

    version: ClassVar[str] = "1"
    requirements: ClassVar[tuple[str, ...]] = ()
    extra: ClassVar[str | None] = None
    reference: str
    fail: Fail | None = None
    format: ClassVar[str] = FORMAT
    fingerprint: ClassVar[str] = ""

    def fetch(self, out: Path, *, context: StageContext) -> None:
        context.progress(0.5, "making a table")
        break_now(self.fail)
        rng = np.random.default_rng(sum(self.reference.encode()))
        np.save(out / "table.npy", rng.normal(size=(VOCABULARY, VOCABULARY)).astype(np.float32), allow_pickle=False)


@final
@dataclass(frozen=True)
class FakeBlur:
    """Does: adds seeded noise to the table.

    Needs: nothing. Why: tests without a model. Known: not a compression method. Source: ours.
    """

    version: ClassVar[str] = "1"
    requirements: ClassVar[tuple[str, ...]] = ()
    extra: ClassVar[str | None] = None
    consumes: ClassVar[frozenset[str]] = frozenset({FORMAT})
    produces: ClassVar[str] = FORMAT
    emulated: ClassVar[bool] = False
    noise: float = 0.0
    seconds: float = 0.0
    fail: Fail | None = None
    teacher: bool = False

    @property
    def needs(self) -> tuple[Need, ...]:
        return (Need(name="teacher"),) if self.teacher else ()

    def apply(self, source: Artifact, out: Path, *, context: StageContext) -> None:
        break_now(self.fail)
        time.sleep(self.seconds)
        if self.teacher:
            source = context.artifacts["teacher"]
        table = np.load(source.path / "table.npy", allow_pickle=False)
        noise = np.random.default_rng(context.seed + 1).normal(size=table.shape)
        np.save(out / "table.npy", (table + self.noise * noise).astype(np.float32), allow_pickle=False)
        context.report.tokens = VOCABULARY
        context.report.notes["noise"] = self.noise


@final
@dataclass(frozen=True)
class FakeRuntime:
    """Does: opens a table.

    Needs: nothing. Why: tests without a model. Known: attends to the last token only. Source: ours.
    """

    version: ClassVar[str] = "1"
    requirements: ClassVar[tuple[str, ...]] = ()
    extra: ClassVar[str | None] = None
    capabilities: ClassVar[frozenset[str]] = frozenset({"score", "generate", "logits", "chat", "batch"})
    devices: ClassVar[frozenset[str]] = frozenset({"cpu"})
    fail: Fail | Literal["nan"] | None = None

    @property
    def formats(self) -> Mapping[str, tuple[Use, ...]]:
        return {FORMAT: ()}

    @contextmanager
    def open(self, artifact: Artifact, *, hardware: Hardware) -> Iterator[Session]:
        if self.fail != "nan":
            break_now(self.fail)
        table = np.load(artifact.path / "table.npy", allow_pickle=False)
        yield FakeSession(
            np.full_like(table, np.nan) if self.fail == "nan" else table, file_digest(artifact.path / "table.npy")
        )


@final
@dataclass(frozen=True)
class FakeSession:
    """A table of logits (V, V) that behaves as a loaded model over ASCII characters."""

    table_VV: npt.NDArray[np.float32]
    digest: str
    max_length: ClassVar[int] = 512
    vocabulary_size: ClassVar[int] = VOCABULARY
    prefix_token: ClassVar[int] = END
    end_tokens: ClassVar[frozenset[int]] = frozenset({END})

    @property
    def identity(self) -> Identity:
        return Identity(
            weights_digest=self.digest,
            weights_disk_bytes=self.table_VV.nbytes,
            weights_memory_bytes=self.table_VV.nbytes,
            parameters=self.table_VV.size,
            tensor_types={"f32": self.table_VV.size},
            kernel="numpy",
            tokenizer_hash="ascii",
        )

    def encode(self, text: str, *, bos: bool = False) -> list[int]:
        return [*([END] if bos else []), *(min(ord(char), VOCABULARY - 1) for char in text)]

    def decode(self, tokens: Sequence[int]) -> str:
        return "".join(chr(token) for token in tokens if token != END)

    def chat(self, messages: Sequence[Mapping[str, str]], *, add_generation_prompt: bool = True) -> str:
        said = "".join(f"{message['role']}: {message['content']}\n" for message in messages)
        return said + ("assistant: " if add_generation_prompt else "")

    def score(self, requests: Sequence[ScoreRequest]) -> list[Scored]:
        return [self._scored(request) for request in requests]

    def _scored(self, request: ScoreRequest) -> Scored:
        before = [*request.context, *request.continuation][len(request.context) - 1 : -1]
        logits_TV = self.logits(before)
        logprobs_TV = logits_TV - np.log(np.exp(logits_TV).sum(axis=-1, keepdims=True))
        chosen = [float(row[token]) for row, token in zip(logprobs_TV, request.continuation, strict=True)]
        if not np.isfinite(chosen).all():
            raise ModelError("the model's log-probabilities are not finite")
        greedy = [bool(row.argmax() == token) for row, token in zip(logits_TV, request.continuation, strict=True)]
        return Scored(chosen, greedy)

    def generate(self, requests: Sequence[GenerateRequest]) -> Iterator[Token]:
        for index, request in enumerate(requests):
            last, said = request.prompt[-1], list[int]()
            while True:
                last = int(self.table_VV[last].argmax())
                said.append(last)
                text = self.decode(said)
                stops = [text.index(stop) for stop in request.stop if stop in text]
                ended = last == END and not request.ignore_eos
                if stops or ended or len(said) >= request.max_tokens:
                    finish: Literal["stop", "eos", "length"] = "stop" if stops else "eos" if ended else "length"
                    yield Token(index, last, finish, text[: min(stops)] if stops else text)
                    break
                yield Token(index, last)

    def logits(self, tokens: Sequence[int]) -> npt.NDArray[np.float32]:
        return self.table_VV[list(tokens)]


@final
@dataclass(frozen=True)
class FakeGreedy:
    """Measures: whether the likeliest next character is the one the unblurred table gives.

    Needs: the reference's table. Why: tests without a model. Known: one item a character. Source: ours.
    """

    version: ClassVar[str] = "1"
    requirements: ClassVar[tuple[str, ...]] = ()
    extra: ClassVar[str | None] = None
    requires: ClassVar[frozenset[str]] = frozenset({"score"})
    items: int = 100
    seconds: float = 0.0
    fail: Fail | None = None
    part: Sequence[int] | None = None

    @property
    def needs(self) -> tuple[Need, ...]:
        return (Need(name="reference"),)

    def observe(self, session: Session, *, context: EvaluationContext) -> Iterator[Observation]:
        truth_VV = np.load(context.artifacts["reference"].path / "table.npy", allow_pickle=False)
        index, parts = self.part or (1, 1)
        for item in range(index - 1, self.items, parts):
            if item == self.items // 2:
                break_now(self.fail)
            time.sleep(self.seconds / self.items)
            expected = int(truth_VV[item % VOCABULARY].argmax())
            scored = session.score([ScoreRequest([item % VOCABULARY], [expected])])[0]
            context.progress(item / self.items, f"{item} of {self.items}")
            values: dict[str, Scalar] = {
                "score": float(scored.greedy[0]),
                "chance": 1 / VOCABULARY,
                "logprob": scored.logprobs[0],
            }
            yield Observation(evaluation="fake.greedy", task="next", sample=str(item), values=values)

    def summarize(self, observations: Sequence[Observation]) -> tuple[Metric, ...]:
        scores = [float(row.values["score"] or 0.0) for row in observations]
        return (
            Metric(
                evaluation="fake.greedy",
                task="next",
                name="accuracy",
                unit="fraction",
                value=sum(scores) / len(scores),
                n=len(scores),
                higher_is_better=True,
                chance=1 / VOCABULARY,
            ),
        )


@final
@dataclass(frozen=True)
class FakeCount:
    """Does: counts records by outcome. Needs: nothing. Why: tests."""

    version: ClassVar[str] = "1"
    requirements: ClassVar[tuple[str, ...]] = ()
    extra: ClassVar[str | None] = None

    def render(self, results: Results, out: Path) -> Iterable[Path]:
        counts: dict[str, int] = {}
        for record in results.records:
            counts[record.outcome] = counts.get(record.outcome, 0) + 1
        (out / "count.json").write_text(json.dumps(counts, sort_keys=True), encoding="utf-8")
        return [out / "count.json"]


def check_plugin(kind: plugins.Kind, plugin: type) -> None:
    """Asserts that a plug-in is a final frozen dataclass with its declarations and a docstring."""
    name = plugin.__name__
    assert is_dataclass(plugin), f"{name} is not a dataclass"
    assert inspect.getattr_static(plugin, "__dataclass_params__").frozen, f"{name} is not frozen"
    assert inspect.getattr_static(plugin, "__final__", False), f"{name} is not final"
    assert plugin.__doc__, f"{name} has no docstring"
    declared = {
        "sources": ("format", "fingerprint", "fetch"),
        "stages": ("consumes", "produces", "emulated", "needs", "apply"),
        "runtimes": ("capabilities", "devices", "formats", "open"),
        "evaluations": ("requires", "needs", "observe", "summarize"),
        "reporters": ("render",),
        "importers": ("recognizes", "read"),
        "exporters": ("write",),
    }[kind]
    absent = object()
    names = ("version", "requirements", "extra", *declared)
    missing = [one for one in names if inspect.getattr_static(plugin, one, absent) is absent]
    assert not missing, f"{name} lacks {missing}"
    assert all(field.type for field in fields(plugin)), f"{name} has an argument without a type"


def check_session(session: Session) -> None:
    """Asserts the laws of a session: order, batching and repetition change nothing; scores are log-probabilities."""
    words = ["one two three", "four", "five six seven eight nine ten", "a"]
    requests = [ScoreRequest([session.prefix_token], session.encode(text)) for text in words]
    together = session.score(requests)
    alone = [session.score([request])[0] for request in requests]
    backwards = session.score(requests[::-1])[::-1]
    for request, *answers in zip(requests, together, alone, backwards, strict=True):
        assert all(len(answer.logprobs) == len(answer.greedy) == len(request.continuation) for answer in answers)
        assert all(value <= 1e-6 for answer in answers for value in answer.logprobs)
        for other in answers[1:]:
            np.testing.assert_allclose(answers[0].logprobs, other.logprobs, atol=2e-2)
    prompts = [GenerateRequest(session.encode(text), max_tokens=4, ignore_eos=True) for text in words]
    tokens = list(session.generate(prompts))
    for index in range(len(prompts)):
        own = [token for token in tokens if token.request == index]
        assert len(own) == 4, "ignore_eos gives exactly max_tokens"
        assert [token.finish for token in own] == [None, None, None, "length"]
        assert own[-1].text is not None


def check_summary(summarize: Iterable[tuple[Metric, ...]]) -> None:
    """Asserts that summaries of the same rows in different orders are the same metrics."""
    first, *others = ({(m.evaluation, m.task, m.name): m for m in metrics} for metrics in summarize)
    for other in others:
        assert first.keys() == other.keys()
        for key, metric in first.items():
            assert np.isclose(metric.value, other[key].value, rtol=1e-9), f"{key} depends on the order of rows"
