"""Distillation losses against torch's own distributions, and their pieces against the whole."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

torch = pytest.importorskip("torch")

from torch.distributions import Categorical, kl_divergence  # noqa: E402

from harness.stages.distill.losses import (  # noqa: E402
    NO_LABEL,
    LossWeights,
    distillation_loss,
    forward_kl,
    loss_and_gradient,
    next_tokens,
)

seeds = st.integers(0, 10**6)
temperatures = st.sampled_from([0.5, 1.0, 2.0, 4.0])


def logits(seed: int, *shape: int):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed)) * 3


@settings(max_examples=50, deadline=None)
@given(seed=seeds, temperature=temperatures)
def test_forward_kl_equals_torchs_divergence_times_the_squared_temperature(seed, temperature):
    teacher, student = logits(seed, 6, 11), logits(seed + 1, 6, 11)
    expected = kl_divergence(
        Categorical(logits=teacher.double() / temperature), Categorical(logits=student.double() / temperature)
    )
    found = forward_kl(teacher, student, temperature=temperature)
    torch.testing.assert_close(found.double(), expected * temperature**2, rtol=1e-4, atol=1e-5)


@settings(max_examples=50, deadline=None)
@given(seed=seeds, shift=st.floats(-20, 20))
def test_forward_kl_is_never_negative_zero_for_equals_and_blind_to_shifts(seed, shift):
    teacher, student = logits(seed, 6, 11), logits(seed + 1, 6, 11)
    assert (forward_kl(teacher, student) > 0).all()
    torch.testing.assert_close(forward_kl(teacher, teacher + shift), torch.zeros(6), rtol=0, atol=2e-5)


@settings(max_examples=20, deadline=None)
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


def naive(teacher, student, labels, weights: LossWeights):
    """The definition over all positions at once, in float64, without any function of ours."""
    student = student.detach().double().requires_grad_()
    t = weights.temperature
    soft = kl_divergence(Categorical(logits=teacher.double() / t), Categorical(logits=student / t)) * t**2
    known = labels != NO_LABEL
    hard = -Categorical(logits=student).log_prob(labels.clamp(min=0)) * known
    loss = (weights.kd * soft + weights.ce * hard).sum() / len(student)
    return loss.detach(), torch.autograd.grad(loss, student)[0]


@settings(max_examples=30, deadline=None)
@given(
    seed=seeds,
    positions=st.integers(1, 12),
    weights=st.builds(LossWeights, kd=st.just(0.7), ce=st.sampled_from([0.0, 0.3]), temperature=temperatures),
)
def test_pieces_give_the_loss_and_gradient_of_the_whole(seed, positions, weights):
    teacher, student = logits(seed, 9, 13), logits(seed + 1, 9, 13)
    labels = torch.tensor([0, 3, 12, NO_LABEL, 5, 5, 1, 2, NO_LABEL])
    loss, gradient = loss_and_gradient(teacher, student, labels_N=labels, weights=weights, positions=positions)
    expected_loss, expected_gradient = naive(teacher, student, labels, weights)
    torch.testing.assert_close(loss.double(), expected_loss, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(gradient.double(), expected_gradient, rtol=1e-3, atol=1e-6)


def test_the_gradient_comes_in_the_type_of_the_logits():
    teacher, student = logits(0, 5, 8).bfloat16(), logits(1, 5, 8).bfloat16()
    labels = torch.full((5,), NO_LABEL)
    _, gradient = loss_and_gradient(teacher, student, labels_N=labels, weights=LossWeights(), positions=2)
    assert gradient.dtype == torch.bfloat16


def test_without_soft_loss_it_is_the_cross_entropy_of_the_text():
    teacher, student, labels = logits(0, 4, 9), logits(1, 4, 9), torch.tensor([1, 8, 0, 4])
    found = distillation_loss(teacher, student, labels_N=labels, weights=LossWeights(kd=0.0, ce=1.0))
    torch.testing.assert_close(found, -student.log_softmax(-1)[torch.arange(4), labels])


def test_the_label_of_a_position_is_the_token_after_it_and_the_last_has_none():
    assert next_tokens(torch.tensor([[1, 2, 3], [4, 5, 6]])).tolist() == [2, 3, NO_LABEL, 5, 6, NO_LABEL]
