"""How far a compressed model's next-token distributions are from its reference's, on the same tokens.

Both models read the same held-out tokens and nothing is generated, so two runs differ only by the models: this sees
damage with a few thousand tokens that task scores need many thousand items for. It can reject a model or explain a
drop; near the reference it says little about task scores and must not accept a model alone.

Shapes: T tokens, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar, final

from harness.errors import ModelError, Unsupported
from harness.interfaces import EvaluationContext, Session
from harness.record import Metric, Observation
from harness.sources.corpus import CorpusArgument, corpus_need
from harness.spec import Need, Use, digest

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

    from harness.stages.capture.reference_logits import ReferenceLogits

NAME = "fidelity"
TOKENS = "tokens of "


@final
@dataclass(frozen=True)
class Fidelity:
    """Distances from the reference's predictions on fixed held-out tokens.

    Measures: perplexity and bits per byte of the held-out text; ln of the perplexity's ratio to the reference's;
              KL divergence KL(reference || candidate) over the whole vocabulary in nats: mean, p99, p99.9, largest;
              how often both have the same most likely token; how often a right most likely token became wrong and
              a wrong one right, right meaning the token that follows in the text.
    Needs:    a runtime with `logits`; the family's reference, run once by `capture.logits`; the candidate's tokenizer
              must read every window as the same tokens (checked; refused otherwise).
    Why:      the cheapest measure that sees small damage: deterministic, paired by construction, no answer parsing.
    Known:    windows, not tokens, are the sampled unit: intervals use as many degrees of freedom as there are windows,
              less one. Quantiles are absent where too few tokens were seen for that tail. Words per token differ
              between tokenizers: perplexity compares within a family only, bits per byte between families. One row a
              window has what pairs between cells; rows under `tokens of ...` are there for the quantiles.
    Source:   S. Kullback and R. A. Leibler, On Information and Sufficiency, 1951; flips: A. Dutta et al.,
              arXiv 2407.09141; llama.cpp's `llama-perplexity --kl-divergence` reports the same figures.
    """

    version: ClassVar[str] = "1"
    requirements: ClassVar[tuple[str, ...]] = ()
    extra: ClassVar[str | None] = None
    requires: ClassVar[frozenset[str]] = frozenset({"logits"})

    corpus: CorpusArgument = "docstrings:default"
    windows: int = 8
    length: int = 256

    def __post_init__(self) -> None:
        corpus_need(self.corpus)
        if self.windows < 1 or self.length < 8:
            raise ValueError(f"windows is {self.windows} and length {self.length}; allowed: at least 1 and at least 8")

    @property
    def needs(self) -> tuple[Need, ...]:
        corpus = dict(self.corpus) if isinstance(self.corpus, Mapping) else self.corpus
        args = {"corpus": corpus, "windows": self.windows, "length": self.length}
        capture = Use.model_validate({"use": "capture.logits", "args": args})
        return (Need(name="reference_logits", stages=(capture,)),)

    @property
    def task(self) -> str:
        """Names the text, so that two corpora in one suite stay apart."""
        corpus = self.corpus if isinstance(self.corpus, str) else f"corpus {digest(dict(self.corpus))}"
        return f"{corpus} {self.windows}x{self.length}"

    def observe(self, session: Session, *, context: EvaluationContext) -> Iterator[Observation]:
        from harness.stages.capture.reference_logits import ReferenceLogits

        reference = ReferenceLogits.open(context.artifacts["reference_logits"].path)
        _check_comparable(session, reference)
        count = len(reference.meta.windows)
        for index in range(count):
            context.progress(index / count, f"window {index + 1} of {count}")
            positions = _compare(session, reference, index)
            yield positions.window_row(self.task, index, reference.meta.windows[index].predicted_bytes)
            yield from positions.token_rows(TOKENS + self.task, index)

    def summarize(self, observations: Sequence[Observation]) -> tuple[Metric, ...]:
        from harness.evaluations.fidelity.summary import metrics

        return metrics(observations, token_prefix=TOKENS)


@dataclass(frozen=True)
class _Positions:
    """What was seen at each predicted position of one window."""

    kl_T: npt.NDArray[np.float64]
    nll_T: npt.NDArray[np.float64]
    reference_nll_T: npt.NDArray[np.float64]
    same_T: npt.NDArray[np.bool_]
    right_T: npt.NDArray[np.bool_]
    reference_right_T: npt.NDArray[np.bool_]

    def window_row(self, task: str, index: int, predicted_bytes: int) -> Observation:
        values: dict[str, float | int | bool | str | None] = {
            "tokens": len(self.kl_T),
            "bytes": predicted_bytes,
            "nll": float(self.nll_T.sum()),
            "nll_ref": float(self.reference_nll_T.sum()),
            "kl_mean": float(self.kl_T.mean()),
            "kl_max": float(self.kl_T.max()),
            "top1_same": int(self.same_T.sum()),
            "right_to_wrong": int((self.reference_right_T & ~self.right_T).sum()),
            "wrong_to_right": int((self.right_T & ~self.reference_right_T).sum()),
        }
        return Observation(evaluation=NAME, task=task, sample=f"window {index:04d}", values=values)

    def token_rows(self, task: str, index: int) -> Iterator[Observation]:
        columns = zip(self.kl_T.tolist(), self.nll_T.tolist(), self.reference_nll_T.tolist(), strict=True)
        for position, (kl, nll, reference_nll) in enumerate(columns):
            sample = f"window {index:04d} position {position:05d}"
            values = {"kl": kl, "nll": nll, "nll_ref": reference_nll}
            yield Observation(evaluation=NAME, task=task, sample=sample, values=values)


def _check_comparable(session: Session, reference: ReferenceLogits) -> None:
    """Raises Unsupported, naming the first difference, unless the session reads every text as the stored tokens."""
    meta = reference.meta
    if meta.length > session.max_length:
        raise Unsupported(
            f"windows have {meta.length} tokens and this runtime's context holds {session.max_length}",
            remedy="set a smaller `length`",
        )
    for index, window in enumerate(meta.windows):
        wanted = reference.tokens_NT[index].tolist()[len(meta.prefix) :]
        found = session.encode(window.text)
        if found != wanted:
            raise Unsupported(
                f"this runtime's tokenizer reads window {index} differently from the reference's: "
                + _first_difference(session, found, wanted),
                remedy="fidelity compares models of one tokenizer on runtimes that agree on it",
            )


def _first_difference(session: Session, found: list[int], wanted: list[int]) -> str:
    for position, (ours, theirs) in enumerate(zip(found, wanted, strict=False)):
        if ours != theirs:
            return f"token {position} is {ours} {session.decode([ours])!r} and not {theirs}"
    return f"it gives {len(found)} tokens and not {len(wanted)}"


def _compare(session: Session, reference: ReferenceLogits, index: int) -> _Positions:
    """Compares at every position that has a next token, a tile at a time."""
    import numpy as np

    from harness.statistics.divergence import log_softmax, negative_log_likelihood, relative_entropy, tiles

    tokens_T = reference.tokens_NT[index]
    predicting = slice(0, len(tokens_T) - 1)
    candidate_TV = _candidate(session, tokens_T.tolist(), vocabulary=reference.meta.vocabulary)[predicting]
    reference_TV = reference.logits(index, predicting)
    parts: list[tuple[npt.NDArray, ...]] = []
    for at in tiles(len(candidate_TV)):
        ours_TV, theirs_TV = log_softmax(candidate_TV[at]), log_softmax(reference_TV[at])
        top_T, reference_top_T = ours_TV.argmax(axis=-1), theirs_TV.argmax(axis=-1)
        next_T = tokens_T[1:][at]
        parts.append(
            (
                relative_entropy(theirs_TV, ours_TV),
                negative_log_likelihood(ours_TV, next_T),
                negative_log_likelihood(theirs_TV, next_T),
                top_T == reference_top_T,
                top_T == next_T,
                reference_top_T == next_T,
            )
        )
    return _Positions(*(np.concatenate(column) for column in zip(*parts, strict=True)))


def _candidate(session: Session, tokens: list[int], *, vocabulary: int) -> npt.NDArray[np.float32]:
    import numpy as np

    logits_TV = session.logits(tokens)
    if logits_TV.shape != (len(tokens), vocabulary):
        raise Unsupported(
            f"this runtime gives logits of shape {logits_TV.shape} where the reference has {(len(tokens), vocabulary)}",
            remedy="fidelity compares models of one vocabulary",
        )
    if not np.isfinite(logits_TV).all():
        raise ModelError("the model's logits are not finite")
    return logits_TV
