"""Logit distillation: a student learns the teacher's whole next-token distribution, not only the word that came.

The teacher is the family's reference, the student whatever the stages before made of it (pruned, usually). Both read
the same text; the student's distribution is pulled towards the teacher's at every position. It is the cheapest repair
after pruning, and the standard against which other distillers are compared.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar, final

from harness.errors import SpecError
from harness.interfaces import Artifact, StageContext
from harness.sources.corpus import CorpusArgument, Split, corpus_need
from harness.spec import REFERENCE, Need

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from harness.sources.corpus import Blocks
    from harness.stages.distill.trainer import Pair


@final
@dataclass(frozen=True)
class DistillLogits:
    """Trains the model to give its family's reference's next-token distributions.

    Does:   minimizes kd_weight * t^2 * KL(teacher || student at temperature t) + ce_weight * cross-entropy over every
            position of `tokens` tokens of the corpus, read once in blocks of `sequence`, `batch` blocks a step. AdamW
            (0.9, 0.95, no weight decay), gradients clipped to norm 1, warm-up over the first `warmup` of the steps,
            then a cosine to zero. Weights are float32 while training; bfloat16 arithmetic with `autocast`; saved in the
            stored type. With `checkpoint_every` a killed run continues from its last checkpoint to the same bits.
    Needs:  a teacher with the same tokenizer (the family's reference), a corpus, and about 18 bytes of memory a student
            parameter.
    Why:    repairs a pruned model in minutes and is the "distil" of prune, distil, quantize.
    Known:  forward KL spreads a small student over everything the teacher does; on-policy methods differ. Forward KL
            without cross-entropy is what Minitron trains with; papers put alpha on either side, so both weights are
            named. Text of one kind teaches that kind: check tasks far from the corpus too.
    Source: Hinton et al., arXiv 1503.02531; Minitron, arXiv 2407.14679 (logits only, no cross-entropy).
    """

    version: ClassVar[str] = "1"
    requirements: ClassVar[tuple[str, ...]] = ("torch", "transformers", "safetensors")
    extra: ClassVar[str | None] = "torch"
    consumes: ClassVar[frozenset[str]] = frozenset({"hf"})
    produces: ClassVar[str] = "hf"
    emulated: ClassVar[bool] = False

    tokens: int
    corpus: CorpusArgument = "docstrings:default"
    learning_rate: float = 2e-4
    temperature: float = 1.0
    kd_weight: float = 1.0
    ce_weight: float = 0.0
    batch: int = 4
    sequence: int = 256
    warmup: float = 0.1
    autocast: bool = True
    heldout_tokens: int = 2048
    checkpoint_every: int | None = 100

    def __post_init__(self) -> None:
        wrong = [
            message
            for is_wrong, message in (
                (
                    self.sequence < 2 or self.batch < 1,
                    f"batch {self.batch}, sequence {self.sequence}: from 1 and from 2",
                ),
                (self.tokens < self.batch * self.sequence, f"tokens {self.tokens}: at least batch * sequence"),
                (not self.learning_rate > 0, f"learning_rate {self.learning_rate}: more than 0"),
                (not self.temperature > 0, f"temperature {self.temperature}: more than 0"),
                (min(self.kd_weight, self.ce_weight) < 0, "kd_weight, ce_weight: not negative"),
                (self.kd_weight + self.ce_weight == 0, "kd_weight, ce_weight: not both 0"),
                (not 0 <= self.warmup < 1, f"warmup {self.warmup}: a fraction of the steps, from 0 and under 1"),
                (self.heldout_tokens < 0, f"heldout_tokens {self.heldout_tokens}: from 0 (measure nothing)"),
                (self.checkpoint_every is not None and self.checkpoint_every < 1, "checkpoint_every: from 1, or null"),
            )
            if is_wrong
        ]
        if wrong:
            raise ValueError("; ".join(wrong))
        corpus_need(self.corpus)

    @property
    def needs(self) -> tuple[Need, ...]:
        return (Need(name="teacher", source=REFERENCE), corpus_need(self.corpus))

    def apply(self, source: Artifact, out: Path, *, context: StageContext) -> None:
        import torch

        from harness.stages.distill.losses import LossWeights
        from harness.stages.distill.trainer import Schedule, train
        from harness.stages.hf_folder import save_model, using_threads

        tokenizer = self._tokenizer(source, context)
        steps = self.tokens // (self.batch * self.sequence)
        blocks_NT = self._blocks("train", steps * self.batch, tokenizer, context)
        heldout_NT = self._blocks("heldout", self.heldout_tokens // self.sequence, tokenizer, context)
        with using_threads(context.hardware), torch.random.fork_rng():
            torch.manual_seed(context.seed)
            pair = self._pair(source, context)
            before = _heldout_kl(pair, heldout_NT, "before")
            losses = train(
                pair,
                blocks_NT=blocks_NT,
                schedule=Schedule(self.batch, self.learning_rate, self.warmup, self.checkpoint_every),
                weights=LossWeights(kd=self.kd_weight, ce=self.ce_weight, temperature=self.temperature),
                context=context,
            )
            after = _heldout_kl(pair, heldout_NT, "after")
            save_model(pair.student, out, like=source)
        context.report.tokens += blocks_NT.size
        context.report.notes |= {"steps": steps, "loss_first": losses[0], "loss_last": losses[-1], **before, **after}

    def _tokenizer(self, source: Artifact, context: StageContext) -> PreTrainedTokenizerBase:
        """Gives the student's tokenizer. Raises SpecError when the teacher's is another."""
        from harness.stages.hf_folder import load_tokenizer, require_unpacked

        teacher = context.artifacts["teacher"]
        require_unpacked(source)
        require_unpacked(teacher)
        tokenizer = load_tokenizer(source)
        if tokenizer.get_vocab() != load_tokenizer(teacher).get_vocab():
            raise SpecError(
                "teacher and student have different vocabularies, so their logits cannot be compared",
                file=source.path,
                remedy="distil within one family, or learn from generated text (`capture.text`)",
            )
        return tokenizer

    def _blocks(self, split: Split, count: int, tokenizer: PreTrainedTokenizerBase, context: StageContext) -> Blocks:
        from harness.sources.corpus import pack_blocks, read_documents
        from harness.stages.hf_folder import encoder, separator_token

        return pack_blocks(
            read_documents(context.artifacts["corpus"], split),
            encode=encoder(tokenizer),
            shape=(count, self.sequence),
            separator=separator_token(tokenizer),
            seed=context.seed,
        )

    def _pair(self, source: Artifact, context: StageContext) -> Pair:
        """Loads both models. Raises SpecError when they score vocabularies of different sizes."""
        import torch

        from harness.stages.distill.trainer import Pair
        from harness.stages.hf_folder import load_model

        student = load_model(source, dtype=torch.float32, hardware=context.hardware)
        teacher_dtype = torch.bfloat16 if self.autocast else torch.float32
        teacher = load_model(context.artifacts["teacher"], dtype=teacher_dtype, hardware=context.hardware)
        sizes = [model.config.get_text_config(decoder=True).vocab_size for model in (student, teacher)]
        if sizes[0] != sizes[1]:
            raise SpecError(
                "teacher and student score vocabularies of different sizes", found=sizes[0], allowed=str(sizes[1])
            )
        return Pair(student, teacher, self.autocast)


def _heldout_kl(pair: Pair, heldout_NT: Blocks, when: str) -> dict[str, float]:
    """Gives the note on held-out KL, or none when no blocks were asked for."""
    from harness.stages.distill.trainer import mean_kl

    return {f"heldout_kl_{when}": mean_kl(pair, heldout_NT)} if len(heldout_NT) else {}
