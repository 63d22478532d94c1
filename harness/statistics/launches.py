"""How much faster or slower one artifact is than another, from launches that took turns.

A process is fast or slow as a whole: where its pages landed, how warm the chip was, who else was running. Its hundred
repetitions share that luck, so they are one draw and not a hundred. Here both sides are launched by turns in blocks,
baseline, candidate, candidate, baseline, in which a linear drift adds the same to both sides and cancels; what a block
says is one number, the difference of the sides' mean log medians, and the blocks are the sample. Their mean gets
Student's t on the scale of logarithms. A hierarchical bootstrap (blocks, then launches, then repetitions; A. C. Davison
and D. V. Hinkley, Bootstrap Methods and their Application, 1997, section 3.8) is the cross-check that assumes no
normality; with few blocks t is the one to trust.

The margin has one meaning for rates and times alike: the tolerated loss as a share of the baseline's *speed*, where
speed is the rate, or one over the time. A margin of 0.05 tolerates 95 tokens a second where there were 100, and for
times 1 / 0.95 = 1.0526 times as long, so that tokens per second and seconds per token cannot disagree. On the
logarithmic scale both are -ln(1 - margin).

Known: what shifts one side during a whole session (a clock that one kernel heats more than the other) is in every block
and in no spread; that is why a margin is never taken below three standard deviations of blocks whose two sides were the
same artifact.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

import numpy as np

from harness.record import Interval
from harness.statistics.intervals import STUDENT, student_quantile

if TYPE_CHECKING:
    import numpy.typing as npt

BASELINE: Literal["baseline"] = "baseline"
CANDIDATE: Literal["candidate"] = "candidate"
BOOTSTRAP = "hierarchical-bootstrap"
BLOCKS_MIN = 5
"""Spreads of fewer blocks are no measure of noise."""
FAR_OUT = 3.0
"""J. W. Tukey's outer fence (Exploratory Data Analysis, 1977): quartile + 3 interquartile ranges."""

Side = Literal["baseline", "candidate"]


@dataclass(frozen=True)
class Launch:
    """One process: which side it ran, in which block, and its raw times or rates, one a repetition.

    Raises ValueError for no values and for values that are not positive numbers.
    """

    side: Side
    block: int
    values: tuple[float, ...]

    def __post_init__(self) -> None:
        if not self.values:
            raise ValueError(f"block {self.block}: a launch of the {self.side} has no values")
        wrong = [value for value in self.values if not 0 < value < math.inf]
        if wrong:
            raise ValueError(f"block {self.block}: {wrong[0]} of the {self.side} is no time or rate: give them above 0")

    @property
    def log_median(self) -> float:
        """The median of the logarithms, so that times and rates of the same repetitions differ by the sign only."""
        return statistics.median(math.log(value) for value in self.values)


@dataclass(frozen=True)
class SpeedRatio:
    """Candidate over baseline: exp of the mean of the blocks' log ratios, with its interval.

    `interval` is None for one block, and for blocks that do not differ at all: `reason` says so.
    """

    value: float
    interval: Interval | None
    blocks: tuple[float, ...]
    reason: str = ""

    @property
    def n(self) -> int:
        """The number of blocks."""
        return len(self.blocks)

    @property
    def standard_error(self) -> float | None:
        """The standard error of ln `value`, or None where the blocks cannot tell one."""
        if self.n < 2:
            return None
        return statistics.stdev(self.blocks) / math.sqrt(self.n) or None


@dataclass(frozen=True)
class SlowDown:
    """One-sided p-values: `p_accept` against "the loss is at least the margin", `p_breach` against "at most"."""

    p_accept: float
    p_breach: float


@dataclass(frozen=True)
class Contamination:
    """A block in which launches of one side are farther apart (a log ratio) than `threshold`."""

    block: int
    side: Side
    spread: float
    threshold: float


def abba(blocks: int) -> tuple[Side, ...]:
    """Gives the sides in order of launching: four a block, baseline outside and inside by turns.

    >>> "".join(side[0] for side in abba(2))
    'bccbcbbc'
    """
    outside_in: tuple[Side, ...] = (BASELINE, CANDIDATE, CANDIDATE, BASELINE)
    inside_out: tuple[Side, ...] = (CANDIDATE, BASELINE, BASELINE, CANDIDATE)
    return tuple(side for block in range(blocks) for side in (inside_out if block % 2 else outside_in))


def log_ratio(launches: Sequence[Launch], *, level: float = 0.95) -> SpeedRatio:
    """Gives candidate over baseline with Student's t interval over blocks.

    Raises ValueError where a block has launches of one side only: what is missing must be run, not left out.

    >>> pairs = [("baseline", 10.0), ("candidate", 11.0)]
    >>> found = log_ratio([Launch(side, block, (value * block,)) for block in (1, 2) for side, value in pairs])
    >>> round(found.value, 6), found.interval, found.reason
    (1.1, None, 'the blocks do not differ at all, which leaves no spread to judge by')
    """
    blocks = tuple(_difference(sides) for _, sides in _by_block(launches))
    mean = math.fsum(blocks) / len(blocks)
    if len(blocks) < 2:
        return SpeedRatio(math.exp(mean), None, blocks, "one block has no spread to judge by")
    if max(blocks) - min(blocks) <= 1e-12:
        reason = "the blocks do not differ at all, which leaves no spread to judge by"
        return SpeedRatio(math.exp(mean), None, (mean,) * len(blocks), reason)
    reach = student_quantile(level, degrees=len(blocks) - 1) * statistics.stdev(blocks) / math.sqrt(len(blocks))
    interval = Interval(low=math.exp(mean - reach), high=math.exp(mean + reach), level=level, method=STUDENT)
    return SpeedRatio(math.exp(mean), interval, blocks)


def slow_down(ratio: SpeedRatio, *, margin: float, higher_is_better: bool) -> SlowDown | None:
    """Tests the lost share of the baseline's speed against a margin, with Student's t over blocks.

    `higher_is_better` says whether the values were rates or times. None where the ratio has no standard error. With a
    margin of 0, `p_breach` speaks against "not slower at all".
    """
    from scipy.special import stdtr

    assert 0 <= margin < 1, f"a margin is a share of the baseline's speed, not {margin}"
    error = ratio.standard_error
    if error is None:
        return None
    lost = -math.log(ratio.value) if higher_is_better else math.log(ratio.value)
    t = (lost + math.log1p(-margin)) / error
    return SlowDown(float(stdtr(ratio.n - 1, t)), float(stdtr(ratio.n - 1, -t)))


def noise_sd(launches: Sequence[Launch]) -> float | None:
    """Gives the standard deviation of the blocks' log ratios, of launches whose two sides are the same artifact.

    None for one block.
    """
    blocks = [_difference(sides) for _, sides in _by_block(launches)]
    return statistics.stdev(blocks) if len(blocks) > 1 else None


def effective_margin(margin: float, *, sd: float, blocks: int) -> float | None:
    """Gives the margin, or three standard deviations of the same artifact's blocks where that is more.

    `sd` is `noise_sd` of that many `blocks`, a log ratio; three of it are a lost share of 1 - exp(-3 sd). It is that
    of one block and not of the mean of several, because what it stands for need not average out. None for fewer than
    `BLOCKS_MIN` blocks, whose sd may well be half of what it should be.

    >>> effective_margin(0.05, sd=0.01, blocks=10), round(effective_margin(0.05, sd=0.1, blocks=10), 4)
    (0.05, 0.2592)
    """
    assert sd >= 0
    return max(margin, -math.expm1(-3 * sd)) if blocks >= BLOCKS_MIN else None


def contaminated(launches: Sequence[Launch], *, floor: float = 0.01) -> tuple[Contamination, ...]:
    """Gives the blocks to run again: those whose launches of one side are farther apart than launches here are.

    A side's spread in a block is the largest log median of its launches minus the smallest. It is too large beyond
    Tukey's outer fence over all blocks and sides, and beyond `floor`, below which it could move no margin anyone sets.
    The rule looks at each side alone and never at which one won, so that running a block again favours neither; it
    drops nothing by itself. Fewer than `BLOCKS_MIN` blocks, and sides of one launch, are not judged.

    Of ten blocks of undisturbed normal launches, two a side, the fence alone catches one in about one session of 15.
    """
    spreads = [
        (block, side, max(medians) - min(medians))
        for block, sides in _by_block(launches)
        for side, medians in sides.items()
        if len(medians) > 1
    ]
    if len({block for block, _, _ in spreads}) < BLOCKS_MIN:
        return ()
    first, _, third = statistics.quantiles([spread for _, _, spread in spreads], n=4, method="inclusive")
    threshold = max(floor, third + FAR_OUT * (third - first))
    return tuple(Contamination(*found, threshold) for found in spreads if found[2] > threshold)


def bootstrap_interval(
    launches: Sequence[Launch], *, generator: np.random.Generator, level: float = 0.95, draws: int = 2000
) -> Interval | None:
    """Gives percentiles of the ratio when blocks, launches within side and repetitions are drawn again; or None.

    None for fewer than `BLOCKS_MIN` blocks, of which too few different samples can be drawn.
    """
    blocks = [
        {side: [launch for launch in found if launch.side == side] for side in (BASELINE, CANDIDATE)}
        for _, found in _grouped(launches)
    ]
    if len(blocks) < BLOCKS_MIN:
        return None
    chosen_DB = generator.integers(len(blocks), size=(draws, len(blocks)))
    log_DB = np.empty(chosen_DB.shape)
    for at, sides in enumerate(blocks):
        here_DB = chosen_DB == at
        count = int(here_DB.sum())
        own, other = (_redrawn(sides[side], count=count, generator=generator) for side in (CANDIDATE, BASELINE))
        log_DB[here_DB] = own - other
    low, high = np.exp(np.quantile(log_DB.mean(axis=1), [(1 - level) / 2, (1 + level) / 2]))
    return Interval(low=float(low), high=float(high), level=level, method=BOOTSTRAP)


def _redrawn(launches: Sequence[Launch], *, count: int, generator: np.random.Generator) -> npt.NDArray[np.float64]:
    """Gives `count` means of log medians: each of as many launches drawn again, each of redrawn repetitions."""
    chosen_CL = generator.integers(len(launches), size=(count, len(launches)))
    median_CL = np.empty(chosen_CL.shape)
    for at, launch in enumerate(launches):
        here_CL = chosen_CL == at
        log_R = np.log(launch.values)
        drawn = generator.choice(log_R, size=(int(here_CL.sum()), log_R.size))
        median_CL[here_CL] = np.median(drawn, axis=1)
    mean_C: npt.NDArray[np.float64] = median_CL.mean(axis=1)
    return mean_C


def _difference(sides: dict[Side, list[float]]) -> float:
    return statistics.fmean(sides[CANDIDATE]) - statistics.fmean(sides[BASELINE])


def _by_block(launches: Sequence[Launch]) -> Iterator[tuple[int, dict[Side, list[float]]]]:
    """Gives the log medians of both sides, block by block."""
    for block, found in _grouped(launches):
        yield (
            block,
            {side: [launch.log_median for launch in found if launch.side == side] for side in (BASELINE, CANDIDATE)},
        )


def _grouped(launches: Sequence[Launch]) -> list[tuple[int, list[Launch]]]:
    """Gives the launches of every block; raises ValueError for a block without one of the sides."""
    assert launches
    groups: dict[int, list[Launch]] = {}
    for launch in launches:
        groups.setdefault(launch.block, []).append(launch)
    for block, found in groups.items():
        if len({launch.side for launch in found}) < 2:
            raise ValueError(f"block {block} has launches of the {found[0].side} only: run the other side or the block")
    return sorted(groups.items())
