"""`lab:teacher`: small Llamas that are trained here, from nothing, when they are asked for.

Distillation needs a teacher and students of one family, and an honest comparison needs to know what each has read. Here
all of that is made on the spot: the text (`lab-text`), one tokenizer for the whole family, and the weights, from a
seed. So a machine without a model hub has a family, and a student trained alone is the baseline of one that is taught.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import KW_ONLY, dataclass
from pathlib import Path
from typing import ClassVar, Final, cast, final

from harness.errors import closest
from harness.interfaces import StageContext
from harness.sources.lab.reading import family_tokenizer, lesson
from harness.sources.lab.sizes import POSITIONS, SIZES, Size
from harness.sources.lab.text import CHARACTERS, LabText

KINDS: Final = tuple(CHARACTERS)


@final
@dataclass(frozen=True)
class Lab:
    """A small Llama trained here: `lab:teacher`, `lab:student-3m`, `lab:student-1m`, or `lab:smoke-...` for tests.

    Does: writes the text of `lab-text` for the `kinds` named, trains a Llama on `tokens` of it, once over, with Muon
    (layers) and AdamW (the rest), `batch` blocks of `sequence` a step, up to `learning_rate`, and saves the weights in
    bfloat16 with the family's tokenizer. What is left out comes from the size: teacher 12.2 million parameters,
    students 2.9 and 1.3 million.
    Needs: the packages of `docstrings:default`, for the tokenizer even when `kinds` leaves English out.
    Why: a family whose members share a tokenizer and a known text, on a machine without a model hub; a student trained
    alone is the baseline that distillation must beat.
    Known: a language model of minutes, not of months: it writes the English of docstrings poorly and knows the
    exercises' forms only. Equal bits need the same machine, torch and number of threads; versions of the packages are
    in the fingerprint, those of torch are not.
    Source: Touvron et al. 2023, "LLaMA" (architecture; AdamW with betas 0.9 and 0.95, weight decay 0.1, cosine); Jordan
    et al. 2024, "Muon", as in torch.optim, scaled as in Liu et al. 2025, "Muon is Scalable for LLM Training"; Press and
    Wolf 2017 (output matrix = embeddings); the pre-tokenizer of SmolLM.
    """

    version: ClassVar[str] = "1"
    requirements: ClassVar[tuple[str, ...]] = ("torch", "transformers", "tokenizers", "safetensors")
    extra: ClassVar[str | None] = "quickstart"

    reference: str
    _: KW_ONLY
    tokens: int | None = None
    seed: int = 0
    kinds: Sequence[str] = KINDS
    learning_rate: float | None = None
    batch: int | None = None
    sequence: int = 256

    def __post_init__(self) -> None:
        if self.reference not in SIZES:
            hint = closest(self.reference, SIZES)
            raise ValueError(
                f"there is no size {self.reference!r}; allowed: {', '.join(SIZES)}" + (f"; {hint}" if hint else "")
            )
        if problems := [message for is_wrong, message in self._checks() if is_wrong]:
            raise ValueError("; ".join(problems))

    def _checks(self) -> tuple[tuple[bool, str], ...]:
        unknown = [kind for kind in self.kinds if kind not in KINDS]
        hint = closest(unknown[0], KINDS) if unknown and isinstance(unknown[0], str) else None
        listed = isinstance(self.kinds, list | tuple)
        least = self._batch * self.sequence
        return (
            (not listed or not self.kinds, f"kinds {self.kinds!r}: a list of some of {', '.join(KINDS)}"),
            (listed and bool(unknown), f"kinds {unknown}: allowed {', '.join(KINDS)}" + (f"; {hint}" if hint else "")),
            (self._batch < 1, f"batch {self.batch}: from 1"),
            (not 2 <= self.sequence <= POSITIONS, f"sequence {self.sequence}: from 2 to {POSITIONS}"),
            (self._tokens < least, f"tokens {self._tokens}: at least batch * sequence, {least}"),
            (not self._learning_rate > 0, f"learning_rate {self.learning_rate}: more than 0"),
        )

    @property
    def format(self) -> str:
        return "hf"

    @property
    def fingerprint(self) -> str:
        """That of the whole family's text, since the tokenizer is trained on all kinds of it."""
        return LabText("all").fingerprint

    def fetch(self, out: Path, *, context: StageContext) -> None:
        import torch

        from harness.sources.lab.pretraining import new_model, perplexity, pretrain
        from harness.stages.hf_folder import using_threads

        tokenizer = family_tokenizer(context)
        shape = (self._steps * self._batch, self.sequence)
        blocks = lesson(self.kinds, shape, seed=self.seed, tokenizer=tokenizer, context=context)
        with using_threads(context.hardware):
            model = new_model(self._size, end_token=tokenizer.eos_token_id, seed=self.seed, hardware=context.hardware)
            trained = pretrain(
                model, blocks.train_NT, batch=self._batch, learning_rate=self._learning_rate, context=context
            )
            # As models are published: against 32-bit weights every quantizer would look twice as good as it is.
            cast("torch.nn.Module", model).to(torch.bfloat16)
            heldout = perplexity(model, blocks.heldout_NT)
        model.save_pretrained(out)
        tokenizer.save_pretrained(out)
        context.report.tokens = blocks.train_NT.size
        context.report.notes |= {
            "parameters": model.num_parameters(),
            "steps": len(trained.losses),
            "loss_first": trained.losses[0],
            "loss_last": trained.losses[-1],
            "perplexity_heldout": heldout,
            "tokens_per_s": trained.tokens_per_s,
        }

    @property
    def _size(self) -> Size:
        return SIZES[self.reference]

    @property
    def _tokens(self) -> int:
        return self._size.tokens if self.tokens is None else self.tokens

    @property
    def _batch(self) -> int:
        return self._size.batch if self.batch is None else self.batch

    @property
    def _learning_rate(self) -> float:
        return self._size.learning_rate if self.learning_rate is None else self.learning_rate

    @property
    def _steps(self) -> int:
        return self._tokens // (self._batch * self.sequence)
