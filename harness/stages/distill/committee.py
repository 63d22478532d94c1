"""Several teachers as one: how much each of them counts for a token or a text, and the distribution they give together.

The distribution is p = sum_m w_m p_m. Weights are equal, or follow how likely each teacher found the token that really
came, or come from a gate that looks at what the student makes of the text. The gate is trained to weigh the teachers
so that together they foretell the text best; it never sees how far the student is from them. Were it trained on the
student's loss it would learn to prefer whatever teacher is easiest to please, in the end a copy of the student.

Shapes: M teachers, B sequences, T tokens, N = B * T positions, V vocabulary, D student's width, G gate's width.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.nn import functional

from harness.stages.distill.losses import (
    NO_LABEL,
    confidence_weights,
    cross_entropy,
    filtered,
    kl,
    log_probabilities,
    mixture_of_teachers,
    mixture_surprise,
)
from harness.stages.distill.soft import PositionLoss, Soft
from harness.stages.distill.student import POSITIONS_AT_A_TIME, Reader, next_tokens

if TYPE_CHECKING:
    from harness.sources.corpus import Blocks

GATE_WIDTH = 32


class Gate(torch.nn.Module):
    """Weighs teachers for a text: softmax(<W_q h, E_m> / tau), h the student's last state averaged over the text.

    Begins with equal weights. Source: the dynamic importance of DiverseDistill, arXiv 2402.14035, reconstructed.
    """

    def __init__(self, *, teachers: int, width: int, temperature: float) -> None:
        super().__init__()
        self.temperature = temperature
        self.question = torch.nn.Linear(width, GATE_WIDTH, bias=False)
        self.teachers_MG = torch.nn.Parameter(torch.zeros(teachers, GATE_WIDTH))

    def forward(self, states_BTD: Tensor) -> Tensor:
        """Gives the logarithm (M, B) of every teacher's weight; nothing flows back into the states."""
        mean_BD = states_BTD.detach().float().mean(dim=1)
        question_BG = self.question(functional.layer_norm(mean_BD, mean_BD.shape[-1:]))
        return functional.log_softmax(self.teachers_MG @ question_BG.T / self.temperature, dim=0)


class Tally(torch.nn.Module):
    """How much every teacher counted so far (M,), summed over steps; a frozen parameter, so checkpoints hold it."""

    def __init__(self, teachers: int) -> None:
        super().__init__()
        self.sums_M = torch.nn.Parameter(torch.zeros(teachers), requires_grad=False)

    def add(self, weights_MN: Tensor) -> None:
        """Counts the weights of one step."""
        with torch.no_grad():
            self.sums_M.add_(weights_MN.mean(dim=1))


@dataclass(frozen=True)
class Answers:
    """What the teachers said about one batch: the logits of each, and the log-probability of the token that came.

    The latter (M, N) is 0 where no token came.
    """

    logits: list[Tensor]
    label_log_p_MN: Tensor

    def mixed(self, rows: slice, weights_MN: Tensor, *, temperature: float) -> Tensor:
        """Gives the log-probabilities (n, V) of the teachers together at some positions."""
        log_p_MnV = torch.stack([log_probabilities(each_NV[rows], temperature=temperature) for each_NV in self.logits])
        return mixture_of_teachers(log_p_MnV, weights_MN[:, rows])


def ask(teachers: list[Reader], tokens_BT: Tensor, labels_N: Tensor) -> Answers:
    """Lets every teacher read the tokens."""
    with torch.no_grad():
        logits = [teacher.logits(tokens_BT) for teacher in teachers]
        return Answers(logits, torch.stack([_label_log_p(each_NV, labels_N) for each_NV in logits]))


def _label_log_p(logits_NV: Tensor, labels_N: Tensor) -> Tensor:
    pairs = zip(logits_NV.split(POSITIONS_AT_A_TIME), labels_N.split(POSITIONS_AT_A_TIME), strict=True)
    return -torch.cat([cross_entropy(piece_NV, piece_N) for piece_NV, piece_N in pairs])


Weigh = Callable[[Answers, Any, Tensor], Tensor]
"""Gives weights (M, N) without a gradient, from answers, what the student showed, and labels (N,)."""


def equally(answers: Answers, _shown: Any, _labels_N: Tensor) -> Tensor:
    """Gives every teacher the same weight."""
    return torch.full_like(answers.label_log_p_MN, 1 / len(answers.logits))


def by_confidence(answers: Answers, _shown: Any, _labels_N: Tensor) -> Tensor:
    """Gives weights by how likely each teacher found the token; equal ones at the end of a block."""
    return confidence_weights(answers.label_log_p_MN)


def by_gate(gate: Gate, *, smallest: float) -> Weigh:
    """Gives weights from a gate, one for a whole text, and adds the gradient of the gate's own loss to the gate.

    That loss is -log sum_m w_m p_m(y) averaged over the tokens y. Weights under `smallest` are left out of what is
    given, and kept in that loss, so that a teacher can come back.
    """

    def weigh(answers: Answers, shown: Any, labels_N: Tensor) -> Tensor:
        log_weights_MB = gate(shown.hidden_states[-1])
        length = len(labels_N) // log_weights_MB.shape[1]
        log_weights_MN = log_weights_MB.repeat_interleave(length, dim=1)
        surprise_N = mixture_surprise(answers.label_log_p_MN, log_weights_MN)
        is_known_N = labels_N != NO_LABEL
        torch.autograd.backward((surprise_N * is_known_N).sum() / is_known_N.sum())
        return filtered(log_weights_MN.detach().exp(), smallest=smallest)

    return weigh


def uniform_mixture(teachers: list[Reader], blocks_NT: Blocks) -> Soft:
    """Gives the forward KL from the teachers' equal mixture to a student."""

    def soft(start: int, end: int) -> PositionLoss:
        tokens_BT = torch.from_numpy(blocks_NT[start:end]).to(teachers[0].model.device)
        answers = ask(teachers, tokens_BT, next_tokens(tokens_BT))
        weights_MN = equally(answers, None, next_tokens(tokens_BT))

        def loss(rows: slice, piece_NV: Tensor) -> Tensor:
            return kl(answers.mixed(rows, weights_MN, temperature=1.0), log_probabilities(piece_NV))

        return loss

    return soft
