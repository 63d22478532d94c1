"""How far one next-token distribution is from another, exactly, over the whole vocabulary.

Kullback-Leibler divergence of the candidate from the reference is the mean number of nats per token that are lost by
predicting with the candidate what the reference would have said: KL(p || q) = sum over the vocabulary of p (ln p - ln
q). Approximations by the top k words are lower bounds that hide what happens in the tail; a vocabulary of 50 000 words
costs milliseconds per token, so nothing is approximated here. Logits come in float32 and sums are kept in float64, a
tile of positions at a time, so that memory does not grow with the text.

Shapes: T positions, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    import numpy.typing as npt

TILE = 16
"""Positions at a time: at V = 50 000 four float64 arrays of a tile take 26 MB."""


def log_softmax(logits_TV: npt.NDArray[np.floating]) -> npt.NDArray[np.float64]:
    """Gives natural log-probabilities (T, V) in float64."""
    shifted_TV = logits_TV.astype(np.float64)
    shifted_TV -= shifted_TV.max(axis=-1, keepdims=True)
    shifted_TV -= np.log(np.exp(shifted_TV).sum(axis=-1, keepdims=True))
    return shifted_TV


def kl_divergence(
    p_logits_TV: npt.NDArray[np.floating], q_logits_TV: npt.NDArray[np.floating], *, tile: int = TILE
) -> npt.NDArray[np.float64]:
    """Gives KL(p || q) in nats at each of T positions, from finite logits of equal shape.

    >>> kl_divergence(np.log([[0.5, 0.5]]), np.log([[0.25, 0.75]])).round(6).tolist()  # ln(2)/2 + ln(2/3)/2
    [0.143841]
    """
    assert p_logits_TV.shape == q_logits_TV.shape, f"{p_logits_TV.shape} against {q_logits_TV.shape}"
    assert p_logits_TV.ndim == 2
    kl_T = np.empty(len(p_logits_TV))
    for at in tiles(len(p_logits_TV), tile=tile):
        kl_T[at] = relative_entropy(log_softmax(p_logits_TV[at]), log_softmax(q_logits_TV[at]))
    return kl_T


def relative_entropy(p_TV: npt.NDArray[np.float64], q_TV: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    """Gives KL(p || q) in nats at each of T positions, from log-probabilities.

    A negative result can only be rounding (Gibbs' inequality) and is given as 0. `scipy.stats.entropy` is the oracle.
    """
    kl_T: npt.NDArray[np.float64] = np.einsum("tv,tv->t", np.exp(p_TV), p_TV - q_TV)
    return np.maximum(kl_T, 0.0)


def negative_log_likelihood(
    logprobs_TV: npt.NDArray[np.float64], tokens_T: npt.NDArray[np.integer]
) -> npt.NDArray[np.float64]:
    """Gives -ln p(token) in nats at each of T positions, from log-probabilities."""
    assert len(logprobs_TV) == len(tokens_T), f"{len(logprobs_TV)} rows for {len(tokens_T)} tokens"
    logprobs_T: npt.NDArray[np.float64] = logprobs_TV[np.arange(len(tokens_T)), tokens_T]
    return -logprobs_T


def tiles(count: int, *, tile: int = TILE) -> Iterator[slice]:
    """Cuts `count` positions into slices of at most `tile`."""
    return (slice(start, min(start + tile, count)) for start in range(0, count, tile))
