"""Distillation losses as pure functions, and their gradient in pieces that fit into memory.

Divergences compare two distributions over the same entries, given as log-probabilities (N, K). The entries are the
whole vocabulary, or the teacher's most likely tokens and one bucket for all the others (`top_k_with_tail`), so that
what is rare keeps its mass instead of being renormalised away.

    forward KL    sum_v p_T log(p_T / p_S)           punishes the student wherever the teacher has mass and it has none
    reverse KL    sum_v p_S log(p_S / p_T)           punishes mass where the teacher has none
    JSD(beta)     beta KL(p_T || m) + (1 - beta) KL(p_S || m),  m = beta p_T + (1 - beta) p_S
    skewed KL     KL(p_T || skew p_T + (1 - skew) p_S)
    skewed RKL    KL(p_S || (1 - skew) p_T + skew p_S)

Sources: Hinton et al., arXiv 1503.02531, section 2 (temperature, t^2); GKD, arXiv 2306.13649, in TRL's convention: beta
0 means forward and beta 1 reverse KL, as special cases and not as limits; DistiLLM, arXiv 2402.03898, equations 4 and
5 with skew .1. Representation losses: see each function.

Vocabularies are large: for 1024 positions and 49,152 entries one float32 copy is 200 MB and a naive loss holds five. So
the gradient is taken over some positions at a time and only the logits' own type is kept whole.

Shapes: N positions, V vocabulary, K entries. Logits may be any float type; losses are float32, in nats a position.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal, NamedTuple

import torch
from torch import Tensor
from torch.nn import functional

# Marks a position without a next token; the `ignore_index` of torch.
NO_LABEL = -100

Kind = Literal["forward_kl", "reverse_kl", "jsd", "skewed_kl", "skewed_reverse_kl"]


def kl(log_p_NK: Tensor, log_q_NK: Tensor) -> Tensor:
    """Gives KL(p || q) of every position (N,); where p is 0 nothing is added, whatever q is."""
    difference_NK = torch.where(log_p_NK == -math.inf, torch.zeros_like(log_p_NK), log_p_NK - log_q_NK)
    return (log_p_NK.exp() * difference_NK).sum(dim=-1)


def mixture(log_p_NK: Tensor, log_q_NK: Tensor, *, weight: float) -> Tensor:
    """Gives the logarithm of weight * p + (1 - weight) * q, for a weight strictly between 0 and 1.

    Where both are 0 the logarithm is very low and finite, because that of 0 has no gradient.
    """
    lowest = torch.finfo(log_p_NK.dtype).min / 2
    return torch.logaddexp(
        log_p_NK.clamp(min=lowest) + math.log(weight), log_q_NK.clamp(min=lowest) + math.log1p(-weight)
    )


def jensen_shannon(log_teacher_NK: Tensor, log_student_NK: Tensor, *, beta: float) -> Tensor:
    """Gives the generalized Jensen-Shannon divergence (N,); beta 0 is forward KL and beta 1 reverse KL."""
    if beta == 0:
        return kl(log_teacher_NK, log_student_NK)
    if beta == 1:
        return kl(log_student_NK, log_teacher_NK)
    middle_NK = mixture(log_teacher_NK, log_student_NK, weight=beta)
    return beta * kl(log_teacher_NK, middle_NK) + (1 - beta) * kl(log_student_NK, middle_NK)


def skewed_kl(log_teacher_NK: Tensor, log_student_NK: Tensor, *, skew: float) -> Tensor:
    """Gives KL(teacher || skew * teacher + (1 - skew) * student) (N,)."""
    return kl(log_teacher_NK, mixture(log_teacher_NK, log_student_NK, weight=skew))


def skewed_reverse_kl(log_teacher_NK: Tensor, log_student_NK: Tensor, *, skew: float) -> Tensor:
    """Gives KL(student || (1 - skew) * teacher + skew * student) (N,)."""
    return kl(log_student_NK, mixture(log_student_NK, log_teacher_NK, weight=skew))


@dataclass(frozen=True)
class Divergence:
    """Which divergence is minimized: `beta` is for jsd, `skew` for the skewed ones."""

    kind: Kind = "forward_kl"
    beta: float = 0.5
    skew: float = 0.1

    def __call__(self, log_teacher_NK: Tensor, log_student_NK: Tensor) -> Tensor:
        """Gives the divergence of every position (N,)."""
        if self.kind == "jsd":
            return jensen_shannon(log_teacher_NK, log_student_NK, beta=self.beta)
        if self.kind == "skewed_kl":
            return skewed_kl(log_teacher_NK, log_student_NK, skew=self.skew)
        if self.kind == "skewed_reverse_kl":
            return skewed_reverse_kl(log_teacher_NK, log_student_NK, skew=self.skew)
        if self.kind == "reverse_kl":
            return kl(log_student_NK, log_teacher_NK)
        return kl(log_teacher_NK, log_student_NK)


def log_probabilities(logits_NV: Tensor, *, temperature: float = 1.0) -> Tensor:
    """Gives float32 log-probabilities (N, V) at a temperature."""
    return functional.log_softmax(logits_NV.float() / temperature, dim=-1)


class TopK(NamedTuple):
    """A teacher's most likely tokens: ids (N, K), their log-probabilities (N, K), and that of all others (N,)."""

    ids_NK: Tensor
    log_probs_NK: Tensor
    log_tail_N: Tensor

    def entries(self) -> Tensor:
        """Gives log-probabilities (N, K + 1) with the tail last."""
        return torch.cat([self.log_probs_NK.float(), self.log_tail_N.float()[:, None]], dim=-1)

    def of_student(self, logits_NV: Tensor, *, temperature: float) -> Tensor:
        """Gives the student's log-probabilities (N, K + 1) of the same entries."""
        return top_k_with_tail(logits_NV, self.ids_NK, temperature=temperature)


def top_k_with_tail(logits_NV: Tensor, ids_NK: Tensor, *, temperature: float = 1.0) -> Tensor:
    """Gives the log-probabilities (N, K + 1) of the tokens `ids_NK` and of all other tokens together."""
    scaled_NV = logits_NV.float() / temperature
    total_N1 = scaled_NV.logsumexp(dim=-1, keepdim=True)
    others_NV = scaled_NV.scatter(-1, ids_NK, -math.inf)
    return torch.cat([scaled_NV.gather(-1, ids_NK), others_NV.logsumexp(dim=-1, keepdim=True)], dim=-1) - total_N1


def top_k(logits_NV: Tensor, k: int, *, temperature: float = 1.0) -> TopK:
    """Gives the k most likely tokens of every position and the mass of the rest. `k` must be under V."""
    ids_NK = logits_NV.topk(k, dim=-1).indices
    entries_NK = top_k_with_tail(logits_NV, ids_NK, temperature=temperature)
    return TopK(ids_NK, entries_NK[:, :-1], entries_NK[:, -1])


def forward_kl(teacher_NV: Tensor, student_NV: Tensor, *, temperature: float = 1.0) -> Tensor:
    """Gives t^2 * KL(teacher || student) of two sets of logits for every position (N,)."""
    teacher = log_probabilities(teacher_NV, temperature=temperature)
    return kl(teacher, log_probabilities(student_NV, temperature=temperature)) * temperature**2


def cross_entropy(student_NV: Tensor, labels_N: Tensor) -> Tensor:
    """Gives -log p_S(label) of every position (N,), 0 where the label is NO_LABEL."""
    return functional.cross_entropy(student_NV.float(), labels_N, ignore_index=NO_LABEL, reduction="none")


def piecewise_gradient(
    student_NV: Tensor, loss: Callable[[slice, Tensor], Tensor], *, positions: int = 128, count: float | None = None
) -> tuple[Tensor, Tensor]:
    """Gives the sum of `loss` over positions divided by `count` (else N), and its gradient (N, V) in the logits' type.

    `loss(rows, piece)` gives the losses of the positions `rows`, whose student logits are `piece` in float32. Works on
    `positions` at a time; the result does not depend on it but for rounding of the sum.
    """
    gradient_NV = torch.empty_like(student_NV)
    total = torch.zeros((), device=student_NV.device)
    divisor = len(student_NV) if count is None else count
    for start in range(0, len(student_NV), positions):
        rows = slice(start, start + positions)
        piece = student_NV[rows].detach().float().requires_grad_()
        value = loss(rows, piece).sum()
        (slope,) = torch.autograd.grad(value / divisor, piece)
        gradient_NV[rows] = slope.to(gradient_NV.dtype)
        total += value.detach()
    return total / divisor, gradient_NV


# Representation losses. B sequences, T tokens, D and E widths, H heads, M teachers. They compute in the type they are
# given, give one number, and send no gradient to the teacher unless it asks for one.


def state_error(teacher_BTD: Tensor, student_BTD: Tensor, *, relative: bool = False) -> Tensor:
    """Gives the mean square difference of two states; with `relative` over the teacher's own mean square.

    MSE(H_S W, H_T), for hidden states and embeddings alike: TinyBERT, arXiv 1909.10351, section 3.1; the caller applies
    W. Relative is ours: 0 for equals, 1 for a student that says nothing, at every layer.
    """
    error = functional.mse_loss(student_BTD, teacher_BTD)
    return error / teacher_BTD.square().mean().clamp(min=_tiny(error)) if relative else error


def attention_error(teacher_BHTT: Tensor, student_BHTT: Tensor, *, scores: bool = True) -> Tensor:
    """Gives the mean square difference of attention distributions over the pairs that the teacher's attention sees.

    With `scores` of what stood before the softmax, A = QK^T / sqrt(d), less the mean of its row: the softmax sees no
    more of A than that, and it is what can be had back from the distribution. TinyBERT, arXiv 1909.10351, section 3.1,
    (1/h) sum_i MSE(A_i^S, A_i^T) on unnormalized A, there not centred.
    """
    seen_BHTT = teacher_BHTT > 0
    if scores:
        teacher_BHTT, student_BHTT = _centred_log(teacher_BHTT, seen_BHTT), _centred_log(student_BHTT, seen_BHTT)
    squares_BHTT = (student_BHTT - teacher_BHTT).square() * seen_BHTT
    return squares_BHTT.sum() / seen_BHTT.sum()


def attention_kl(teacher_BHTT: Tensor, student_BHTT: Tensor) -> Tensor:
    """Gives KL(teacher || student) of attention distributions, averaged over sequences, heads and rows.

    MiniLM, arXiv 2002.10957, section 3.1: (1 / A_h |x|) sum_a sum_t KL(A^T_a,t || A^S_a,t).
    """
    return kl(_log(teacher_BHTT), _log(student_BHTT)).mean()


def relations(vectors_BTD: Tensor, *, heads: int) -> Tensor:
    """Gives log softmax(X X^T / sqrt(d)) (B, H, T, T) of vectors cut into `heads` of width d, which must divide D.

    MiniLM, arXiv 2002.10957, section 3.2 (values, the model's own heads); MiniLMv2, arXiv 2012.15828, section 3.1
    (queries, keys and values, any number of heads). Every token is related to every other, later ones too.
    """
    split_BHTd = vectors_BTD.unflatten(-1, (heads, -1)).transpose(1, 2)
    products_BHTT = split_BHTd @ split_BHTd.transpose(-1, -2) / math.sqrt(split_BHTd.shape[-1])
    return functional.log_softmax(products_BHTT, dim=-1)


def relation_kl(teacher_BTD: Tensor, student_BTE: Tensor, *, heads: tuple[int, int]) -> Tensor:
    """Gives KL(teacher || student) of relations, averaged over sequences, heads and rows.

    `heads` are the teacher's and the student's, equal in number; the widths may differ. MiniLM, section 3.2: (1 / A_h
    |x|) sum_a sum_t KL(VR^T_a,t || VR^S_a,t); MiniLMv2 adds such a term each for queries, keys and values.
    """
    return kl(relations(teacher_BTD, heads=heads[0]), relations(student_BTE, heads=heads[1])).mean()


def rkd_distance(teacher_BD: Tensor, student_BE: Tensor) -> Tensor:
    """Gives the Huber loss (delta 1) between the pairwise distances of two sets of embeddings, each over its mean.

    RKD, arXiv 1904.05068, section 3.2.1: psi(i, j) = |x_i - x_j| / mu. The mean is over the pairs i != j; common ports
    count the zero diagonal too, which makes theirs (B - 1) / B of it.
    """
    other_BB = ~torch.eye(len(teacher_BD), dtype=torch.bool, device=teacher_BD.device)
    teacher_P, student_P = (_differences(x).norm(dim=-1)[other_BB] for x in (teacher_BD, student_BE))
    teacher_P, student_P = (d / d.mean().clamp(min=_tiny(d)) for d in (teacher_P, student_P))
    return functional.smooth_l1_loss(student_P, teacher_P)


def rkd_angle(teacher_BD: Tensor, student_BE: Tensor) -> Tensor:
    """Gives the Huber loss (delta 1) between the cosines of the angles that three embeddings form.

    RKD, arXiv 1904.05068, section 3.2.2: psi(i, j, k) = <e_ij, e_kj> with unit vectors e. The mean is over different i,
    j, k; common ports count all B^3, which makes theirs (B - 1)(B - 2) / B^2 of it.
    """
    same_BB = torch.eye(len(teacher_BD), dtype=torch.bool, device=teacher_BD.device)
    # The corner j comes first: rows of `_differences(x)[j]` point from x_j to every other.
    distinct_JIK = ~(same_BB[:, :, None] | same_BB[:, None, :] | same_BB[None])
    teacher_JIK, student_JIK = (_cosines(x) for x in (teacher_BD, student_BE))
    return functional.smooth_l1_loss(student_JIK[distinct_JIK], teacher_JIK[distinct_JIK])


def mixture_of_teachers(log_p_MNK: Tensor, weights_MN: Tensor) -> Tensor:
    """Gives the logarithm (N, K) of p = sum_m w_m p_m; the weights of every position add up to 1, and may be 0."""
    return torch.logsumexp(log_p_MNK + weights_MN.log()[..., None], dim=0)


def confidence_weights(label_log_p_MN: Tensor) -> Tensor:
    """Gives weights (M, N) proportional to exp(-CE(y, p_m)) = p_m(y).

    Confidence-aware multi-teacher distillation in its plainest form; compare AMTML-KD, arXiv 2103.04062.
    """
    return functional.softmax(label_log_p_MN, dim=0)


def mixture_surprise(label_log_p_MN: Tensor, log_weights_MN: Tensor) -> Tensor:
    """Gives -log sum_m w_m p_m(y) of every position (N,): how well the weighted teachers foretell the text."""
    return -torch.logsumexp(label_log_p_MN + log_weights_MN, dim=0)


def filtered(weights_MN: Tensor, *, smallest: float) -> Tensor:
    """Gives the weights with those under `smallest` set to 0 and the rest scaled to add up to 1 again."""
    kept_MN = torch.where(weights_MN < smallest, 0.0, weights_MN)
    return kept_MN / kept_MN.sum(dim=0)


def _tiny(like: Tensor) -> float:
    return torch.finfo(like.dtype).tiny


def _log(probabilities: Tensor) -> Tensor:
    """Gives a finite logarithm: entries that are 0 weigh nothing, but minus infinity would spoil their gradient."""
    return probabilities.clamp(min=_tiny(probabilities)).log()


def _centred_log(probabilities_BHTT: Tensor, seen_BHTT: Tensor) -> Tensor:
    logs_BHTT = _log(probabilities_BHTT) * seen_BHTT
    return logs_BHTT - logs_BHTT.sum(dim=-1, keepdim=True) / seen_BHTT.sum(dim=-1, keepdim=True).clamp(min=1)


def _differences(x_BD: Tensor) -> Tensor:
    """Gives x_i - x_j at [j, i] (B, B, D)."""
    return x_BD[None] - x_BD[:, None]


def _cosines(x_BD: Tensor) -> Tensor:
    differences_BBD = _differences(x_BD)
    # Between equal embeddings there is no direction, and its gradient would be without bound.
    is_apart_BB1 = differences_BBD.detach().norm(dim=-1, keepdim=True) > 0
    unit_BBD = functional.normalize(differences_BBD, dim=-1) * is_apart_BB1
    return unit_BBD @ unit_BBD.transpose(-1, -2)
