"""What a teacher predicts on the training text, kept on disk: its likeliest tokens and the mass of all others.

A teacher that many students learn from reads the text once. Of each of its distributions the `top_k` likeliest tokens
are kept, and one number for everything else (the tail), so that a student is still told how much mass the rare tokens
have together; without it top-k distillation silently forgets what is rarely likely, such as the token that opens a tool
call.

Shapes: N blocks, T tokens, K kept tokens.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar, final

from harness.errors import CorruptArtifact, ModelError, SpecError
from harness.interfaces import Artifact, StageContext
from harness.sources.corpus import CorpusArgument, Split, corpus_need
from harness.spec import Need

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

    from harness.sources.corpus import Blocks

SPLITS: tuple[Split, ...] = ("train", "heldout")


@final
@dataclass(frozen=True)
class CaptureTargets:
    """A teacher's top-k predictions with a tail on blocks of a corpus.

    Does:   cuts `blocks` blocks of `sequence` tokens from the training text and `heldout_blocks` from the held-out
            text, exactly as a distiller with the same corpus, sequence and seed does, runs the model on them, and
            stores tokens, ids (N, T, K), their log-probabilities and the log-probability of all other tokens together,
            at `temperature`.
    Needs:  a corpus; disk: 6 to 8 bytes * K a token.
    Why:    one reading of the teacher serves every student, order and seed that reads the same text.
    Known:  the stored distribution is exact on K + 1 entries; what the teacher says inside the tail is lost. Divergence
            on the entries is a lower bound of that on the vocabulary (data processing inequality).
    Source: DistillKit stores compressed logits likewise; the tail bucket is SDPO's `add_tail`, arXiv 2601.20802.
    """

    version: ClassVar[str] = "1"
    requirements: ClassVar[tuple[str, ...]] = ("torch", "transformers", "safetensors")
    extra: ClassVar[str | None] = "torch"
    consumes: ClassVar[frozenset[str]] = frozenset({"hf", "grid"})
    produces: ClassVar[str] = "files"
    emulated: ClassVar[bool] = False

    blocks: int
    top_k: int
    corpus: CorpusArgument = "docstrings:default"
    sequence: int = 256
    heldout_blocks: int = 8
    temperature: float = 1.0
    autocast: bool = True

    def __post_init__(self) -> None:
        if min(self.blocks, self.top_k) < 1 or self.heldout_blocks < 0 or self.sequence < 2:
            raise ValueError(
                f"blocks {self.blocks}, top_k {self.top_k}, heldout_blocks {self.heldout_blocks}, sequence "
                f"{self.sequence}; allowed: from 1, from 1, from 0, from 2"
            )
        if not self.temperature > 0:
            raise ValueError(f"temperature is {self.temperature}; allowed: more than 0")
        corpus_need(self.corpus)

    @property
    def needs(self) -> tuple[Need, ...]:
        return (corpus_need(self.corpus),)

    def apply(self, source: Artifact, out: Path, *, context: StageContext) -> None:
        import torch

        from harness.stages.hf_folder import load_model, load_tokenizer, using_threads

        tokenizer = load_tokenizer(source)
        dtype = torch.bfloat16 if self.autocast else torch.float32
        with using_threads(context.hardware), torch.inference_mode():
            model = load_model(source, dtype=dtype, hardware=context.hardware)
            vocabulary = model.config.get_text_config(decoder=True).vocab_size
            if self.top_k >= vocabulary:
                raise SpecError(
                    "more tokens are asked for than there are",
                    key="top_k",
                    found=self.top_k,
                    allowed=f"under {vocabulary}",
                )
            for split, count in zip(SPLITS, (self.blocks, self.heldout_blocks), strict=True):
                blocks_NT = self._blocks(split, count, tokenizer, context)
                self._write(out / split, model, blocks_NT, context)
                context.report.tokens += blocks_NT.size
        context.report.notes["vocabulary"] = vocabulary

    def _blocks(self, split: Split, count: int, tokenizer: object, context: StageContext) -> Blocks:
        from harness.stages.text_blocks import cut_blocks

        return cut_blocks(split, (count, self.sequence), tokenizer=tokenizer, context=context)  # type: ignore[arg-type, unused-ignore]

    def _write(self, folder: Path, model: object, blocks_NT: Blocks, context: StageContext) -> None:
        import numpy as np
        import torch

        from harness.stages.distill.losses import top_k
        from harness.stages.distill.student import Reader

        folder.mkdir()
        reader = Reader(model, self.autocast)  # type: ignore[arg-type]
        vocabulary = reader.model.config.get_text_config(decoder=True).vocab_size
        shape = (*blocks_NT.shape, self.top_k)
        ids = _create(folder / "ids.npy", np.uint16 if vocabulary <= 2**16 else np.uint32, shape)
        log_probs = _create(folder / "log_probs.npy", np.float32, shape)
        tails = _create(folder / "tails.npy", np.float32, blocks_NT.shape)
        for number, block_T in enumerate(blocks_NT):
            context.progress(number / len(blocks_NT), f"{folder.name}: block {number + 1} of {len(blocks_NT)}")
            logits_TV = reader.logits(torch.from_numpy(block_T)[None].to(reader.model.device))
            if not bool(torch.isfinite(logits_TV).all()):
                raise ModelError(f"the teacher's logits are not finite in block {number}")
            kept = top_k(logits_TV, self.top_k, temperature=self.temperature)
            ids[number], log_probs[number] = kept.ids_NK.cpu().numpy(), kept.log_probs_NK.cpu().numpy()
            tails[number] = kept.log_tail_N.cpu().numpy()
        np.save(folder / "tokens.npy", blocks_NT, allow_pickle=False)


def _create(file: Path, dtype: object, shape: tuple[int, ...]) -> npt.NDArray[np.generic]:
    import numpy as np

    if 0 in shape:
        np.save(file, np.empty(shape, dtype=dtype), allow_pickle=False)  # type: ignore[call-overload]
        return np.empty(shape, dtype=dtype)  # type: ignore[call-overload]
    return np.lib.format.open_memmap(file, mode="w+", dtype=dtype, shape=shape)


@dataclass(frozen=True)
class Targets:
    """Stored predictions of one split: tokens (N, T), ids and log-probabilities (N, T, K), log tails (N, T)."""

    tokens_NT: Blocks
    ids_NTK: npt.NDArray[np.generic]
    log_probs_NTK: npt.NDArray[np.float32]
    tails_NT: npt.NDArray[np.float32]

    @classmethod
    def read(cls, artifact: Artifact, split: Split) -> Targets:
        """Opens one split without reading it whole. Raises CorruptArtifact when a file is missing or no array."""
        import numpy as np

        names = ("tokens", "ids", "log_probs", "tails")
        try:
            arrays = [
                np.load(artifact.path / split / f"{name}.npy", mmap_mode="r", allow_pickle=False) for name in names
            ]
        except (OSError, ValueError) as error:
            raise CorruptArtifact(
                f"{artifact.path / split}: not the stored predictions of a teacher: {error}"
            ) from error
        return cls(*arrays)

    def require(self, blocks_NT: Blocks) -> None:
        """Raises SpecError unless the first blocks are these very tokens."""
        import numpy as np

        if not np.array_equal(self.tokens_NT[: len(blocks_NT)], blocks_NT):
            raise SpecError(
                "the teacher's stored predictions are for other tokens than the student reads",
                remedy="teacher and student need the same tokenizer, corpus, sequence and seed",
            )
