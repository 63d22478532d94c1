"""How far a student is from its teacher on text that neither training nor choosing has touched.

Every distiller writes it down before and after training, in the same words and on the same blocks, so that their notes
can be read side by side.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from harness.stages.distill.losses import Divergence
from harness.stages.distill.soft import from_model, mean_divergence
from harness.stages.distill.student import Reader

if TYPE_CHECKING:
    from harness.sources.corpus import Blocks


def heldout_kl(student: Reader, teacher: Reader, blocks_NT: Blocks, when: str) -> dict[str, float]:
    """Gives the note on KL(teacher || student) in nats a token at temperature 1; none without blocks."""
    if not len(blocks_NT):
        return {}
    soft = from_model(teacher, blocks_NT, divergence=Divergence(), temperature=1.0)
    return {f"heldout_kl_{when}": mean_divergence(student, blocks_NT, soft)}
