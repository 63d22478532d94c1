"""Learning from oneself, from the pairs of a corpus to the trained model; a stage brings what happens in a step.

The student answers prompts, its teacher (a copy that is told more) reads the answers, and whatever must survive a kill
is a parameter of one module: the student, the teacher and a ledger of what every step counted. What the student can
solve is asked before and after, on pairs that nothing was trained on.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from harness.errors import SpecError
from harness.interfaces import Artifact, StageContext
from harness.sources.corpus import Pair, read_pairs
from harness.stages.distill.recipe import run_notes
from harness.stages.distill.self_recipe import SelfRecipe, deal, solves, within
from harness.stages.distill.self_teacher import SelfTeacher
from harness.stages.distill.student import Student, load_student
from harness.stages.hf_folder import encoder, load_tokenizer, reproducible, separator_token
from harness.training.loop import Backward, train
from harness.training.sampling import Sampling, end_tokens, require_room, sample

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

PROMPTS_AT_A_TIME = 32


@dataclass(frozen=True)
class Writer:
    """A student that writes: its tokenizer and the tokens at which its responses end."""

    student: Student
    tokenizer: PreTrainedTokenizerBase
    ends: frozenset[int]

    @classmethod
    def of(cls, student: Student, tokenizer: PreTrainedTokenizerBase, *, pairs: Sequence[Pair]) -> Writer:
        """Gives a writer whose responses end with the text, and with the line if every answer is one line."""
        ends = end_tokens(student.model) | {separator_token(tokenizer)}
        if all("\n" not in pair.answer.strip() for pair in pairs):
            ends |= _line_ends(tokenizer)
        return cls(student, tokenizer, ends)

    def encode(self, text: str) -> list[int]:
        """Gives the tokens of a prompt. Raises SpecError when there are none."""
        tokens: list[int] = encoder(self.tokenizer)(text)
        if not tokens:
            raise SpecError("a prompt of the corpus has no token", remedy="choose a corpus without empty prompts")
        return tokens

    def decode(self, tokens: Sequence[int]) -> str:
        """Gives a response as text, without its end token."""
        return str(self.tokenizer.decode(list(tokens), skip_special_tokens=True))

    def write(self, prompts: Sequence[Sequence[int]], *, recipe: SelfRecipe) -> list[list[int]]:
        """Gives a sample after every prompt."""
        return sample(self.student.model, prompts, how=Sampling(recipe.max_tokens, recipe.temperature, self.ends))

    def solved(self, pairs: Sequence[Pair], when: str, *, max_tokens: int) -> dict[str, float]:
        """Gives the note on the share of pairs that the likeliest response solves exactly; none without pairs."""
        if not pairs:
            return {}
        how, count = Sampling(max_tokens, 0.0, self.ends), 0
        for start in range(0, len(pairs), PROMPTS_AT_A_TIME):
            some = pairs[start : start + PROMPTS_AT_A_TIME]
            written = sample(self.student.model, [self.encode(pair.prompt) for pair in some], how=how)
            count += sum(solves(self.decode(one), pair.answer) for one, pair in zip(written, some, strict=True))
        return {f"heldout_solved_{when}": count / len(pairs)}


class Ledger(torch.nn.Module):
    """What every step counted, by name."""

    def __init__(self, steps: int, *names: str) -> None:
        super().__init__()
        self.names = names
        self.counts = torch.nn.Parameter(torch.zeros(steps, len(names), dtype=torch.float64), requires_grad=False)

    def write(self, step: int, **amounts: float) -> None:
        """Puts down the amounts of a step."""
        for name, amount in amounts.items():
            self.counts[step, self.names.index(name)] = amount

    def by_step(self, name: str) -> list[float]:
        """Gives the amount of every step."""
        amounts: list[float] = self.counts[:, self.names.index(name)].tolist()
        return amounts

    def totals(self) -> dict[str, int]:
        """Gives the sum over all steps by name."""
        return {name: int(sum(self.by_step(name))) for name in self.names}


@dataclass(frozen=True)
class Learner:
    """A student that answers, its teacher, the pairs in the order in which they come, and what was counted."""

    writer: Writer
    teacher: SelfTeacher
    pairs: Sequence[Pair]
    ledger: Ledger


@dataclass(frozen=True)
class Course:
    """What a stage brings: how many pairs it needs, which fit, what it counts, and what happens in a step.

    Among the names that are counted are `tokens_generated` and `tokens_read`.
    """

    pairs: int
    fits: Callable[[Writer, Pair], bool]
    counts: tuple[str, ...]
    lesson: Callable[[Learner], Backward]


def teach_itself(recipe: SelfRecipe, source: Artifact, out: Path, *, course: Course, context: StageContext) -> Ledger:
    """Trains the model on a course, writes it into `out`, reports what was seen, and gives what was counted.

    Raises SpecError when the corpus has no pairs, none that fits, or when `sequence` is longer than the model can read.
    """
    pairs, heldout = (read_pairs(context.artifacts["corpus"], split) for split in ("train", "heldout"))
    with reproducible(context):
        student = load_student(recipe, source, context=context)
        require_room(student.model, recipe.sequence)
        writer = Writer.of(student, load_tokenizer(source), pairs=[*pairs, *heldout])
        dealt = deal(pairs, course.pairs, seed=context.seed, fits=lambda pair: course.fits(writer, pair))
        asked = _asked(heldout, writer, recipe=recipe)
        ledger = Ledger(recipe.steps, *course.counts)
        learner = Learner(writer, SelfTeacher.of(student, rate=recipe.teacher_ema), dealt.pairs, ledger)
        before = writer.solved(asked, "before", max_tokens=recipe.max_tokens)
        parts = {"student": student.model, "teacher": learner.teacher.reader.model, "ledger": ledger}
        losses = train(torch.nn.ModuleDict(parts), course.lesson(learner), pace=recipe.pace, context=context)
        after = writer.solved(asked, "after", max_tokens=recipe.max_tokens)
        student.save(out, context=context)
    counts = ledger.totals()
    context.report.tokens += counts["tokens_generated"] + counts["tokens_read"]
    context.report.notes |= {**run_notes(recipe, losses), **counts}
    context.report.notes |= {"pairs": len(dealt.pairs), "pairs_passed_over": dealt.passed_over}
    context.report.notes |= {"heldout_pairs": len(asked), **before, **after}
    return ledger


def _asked(heldout: Sequence[Pair], writer: Writer, *, recipe: SelfRecipe) -> list[Pair]:
    """Gives the held-out pairs that are asked: the first that have `heldout_tokens` tokens together."""
    chosen = within(heldout, recipe.heldout_tokens, length=lambda pair: len(writer.encode(pair.prompt + pair.answer)))
    return [pair for pair in chosen if len(writer.encode(pair.prompt)) + recipe.max_tokens <= recipe.sequence]


def _line_ends(tokenizer: PreTrainedTokenizerBase) -> frozenset[int]:
    texts = tokenizer.batch_decode([[token] for token in range(len(tokenizer))])
    return frozenset(token for token, text in enumerate(texts) if "\n" in text)
