"""Self-distillation fine-tuning: a model learns from demonstrations what it would have said after seeing them.

Training on demonstrations by cross-entropy pulls a model to text that it would never have written, and it forgets on
the way. Here the model writes its own answer, and a copy of it that was shown the demonstration says at every token
what it would have put there. What is learnt is only what the demonstration changes in the model's own words.

Shapes: N positions of a step, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar, Literal, final

from harness.interfaces import Artifact, StageContext
from harness.sources.corpus import Pair, corpus_need
from harness.spec import Need
from harness.stages.distill.recipe import refuse
from harness.stages.distill.self_recipe import SelfRecipe

if TYPE_CHECKING:
    from torch import Tensor

    from harness.stages.distill.self_training import Learner, Writer

DIVERGENCES = ("forward_kl", "reverse_kl", "jsd")


@final
@dataclass(frozen=True, kw_only=True)
class DistillSelfSdft(SelfRecipe):
    """Trains the model to answer as it does itself when it is shown the demonstration (SDFT).

    Does:   in each step, lets the student answer `batch` prompts of the corpus by at most `max_tokens` tokens drawn at
            `temperature`; lets the teacher, a copy of the student, read the same answers after `template`, in which
            {demonstration} is the prompt with its right answer and {prompt} the prompt; minimizes `divergence`
            (forward_kl, reverse_kl, or jsd with `beta`; temperature 1, whole vocabulary) from teacher to student at
            the positions that predict the answers' tokens, but for the first `skip_tokens` of each. A position counts
            by its importance weight, p / q up to `is_clip`, p the student at temperature 1 and q at `temperature`.
            The teacher stays as the student was (`teacher_ema` 0) or follows it by that rate after every step. Answers
            end with their line when every answer of the corpus is one line. Optimizer, types, adapters and grids are
            those of `distill.logits`. Random numbers and teacher are in the checkpoint: a killed run continues to the
            same bits.
    Needs:  a corpus with pairs of prompt and answer (`lab-text:qa`); memory for a second copy of the model in float32.
            No other teacher and no reward.
    Why:    teaches a skill from demonstrations with less forgetting than training on them, in place of a larger
            teacher. Forgetting is measured by evaluating tasks that were not trained, before and after.
    Known:  the teacher knows no more than the model can take from one demonstration in its context, which in a small
            model is little: expect no gain there, and say so when there is none. Sources disagree: summaries of the
            paper say reverse KL and a moving teacher, the authors' settings as reproduced are forward KL, a frozen
            teacher, weights up to 2 and no loss on the first three tokens (too many for answers of one word, so the
            default is 0 here); a moving teacher was seen to collapse. With one step a sample the importance weight is 1
            unless `temperature` is not. Steps are tokens / (batch * sequence), though texts are shorter than
            `sequence`: what was read is counted. Prompts are plain text, without chat template; a model that begins
            with a line break, as chat models do, has ended its answer, and learns first of all not to.
    Source: Shenfeld et al., arXiv 2601.19897 (not Yang et al. of the same abbreviation, who rewrite the targets). Own
            loop: TRL's SDFTTrainer is experimental and does not continue to the same bits.
    """

    version: ClassVar[str] = "1"
    requirements: ClassVar[tuple[str, ...]] = ("torch", "transformers", "safetensors")
    extra: ClassVar[str | None] = "torch"
    consumes: ClassVar[frozenset[str]] = frozenset({"hf", "grid"})
    produces: ClassVar[str] = "same"
    emulated: ClassVar[bool] = False

    divergence: Literal["forward_kl", "reverse_kl", "jsd"] = "forward_kl"
    beta: float = 0.5
    skip_tokens: int = 0
    template: str = "{demonstration}\n{prompt}"

    def __post_init__(self) -> None:
        checks = (
            (self.divergence not in DIVERGENCES, f"divergence {self.divergence!r}: {', '.join(DIVERGENCES)}"),
            (not 0 <= self.beta <= 1, f"beta {self.beta}: from 0 (forward KL) to 1 (reverse KL)"),
            (
                not 0 <= self.skip_tokens < self.max_tokens,
                f"skip_tokens {self.skip_tokens}: from 0 and under max_tokens ({self.max_tokens})",
            ),
        )
        problems = self.self_problems(self.template, told={"demonstration"})
        refuse([*problems, *(message for is_wrong, message in checks if is_wrong)])

    @property
    def needs(self) -> tuple[Need, ...]:
        return (corpus_need(self.corpus),)

    def apply(self, source: Artifact, out: Path, *, context: StageContext) -> None:
        from harness.stages.distill.self_training import Course, teach_itself

        course = Course(self.steps * self.batch, self._fits, ("tokens_generated", "tokens_read"), self._lesson)
        teach_itself(self, source, out, course=course, context=context)

    def _told(self, pair: Pair) -> str:
        """Gives the teacher's prompt."""
        return self.template.format(demonstration=f"{pair.prompt}{pair.answer}", prompt=pair.prompt)

    def _fits(self, writer: Writer, pair: Pair) -> bool:
        longest = max(len(writer.encode(text)) for text in (pair.prompt, self._told(pair)))
        return longest + self.max_tokens <= self.sequence

    def _lesson(self, learner: Learner) -> Callable[[int], float]:
        from harness.stages.distill.losses import Divergence, log_probabilities
        from harness.stages.distill.responses import Responses
        from harness.stages.distill.self_teacher import counted, descend, importance

        writer, divergence = learner.writer, Divergence(self.divergence, beta=self.beta)

        def backward(step: int) -> float:
            # A step begins after the one before has changed the student.
            learner.teacher.follow()
            pairs = learner.pairs[step * self.batch : (step + 1) * self.batch]
            prompts = [writer.encode(pair.prompt) for pair in pairs]
            answers = writer.write(prompts, recipe=self)
            batch = Responses.lay_out(prompts, answers)
            teacher_NV = learner.teacher.logits(
                Responses.lay_out([writer.encode(self._told(pair)) for pair in pairs], answers)
            )
            student_NV = batch.logits(writer.student)
            on = student_NV.device
            drawn_N, counts_N = batch.targets.to(on), counted(batch, skip=self.skip_tokens).to(on)

            def loss(rows: slice, piece_NV: Tensor) -> Tensor:
                weight_N = importance(piece_NV, drawn_N[rows], temperature=self.temperature, clip=self.is_clip)
                away_N = divergence(log_probabilities(teacher_NV[rows]), log_probabilities(piece_NV))
                return counts_N[rows] * weight_N * away_N

            learner.ledger.write(step, tokens_generated=sum(map(len, answers)), tokens_read=batch.tokens)
            return descend(student_NV, loss, count=max(float(counts_N.sum()), 1.0))

        return backward
