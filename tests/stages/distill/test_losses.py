"""Distillation losses against slow loops, torch's own distributions and TRL; their identities; pieces and the whole."""

import ast
import importlib.util
import math
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

torch = pytest.importorskip("torch")

from torch.distributions import Categorical, kl_divergence  # noqa: E402

from harness.stages.distill.losses import (  # noqa: E402
    NO_LABEL,
    Divergence,
    cross_entropy,
    forward_kl,
    jensen_shannon,
    kl,
    log_probabilities,
    mixture,
    piecewise_gradient,
    skewed_kl,
    skewed_reverse_kl,
    top_k,
    top_k_with_tail,
)
from harness.stages.distill.student import next_tokens  # noqa: E402

seeds = st.integers(0, 10**6)
temperatures = st.sampled_from([0.5, 1.0, 2.0, 4.0])
betas = st.sampled_from([0.0, 0.1, 0.5, 0.9, 1.0])
skews = st.sampled_from([0.01, 0.1, 0.5, 0.9])
ALL = [
    Divergence("forward_kl"),
    Divergence("reverse_kl"),
    Divergence("jsd", beta=0.3),
    Divergence("skewed_kl", skew=0.2),
    Divergence("skewed_reverse_kl", skew=0.2),
]
few = settings(max_examples=25, deadline=None)


def logits(seed: int, *shape: int):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed)) * 3


def log_p(seed: int, *shape: int):
    return logits(seed, *shape).double().log_softmax(-1)


# ---- slow references: loops over positions and entries, probabilities as Python floats ----


def slow_kl(p: list[float], q: list[float]) -> float:
    return sum(a * (math.log(a) - math.log(b)) for a, b in zip(p, q, strict=True) if a > 0)


def slow_mix(p: list[float], q: list[float], weight: float) -> list[float]:
    return [weight * a + (1 - weight) * b for a, b in zip(p, q, strict=True)]


def slow(divergence: Divergence, teacher: list[float], student: list[float]) -> float:
    beta, skew = divergence.beta, divergence.skew
    if divergence.kind == "reverse_kl" or (divergence.kind == "jsd" and beta == 1):
        return slow_kl(student, teacher)
    if divergence.kind == "forward_kl" or (divergence.kind == "jsd" and beta == 0):
        return slow_kl(teacher, student)
    if divergence.kind == "jsd":
        middle = slow_mix(teacher, student, beta)
        return beta * slow_kl(teacher, middle) + (1 - beta) * slow_kl(student, middle)
    if divergence.kind == "skewed_kl":
        return slow_kl(teacher, slow_mix(teacher, student, skew))
    return slow_kl(student, slow_mix(student, teacher, skew))


@few
@given(seed=seeds, beta=betas, skew=skews)
@pytest.mark.parametrize("kind", [one.kind for one in ALL])
def test_a_divergence_equals_its_definition(kind, seed, beta, skew):
    divergence = Divergence(kind, beta=beta, skew=skew)
    teacher, student = log_p(seed, 4, 7), log_p(seed + 1, 4, 7)
    expected = [slow(divergence, p, q) for p, q in zip(teacher.exp().tolist(), student.exp().tolist(), strict=True)]
    np.testing.assert_allclose(divergence(teacher, student).numpy(), expected, rtol=1e-9, atol=1e-12)


@pytest.fixture(scope="module")
def trl_loss():
    """The `generalized_jsd_loss` of TRL: its own lines, without importing its trainer, which is slow and warns."""
    found = importlib.util.find_spec("trl")
    if found is None or found.origin is None:
        pytest.skip("TRL, the oracle, is not installed")
    tree = ast.parse((Path(found.origin).parent / "experimental" / "gkd" / "gkd_trainer.py").read_text())
    (function,) = (
        node for node in ast.walk(tree) if isinstance(node, ast.FunctionDef) and node.name == "generalized_jsd_loss"
    )
    function.decorator_list = []
    namespace = {"torch": torch, "F": torch.nn.functional}
    exec(compile(ast.Module([function], []), "gkd_trainer.py", "exec"), namespace)
    return namespace["generalized_jsd_loss"]


@pytest.mark.parametrize("beta", [0.0, 0.25, 0.5, 1.0])
@pytest.mark.parametrize("temperature", [1.0, 2.0])
def test_the_generalized_jensen_shannon_divergence_is_that_of_trl(beta, temperature, trl_loss):
    teacher, student = logits(0, 2, 5, 11), logits(1, 2, 5, 11)
    labels = torch.randint(0, 11, (2, 5), generator=torch.Generator().manual_seed(2))
    labels[0, :2] = NO_LABEL
    expected = trl_loss(student, teacher, labels=labels, beta=beta, temperature=temperature)
    log_teacher, log_student = (log_probabilities(one, temperature=temperature) for one in (teacher, student))
    found = jensen_shannon(log_teacher, log_student, beta=beta)[labels != NO_LABEL].sum() / (labels != NO_LABEL).sum()
    torch.testing.assert_close(found, expected)


@few
@given(seed=seeds)
def test_the_jensen_shannon_divergence_is_symmetric_at_a_half_and_at_most_log_2(seed):
    left, right = log_p(seed, 5, 9), log_p(seed + 1, 5, 9)
    there, back = jensen_shannon(left, right, beta=0.5), jensen_shannon(right, left, beta=0.5)
    torch.testing.assert_close(there, back)
    assert (there > 0).all()
    assert (there <= math.log(2)).all()


def test_the_jensen_shannon_divergence_of_strangers_is_log_2():
    left, right = torch.tensor([[1.0, 0, 0, 0]]).log(), torch.tensor([[0, 0, 0.5, 0.5]]).log()
    assert jensen_shannon(left, right, beta=0.5).item() == pytest.approx(math.log(2))


@few
@given(seed=seeds, beta=st.sampled_from([0.2, 0.5, 0.7]))
def test_mirrored_weights_give_the_mirrored_divergence(seed, beta):
    left, right = log_p(seed, 5, 9), log_p(seed + 1, 5, 9)
    torch.testing.assert_close(
        jensen_shannon(left, right, beta=beta), jensen_shannon(right, left, beta=1 - beta), rtol=1e-9, atol=1e-12
    )


@pytest.mark.parametrize("near", [1e-8, 1 - 1e-8])
def test_the_ends_of_beta_are_limits_only_after_scaling(near):
    # D_beta / beta tends to KL(p_T || p_S) as beta tends to 0, and D_beta / (1 - beta) to KL(p_S || p_T) as it tends
    # to 1 (GKD, section 2); at the ends the divergence itself is taken, so it jumps.
    teacher, student = log_p(3, 4, 6), log_p(4, 4, 6)
    end = round(near)
    scaled = jensen_shannon(teacher, student, beta=near) / abs(near - end)
    torch.testing.assert_close(scaled, jensen_shannon(teacher, student, beta=end), rtol=1e-3, atol=1e-4)
    assert (jensen_shannon(teacher, student, beta=near) < 1e-5).all()


@few
@given(seed=seeds, skew=skews)
def test_a_skew_only_lowers_a_divergence(seed, skew):
    # KL is convex in its second argument: KL(p || a p + (1 - a) q) <= a * 0 + (1 - a) KL(p || q).
    teacher, student = log_p(seed, 5, 9), log_p(seed + 1, 5, 9)
    assert (skewed_kl(teacher, student, skew=skew) <= (1 - skew) * kl(teacher, student) + 1e-12).all()
    assert (skewed_reverse_kl(teacher, student, skew=skew) <= (1 - skew) * kl(student, teacher) + 1e-12).all()
    # And the mixture holds at least a share `skew` of p, so the divergence is at most -log(skew), whatever q is.
    assert (skewed_kl(teacher, student, skew=skew) <= -math.log(skew)).all()


@few
@given(seed=seeds)
@pytest.mark.parametrize("divergence", ALL, ids=lambda one: one.kind)
def test_a_divergence_is_never_negative_and_zero_for_equals(divergence, seed):
    teacher, student = log_p(seed, 5, 9), log_p(seed + 1, 5, 9)
    assert (divergence(teacher, student) > 0).all()
    torch.testing.assert_close(divergence(teacher, teacher), torch.zeros(5).double(), rtol=0, atol=1e-12)


def test_what_has_no_probability_adds_nothing_and_spoils_no_gradient():
    p = torch.tensor([[0.5, 0.5, 0.0]]).log()
    scores = torch.tensor([[0.0, 1.0, 2.0]], requires_grad=True)
    q = scores.log_softmax(-1)
    expected = slow_kl([0.5, 0.5, 0], q.detach().double().exp().tolist()[0])
    assert kl(p, q).item() == pytest.approx(expected)
    (slope,) = torch.autograd.grad(kl(p, q).sum(), scores)
    # d KL(p || softmax(z)) / dz = softmax(z) - p.
    torch.testing.assert_close(slope, q.detach().exp() - p.exp())
    assert kl(q, p).item() == math.inf


@few
@given(seed=seeds, weight=skews)
def test_a_mixture_is_the_weighted_sum_of_probabilities(seed, weight):
    left, right = log_p(seed, 3, 5), log_p(seed + 1, 3, 5)
    torch.testing.assert_close(
        mixture(left, right, weight=weight).exp(), weight * left.exp() + (1 - weight) * right.exp()
    )


@pytest.mark.parametrize("divergence", ALL, ids=lambda one: one.kind)
def test_the_gradient_is_that_of_finite_differences(divergence):
    teacher = log_p(5, 3, 6)
    scores = logits(6, 3, 6).double().requires_grad_()
    assert torch.autograd.gradcheck(lambda z: divergence(teacher, z.log_softmax(-1)), (scores,))


# ---- temperature ----


@few
@given(seed=seeds, temperature=temperatures)
def test_forward_kl_equals_torchs_divergence_times_the_squared_temperature(seed, temperature):
    teacher, student = logits(seed, 6, 11), logits(seed + 1, 6, 11)
    expected = kl_divergence(
        Categorical(logits=teacher.double() / temperature), Categorical(logits=student.double() / temperature)
    )
    found = forward_kl(teacher, student, temperature=temperature)
    torch.testing.assert_close(found.double(), expected * temperature**2, rtol=1e-4, atol=1e-5)


@few
@given(seed=seeds, shift=st.floats(-20, 20))
def test_forward_kl_is_never_negative_zero_for_equals_and_blind_to_shifts(seed, shift):
    teacher, student = logits(seed, 6, 11), logits(seed + 1, 6, 11)
    assert (forward_kl(teacher, student) > 0).all()
    torch.testing.assert_close(forward_kl(teacher, teacher + shift), torch.zeros(6), rtol=0, atol=2e-5)


@few
@given(seed=seeds, temperature=temperatures)
def test_the_gradient_is_the_difference_of_probabilities_times_the_temperature(seed, temperature):
    # d/dz_S of t^2 KL = t^2 * (p_S - p_T) / t (Hinton et al., equation 2, times t^2).
    teacher, student = logits(seed, 6, 11), logits(seed + 1, 6, 11).requires_grad_()
    (found,) = torch.autograd.grad(forward_kl(teacher, student, temperature=temperature).sum(), student)
    expected = temperature * ((student / temperature).softmax(-1) - (teacher / temperature).softmax(-1))
    torch.testing.assert_close(found, expected.detach(), rtol=1e-4, atol=1e-5)


def test_at_a_high_temperature_distillation_matches_logits():
    # Hinton et al., equation 4: for logits of mean zero the gradient tends to (z_S - z_T) / V.
    teacher, student = (z - z.mean(-1, keepdim=True) for z in (logits(0, 4, 7), logits(1, 4, 7)))
    student.requires_grad_()
    (found,) = torch.autograd.grad(forward_kl(teacher, student, temperature=1000.0).sum(), student)
    torch.testing.assert_close(found, (student - teacher).detach() / 7, rtol=0.05, atol=2e-3)


# ---- the likeliest tokens and the tail ----


@few
@given(seed=seeds, k=st.integers(1, 8), temperature=temperatures)
def test_the_likeliest_and_the_tail_are_a_distribution(seed, k, temperature):
    scores = logits(seed, 6, 9)
    kept = top_k(scores, k, temperature=temperature)
    torch.testing.assert_close(kept.entries().exp().sum(-1), torch.ones(6))
    probabilities = (scores.double() / temperature).softmax(-1)
    for row in range(6):
        order = sorted(range(9), key=lambda token, row=row: -float(probabilities[row, token]))
        assert kept.ids_NK[row].tolist() == order[:k]
        tail = sum(float(probabilities[row, token]) for token in order[k:])
        assert float(kept.log_tail_N[row].exp()) == pytest.approx(tail, rel=1e-4)
        assert kept.log_probs_NK[row].exp().tolist() == pytest.approx(probabilities[row, order[:k]].tolist(), rel=1e-4)


@few
@given(seed=seeds, k=st.integers(1, 8))
@pytest.mark.parametrize("divergence", ALL, ids=lambda one: one.kind)
def test_the_tail_hides_divergence_and_never_adds_any(divergence, seed, k):
    # Data processing: putting tokens into one bucket cannot tell two distributions further apart.
    teacher, student = logits(seed, 6, 9), logits(seed + 1, 6, 9)
    kept = top_k(teacher, k)
    found = divergence(kept.entries(), kept.of_student(student, temperature=1.0))
    whole = divergence(log_probabilities(teacher), log_probabilities(student))
    assert (found <= whole + 1e-5).all()
    if k == 8:  # one token is in the tail: nothing is hidden
        torch.testing.assert_close(found, whole, rtol=1e-4, atol=1e-5)


def test_the_gradient_through_the_tail_is_that_of_finite_differences():
    # The function computes in float32, so the differences are taken by hand with a step that suits it.
    scores = logits(7, 2, 6)
    ids, weights = torch.tensor([[0, 3], [5, 1]]), logits(8, 2, 3)

    def value(z):
        return (top_k_with_tail(z, ids, temperature=2.0) * weights).sum()

    (slope,) = torch.autograd.grad(value(scores.requires_grad_()), scores)
    step = 0.01
    for place in np.ndindex(2, 6):
        moved = torch.zeros(2, 6)
        moved[place] = step
        difference = (value(scores.detach() + moved) - value(scores.detach() - moved)) / (2 * step)
        assert float(slope[place]) == pytest.approx(float(difference), abs=2e-3)


# ---- pieces ----


def whole(teacher, student, labels, *, temperature, count):
    """A mixed loss over all positions at once, in float64, without any function of ours."""
    student = student.detach().double().requires_grad_()
    t = temperature
    soft = kl_divergence(Categorical(logits=teacher.double() / t), Categorical(logits=student / t)) * t**2
    known = labels != NO_LABEL
    hard = -Categorical(logits=student).log_prob(labels.clamp(min=0)) * known
    loss = (0.7 * soft + 0.3 * hard).sum() / count
    return loss.detach(), torch.autograd.grad(loss, student)[0]


@few
@given(seed=seeds, positions=st.integers(1, 12), temperature=temperatures, count=st.sampled_from([None, 4.0]))
def test_pieces_give_the_loss_and_gradient_of_the_whole(seed, positions, temperature, count):
    teacher, student = logits(seed, 9, 13), logits(seed + 1, 9, 13)
    labels = torch.tensor([0, 3, 12, NO_LABEL, 5, 5, 1, 2, NO_LABEL])

    def loss(rows, piece):
        soft = forward_kl(teacher[rows], piece, temperature=temperature)
        return 0.7 * soft + 0.3 * cross_entropy(piece, labels[rows])

    found, gradient = piecewise_gradient(student, loss, positions=positions, count=count)
    expected, slope = whole(teacher, student, labels, temperature=temperature, count=count or 9)
    torch.testing.assert_close(found.double(), expected, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(gradient.double(), slope, rtol=1e-3, atol=1e-6)


def test_the_gradient_comes_in_the_type_of_the_logits_and_the_loss_sees_float32():
    seen = []

    def loss(_, piece):
        seen.append(piece.dtype)
        return piece.logsumexp(-1)

    _, gradient = piecewise_gradient(logits(0, 5, 8).bfloat16(), loss, positions=2)
    assert gradient.dtype == torch.bfloat16
    assert seen == [torch.float32] * 3


@few
@given(seed=seeds)
def test_cross_entropy_is_the_surprise_of_the_label_and_nothing_without_one(seed):
    scores, labels = logits(seed, 4, 9), torch.tensor([1, 8, NO_LABEL, 4])
    expected = [
        0.0 if label == NO_LABEL else math.log(sum(math.exp(z) for z in row)) - row[label]
        for row, label in zip(scores.double().tolist(), labels.tolist(), strict=True)
    ]
    assert cross_entropy(scores, labels).tolist() == pytest.approx(expected, rel=1e-4, abs=1e-5)


def test_the_label_of_a_position_is_the_token_after_it_and_the_last_has_none():
    assert next_tokens(torch.tensor([[1, 2, 3], [4, 5, 6]])).tolist() == [2, 3, NO_LABEL, 5, 6, NO_LABEL]


@pytest.mark.parametrize("kind", ["jsd", "skewed_kl", "skewed_reverse_kl"])
def test_an_entry_that_neither_model_can_give_costs_nothing_and_has_a_gradient(kind):
    hidden = torch.tensor([[0.0, 0.0, -torch.inf]])
    teacher, student = logits(0, 1, 3) + hidden, (logits(1, 1, 3) + hidden).requires_grad_()
    loss = Divergence(kind)(log_probabilities(teacher), log_probabilities(student))
    expected = Divergence(kind)(log_probabilities(teacher[:, :2]), log_probabilities(student.detach()[:, :2]))
    torch.testing.assert_close(loss.detach(), expected)
    (gradient,) = torch.autograd.grad(loss.sum(), student)
    assert torch.isfinite(gradient).all()
