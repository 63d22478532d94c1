"""Divergences against scipy, against derivations, and against what must hold for any distribution."""

import math

import numpy as np
import pytest
import scipy.special
import scipy.stats
from hypothesis import given, settings
from hypothesis import strategies as st

from harness.statistics.divergence import (
    kl_divergence,
    log_softmax,
    negative_log_likelihood,
    tiles,
)


def random_logits(seed: int, rows: int = 5, words: int = 40, scale: float = 4.0) -> np.ndarray:
    return (np.random.default_rng(seed).normal(size=(rows, words)) * scale).astype(np.float32)


def test_divergence_agrees_with_scipy():
    p_TV, q_TV = random_logits(1), random_logits(2)
    expected = scipy.stats.entropy(
        scipy.special.softmax(p_TV.astype(float), axis=-1), scipy.special.softmax(q_TV.astype(float), axis=-1), axis=-1
    )
    np.testing.assert_allclose(kl_divergence(p_TV, q_TV), expected, rtol=1e-12)


def test_divergence_sums_what_scipy_calls_relative_entropy():
    p_TV, q_TV = random_logits(3), random_logits(4)
    p, q = (scipy.special.softmax(x.astype(float), axis=-1) for x in (p_TV, q_TV))
    np.testing.assert_allclose(kl_divergence(p_TV, q_TV), scipy.special.rel_entr(p, q).sum(axis=-1), rtol=1e-12)


def test_divergence_of_a_distribution_from_itself_is_zero():
    p_TV = random_logits(5, rows=33, words=5000)
    assert kl_divergence(p_TV, p_TV.copy()).max() == 0.0


def test_divergence_of_a_coin_from_a_biased_coin_is_what_paper_and_pencil_give():
    # 1/2 ln((1/2)/(1/4)) + 1/2 ln((1/2)/(3/4)) = 1/2 ln 2 + 1/2 ln(2/3) = 1/2 ln(4/3)
    found = kl_divergence(np.log([[0.5, 0.5]]), np.log([[0.25, 0.75]]))
    assert found[0] == pytest.approx(0.5 * math.log(4 / 3), rel=1e-12)


@given(st.integers(0, 2**32 - 1), st.floats(-50, 50))
@settings(max_examples=50, deadline=None)
def test_divergence_is_never_negative_and_ignores_what_is_added_to_all_logits(seed: int, shift: float):
    p_TV, q_TV = random_logits(seed).astype(np.float64), random_logits(seed + 1).astype(np.float64)
    found = kl_divergence(p_TV, q_TV)
    assert (found >= 0).all()
    np.testing.assert_allclose(kl_divergence(p_TV + shift, q_TV - shift), found, rtol=1e-9, atol=1e-12)


@given(st.integers(1, 50))
@settings(max_examples=20, deadline=None)
def test_the_size_of_a_tile_changes_no_divergence(tile: int):
    p_TV, q_TV = random_logits(7, rows=37), random_logits(8, rows=37)
    np.testing.assert_array_equal(kl_divergence(p_TV, q_TV, tile=tile), kl_divergence(p_TV, q_TV, tile=37))


def test_huge_logits_do_not_overflow():
    np.testing.assert_allclose(log_softmax(np.array([[1e4, 0.0]], dtype=np.float32)), [[0.0, -1e4]])


def test_likelihoods_agree_with_scipy_log_softmax():
    logits_TV, tokens_T = random_logits(9), np.array([0, 39, 7, 7, 1])
    expected = -scipy.special.log_softmax(logits_TV.astype(float), axis=-1)[np.arange(5), tokens_T]
    np.testing.assert_allclose(negative_log_likelihood(log_softmax(logits_TV), tokens_T), expected, rtol=1e-12)


@given(st.integers(1, 100), st.integers(1, 40))
def test_tiles_cover_every_position_once(count: int, tile: int):
    assert [at for cut in tiles(count, tile=tile) for at in range(count)[cut]] == list(range(count))
