"""What the reference predicts on held-out text, kept so exactly that full-vocabulary distances can be taken from it.

Fidelity compares two distributions at every position. The reference's side is computed once for a family, in float32,
and cached; every compressed variant on every runtime is then measured against the same numbers.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal, final

from harness.errors import ModelError, Unsupported
from harness.interfaces import Artifact, Progress, StageContext
from harness.sources.corpus import CorpusArgument, corpus_need, read_documents
from harness.spec import Need
from harness.stages.capture.windows import Offsets, cut_windows
from harness.stages.hf_folder import load_model, load_tokenizer, using_threads

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt
    import torch

    Floats = npt.NDArray[np.float32]
    _Answer = tuple[int, Floats, Floats | None]

HEAD_TOLERANCE = 1e-4


@final
@dataclass(frozen=True)
class CaptureLogits:
    """The reference's logits on fixed windows of held-out text.

    Does:   cuts `windows` texts of `length` tokens from the corpus's held-out documents, runs the model on each in
            float32, and stores token ids, texts, last hidden states and the head's matrix. Where head times hidden
            state differs from the model's logits by more than 1e-4 (bias, scaled or capped logits), stores the logits.
    Needs:  a Hugging Face directory with a fast tokenizer; a corpus. Disk: N*T*D + V*D floats, or N*T*V.
    Why:    KL divergence and top-1 agreement on fixed tokens see damage that task scores of affordable size cannot.
    Known:  the reference runs in float32 whatever its weights are stored in, so the reference's own cell in bfloat16
            has a divergence above zero: that is the noise floor of the runtime, not an error.
    Source: the hidden-state form follows from logits = W h; checked per model instead of assumed.
    """

    version: ClassVar[str] = "1"
    requirements: ClassVar[tuple[str, ...]] = ("torch", "transformers")
    extra: ClassVar[str | None] = "torch"
    consumes: ClassVar[frozenset[str]] = frozenset({"hf"})
    produces: ClassVar[str] = "files"
    emulated: ClassVar[bool] = False

    corpus: CorpusArgument = "docstrings:default"
    windows: int = 8
    length: int = 256

    def __post_init__(self) -> None:
        corpus_need(self.corpus)
        if self.windows < 1:
            raise ValueError(f"windows is {self.windows}; allowed: 1 or more")
        if self.length < 8:
            raise ValueError(f"length is {self.length}; allowed: 8 tokens or more")

    @property
    def needs(self) -> tuple[Need, ...]:
        return (corpus_need(self.corpus),)

    def apply(self, source: Artifact, out: Path, *, context: StageContext) -> None:
        import torch

        documents = read_documents(context.artifacts["corpus"], "heldout")
        texts = _Texts.cut(load_tokenizer(source), documents, count=self.windows, length=self.length)
        with using_threads(context.hardware):
            model = load_model(source, dtype=torch.float32, hardware=context.hardware)
            storage, vocabulary = self._write(model, texts.tokens_NT, out, context)
        texts.write(out, storage=storage, vocabulary=vocabulary)
        context.report.tokens += texts.tokens_NT.size
        context.report.notes.update(storage=storage, windows=self.windows)

    def _write(
        self, model: Any, tokens_NT: npt.NDArray[np.int64], out: Path, context: StageContext
    ) -> tuple[Literal["hidden", "logits"], int]:
        head = model.get_output_embeddings()
        if head is not None:
            answers = _answers(model, tokens_NT, context.progress)
            written = _write_hidden(out, answers, count=self.windows, head_VD=_numpy(head.weight))
            if written is not None:
                context.report.notes["largest_logit_error"] = written[1]
                return "hidden", written[0]
            (out / "hidden.npy").unlink(missing_ok=True)
        return "logits", _write_logits(out, _answers(model, tokens_NT, context.progress), count=self.windows)


@dataclass(frozen=True)
class _Texts:
    """The windows of one tokenizer, with the tokens that it puts before a text."""

    prefix: tuple[int, ...]
    texts: tuple[str, ...]
    predicted_bytes: tuple[int, ...]
    tokens_NT: npt.NDArray[np.int64]

    @classmethod
    def cut(cls, tokenizer: Any, documents: list[str], *, count: int, length: int) -> _Texts:
        import numpy as np

        if not tokenizer.is_fast:
            raise Unsupported("the reference's tokenizer gives no character offsets", remedy="use its fast version")
        prefix = _prefix(tokenizer)
        windows = cut_windows(documents, _offsets(tokenizer), count=count, length=length - len(prefix))
        # Without a prefix nothing predicts the first token, so its bytes do not count.
        skipped = [0 if prefix else len(window.text[: window.first_end].encode()) for window in windows]
        return cls(
            prefix,
            tuple(window.text for window in windows),
            tuple(len(w.text.encode()) - skip for w, skip in zip(windows, skipped, strict=True)),
            np.asarray([[*prefix, *window.tokens] for window in windows], dtype=np.int64),
        )

    def write(self, out: Path, *, storage: Literal["hidden", "logits"], vocabulary: int) -> None:
        import numpy as np

        from harness.stages.capture.reference_logits import META, ReferenceMeta, Window

        pairs = zip(self.texts, self.predicted_bytes, strict=True)
        meta = ReferenceMeta(
            storage=storage,
            vocabulary=vocabulary,
            length=self.tokens_NT.shape[1],
            prefix=self.prefix,
            windows=tuple(Window(text=text, predicted_bytes=count) for text, count in pairs),
        )
        np.save(out / "tokens.npy", self.tokens_NT, allow_pickle=False)
        (out / META).write_text(meta.model_dump_json(indent=1), encoding="utf-8")


def _prefix(tokenizer: Any) -> tuple[int, ...]:
    """The beginning-of-text token, when the tokenizer puts it before a text of its own accord."""
    given = tokenizer("a", add_special_tokens=True)["input_ids"]
    return (tokenizer.bos_token_id,) if given[0] == tokenizer.bos_token_id else ()


def _offsets(tokenizer: Any) -> Offsets:
    def encode(text: str) -> tuple[list[int], list[int]]:
        # verbose=False: a text longer than the model's context is only cut here, never fed.
        encoded = tokenizer(text, add_special_tokens=False, return_offsets_mapping=True, verbose=False)
        return list(encoded["input_ids"]), [end for _, end in encoded["offset_mapping"]]

    return encode


def _write_hidden(out: Path, answers: Iterator[_Answer], *, count: int, head_VD: Floats) -> tuple[int, float] | None:
    """Writes hidden states and head; gives the vocabulary's size and the largest error, or None on failure."""
    import numpy as np

    from harness.stages.capture.reference_logits import create_array, project

    array: Floats | None = None
    worst, vocabulary = 0.0, len(head_VD)
    for index, logits_TV, hidden_TD in answers:
        if hidden_TD is None or head_VD.shape != (logits_TV.shape[1], hidden_TD.shape[1]):
            return None
        worst = max(worst, float(np.abs(project(hidden_TD, head_VD) - logits_TV).max()))
        if worst > HEAD_TOLERANCE:
            return None
        array = create_array(out, "hidden", (count, *hidden_TD.shape)) if array is None else array
        array[index] = hidden_TD
    np.save(out / "head.npy", head_VD, allow_pickle=False)
    return vocabulary, worst


def _write_logits(out: Path, answers: Iterator[_Answer], *, count: int) -> int:
    """Writes the logits themselves; gives the vocabulary's size."""
    from harness.stages.capture.reference_logits import create_array

    array: Floats | None = None
    vocabulary = 0
    for index, logits_TV, _ in answers:
        array = create_array(out, "logits", (count, *logits_TV.shape)) if array is None else array
        array[index], vocabulary = logits_TV, logits_TV.shape[1]
    return vocabulary


def _answers(model: Any, tokens_NT: npt.NDArray[np.int64], progress: Progress) -> Iterator[_Answer]:
    """Runs every window. Raises ModelError for NaN or infinities."""
    import numpy as np

    for index, tokens_T in enumerate(tokens_NT):
        progress(index / len(tokens_NT), f"window {index + 1} of {len(tokens_NT)}")
        logits_TV, hidden_TD = _forward(model, tokens_T)
        if not np.isfinite(logits_TV).all():
            raise ModelError(f"the reference's logits are not finite in window {index}")
        yield index, logits_TV, hidden_TD


def _forward(model: Any, tokens_T: npt.NDArray[np.int64]) -> tuple[Floats, Floats | None]:
    """Gives logits (T, V) and what went into the head (T, D), which is None for a model without a head of its own."""
    import torch

    seen: list[torch.Tensor] = []
    head = model.get_output_embeddings()
    hook = None if head is None else head.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    try:
        with torch.inference_mode():
            logits_BTV = model(torch.from_numpy(tokens_T)[None].to(model.device), use_cache=False).logits
    finally:
        if hook is not None:
            hook.remove()
    return _numpy(logits_BTV[0]), _numpy(seen[0][0]) if seen else None


def _numpy(tensor: torch.Tensor) -> Floats:
    array: Floats = tensor.detach().float().cpu().numpy()
    return array
