"""Contrastive distillation: raise the student where the teacher speaks, lower it where only the student does.

Teacher and student answer the same prompts. On the teacher's response a skewed forward KL pulls the student's
probabilities up; on the student's own response a skewed reverse KL pushes them down where the teacher would not have
said so. The skew mixes a little of one distribution into the other, which keeps the gradients bounded; a curriculum
lowers it, response by response, as the two models agree.

Shapes: M blocks, T tokens.
"""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar, final

from harness.interfaces import Artifact, StageContext
from harness.sources.corpus import corpus_need
from harness.spec import Need
from harness.stages.distill.recipe import Recipe, refuse, run_notes, teacher_need
from harness.stages.distill.written import NAME, Passage, read_passages, with_heldout, written_need
from harness.stages.text_blocks import cut_blocks

if TYPE_CHECKING:
    from harness.stages.distill.contrast import Contrast
    from harness.training.sampling import Sampling

LOWEST_SKEW = 0.01


@final
@dataclass(frozen=True, kw_only=True)
class DistillDistillm2(Recipe):
    """Trains the model on its teacher's responses and on its own, each with its own skewed divergence (DistiLLM-2).

    Does:   minimizes (2 - beta) * SKL on the teacher's responses + beta * SRKL on the student's, to the same prompts.
            SKL = KL(p_T || a p_T + (1 - a) p_S), SRKL = KL(p_S || (1 - a) p_T + a p_S); a response's divergence is the
            mean over its tokens, the loss the mean over responses. Prompts are the first `prompt_tokens` tokens of the
            corpus's training documents, responses at most `max_tokens` tokens at `temperature`; a step takes `batch`
            prompts. The student answers all prompts before training, or with `refresh` those of the next `refresh`
            steps, as it is then. `gradual_beta` adds .5 * min(1, 2 * step / steps) to `beta`. With `curriculum` every
            response has its own skew clip(1 - (1 - skew) * m / (d + 1e-5), .01, skew), with d the difference of
            e^(mean log-probability of a token) of the two models, its author's first, and m the mean of d in the
            warm-up, during which the skew is `skew`. Optimizer, types, adapters and grids are those of
            `distill.logits`; a killed run continues to the same bits.
    Needs:  a teacher with the same tokenizer (the family's reference, or `teacher`) that can write, a corpus.
    Why:    forward KL on the student's text and reverse KL on the teacher's waste the text; each loss has its own.
    Known:  `tokens` is the budget of the teacher's half, steps = tokens / (batch * sequence); responses are shorter
            than `sequence`, and report and notes count what was read and written. The paper trains several rounds on
            responses of the round before: `refresh` is that. In the reference code m is the mean of the first epoch,
            gradients flow through the skew, and the curriculum is off unless switched on; here m is the mean of the
            warm-up, the skew has no gradient, and the curriculum is on. Published with adapters of rank 16, learning
            rate 5e-5, batch 8 and 1024 tokens, on responses at temperature .8.
    Source: DistiLLM-2, arXiv 2503.07067; DistiLLM, arXiv 2402.03898, equations 4 and 5; jongwooko/distillm-2.
    """

    version: ClassVar[str] = "1"
    requirements: ClassVar[tuple[str, ...]] = ("torch", "transformers", "safetensors")
    extra: ClassVar[str | None] = "torch"
    consumes: ClassVar[frozenset[str]] = frozenset({"hf", "grid"})
    produces: ClassVar[str] = "same"
    emulated: ClassVar[bool] = False

    beta: float = 1.0
    gradual_beta: bool = False
    skew: float = 0.1
    curriculum: bool = True
    refresh: int | None = None
    generate_tokens: int | None = None
    prompt_tokens: int = 32
    max_tokens: int = 128
    temperature: float = 0.8
    teacher: Mapping[str, object] | None = None

    def __post_init__(self) -> None:
        most = 1.5 if self.gradual_beta else 2.0
        checks = (
            (not 0 <= self.beta <= most, f"beta {self.beta}: from 0 (teacher's responses only) to {most:g}"),
            (not LOWEST_SKEW <= self.skew < 1, f"skew {self.skew}: from {LOWEST_SKEW} and under 1"),
            (self.refresh is not None and self.refresh < 1, f"refresh {self.refresh}: from 1 step, or null for once"),
            (
                self.generate_tokens is not None and self.generate_tokens < 1,
                f"generate_tokens {self.generate_tokens}: from 1, or null for what `tokens` needs",
            ),
            (self.prompt_tokens < 1, f"prompt_tokens {self.prompt_tokens}: from 1"),
            (self.max_tokens < 1, f"max_tokens {self.max_tokens}: from 1"),
            (
                self.prompt_tokens + self.max_tokens > self.sequence,
                f"prompt_tokens {self.prompt_tokens}, max_tokens {self.max_tokens}: together up to sequence "
                f"({self.sequence})",
            ),
            (not self.temperature >= 0, f"temperature {self.temperature}: from 0, which takes the likeliest"),
        )
        refuse([*self.problems(), *(message for is_wrong, message in checks if is_wrong)])
        teacher_need(self.teacher)

    @property
    def needs(self) -> tuple[Need, ...]:
        written = written_need(
            self.teacher,
            tokens=self.generate_tokens or with_heldout(self.steps * self.batch * self.max_tokens),
            length=self.max_tokens,
            temperature=self.temperature,
            corpus=self.corpus,
            prompt_tokens=self.prompt_tokens,
        )
        return (teacher_need(self.teacher), written, corpus_need(self.corpus))

    def apply(self, source: Artifact, out: Path, *, context: StageContext) -> None:
        import torch

        from harness.stages.distill.contrast import Contrast, Memory
        from harness.stages.distill.heldout import heldout_kl
        from harness.stages.distill.student import load_student, load_teacher, require_same_width, shared_tokenizer
        from harness.stages.hf_folder import reproducible, separator_token
        from harness.training.loop import train
        from harness.training.sampling import Sampling, end_tokens

        tokenizer = shared_tokenizer(source, context.artifacts["teacher"])
        passages = read_passages(context.artifacts[NAME], "train", tokenizer=tokenizer)
        taken = _in_order(passages, self.steps * self.batch, seed=context.seed)
        heldout = (self.heldout_tokens // self.sequence, self.sequence)
        heldout_MT = cut_blocks("heldout", heldout, tokenizer=tokenizer, context=context)
        with reproducible(context):
            student = load_student(self, source, context=context)
            teacher = load_teacher(self, context.artifacts["teacher"], context=context)
            require_same_width(student, teacher)
            how = Sampling(self.max_tokens, self.temperature, end_tokens(student.model) | {separator_token(tokenizer)})
            before = heldout_kl(student, teacher, heldout_MT, "before")
            contrast = Contrast(
                student, teacher, Memory(self._window * self.batch, self.max_tokens), self.skew, self._warm_up
            )
            backward = self._backward(contrast, taken, how, context)
            module = torch.nn.ModuleDict({"student": student.model, "memory": contrast.memory})
            losses = train(module, backward, pace=self.pace, context=context)
            after = heldout_kl(student, teacher, heldout_MT, "after")
            student.save(out, context=context)
        counts = {name: int(contrast.memory.tally.total(name)) for name in ("tokens_generated", "tokens_read")}
        context.report.tokens += sum(counts.values())
        context.report.notes |= {
            **run_notes(self, losses),
            "passes": math.ceil(len(taken) / len(passages)),
            **counts,
            **before,
            **after,
        }

    @property
    def _window(self) -> int:
        """For how many steps the student's responses serve."""
        return min(self.refresh or self.steps, self.steps)

    @property
    def _warm_up(self) -> int | None:
        """For how many steps differences are averaged before the curriculum starts; none without a curriculum."""
        return max(math.ceil(self.warmup * self.steps), 1) if self.curriculum else None

    def beta_at(self, step: int) -> float:
        """Gives the weight of the student's responses in a step counted from 0."""
        return self.beta + (0.5 * min(1.0, 2 * step / self.steps) if self.gradual_beta else 0.0)

    def _backward(
        self, contrast: Contrast, taken: list[Passage], how: Sampling, context: StageContext
    ) -> Callable[[int], float]:
        from harness.stages.distill.responses import Responses

        needs_own = self.beta > 0 or self.gradual_beta
        drafts = contrast.memory.drafts

        def backward(step: int) -> float:
            start, place = step * self.batch, step % self._window * self.batch
            if needs_own and place == 0:
                contrast.write(taken[start : start + self._window * self.batch], how=how, context=context)
            passages = taken[start : start + self.batch]
            prompts = [passage.prompt for passage in passages]
            beta, loss = self.beta_at(step), 0.0
            if beta < 2:
                theirs = Responses.lay_out(prompts, [passage.response for passage in passages])
                loss += contrast.learn(theirs, author="teacher", weight=2 - beta, step=step)
            if beta > 0:
                own = Responses.lay_out(prompts, [drafts.read(place + row) for row in range(self.batch)])
                loss += contrast.learn(own, author="student", weight=beta, step=step)
            return loss

        return backward


def _in_order(passages: list[Passage], count: int, *, seed: int) -> list[Passage]:
    """Gives `count` passages, shuffled anew for every pass over them."""
    shuffler = random.Random(seed)
    found: list[Passage] = []
    while len(found) < count:
        found.extend(shuffler.sample(passages, len(passages)))
    return found[:count]
