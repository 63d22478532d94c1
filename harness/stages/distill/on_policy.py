"""On-policy distillation: a student is corrected on what it writes itself.

A student that only reads good text never sees its own mistakes, and at generation time it must go on from them. Here it
continues beginnings of documents on its own, and the teacher says at every token what it would have put there. Some
steps still read the corpus, so that the student does not circle in what it already says.

Shapes: N positions of a step, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar, final

from harness.interfaces import Artifact, StageContext
from harness.sources.corpus import corpus_need
from harness.spec import Need
from harness.stages.distill.recipe import Recipe, lesson_blocks, refuse, run_notes, teacher_need

if TYPE_CHECKING:
    from torch import Tensor

    from harness.sources.corpus import Blocks
    from harness.stages.distill.responses import Tally
    from harness.stages.distill.student import Reader, Student
    from harness.training.sampling import Sampling


@final
@dataclass(frozen=True, kw_only=True)
class DistillOnPolicy(Recipe):
    """Trains the model to give its teacher's distributions on its own samples (GKD).

    Does:   in each step, with probability `lmbda`, lets the student continue the first `prompt_tokens` tokens of the
            step's blocks by at most `max_tokens` tokens at `temperature`, and reads what it wrote; otherwise reads the
            blocks. Minimizes the generalized Jensen-Shannon divergence `beta` to the teacher (0 forward KL, 1 reverse
            KL, at temperature 1): over every position of a block, over the positions that predict a sampled token.
            There is no cross-entropy, and no gradient flows through the sampling. Optimizer, types, adapters and grids
            are those of `distill.logits`. Random numbers are part of the checkpoint: a killed run continues to the same
            bits.
    Needs:  a teacher with the same tokenizer (the family's reference, or `teacher`), a corpus, time to sample: a step
            on the student's own text costs several that read.
    Why:    the student learns where its own mistakes lead; reverse KL lets a small one give up what it cannot do.
    Known:  `tokens` is the budget of the corpus, and a sampled step uses the beginnings only of its blocks: report and
            notes count what was read and what was written. Samples are drawn in float32, however the student computes.
            `lmbda` 1 and `beta` 1 are what is called on-policy distillation; for GKD's `seq_kd` let `corpus` be the
            teacher's own text (`capture.text`).
    Source: Agarwal et al., arXiv 2306.13649, algorithm 1; defaults of TRL's GKDConfig (temperature .9 for sampling
            only, lmbda .5, beta .5, 128 new tokens). Own loop: TRL's stable DistillationTrainer (1.16) is on-policy
            only and does not continue to the same bits, its GKDTrainer is experimental and promises no interface; the
            loss of the latter is the oracle of the tests.
    """

    version: ClassVar[str] = "1"
    requirements: ClassVar[tuple[str, ...]] = ("torch", "transformers", "safetensors")
    extra: ClassVar[str | None] = "torch"
    consumes: ClassVar[frozenset[str]] = frozenset({"hf", "grid"})
    produces: ClassVar[str] = "same"
    emulated: ClassVar[bool] = False

    lmbda: float = 0.5
    beta: float = 0.5
    prompt_tokens: int = 32
    max_tokens: int = 128
    temperature: float = 0.9
    teacher: Mapping[str, object] | None = None

    def __post_init__(self) -> None:
        checks = (
            (not 0 <= self.lmbda <= 1, f"lmbda {self.lmbda}: a probability, from 0 (corpus) to 1 (own samples)"),
            (not 0 <= self.beta <= 1, f"beta {self.beta}: from 0 (forward KL) to 1 (reverse KL)"),
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
        return (teacher_need(self.teacher), corpus_need(self.corpus))

    def apply(self, source: Artifact, out: Path, *, context: StageContext) -> None:
        import torch

        from harness.stages.distill.heldout import heldout_kl
        from harness.stages.distill.responses import Tally
        from harness.stages.distill.student import load_student, load_teacher, require_same_width, shared_tokenizer
        from harness.stages.hf_folder import reproducible, separator_token
        from harness.training.loop import train
        from harness.training.sampling import Sampling, end_tokens, require_room

        tokenizer = shared_tokenizer(source, context.artifacts["teacher"])
        blocks_NT, heldout_NT = lesson_blocks(self, tokenizer=tokenizer, context=context)
        with reproducible(context):
            student = load_student(self, source, context=context)
            teacher = load_teacher(self, context.artifacts["teacher"], context=context)
            require_same_width(student, teacher)
            require_room(student.model, self.prompt_tokens + self.max_tokens)
            ends = end_tokens(student.model) | {separator_token(tokenizer)}
            how = Sampling(self.max_tokens, self.temperature, ends)
            before = heldout_kl(student, teacher, heldout_NT, "before")
            tally = Tally("steps_on_policy", "tokens_generated", "tokens_read")
            learner = _Learner(student, teacher, blocks_NT, how, tally)
            module = torch.nn.ModuleDict({"student": student.model, "tally": tally})
            losses = train(module, self._backward(learner), pace=self.pace, context=context)
            after = heldout_kl(student, teacher, heldout_NT, "after")
            student.save(out, context=context)
        counts = {name: int(tally.total(name)) for name in tally.names}
        context.report.tokens += counts["tokens_generated"] + counts["tokens_read"]
        context.report.notes |= run_notes(self, losses)
        context.report.notes |= {**counts, **before, **after}

    def _backward(self, learner: _Learner) -> Callable[[int], float]:
        import torch

        from harness.stages.distill.losses import Divergence

        divergence = Divergence("jsd", beta=self.beta)

        def backward(step: int) -> float:
            block_BT = learner.blocks_NT[step * self.batch : (step + 1) * self.batch]
            if torch.rand(()) < self.lmbda:
                return learner.on_samples(block_BT[:, : self.prompt_tokens], divergence)
            return learner.on_text(block_BT, divergence)

        return backward


@dataclass(frozen=True)
class _Learner:
    """A student that learns from its teacher on given text or on its own, and counts what it reads and writes."""

    student: Student
    teacher: Reader
    blocks_NT: Blocks
    how: Sampling
    tally: Tally

    def on_text(self, block_BT: Blocks, divergence: Callable[[Tensor, Tensor], Tensor]) -> float:
        """Adds the gradient on text of the corpus and gives the loss."""
        import torch

        tokens_BT = torch.from_numpy(block_BT).to(self.student.model.device)
        self.tally.add(tokens_read=block_BT.size)
        with torch.no_grad():
            teacher_NV = self.teacher.logits(tokens_BT)
        return follow(self.student.logits(tokens_BT), teacher_NV, divergence)

    def on_samples(self, prompts_BT: Blocks, divergence: Callable[[Tensor, Tensor], Tensor]) -> float:
        """Adds the gradient on what the student writes after the prompts and gives the loss."""
        import torch

        from harness.stages.distill.responses import Responses
        from harness.training.sampling import sample

        prompts = prompts_BT.tolist()
        responses = sample(self.student.model, prompts, how=self.how)
        batch = Responses.lay_out(prompts, responses)
        self.tally.add(steps_on_policy=1, tokens_generated=sum(map(len, responses)), tokens_read=batch.tokens)
        with torch.no_grad():
            teacher_NV = batch.logits(self.teacher)
        return follow(batch.logits(self.student), teacher_NV, divergence)


def follow(student_NV: Tensor, teacher_NV: Tensor, divergence: Callable[[Tensor, Tensor], Tensor]) -> float:
    """Adds the gradient of the mean divergence over positions to the student's parameters and gives the mean."""
    import torch

    from harness.stages.distill.losses import log_probabilities, piecewise_gradient
    from harness.stages.distill.student import POSITIONS_AT_A_TIME

    def loss(rows: slice, piece_NV: Tensor) -> Tensor:
        return divergence(log_probabilities(teacher_NV[rows]), log_probabilities(piece_NV))

    value, gradient_NV = piecewise_gradient(student_NV, loss, positions=POSITIONS_AT_A_TIME)
    torch.autograd.backward(student_NV, gradient_NV)
    return float(value)
