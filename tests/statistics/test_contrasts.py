import itertools
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from harness.statistics.contrasts import Pairs, Stratum, null_variance

COUNTS = st.tuples(*[st.integers(0, 40)] * 4).filter(lambda counts: sum(counts) > 0)


def tang_variance(counts, theta):
    """Variance of candidate - θ reference under Tang's closed-form estimate (statistics.md 3.3; own derivation).

    With x = P(only the reference) and s the observed share of the three kinds that hold a right answer, the likelihood
    equations reduce to n (1 + θ) x² + ((a + b) θ² - (a + 2b + c)) x + b (1 - θ) s = 0 with b only the reference's,
    c only the candidate's; P(both) = (s - (1 + θ) x) / θ, which cannot fall below zero.
    """
    a, c, b, d = counts
    n = a + b + c + d
    s = (a + b + c) / n
    quadratic, linear, constant = n * (1 + theta), (a + b) * theta**2 - (a + 2 * b + c), b * (1 - theta) * s
    x = (-linear + math.sqrt(max(0, linear**2 - 4 * quadratic * constant))) / (2 * quadratic)
    both = (s - (1 + theta) * x) / theta
    if both < 0:
        both, x = 0.0, s / (1 + theta)
    return theta * ((1 + theta) * x + (theta - 1) * both)


def tango_variance(counts, shift):
    """Tango 1998: the variance 2q + D (1 - D) - D² + ... of statistics.md 3.3, with q = P(only the reference)."""
    _, c, b, _ = counts
    n = sum(counts)
    quadratic, linear, constant = 2 * n, -b - c + (2 * n - c + b) * shift, -b * shift * (1 - shift)
    q = (math.sqrt(linear**2 - 4 * quadratic * constant) - linear) / (2 * quadratic)
    return 2 * q + shift * (1 - shift)


@settings(max_examples=200, deadline=None)
@given(COUNTS, st.floats(0.05, 20))
def test_a_ratio_has_tangs_variance(counts, theta):
    phi = math.atan(theta)
    found = Stratum(sum(counts), 0.0, (0, 0), (0, 0, 0), counts).null_variance(phi) / math.cos(phi) ** 2
    assert found == pytest.approx(tang_variance(counts, theta), rel=1e-6, abs=1e-9)


@settings(max_examples=200, deadline=None)
@given(COUNTS, st.floats(-0.95, 0.95))
def test_a_difference_has_tangos_variance(counts, shift):
    # The papers take b as "only the candidate": swapping the two turns the difference's sign.
    found = null_variance(counts, (-shift, 1 - shift, -1 - shift, -shift))
    assert found == pytest.approx(tango_variance(counts, shift), rel=1e-6, abs=1e-9)


@pytest.mark.parametrize("counts", [(5, 2, 3, 4), (0, 3, 1, 6), (9, 0, 0, 3), (4, 0, 5, 0)])
@pytest.mark.parametrize(("theta", "chance"), [(0.8, 0.0), (1.2, 0.0), (0.8, 0.25), (1.1, 0.25)])
def test_the_null_variance_is_that_of_the_likeliest_distribution_on_a_fine_grid(counts, theta, chance):
    values = [own - chance - theta * (other - chance) for own, other in ((1, 1), (1, 0), (0, 1), (0, 0))]
    best, variance = -math.inf, None
    # Two probabilities on a grid, the other two from "they sum to one" and "the mean is zero".
    v = np.array(values)
    grid = np.linspace(0, 1, 801)
    for first, second in itertools.combinations(range(4), 2):
        third, fourth = sorted({0, 1, 2, 3} - {first, second})
        if abs(v[fourth] - v[third]) < 1e-9:
            continue
        p, q = np.meshgrid(grid, grid)
        s = (-(p * v[first] + q * v[second]) - (1 - p - q) * v[third]) / (v[fourth] - v[third])
        r = 1 - p - q - s
        shares = {first: p, second: q, third: r, fourth: s}
        valid = (r >= -1e-12) & (s >= -1e-12)
        with np.errstate(divide="ignore", invalid="ignore"):
            likelihood = sum(
                np.where(counts[j] > 0, counts[j] * np.log(np.maximum(shares[j], 1e-300)), 0) for j in shares
            )
        likelihood = np.where(valid, likelihood, -np.inf)
        at = np.unravel_index(np.argmax(likelihood), likelihood.shape)
        if likelihood[at] > best:
            best = likelihood[at]
            variance = sum(float(shares[j][at]) * values[j] ** 2 for j in shares)
    assert null_variance(counts, values) == pytest.approx(variance, abs=4e-3)


def test_counts_are_both_then_candidate_then_reference_then_neither():
    pairs = Pairs((1, 1, 0, 0, 1), (1, 0, 1, 0, 1))
    assert pairs.counts == (2, 1, 1, 1)


def test_a_stratum_has_the_moments_of_its_items():
    own, other = (0.5, 1.0, 0.25), (1.0, 1.0, 0.5)
    stratum = Stratum.of(Pairs(own, other), origin=0.25)
    z = [x - 0.25 - 1.5 * (y - 0.25) for x, y in zip(own, other, strict=True)]
    phi = math.atan(1.5)
    assert stratum.mean(phi) / math.cos(phi) == pytest.approx(sum(z) / 3)
    assert stratum.sample_variance(phi) / math.cos(phi) ** 2 == pytest.approx(np.var(z, ddof=1))
