"""Chunks of llama.cpp's perplexity tool as fidelity windows, where they can be had from its running means.

After chunk k the tool prints the mean over k equal chunks, m_k. The chunk itself is k m_k - (k - 1) m_(k-1). Each
printed mean is wrong by at most u, half a unit of its last digit, so that a recovered chunk is wrong by at most
(2k - 1) u; the errors of neighbours cancel, and the sum over all chunks is that of the last mean. A column is kept only
where the largest such error is at most a tenth of the standard deviation of the recovered chunks: uniform errors of
that size add less than 0.4 % to the variance. Shares of equal top tokens are counts: they are kept where rounding
leaves one whole number possible, and used to prove the number of tokens a chunk has.
"""

from __future__ import annotations

import itertools
import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass

from harness.exchange._llama_log import Estimate, Log
from harness.record import Observation, Scalar

EVALUATION = "fidelity"
SHARE_OF_SPREAD = 0.1


@dataclass(frozen=True)
class Windows:
    """What was recovered: by column a value a chunk, per token; and why other columns were not."""

    tokens: int
    columns: dict[str, list[float]]
    lost: dict[str, str]

    def rows(self, task: str) -> tuple[Observation, ...]:
        """Gives a row a chunk with the names that our own fidelity uses."""
        count = len(next(iter(self.columns.values()), []))
        return tuple(
            Observation(evaluation=EVALUATION, task=task, sample=f"window {index:04d}", values=self._values(index))
            for index in range(count)
        )

    def _values(self, index: int) -> dict[str, Scalar]:
        at = {name: values[index] for name, values in self.columns.items()}
        values: dict[str, Scalar] = {"tokens": self.tokens}
        if "nll" in at:
            values["nll"] = at["nll"] * self.tokens
        if "nll" in at and "ln_ratio" in at:
            values["nll_ref"] = (at["nll"] - at["ln_ratio"]) * self.tokens
        if "kl" in at:
            values["kl_mean"] = at["kl"]
        if "same_top" in at:
            values["top1_same"] = round(at["same_top"] * self.tokens)
        return values


def tokens_of(context: int) -> int:
    """Gives how many tokens a chunk scores: those of its second half that have a next one."""
    return context - 1 - context // 2


def recover(log: Log, tokens: int) -> Windows:
    """Gives the chunks' own values of every column in which they can be had."""
    columns: dict[str, list[float]] = {}
    lost: dict[str, str] = {}
    for name, running in _series(log).items():
        if name == "same_top":
            counts = whole_counts(running, tokens)
            if counts is not None:
                columns[name] = [count / tokens for count in counts]
            else:
                lost[name] = "rounding leaves more than one count possible"
            continue
        values, errors = _differences(running)
        spread = statistics.stdev(values) if len(values) > 1 else 0.0
        if len(values) == 1 or max(errors) <= SHARE_OF_SPREAD * spread:
            columns[name] = values
        else:
            lost[name] = f"rounding is up to {max(errors):.2g} and the chunks' standard deviation {spread:.2g}"
    return Windows(tokens, columns, lost)


def _series(log: Log) -> dict[str, list[Estimate]]:
    """Gives the running means that add up; the last one with the digits that the last block has."""
    found = {"nll": [_logarithm(one) for one in log.running["ppl"]]}
    last = {"nll": log.block.get("Mean PPL(Q)")}
    if log.is_divergence:
        found |= {"ln_ratio": list(log.running["ln_ratio"]), "kl": list(log.running["kl"])}
        last |= {"ln_ratio": log.block.get("Mean ln(PPL(Q)/PPL(base))"), "kl": log.block.get("Mean KLD")}
        found["same_top"] = [one.scaled(0.01) for one in log.running["same_top"]]
    for name, better in last.items():
        if better is not None:
            found[name][-1] = _logarithm(better) if name == "nll" else better
    return found


def _logarithm(perplexity: Estimate) -> Estimate:
    value = perplexity.value
    return Estimate(math.log(value), None, perplexity.rounding / (value - perplexity.rounding))


def _differences(running: Sequence[Estimate]) -> tuple[list[float], list[float]]:
    """Gives each chunk's value and the largest error that rounding can have put on it."""
    values, errors = [running[0].value], [running[0].rounding]
    for k, (before, after) in enumerate(itertools.pairwise(running), start=2):
        values.append(k * after.value - (k - 1) * before.value)
        errors.append(k * after.rounding + (k - 1) * before.rounding)
    return values, errors


def whole_counts(running: Sequence[Estimate], tokens: int) -> list[int] | None:
    """Gives how many tokens of each chunk had the same top, or None where rounding leaves it open."""
    totals = [0]
    for k, one in enumerate(running, start=1):
        if one.rounding * k * tokens >= 0.5:
            return None
        totals.append(round(one.value * k * tokens))
    return [after - before for before, after in itertools.pairwise(totals)]


def fits(log: Log, tokens: int) -> bool | None:
    """Tells whether shares of equal top tokens are whole counts of that many tokens a chunk; None when none tells."""
    told = None
    for k, printed in enumerate(log.running.get("same_top", []), start=1):
        one, every = printed.scaled(0.01), k * tokens
        # A printed digit may round an exact half either way, and a float is wrong in its last place.
        tolerance = one.rounding * every * (1 + 1e-6)
        if tolerance >= 0.25:
            break
        if abs(one.value * every - round(one.value * every)) > tolerance:
            return False
        if 0 < one.value < 1:
            told = True
    return told
