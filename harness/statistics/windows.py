"""What a window of text says about a model beside its reference, as means per token over windows.

A row a window carries `tokens`, `bytes`, the summed negative log-likelihoods `nll` and `nll_ref` in nats, the mean
divergence `kl_mean`, and counts of tokens: `top1_same`, `right_to_wrong`, `wrong_to_right`. Tokens of one window share
their topic, so the window is the unit (see `clusters`).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence

from harness.record import Observation, Scalar
from harness.statistics.clusters import RatioOfSums, ratio_of_sums

Values = Mapping[str, Scalar]


def _get(values: Values, key: str) -> float:
    value = values[key]
    assert isinstance(value, (int, float))
    return float(value)


SUMS: Mapping[str, tuple[Callable[[Values], float], str]] = {
    "nll": (lambda row: _get(row, "nll"), "tokens"),
    "nll_reference": (lambda row: _get(row, "nll_ref"), "tokens"),
    "ln_perplexity_ratio": (lambda row: _get(row, "nll") - _get(row, "nll_ref"), "tokens"),
    "bits_per_byte": (lambda row: _get(row, "nll") / math.log(2), "bytes"),
    "kl_mean": (lambda row: _get(row, "kl_mean") * _get(row, "tokens"), "tokens"),
    "top1_agreement": (lambda row: _get(row, "top1_same"), "tokens"),
    "flips_right_to_wrong": (lambda row: _get(row, "right_to_wrong"), "tokens"),
    "flips_wrong_to_right": (lambda row: _get(row, "wrong_to_right"), "tokens"),
}
"""What is summed over a window, and what it is divided by."""


COLUMNS: Mapping[str, frozenset[str]] = {
    "nll": frozenset({"nll", "tokens"}),
    "nll_reference": frozenset({"nll_ref", "tokens"}),
    "ln_perplexity_ratio": frozenset({"nll", "nll_ref", "tokens"}),
    "bits_per_byte": frozenset({"nll", "bytes"}),
    "kl_mean": frozenset({"kl_mean", "tokens"}),
    "top1_agreement": frozenset({"top1_same", "tokens"}),
    "flips_right_to_wrong": frozenset({"right_to_wrong", "tokens"}),
    "flips_wrong_to_right": frozenset({"wrong_to_right", "tokens"}),
}
"""The columns that each of `SUMS` is made of."""


UNITS: Mapping[str, str] = {
    "nll": "nats",
    "nll_reference": "nats",
    "ln_perplexity_ratio": "nats",
    "bits_per_byte": "bits/byte",
    "kl_mean": "nats",
    "top1_agreement": "fraction",
    "flips_right_to_wrong": "fraction",
    "flips_wrong_to_right": "fraction",
}
"""What each of `SUMS` is counted in."""


def is_window(row: Observation) -> bool:
    """True for a row about a window of text, which is what `mean` can read."""
    return {"tokens", "nll", "nll_ref", "kl_mean"} <= row.values.keys()


def knows(windows: Sequence[Observation], name: str) -> bool:
    """True when every window has what one of `SUMS` is made of; logs of other tools may lack some."""
    columns = COLUMNS.get(name)
    return columns is not None and all(columns <= row.values.keys() for row in windows)


def sums(windows: Sequence[Observation], name: str) -> tuple[list[float], list[float]]:
    """Gives each window's numerator and denominator of one of `SUMS`."""
    numerator, denominator = SUMS[name]
    return [numerator(row.values) for row in windows], [_get(row.values, denominator) for row in windows]


def mean(windows: Sequence[Observation], name: str) -> RatioOfSums:
    """Gives one of `SUMS` per token (or byte), with its standard error by window."""
    return ratio_of_sums(*sums(windows, name))
