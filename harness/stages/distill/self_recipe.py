"""What stages are told whose teacher is the student itself, told more: exercises, a template, how to sample.

A model that is shown how an exercise is solved, or what was wrong with its attempt, foretells a good answer better than
the same model without. Self-distillation trains the one towards the other, so it needs exercises with known answers
(pairs of prompt and answer) and a template that puts what the teacher knows more around the prompt.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from string import Formatter
from typing import Literal

from harness.errors import SpecError
from harness.sources.corpus import CorpusArgument, Pair
from harness.stages.distill.recipe import Recipe

Verdict = Literal["exact", "contains"]


@dataclass(frozen=True, kw_only=True)
class SelfRecipe(Recipe):
    """Arguments of every stage that learns from itself.

    The corpus must have pairs of prompt and answer. A step is `batch` samples; `sequence` is the most tokens that a
    text may have, with all that the teacher is told. Samples have at most `max_tokens` tokens and are drawn at
    `temperature`. `is_clip` is the largest importance weight of a sampled token, null for none. `teacher_ema` is the
    rate with which the teacher follows the student at every step: 0 leaves it as the student was, 1 makes it the
    student of the moment.
    """

    corpus: CorpusArgument = "lab-text:qa"
    learning_rate: float = 1e-5
    max_tokens: int = 32
    temperature: float = 1.0
    is_clip: float | None = 2.0
    teacher_ema: float = 0.0

    def self_problems(self, template: str, *, told: Collection[str]) -> list[str]:
        """Gives what is wrong with the arguments and the template, one sentence each."""
        checks = (
            (self.max_tokens < 1, f"max_tokens {self.max_tokens}: from 1"),
            (self.max_tokens >= self.sequence, f"max_tokens {self.max_tokens}: under sequence ({self.sequence})"),
            (not self.temperature >= 0, f"temperature {self.temperature}: from 0, which takes the likeliest"),
            (self.is_clip is not None and not self.is_clip > 0, f"is_clip {self.is_clip}: more than 0, or null"),
            (
                self.temperature == 0 and self.is_clip is not None,
                "temperature 0: draws nothing, so its tokens have no importance weight; more than 0, or is_clip null",
            ),
            (not 0 <= self.teacher_ema <= 1, f"teacher_ema {self.teacher_ema}: a rate from 0 (frozen) to 1"),
        )
        problems = [*self.problems(), *(message for is_wrong, message in checks if is_wrong)]
        if problem := _template_problem(template, {"prompt", *told}):
            problems.append(problem)
        return problems


def solves(response: str, answer: str, *, how: Verdict = "exact") -> bool:
    """Says whether a response gives an answer; white space around either does not count.

    `exact` compares as many lines from the response's beginning as the answer has, `contains` looks for the answer
    anywhere.
    """
    wanted = answer.strip()
    if how == "contains":
        return wanted in response
    return first_lines(response, answer).strip() == wanted


def first_lines(response: str, answer: str) -> str:
    """Gives as many lines from the beginning of a response as the answer has, without the last line's end."""
    return "\n".join(response.split("\n")[: answer.strip().count("\n") + 1])


@dataclass(frozen=True)
class Dealt:
    """Pairs in the order in which they are learnt, and how many were passed over because they do not fit."""

    pairs: list[Pair]
    passed_over: int


def deal(pairs: Sequence[Pair], count: int, *, seed: int, fits: Callable[[Pair], bool]) -> Dealt:
    """Deals `count` pairs that fit: all of them shuffled, then all of them shuffled anew, for as long as need be.

    Raises SpecError when no pair fits.
    """
    shuffler, dealt, passed_over = random.Random(seed), list[Pair](), 0
    while len(dealt) < count:
        before = len(dealt)
        for pair in shuffler.sample(pairs, len(pairs)):
            if len(dealt) == count:
                break
            if fits(pair):
                dealt.append(pair)
            else:
                passed_over += 1
        if len(dealt) == before:
            raise SpecError(
                "no pair of the corpus fits into `sequence` with what the teacher is told and `max_tokens`",
                remedy="raise `sequence`, or choose shorter exercises",
            )
    return Dealt(dealt, passed_over)


def within(pairs: Sequence[Pair], tokens: int, *, length: Callable[[Pair], int]) -> list[Pair]:
    """Gives the first pairs, as many as have that many tokens together."""
    chosen, used = list[Pair](), 0
    for pair in pairs:
        used += length(pair)
        if used > tokens:
            break
        chosen.append(pair)
    return chosen


def _template_problem(template: str, allowed: Collection[str]) -> str | None:
    """Gives what is wrong with a template: it names parts in braces, each allowed, without formats; one is `prompt`."""
    listed = ", ".join(f"{{{name}}}" for name in sorted(allowed))
    try:
        parts = [part[1:] for part in Formatter().parse(template) if part[1] is not None]
    except ValueError as error:
        return f"template {template!r}: {error}; allowed are {listed}, and other braces doubled"
    if any(name not in allowed or form or conversion for name, form, conversion in parts):
        return f"template {template!r}: allowed in braces are {listed}"
    if "prompt" not in [name for name, _, _ in parts]:
        return f"template {template!r}: lacks {{prompt}}"
    return None
