"""Self-distillation policy optimization: a model learns from its own successes what its failures should have been.

A reward says whether an attempt is right, once, at its end. But the model can read a right attempt, or a verdict on its
own, and then knows token by token what it would have put instead. Here it attempts each exercise several times, and a
copy of it that was shown a successful attempt at the same exercise says what should have come in the others.

Shapes: N positions of a step, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar, Literal, final

from pydantic import JsonValue

from harness.errors import SpecError
from harness.interfaces import Artifact, StageContext
from harness.sources.corpus import Pair, corpus_need
from harness.spec import Need
from harness.stages.distill.recipe import refuse
from harness.stages.distill.self_recipe import SelfRecipe, first_lines, solves

if TYPE_CHECKING:
    from torch import Tensor

    from harness.stages.distill.self_training import Learner, Writer

MODES = ("top_k", "sampled_token")
REWARDS = ("exact", "contains")
FEEDBACKS = ("none", "verdict")
COUNTS = ("prompts_usable", "samples_usable", "samples_solved", "tokens_generated", "tokens_read")


@final
@dataclass(frozen=True, kw_only=True)
class DistillSelfSdpo(SelfRecipe):
    """Trains the model to answer as it does itself when it has seen a right attempt of its own (SDPO).

    Does:   in each step, lets the student attempt batch / `rollouts` prompts of the corpus `rollouts` times each, by at
            most `max_tokens` tokens drawn at `temperature`, and rewards an attempt whose first lines are the answer
            (`reward` exact), or in which the answer stands (contains). The teacher, a copy of the student, reads each
            attempt after `template`, in which {demonstration} is a line with the prompt and the first other attempt at
            it that was rewarded, {feedback} (`feedback` verdict) a line that calls an unrewarded attempt wrong, each
            empty where there is none, and {prompt} the prompt. An attempt for which both are empty, or whose teacher's
            text is longer than `sequence`, is masked; a step of masked attempts changes nothing. At the positions that
            predict an attempt's tokens it minimizes, by `mode`: top_k, the Jensen-Shannon divergence `alpha` (0 forward
            KL, 1 reverse KL) over the student's `top_k` likeliest tokens and one bucket for the others; sampled_token,
            (log p_S - log p_T) held fixed, times log p_S of the drawn token, whose mean gradient is that of reverse KL.
            A position counts by its importance weight, p / q up to `is_clip`, p the student at temperature 1 and q at
            `temperature`. The teacher follows the student by `teacher_ema` after every step. Attempts end with their
            line when every answer of the corpus is one line. Optimizer, types, adapters and grids are those of
            `distill.logits`. Random numbers and teacher are in the checkpoint: a killed run continues to the same bits.
    Needs:  a corpus with pairs of prompt and answer, which are the reward (`lab-text:qa`); a model that solves some of
            them some of the time; memory for a second copy of the model in float32.
    Why:    learns from a reward alone, where the answer may be shown to nobody, with a signal for every token in place
            of one for every attempt.
    Known:  the signal is what the model takes from the attempt in its context. Large models gain, published models of
            1.5 billion parameters lost: expect no gain in small ones, and say so when there is none. A prompt that is
            always solved or never teaches little or nothing: see `usable_share_by_step` in the notes. Defaults are
            those of the authors' code but for `batch`; TRL's differ (sampled_token, `alpha` 1). The authors' mixture of
            teacher and student in place of a moving teacher is not done. With one step a sample the importance weight
            is 1 unless `temperature` is not. Steps are tokens / (batch * sequence). Prompts are plain text, without
            chat template.
    Source: Hübotter et al., arXiv 2601.20802 (not Segment-level DPO). Own loop: TRL's SDPOTrainer is experimental and
            does not continue to the same bits; its losses are the oracle of the tests.
    """

    version: ClassVar[str] = "1"
    requirements: ClassVar[tuple[str, ...]] = ("torch", "transformers", "safetensors")
    extra: ClassVar[str | None] = "torch"
    consumes: ClassVar[frozenset[str]] = frozenset({"hf", "grid"})
    produces: ClassVar[str] = "same"
    emulated: ClassVar[bool] = False

    batch: int = 32
    rollouts: int = 8
    reward: Literal["exact", "contains"] = "exact"
    feedback: Literal["none", "verdict"] = "none"
    mode: Literal["top_k", "sampled_token"] = "top_k"
    alpha: float = 0.5
    top_k: int = 100
    teacher_ema: float = 0.05
    template: str = "{demonstration}{feedback}{prompt}"

    def __post_init__(self) -> None:
        checks = (
            (self.rollouts < 1, f"rollouts {self.rollouts}: from 1"),
            (
                self.rollouts > 0 and self.batch % self.rollouts > 0,
                f"batch {self.batch}, rollouts {self.rollouts}: batch counts samples, so a multiple of rollouts",
            ),
            (
                self.rollouts == 1 and self.feedback == "none",
                "rollouts 1: an attempt has no other to learn from; from 2, or `feedback` verdict",
            ),
            (self.reward not in REWARDS, f"reward {self.reward!r}: {' or '.join(REWARDS)}"),
            (self.feedback not in FEEDBACKS, f"feedback {self.feedback!r}: {' or '.join(FEEDBACKS)}"),
            (self.mode not in MODES, f"mode {self.mode!r}: {' or '.join(MODES)}"),
            (not 0 <= self.alpha <= 1, f"alpha {self.alpha}: from 0 (forward KL) to 1 (reverse KL)"),
            (
                self.mode == "sampled_token" and self.alpha != 1,
                f"alpha {self.alpha}: the mode sampled_token is reverse KL, so 1",
            ),
            (self.top_k < 1, f"top_k {self.top_k}: from 1"),
        )
        problems = self.self_problems(self.template, told={"demonstration", "feedback"})
        refuse([*problems, *(message for is_wrong, message in checks if is_wrong)])

    @property
    def needs(self) -> tuple[Need, ...]:
        return (corpus_need(self.corpus),)

    def apply(self, source: Artifact, out: Path, *, context: StageContext) -> None:
        from harness.stages.distill.self_training import Course, teach_itself

        prompts = self.batch // self.rollouts
        course = Course(self.steps * prompts, self._fits, COUNTS, self._lesson)
        ledger = teach_itself(self, source, out, course=course, context=context)
        shares: list[JsonValue] = [usable / prompts for usable in ledger.by_step("prompts_usable")]
        context.report.notes |= {"samples": self.steps * self.batch, "usable_share_by_step": shares}

    def _fits(self, writer: Writer, pair: Pair) -> bool:
        return len(writer.encode(pair.prompt)) + self.max_tokens <= self.sequence

    def _told(self, pair: Pair, responses: Sequence[str]) -> Iterator[str | None]:
        """Yields the teacher's prompt for every attempt at one exercise, or None where it would be told nothing."""
        right = [solves(response, pair.answer, how=self.reward) for response in responses]
        for number, response in enumerate(responses):
            others = [other for at, other in enumerate(responses) if right[at] and at != number]
            demonstration = f"{pair.prompt}{self._judged(others[0], pair)}\n" if others else ""
            is_told_off = self.feedback == "verdict" and not right[number]
            feedback = f"Wrong: {pair.prompt}{self._judged(response, pair)}\n" if is_told_off else ""
            told = self.template.format(demonstration=demonstration, feedback=feedback, prompt=pair.prompt)
            yield told if demonstration or feedback else None

    def _judged(self, response: str, pair: Pair) -> str:
        """Gives the part of a response that the reward depends on."""
        return first_lines(response, pair.answer) if self.reward == "exact" else response.rstrip("\n")

    def _lesson(self, learner: Learner) -> Callable[[int], float]:
        from harness.stages.distill.responses import Responses
        from harness.stages.distill.self_teacher import descend, importance

        writer, prompts = learner.writer, self.batch // self.rollouts
        self._require_larger_vocabulary(writer)

        def backward(step: int) -> float:
            # A step begins after the one before has changed the student.
            learner.teacher.follow()
            usable = self._attempt(learner, step, learner.pairs[step * prompts : (step + 1) * prompts])
            if not usable:
                return 0.0
            attempts = [one.tokens for one in usable]
            batch = Responses.lay_out([one.prompt for one in usable], attempts)
            teacher_NV = learner.teacher.logits(Responses.lay_out([one.told for one in usable], attempts))
            student_NV = batch.logits(writer.student)
            drawn_N = batch.targets.to(student_NV.device)

            def loss(rows: slice, piece_NV: Tensor) -> Tensor:
                weight_N = importance(piece_NV, drawn_N[rows], temperature=self.temperature, clip=self.is_clip)
                return weight_N * self._away(teacher_NV[rows], piece_NV, drawn_N[rows])

            learner.ledger.write(step, tokens_read=batch.tokens)
            return descend(student_NV, loss, count=len(drawn_N))

        return backward

    def _attempt(self, learner: Learner, step: int, pairs: Sequence[Pair]) -> list[_Usable]:
        """Gives the attempts at some exercises on which the teacher has something to say, and counts all of them."""
        writer, usable, prompts_usable, solved = learner.writer, list[_Usable](), 0, 0
        prompts = [writer.encode(pair.prompt) for pair in pairs for _ in range(self.rollouts)]
        attempts = writer.write(prompts, recipe=self)
        for number, pair in enumerate(pairs):
            rows = slice(number * self.rollouts, (number + 1) * self.rollouts)
            responses = [writer.decode(tokens) for tokens in attempts[rows]]
            solved += sum(solves(response, pair.answer, how=self.reward) for response in responses)
            before = len(usable)
            for told, tokens in zip(self._told(pair, responses), attempts[rows], strict=True):
                told_tokens = [] if told is None else writer.encode(told)
                if told_tokens and len(told_tokens) + len(tokens) <= self.sequence:
                    usable.append(_Usable(prompts[rows.start], told_tokens, tokens))
            prompts_usable += len(usable) > before
        learner.ledger.write(
            step,
            prompts_usable=prompts_usable,
            samples_usable=len(usable),
            samples_solved=solved,
            tokens_generated=sum(map(len, attempts)),
        )
        return usable

    def _away(self, teacher_NV: Tensor, student_NV: Tensor, drawn_N: Tensor) -> Tensor:
        """Gives how far the student is from the teacher at every position (N,)."""
        from harness.stages.distill.losses import jensen_shannon, log_probabilities, top_k, top_k_with_tail
        from harness.stages.distill.self_teacher import chosen

        if self.mode == "sampled_token":
            ours_N = chosen(log_probabilities(student_NV), drawn_N)
            return (ours_N - chosen(log_probabilities(teacher_NV), drawn_N)).detach() * ours_N
        likeliest = top_k(student_NV, self.top_k)
        log_teacher_NK = top_k_with_tail(teacher_NV, likeliest.ids_NK)
        return jensen_shannon(log_teacher_NK, likeliest.entries(), beta=self.alpha)

    def _require_larger_vocabulary(self, writer: Writer) -> None:
        size = writer.student.model.config.get_text_config(decoder=True).vocab_size
        if self.mode == "top_k" and self.top_k >= size:
            raise SpecError("top_k must leave tokens for the tail", key="top_k", found=self.top_k, allowed=f"< {size}")


@dataclass(frozen=True)
class _Usable:
    """An attempt to learn from: the student's prompt, the teacher's prompt, and the attempt."""

    prompt: list[int]
    told: list[int]
    tokens: list[int]
