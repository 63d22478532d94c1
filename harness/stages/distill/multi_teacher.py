"""Distillation from several teachers at once: the student learns their mixture, weighed equally, by merit or by a gate.

One large teacher may be beyond what a small student can follow, and teachers with different strengths contradict each
other. So the question is how much each of them should count, and where: for every token the same, for each token by how
well each teacher foretold it, or for each text as a small network decides that looks at the student.

Shapes: N positions of a step, V vocabulary, M teachers.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar, final

from harness.interfaces import SAME, Artifact, StageContext
from harness.sources.corpus import corpus_need
from harness.spec import REFERENCE, Need
from harness.stages.distill.recipe import Recipe, divergence_problems, lesson_blocks, refuse, run_notes, teacher_need

if TYPE_CHECKING:
    import torch
    from torch import Tensor

    from harness.sources.corpus import Blocks
    from harness.stages.distill.committee import Tally, Weigh
    from harness.stages.distill.student import Reader, Student
    from harness.training.loop import Backward

WEIGHTINGS = ("uniform", "confidence", "dynamic")
RECONSTRUCTED = (
    "teachers weighed by a reconstruction of DiverseDistill's dynamic importance, not by the published method: its"
    " questions and answers at intermediate layers are left out"
)


@final
@dataclass(frozen=True, kw_only=True)
class DistillMultiTeacher(Recipe):
    """Trains the model to give the mixture of several teachers' next-token distributions.

    Does:   minimizes kd_weight * t^2 * D(mixture, student at temperature t) + ce_weight * cross-entropy, the mixture
            being p = sum w_m p_m over the vocabulary at every position. `weighting: uniform` has equal weights;
            `confidence` has w_m proportional to exp(-CE(y, p_m)) = p_m(y), the probability that a teacher gave the
            token y that came; `dynamic` has one weight for each text, softmax(<W_q h, E_m> / `gate_temperature`) with h
            the student's last state averaged over the text, weights under `smallest_weight` left out and the rest
            scaled up. W_q and E are trained along on -log sum w_m p_m(y), and thrown away. The mean weight of every
            teacher is in the notes. D, recipe, grids, adapters and continuation as in distill.logits.
    Needs:  two or more `teachers`, name: reference (the family's) or name: {source: ...}, all with the student's
            tokenizer and vocabulary size, all in memory at once; a corpus.
    Why:    teachers know different things; a middle-sized teacher beside a large one is easier to follow. Compare it
            with the best single teacher, which a naive average can fall behind.
    Known:  dynamic is a RECONSTRUCTION of DiverseDistill, whose code is not published and whose exact equations we did
            not have: only its dynamic importance of teachers, with filtering, is here. Its question generator (a query
            from the student put into a teacher's intermediate layer) and answer augmenter (the teacher's output mapped
            back and matched to the student's state) are not, because where the query enters a decoder and how it is
            masked are not settled; one vocabulary lets the answers be mixed as distributions instead. Nor is time
            saved: a teacher left out is still read, since the gate learns from it. The paper trains importance with
            the student's loss; here the gate is trained on the text and the student's loss never reaches it, else it
            would settle on the teacher that is easiest to please. That loss is convex in the weights and flat where
            teachers are equally good, so all weight goes to one only where it is the best everywhere. The gate learns
            at the student's rate, slowly in a short run; a lower `gate_temperature` lets it move faster.
            Confidence too needs the text to be right: on a teacher's own generations it favours that teacher. Both
            read the token that is to be predicted, which is fair in training and no way to use the committee itself.
    Source: DiverseDistill, arXiv 2402.14035 (dynamic: reconstruction); confidence weighting and AMTML-KD, arXiv
            2103.04062, as its baselines.
    """

    version: ClassVar[str] = "1"
    requirements: ClassVar[tuple[str, ...]] = ("torch", "transformers", "safetensors")
    extra: ClassVar[str | None] = "torch"
    consumes: ClassVar[frozenset[str]] = frozenset({"hf", "grid"})
    produces: ClassVar[str] = SAME
    emulated: ClassVar[bool] = False

    teachers: Mapping[str, Mapping[str, object] | str]
    weighting: str = "uniform"
    gate_temperature: float = 1.0
    smallest_weight: float = 0.05
    temperature: float = 1.0
    kd_weight: float = 1.0
    ce_weight: float = 0.0
    divergence: str = "forward_kl"
    beta: float = 0.5
    skew: float = 0.1

    def __post_init__(self) -> None:
        if not isinstance(self.teachers, Mapping) or len(self.teachers) < 2:
            raise ValueError(f"teachers is {self.teachers!r}; allowed: two or more, by name; for one: distill.logits")
        checks = (
            (self.weighting not in WEIGHTINGS, f"weighting {self.weighting!r}: one of {', '.join(WEIGHTINGS)}"),
            (not self.gate_temperature > 0, f"gate_temperature {self.gate_temperature}: more than 0"),
            (
                not 0 <= self.smallest_weight < 1 / len(self.teachers),
                f"smallest_weight {self.smallest_weight}: from 0 and under 1 / teachers, so that one is always left",
            ),
            (not self.kd_weight > 0, f"kd_weight {self.kd_weight}: more than 0; training on text is distill.logits"),
            (self.ce_weight < 0, f"ce_weight {self.ce_weight}: not negative"),
        )
        soft = divergence_problems(self.divergence, self.beta, self.skew, temperature=self.temperature)
        refuse([*self.problems(), *soft, *(message for is_wrong, message in checks if is_wrong)])
        _ = self.needs

    @property
    def needs(self) -> tuple[Need, ...]:
        return (*(_teacher_need(name, self.teachers[name]) for name in self._names), corpus_need(self.corpus))

    @property
    def _names(self) -> list[str]:
        """The teachers in an order that does not depend on how they were written down."""
        return sorted(self.teachers)

    def apply(self, source: Artifact, out: Path, *, context: StageContext) -> None:

        from harness.stages.distill.committee import Tally
        from harness.stages.distill.student import load_student, load_teacher, require_same_width, shared_tokenizer
        from harness.stages.hf_folder import reproducible
        from harness.training.loop import train

        artifacts = [context.artifacts[f"teacher.{name}"] for name in self._names]
        tokenizer = shared_tokenizer(source, *artifacts)
        blocks_NT, heldout_NT = lesson_blocks(self, tokenizer=tokenizer, context=context)
        with reproducible(context):
            student = load_student(self, source, context=context)
            teachers = [load_teacher(self, artifact, context=context) for artifact in artifacts]
            for teacher in teachers:
                require_same_width(student, teacher)
            weigh, module = self._weighting(student)
            module["tally"] = tally = Tally(len(teachers)).to(student.model.device)
            before = self._heldout(student, teachers, heldout_NT, "before")
            backward = self._backward(student, teachers, blocks_NT, weigh=weigh, tally=tally)
            losses = train(module, backward, pace=self.pace, context=context)
            after = self._heldout(student, teachers, heldout_NT, "after")
            student.save(out, context=context)
        context.report.tokens += blocks_NT.size
        if self.weighting == "dynamic":
            context.report.labels.append(RECONSTRUCTED)
        context.report.notes |= {
            **run_notes(self, losses),
            "kd_weight": self.kd_weight,
            "ce_weight": self.ce_weight,
            **{f"teacher_weight.{n}": w / self.steps for n, w in zip(self._names, tally.sums_M.tolist(), strict=True)},
            **before,
            **after,
        }

    def _weighting(self, student: Student) -> tuple[Weigh, torch.nn.ModuleDict]:
        """Gives how teachers are weighed, and what is trained: the student and, if there is one, the gate."""
        import torch

        from harness.stages.distill.committee import Gate, by_confidence, by_gate, equally
        from harness.stages.distill.features import width

        module = torch.nn.ModuleDict({"student": student.model})
        if self.weighting == "dynamic":
            gate = Gate(teachers=len(self.teachers), width=width(student), temperature=self.gate_temperature)
            module["gate"] = gate.to(student.model.device)
            return by_gate(gate, smallest=self.smallest_weight), module
        return by_confidence if self.weighting == "confidence" else equally, module

    def _backward(
        self, student: Student, teachers: list[Reader], blocks_NT: Blocks, *, weigh: Weigh, tally: Tally
    ) -> Backward:
        import torch

        from harness.stages.distill.committee import ask
        from harness.stages.distill.losses import Divergence, cross_entropy, log_probabilities, piecewise_gradient
        from harness.stages.distill.student import POSITIONS_AT_A_TIME, next_tokens

        divergence = Divergence(self.divergence, self.beta, self.skew)  # type: ignore[arg-type]  # checked when made
        t = self.temperature

        def backward(step: int) -> float:
            tokens_BT = torch.from_numpy(blocks_NT[step * self.batch : (step + 1) * self.batch])
            tokens_BT = tokens_BT.to(student.model.device)
            labels_N = next_tokens(tokens_BT)
            answers = ask(teachers, tokens_BT, labels_N)
            shown = student.run(tokens_BT, output_hidden_states=self.weighting == "dynamic")
            weights_MN = weigh(answers, shown, labels_N)
            tally.add(weights_MN)

            def loss(rows: slice, piece_NV: Tensor) -> Tensor:
                mixed_NV = answers.mixed(rows, weights_MN, temperature=t)
                loss_N = self.kd_weight * t**2 * divergence(mixed_NV, log_probabilities(piece_NV, temperature=t))
                if self.ce_weight:
                    loss_N = loss_N + self.ce_weight * cross_entropy(piece_NV, labels_N[rows])
                return loss_N

            student_NV = shown.logits.flatten(0, 1)
            value, gradient_NV = piecewise_gradient(student_NV, loss, positions=POSITIONS_AT_A_TIME)
            torch.autograd.backward(student_NV, gradient_NV)
            return float(value)

        return backward

    def _heldout(self, student: Student, teachers: list[Reader], heldout_NT: Blocks, when: str) -> dict[str, float]:
        """Gives notes on held-out KL: to the equal mixture, a yardstick for every weighting, and to each teacher."""
        from harness.stages.distill.committee import uniform_mixture
        from harness.stages.distill.losses import Divergence
        from harness.stages.distill.soft import from_model, mean_divergence

        if not len(heldout_NT):
            return {}
        notes = {f"heldout_kl_{when}": mean_divergence(student, heldout_NT, uniform_mixture(teachers, heldout_NT))}
        for name, teacher in zip(self._names, teachers, strict=True):
            soft = from_model(teacher, heldout_NT, divergence=Divergence(), temperature=1.0)
            notes[f"heldout_kl_{when}.{name}"] = mean_divergence(student, heldout_NT, soft)
        return notes


def _teacher_need(name: str, given: Mapping[str, object] | str) -> Need:
    if given != REFERENCE and not isinstance(given, Mapping):
        raise ValueError(f"teachers: {name} is {given!r}; allowed: reference, or an object such as {{source: lab:x}}")
    return teacher_need(given if isinstance(given, Mapping) else None, name=f"teacher.{name}")
