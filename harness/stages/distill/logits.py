"""Logit distillation: a student learns the teacher's whole next-token distribution, not only the word that came.

The teacher is the family's reference unless another is named, the student whatever the stages before made of it
(pruned, usually). Both read the same text; the student's distribution is pulled towards the teacher's at every
position. It is the cheapest repair after pruning, and the standard against which other distillers are compared. Without
its soft loss it is plain training on text, which is the control that every distillation needs.

Shapes: N positions of a step, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar, final

from harness.interfaces import Artifact, StageContext
from harness.sources.corpus import corpus_need
from harness.spec import Need, Use
from harness.stages.distill.recipe import Recipe, divergence_problems, lesson_blocks, refuse, run_notes, teacher_need

if TYPE_CHECKING:
    from harness.sources.corpus import Blocks
    from harness.stages.distill.soft import Soft
    from harness.stages.distill.student import Student


@final
@dataclass(frozen=True, kw_only=True)
class DistillLogits(Recipe):
    """Trains the model to give its teacher's next-token distributions.

    Does:   minimizes kd_weight * t^2 * D(teacher, student at temperature t) + ce_weight * cross-entropy over every
            position of `tokens` tokens of the corpus, read once in blocks of `sequence`, `batch` blocks a step. D is
            forward_kl, reverse_kl, jsd (`beta`), skewed_kl or skewed_reverse_kl (`skew`). AdamW (0.9, 0.95, no weight
            decay), gradients clipped to norm 1, warm-up over the first `warmup` of the steps, then a cosine to zero.
            Weights are float32 while training (bfloat16 arithmetic with `autocast`), saved in the stored type. With
            `top_k` the teacher's predictions are computed once, kept on disk (K tokens and a tail) and shared. `lora`
            trains adapters. Weights on a quantization grid are trained through the rounding or frozen (`quantized`).
            With `checkpoint_every` a killed run continues from its last checkpoint to the same bits.
    Needs:  a teacher with the same tokenizer (the family's reference, or `teacher`), a corpus, and about 18 bytes of
            memory a student parameter. None of the teacher with kd_weight 0, which is training on the text itself.
    Why:    repairs a pruned model in minutes, is the "distil" of prune, distil, quantize; after an emulated quantizer
            it is quantization-aware distillation (QAD), and with kd_weight 0 quantization-aware training (QAT).
    Known:  forward KL spreads a small student over everything the teacher does; on-policy methods differ. Forward KL
            without cross-entropy is what Minitron trains with; papers put alpha on either side, so both weights are
            named. Text of one kind teaches that kind: check tasks far from the corpus too. Published QAD fixes scales
            from calibration as is done here, and trains activations' rounding too, which is not done here.
    Source: Hinton et al., arXiv 1503.02531; GKD, arXiv 2306.13649; Minitron, arXiv 2407.14679 (logits only, no
            cross-entropy); QAD, arXiv 2601.20088. Own loop: TRL's stable DistillationTrainer (1.16) is on-policy only,
            and neither it nor ModelOpt's trainer continues to the same bits; TRL's loss is the oracle of the tests.
    """

    version: ClassVar[str] = "1"
    requirements: ClassVar[tuple[str, ...]] = ("torch", "transformers", "safetensors")
    extra: ClassVar[str | None] = "torch"
    consumes: ClassVar[frozenset[str]] = frozenset({"hf", "grid"})
    produces: ClassVar[str] = "same"
    emulated: ClassVar[bool] = False

    temperature: float = 1.0
    kd_weight: float = 1.0
    ce_weight: float = 0.0
    divergence: str = "forward_kl"
    beta: float = 0.5
    skew: float = 0.1
    top_k: int | None = None
    teacher: Mapping[str, object] | None = None

    def __post_init__(self) -> None:
        checks = (
            (min(self.kd_weight, self.ce_weight) < 0, "kd_weight, ce_weight: not negative"),
            (self.kd_weight + self.ce_weight == 0, "kd_weight, ce_weight: not both 0"),
            (
                self.top_k is not None and self.top_k < 1,
                f"top_k {self.top_k}: from 1, or null for the whole vocabulary",
            ),
        )
        soft = divergence_problems(self.divergence, self.beta, self.skew, temperature=self.temperature)
        refuse([*self.problems(), *soft, *(message for is_wrong, message in checks if is_wrong)])
        teacher_need(self.teacher)

    @property
    def needs(self) -> tuple[Need, ...]:
        if not self.kd_weight:
            return (corpus_need(self.corpus),)
        return (teacher_need(self.teacher, then=self._captured), corpus_need(self.corpus))

    @property
    def _captured(self) -> tuple[Use, ...]:
        """The stage that stores the teacher's predictions, with `top_k`; what has its default is left out."""
        if self.top_k is None:
            return ()
        asked = {
            "blocks": self.steps * self.batch,
            "top_k": self.top_k,
            "corpus": self.corpus,
            "sequence": self.sequence,
            "heldout_blocks": self.heldout_tokens // self.sequence,
            "temperature": self.temperature,
            "autocast": self.autocast,
        }
        return (Use.model_validate({"use": "capture.targets", "args": asked}),)

    def apply(self, source: Artifact, out: Path, *, context: StageContext) -> None:

        from harness.stages.distill.student import load_student, shared_tokenizer
        from harness.stages.hf_folder import reproducible
        from harness.training.loop import train

        teachers = [context.artifacts["teacher"]] if self.kd_weight and self.top_k is None else []
        tokenizer = shared_tokenizer(source, *teachers)
        blocks_NT, heldout_NT = lesson_blocks(self, tokenizer=tokenizer, context=context)
        with reproducible(context):
            student = load_student(self, source, context=context)
            soft, heldout = self._teachers(student, blocks_NT, heldout_NT, context)
            before = self._heldout(student, heldout_NT, heldout, "before")
            losses = train(student.model, self._backward(student, blocks_NT, soft), pace=self.pace, context=context)
            after = self._heldout(student, heldout_NT, heldout, "after")
            student.save(out, context=context)
        context.report.tokens += blocks_NT.size
        context.report.notes |= {
            **run_notes(self, losses),
            "kd_weight": self.kd_weight,
            "ce_weight": self.ce_weight,
            **before,
            **after,
        }

    def _teachers(
        self, student: Student, blocks_NT: Blocks, heldout_NT: Blocks, context: StageContext
    ) -> tuple[Soft | None, Soft | None]:
        """Gives the soft losses on the training and on the held-out blocks; none without a teacher."""
        from harness.stages.distill.losses import Divergence
        from harness.stages.distill.soft import from_model, from_targets
        from harness.stages.distill.student import load_teacher, require_same_width

        if not self.kd_weight:
            return None, None
        trained = Divergence(self.divergence, self.beta, self.skew)  # type: ignore[arg-type]  # checked when made
        artifact = context.artifacts["teacher"]
        if self.top_k is not None:
            return (
                from_targets(artifact, "train", blocks_NT, divergence=trained, temperature=self.temperature),
                from_targets(artifact, "heldout", heldout_NT, divergence=Divergence(), temperature=self.temperature),
            )
        teacher = load_teacher(self, artifact, context=context)
        require_same_width(student, teacher)
        return (
            from_model(teacher, blocks_NT, divergence=trained, temperature=self.temperature),
            from_model(teacher, heldout_NT, divergence=Divergence(), temperature=1.0),
        )

    def _backward(self, student: Student, blocks_NT: Blocks, soft: Soft | None) -> Callable[[int], float]:
        from harness.stages.distill.steps import learning

        return learning(student, blocks_NT, soft, batch=self.batch, weights=(self.kd_weight, self.ce_weight))

    def _heldout(self, student: Student, heldout_NT: Blocks, soft: Soft | None, when: str) -> dict[str, float]:
        """Gives the note on held-out KL; none when no blocks were asked for or there is no teacher."""
        from harness.stages.distill.soft import mean_divergence

        if soft is None or not len(heldout_NT):
            return {}
        return {f"heldout_kl_{when}": mean_divergence(student, heldout_NT, soft)}
