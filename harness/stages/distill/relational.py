"""Relational distillation: the student keeps how texts lie to each other, not where each of them lies.

The embedding of a text is the model's last hidden state pooled over its tokens. Within a batch the student is to repeat
the teacher's pattern of distances between embeddings and of angles among them. Both are blind to rotation, to shift
and to scale, so nothing has to be known about the student's width and no projection stands between them.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar, final

from harness.interfaces import SAME, Artifact, StageContext
from harness.sources.corpus import corpus_need
from harness.spec import Need
from harness.stages.distill.recipe import Recipe, refuse, teacher_need

if TYPE_CHECKING:
    from torch import Tensor

    from harness.stages.distill.features import Features
    from harness.stages.distill.representation import Comparison
    from harness.stages.distill.student import Reader

POOLS = ("mean", "last")
# Fewer form no angle.
SMALLEST_BATCH = 3


@final
@dataclass(frozen=True, kw_only=True)
class DistillRelational(Recipe):
    """Trains the model to repeat its teacher's distances and angles between texts.

    Does:   minimizes distance_weight * Huber(distances, each over their mean in the batch) + angle_weight *
            Huber(cosines of the angles of three texts) + kd_weight * forward KL of logits + ce_weight * cross-entropy.
            Huber has delta 1. A text is a block of `sequence` tokens; its embedding is the last hidden state, after the
            final norm, averaged over the tokens (`pool: mean`) or at the last one (`pool: last`). Recipe, grids,
            adapters and continuation as in distill.logits.
    Needs:  a teacher with the same tokenizer, and of the same vocabulary size unless kd_weight and heldout_tokens are
            0; a corpus; a `batch` of at least 3, and better of many: B blocks give B (B - 1) / 2 distances.
    Why:    makes no demand on the student's shape; for models whose embeddings are used (retrieval, classification).
            For a language model it is the control for how much of a teacher is in the geometry of its texts alone.
    Known:  published for image embeddings; for next-token prediction it says nothing of which token comes, so it is no
            replacement for kd_weight. The paper weighs distance to angle 1 to 2; common ports 25 to 50, the default
            here: the ratio is agreed on, the size is not. Ports average over i = j as well, which makes theirs smaller
            by (B - 1) / B and (B - 1)(B - 2) / B^2.
    Source: RKD, arXiv 1904.05068, sections 3.2.1 and 3.2.2.
    """

    version: ClassVar[str] = "1"
    requirements: ClassVar[tuple[str, ...]] = ("torch", "transformers", "safetensors")
    extra: ClassVar[str | None] = "torch"
    consumes: ClassVar[frozenset[str]] = frozenset({"hf", "grid"})
    produces: ClassVar[str] = SAME
    emulated: ClassVar[bool] = False

    distance_weight: float = 25.0
    angle_weight: float = 50.0
    kd_weight: float = 1.0
    ce_weight: float = 0.0
    pool: str = "mean"
    teacher: Mapping[str, object] | None = None

    def __post_init__(self) -> None:
        weights = (self.distance_weight, self.angle_weight, self.kd_weight, self.ce_weight)
        checks = (
            (min(weights) < 0, "distance_weight, angle_weight, kd_weight, ce_weight: not negative"),
            (
                self.distance_weight + self.angle_weight == 0,
                "distance_weight, angle_weight: both 0; that is distill.logits",
            ),
            (self.batch < SMALLEST_BATCH, f"batch {self.batch}: at least {SMALLEST_BATCH}, fewer texts form no angle"),
            (self.pool not in POOLS, f"pool {self.pool!r}: {' or '.join(POOLS)}"),
        )
        refuse([*self.problems(), *(message for is_wrong, message in checks if is_wrong)])
        teacher_need(self.teacher)

    @property
    def needs(self) -> tuple[Need, ...]:
        return (teacher_need(self.teacher), corpus_need(self.corpus))

    def apply(self, source: Artifact, out: Path, *, context: StageContext) -> None:
        from harness.stages.distill.representation import distill_by

        distill_by(self._compare, self, source, out=out, context=context)

    def _compare(self, teacher: Reader, student: Reader) -> Comparison:
        import torch

        from harness.stages.distill.features import Asked
        from harness.stages.distill.representation import Comparison

        return Comparison(
            weights={"distance": self.distance_weight, "angle": self.angle_weight},
            kd_weight=self.kd_weight,
            ce_weight=self.ce_weight,
            parts=self._parts,
            extra=torch.nn.Identity(),
            of_teacher=Asked(),
            of_student=Asked(),
        )

    def _parts(self, teacher: Features, student: Features) -> dict[str, Tensor]:
        from harness.stages.distill.losses import rkd_angle, rkd_distance

        teacher_BD, student_BE = (
            shown.states[-1].mean(dim=1) if self.pool == "mean" else shown.states[-1][:, -1]
            for shown in (teacher, student)
        )
        measures = {"distance": (self.distance_weight, rkd_distance), "angle": (self.angle_weight, rkd_angle)}
        return {name: measure(teacher_BD, student_BE) for name, (weight, measure) in measures.items() if weight}
