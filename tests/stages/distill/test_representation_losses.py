"""Losses on states, attention, relations and mixtures against slow loops in NumPy, their identities and gradients."""

import itertools
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

torch = pytest.importorskip("torch")

from harness.stages.distill import losses  # noqa: E402

seeds = st.integers(0, 10**6)
few = settings(max_examples=20, deadline=None)


def normal(seed: int, *shape: int):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def causal_scores(seed: int, *shape: int):
    scores = normal(seed, *shape)
    future = torch.ones(shape[-2:], dtype=torch.bool).triu(1)
    return scores.masked_fill(future, -math.inf)


def softmax(row):
    exps = [math.exp(x - max(row)) for x in row]
    return [e / sum(exps) for e in exps]


def huber(difference: float) -> float:
    return 0.5 * difference**2 if abs(difference) < 1 else abs(difference) - 0.5


def as_arrays(*tensors):
    return [tensor.numpy() for tensor in tensors]


@few
@given(seed=seeds)
def test_the_error_of_states_is_the_mean_square_over_every_entry(seed):
    teacher, student = normal(seed, 2, 3, 4), normal(seed + 1, 2, 3, 4)
    t, s = as_arrays(teacher, student)
    squares = [(t[i] - s[i]) ** 2 for i in itertools.product(range(2), range(3), range(4))]
    assert float(losses.state_error(teacher, student)) == pytest.approx(sum(squares) / 24)
    size = sum(t[i] ** 2 for i in itertools.product(range(2), range(3), range(4)))
    assert float(losses.state_error(teacher, student, relative=True)) == pytest.approx(sum(squares) / size)


@few
@given(seed=seeds, scale=st.floats(1e-3, 1e3))
def test_a_relative_error_is_zero_for_equals_one_for_silence_and_blind_to_scale(seed, scale):
    teacher, student = normal(seed, 2, 3, 4), normal(seed + 1, 2, 3, 4)
    assert float(losses.state_error(teacher, teacher, relative=True)) == 0
    assert float(losses.state_error(teacher, torch.zeros_like(teacher), relative=True)) == pytest.approx(1)
    scaled = losses.state_error(scale * teacher, scale * student, relative=True)
    assert float(scaled) == pytest.approx(float(losses.state_error(teacher, student, relative=True)))


@few
@given(seed=seeds)
def test_the_error_of_scores_is_that_of_the_scores_themselves_centred_over_what_is_seen(seed):
    teacher, student = causal_scores(seed, 2, 2, 4, 4), causal_scores(seed + 1, 2, 2, 4, 4)
    t, s = as_arrays(teacher, student)
    total, count = 0.0, 0
    for b, h, i in itertools.product(range(2), range(2), range(4)):
        seen = range(i + 1)
        mean_t, mean_s = (sum(x[b, h, i, j] for j in seen) / (i + 1) for x in (t, s))
        for j in seen:
            total += ((t[b, h, i, j] - mean_t) - (s[b, h, i, j] - mean_s)) ** 2
            count += 1
    found = losses.attention_error(teacher.softmax(-1), student.softmax(-1))
    assert float(found) == pytest.approx(total / count)


@few
@given(seed=seeds)
def test_the_error_of_probabilities_counts_only_what_is_seen(seed):
    teacher, student = causal_scores(seed, 1, 2, 4, 4).softmax(-1), causal_scores(seed + 1, 1, 2, 4, 4).softmax(-1)
    t, s = as_arrays(teacher, student)
    seen = [(0, h, i, j) for h in range(2) for i in range(4) for j in range(i + 1)]
    expected = sum((t[place] - s[place]) ** 2 for place in seen) / len(seen)
    assert float(losses.attention_error(teacher, student, scores=False)) == pytest.approx(expected)


@few
@given(seed=seeds)
def test_attention_kl_is_the_mean_of_every_rows_divergence(seed):
    teacher, student = causal_scores(seed, 2, 2, 4, 4).softmax(-1), causal_scores(seed + 1, 2, 2, 4, 4).softmax(-1)
    t, s = as_arrays(teacher, student)
    total = 0.0
    for b, h, i in itertools.product(range(2), range(2), range(4)):
        total += sum(t[b, h, i, j] * math.log(t[b, h, i, j] / s[b, h, i, j]) for j in range(i + 1))
    assert float(losses.attention_kl(teacher, student)) == pytest.approx(total / (2 * 2 * 4))
    assert float(losses.attention_kl(teacher, teacher)) == pytest.approx(0, abs=1e-12)


def slow_relations(vectors, heads: int):
    blocks, length, width = vectors.shape
    d = width // heads
    out = np.zeros((blocks, heads, length, length))
    for b, h, i in itertools.product(range(blocks), range(heads), range(length)):
        part = vectors[b, :, h * d : (h + 1) * d]
        out[b, h, i] = softmax([float(part[i] @ part[j]) / math.sqrt(d) for j in range(length)])
    return out


@few
@given(seed=seeds, heads=st.sampled_from([1, 2, 4]))
def test_relations_are_the_softmax_of_products_of_each_head(seed, heads):
    (vectors,) = as_arrays(normal(seed, 2, 3, 8))
    found = losses.relations(torch.from_numpy(vectors), heads=heads).exp().numpy()
    np.testing.assert_allclose(found, slow_relations(vectors, heads), rtol=1e-9)


@few
@given(seed=seeds)
def test_relation_kl_compares_heads_of_different_widths(seed):
    teacher, student = normal(seed, 2, 3, 8), normal(seed + 1, 2, 3, 4)
    t, s = (slow_relations(x.numpy(), 2) for x in (teacher, student))
    expected = sum(float(p * math.log(p / q)) for p, q in zip(t.flat, s.flat, strict=True)) / (2 * 2 * 3)
    assert float(losses.relation_kl(teacher, student, heads=(2, 2))) == pytest.approx(expected)
    assert float(losses.relation_kl(teacher, teacher, heads=(2, 2))) == pytest.approx(0, abs=1e-12)


@few
@given(seed=seeds)
def test_relations_do_not_change_when_the_vectors_are_turned(seed):
    vectors = normal(seed, 2, 3, 4)
    turn, _ = torch.linalg.qr(normal(seed + 1, 4, 4))
    torch.testing.assert_close(losses.relations(vectors, heads=1), losses.relations(vectors @ turn, heads=1))


def slow_distance(teacher, student) -> float:
    pairs = list(itertools.permutations(range(len(teacher)), 2))
    relative = []
    for x in (teacher, student):
        distances = {pair: math.dist(x[pair[0]], x[pair[1]]) for pair in pairs}
        mean = sum(distances.values()) / len(pairs)
        relative.append({pair: d / mean for pair, d in distances.items()})
    return sum(huber(relative[0][pair] - relative[1][pair]) for pair in pairs) / len(pairs)


def slow_angle(teacher, student) -> float:
    triples = list(itertools.permutations(range(len(teacher)), 3))

    def cosine(x, i, j, k) -> float:
        a, b = x[i] - x[j], x[k] - x[j]
        return float(a @ b) / math.sqrt(float(a @ a) * float(b @ b))

    return sum(huber(cosine(teacher, *t) - cosine(student, *t)) for t in triples) / len(triples)


SLOW = {losses.rkd_distance: slow_distance, losses.rkd_angle: slow_angle}


@pytest.mark.parametrize("loss", SLOW)
@few
@given(seed=seeds, scale=st.sampled_from([1.0, 30.0]))
def test_relational_losses_equal_loops_over_pairs_and_triples(loss, seed, scale):
    # One embedding far from the others gives differences on either side of the Huber loss's delta.
    teacher, student = normal(seed, 5, 3), normal(seed + 1, 5, 2)
    teacher[0] *= scale
    assert float(loss(teacher, student)) == pytest.approx(SLOW[loss](*as_arrays(teacher, student)), rel=1e-6)


@pytest.mark.parametrize("loss", SLOW)
@few
@given(seed=seeds, scale=st.floats(0.01, 100))
def test_relational_losses_are_blind_to_turning_shifting_and_scaling(loss, seed, scale):
    teacher = normal(seed, 5, 3)
    turn, _ = torch.linalg.qr(normal(seed + 1, 3, 3))
    moved = scale * teacher @ turn + normal(seed + 2, 3)
    assert float(loss(teacher, moved)) == pytest.approx(0, abs=1e-12)
    student = normal(seed + 3, 5, 2)
    assert float(loss(moved, student)) == pytest.approx(float(loss(teacher, student)))


def test_the_four_corners_of_a_square_have_angles_that_are_known_by_hand():
    # In the square, corners 0 to 3 in order, the cosine at a corner is 0 for its two neighbours and c = 1/sqrt(2) for
    # a neighbour and the opposite corner. On the line, points 0 to 3, it is 1 for two points on one side, else -1.
    square = torch.tensor([[0.0, 0], [1, 0], [1, 1], [0, 1]], dtype=torch.float64)
    line = torch.tensor([[0.0], [1], [2], [3]], dtype=torch.float64)
    # Corner 0 (neighbours 1, 3; opposite 2) sees all others on one side: 0 against 1, c against 1, c against 1.
    # Corner 1 (neighbours 0, 2; opposite 3) sees 0 on one side: 0 against -1, c (0 and 3) against -1, c against 1.
    # Corners 2 and 3 are corners 1 and 0 seen from the other end. Every pair counts in both orders.
    c = 1 / math.sqrt(2)
    corner_0 = huber(1.0) + 2 * huber(1 - c)
    corner_1 = huber(1.0) + huber(c + 1) + huber(1 - c)
    expected = 2 * (2 * corner_0 + 2 * corner_1) / 24
    assert float(losses.rkd_angle(square, line)) == pytest.approx(expected)


def test_equal_embeddings_give_a_loss_and_a_gradient_that_are_finite():
    student = torch.ones(4, 3, dtype=torch.float64)
    student[3] = 2
    student.requires_grad_()
    teacher = normal(0, 4, 5)
    for loss in SLOW:
        (gradient,) = torch.autograd.grad(loss(teacher, student), student)
        assert gradient.isfinite().all()
        assert gradient.abs().max() < 10
        assert loss(teacher, torch.ones(4, 3, dtype=torch.float64)).isfinite()


def slow_mixture(log_p, weights):
    teachers, positions, entries = log_p.shape
    out = np.zeros((positions, entries))
    for n, k, m in itertools.product(range(positions), range(entries), range(teachers)):
        out[n, k] += weights[m, n] * math.exp(log_p[m, n, k])
    return np.log(out)


@few
@given(seed=seeds)
def test_a_mixture_of_teachers_adds_up_their_probabilities(seed):
    log_p, weights = normal(seed, 3, 4, 5).log_softmax(-1), normal(seed + 1, 3, 4).softmax(0)
    weights[0, 0] = 0.0
    weights = weights / weights.sum(0)
    found = losses.mixture_of_teachers(log_p, weights)
    np.testing.assert_allclose(found.numpy(), slow_mixture(log_p.numpy(), weights.numpy()), rtol=1e-9)
    torch.testing.assert_close(found.exp().sum(-1), torch.ones(4, dtype=torch.float64))


def test_a_teacher_with_all_the_weight_is_the_mixture():
    log_p = normal(0, 2, 4, 5).log_softmax(-1)
    weights = torch.tensor([[1.0], [0.0]], dtype=torch.float64).expand(2, 4)
    torch.testing.assert_close(losses.mixture_of_teachers(log_p, weights), log_p[0])


def test_confidence_weights_are_the_shares_of_the_tokens_probability():
    # Two teachers gave the token 0.6 and 0.2, then 0.1 and 0.1: exp(-CE) is that probability itself.
    label_log_p = torch.tensor([[0.6, 0.1], [0.2, 0.1]], dtype=torch.float64).log()
    expected = torch.tensor([[0.75, 0.5], [0.25, 0.5]], dtype=torch.float64)
    torch.testing.assert_close(losses.confidence_weights(label_log_p), expected)


def test_the_surprise_of_a_mixture_is_minus_the_logarithm_of_its_probability():
    label_log_p = torch.tensor([[0.6, 0.1], [0.2, 0.3]], dtype=torch.float64).log()
    log_weights = torch.tensor([[0.25, 0.5], [0.75, 0.5]], dtype=torch.float64).log()
    expected = -torch.tensor([0.25 * 0.6 + 0.75 * 0.2, 0.5 * 0.1 + 0.5 * 0.3], dtype=torch.float64).log()
    torch.testing.assert_close(losses.mixture_surprise(label_log_p, log_weights), expected)


def test_weights_that_are_too_small_are_left_out_and_the_rest_adds_up_to_one():
    weights = torch.tensor([[0.04, 0.5], [0.16, 0.3], [0.8, 0.2]], dtype=torch.float64)
    expected = torch.tensor([[0, 0.5], [0.16 / 0.96, 0.3], [0.8 / 0.96, 0.2]], dtype=torch.float64)
    torch.testing.assert_close(losses.filtered(weights, smallest=0.05), expected)


def attention_of(scores):
    future = torch.ones(scores.shape[-2:], dtype=torch.bool).triu(1)
    return scores.masked_fill(future, -math.inf).softmax(-1)


GRADIENTS = {
    "state": (lambda x: losses.state_error(normal(9, 2, 3, 4), x), (2, 3, 4)),
    "relative state": (lambda x: losses.state_error(normal(9, 2, 3, 4), x, relative=True), (2, 3, 4)),
    "scores": (lambda x: losses.attention_error(attention_of(normal(9, 1, 2, 3, 3)), attention_of(x)), (1, 2, 3, 3)),
    "probabilities": (
        lambda x: losses.attention_error(attention_of(normal(9, 1, 2, 3, 3)), attention_of(x), scores=False),
        (1, 2, 3, 3),
    ),
    "attention kl": (lambda x: losses.attention_kl(attention_of(normal(9, 1, 2, 3, 3)), attention_of(x)), (1, 2, 3, 3)),
    "relation": (lambda x: losses.relation_kl(normal(9, 2, 3, 8), x, heads=(2, 2)), (2, 3, 4)),
    "distance": (lambda x: losses.rkd_distance(normal(9, 4, 3), x), (4, 2)),
    "angle": (lambda x: losses.rkd_angle(normal(9, 4, 3), x), (4, 2)),
    "surprise": (lambda x: losses.mixture_surprise(normal(9, 3, 4), x.log_softmax(0)).sum(), (3, 4)),
}


@pytest.mark.parametrize("name", GRADIENTS)
def test_gradients_are_those_of_finite_differences(name):
    loss, shape = GRADIENTS[name]
    assert torch.autograd.gradcheck(loss, normal(1, *shape).requires_grad_())
