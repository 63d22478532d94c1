import math

import numpy as np
import pytest

from harness.statistics.clusters import clustered_retention
from harness.statistics.contrasts import Pairs
from harness.statistics.paired import retention
from harness.statistics.resampling import bootstrap_retention


def partial(n, seed):
    generator = np.random.default_rng(seed)
    y = generator.uniform(0.2, 1, n)
    return Pairs(tuple(np.clip(y * generator.normal(0.95, 0.1, n), 0, 1)), tuple(y))


def slow_bootstrap(pairs, names, *, generator, draws, level=0.95):
    """The same by its definition: one draw of clusters at a time, each with its own ratio and error."""
    groups = [[i for i, name in enumerate(names) if name == key] for key in sorted(set(names))]
    x = np.array([sum(pairs.candidate[i] for i in group) for group in groups])
    y = np.array([sum(pairs.reference[i] for i in group) for group in groups])

    def ratio(x, y):
        r = x.sum() / y.sum()
        return r, math.sqrt(len(x) / (len(x) - 1) * ((x - r * y) ** 2).sum()) / y.sum()

    value, error = ratio(x, y)
    drawn = [generator.integers(0, len(x), len(x)) for _ in range(draws)]
    t = [(r - value) / e for r, e in (ratio(x[d], y[d]) for d in drawn)]
    return value - np.quantile(t, 0.5 + level / 2) * error, value - np.quantile(t, 0.5 - level / 2) * error


def test_draws_by_weights_are_draws_by_hand():
    pairs, names = partial(60, 1), [f"{i // 2}" for i in range(60)]
    expected = slow_bootstrap(pairs, names, generator=np.random.default_rng(1), draws=8000)
    found = bootstrap_retention(pairs, clusters=names, generator=np.random.default_rng(2), draws=8000).interval
    # 8000 draws know an end to about a fiftieth of the interval's width.
    near = 0.06 * (expected[1] - expected[0])
    assert (found.low, found.high) == pytest.approx(expected, abs=near)


def test_it_agrees_with_the_formulas_on_many_items():
    pairs = partial(300, 3)
    expected = retention([pairs]).interval
    found = bootstrap_retention(pairs, generator=np.random.default_rng(0), draws=4000)
    width = expected.high - expected.low
    assert found.interval.low == pytest.approx(expected.low, abs=0.06 * width)
    assert found.interval.high == pytest.approx(expected.high, abs=0.06 * width)
    assert found.interval.method == "studentized-bootstrap"


def test_it_agrees_with_the_formulas_on_clusters():
    generator = np.random.default_rng(9)
    y = np.repeat(generator.uniform(0.3, 1, 80), 4)
    shift = np.repeat(generator.normal(0.95, 0.08, 80), 4)
    pairs = Pairs(tuple(y * shift * generator.normal(1, 0.02, 320)), tuple(y))
    names = [f"{i // 4}" for i in range(320)]
    expected = clustered_retention(pairs, names).interval
    found = bootstrap_retention(pairs, clusters=names, generator=generator, draws=4000).interval
    width = expected.high - expected.low
    assert (found.low, found.high) == pytest.approx((expected.low, expected.high), abs=0.08 * width)


def test_the_same_seed_gives_the_same_interval():
    one, two = (bootstrap_retention(partial(40, 2), generator=np.random.default_rng(5)) for _ in range(2))
    assert one == two


def test_draws_without_changed_answers_leave_no_end():
    # One changed answer of 50: a draw misses it with (1 - 1/50)^50 = 36 %, and then nothing differs from R* = 1.
    same = Pairs((1.0,) * 50, (1.0,) * 49 + (0.5,))
    found = bootstrap_retention(same, generator=np.random.default_rng(0))
    assert found.value == pytest.approx(50 / 49.5)
    assert found.interval is None
    assert "differ" in found.reason


def test_without_spread_or_reference_there_is_no_interval():
    generator = np.random.default_rng(0)
    assert "spread" in bootstrap_retention(Pairs((0.5, 0.5), (0.5, 0.5)), generator=generator).reason
    assert bootstrap_retention(Pairs((0.5,), (0.5,)), generator=generator).interval is None
    assert bootstrap_retention(Pairs((0.5, 0.1), (0.0, 0.0)), generator=generator).value is None
