"""The multiple-choice knapsack against every assignment tried, and what its controls promise."""

import itertools
import math

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from harness.stages.quantize import knapsack
from harness.stages.quantize.knapsack import Option, at_random, lagrangian_bound, least_cost, same_everywhere, solve

losses = st.floats(0, 10, allow_nan=False)
options = st.lists(st.tuples(st.integers(0, 60), losses), min_size=1, max_size=4)
instances = st.lists(options, min_size=1, max_size=5).map(
    lambda units: [[Option(choice, *pair) for choice, pair in enumerate(unit)] for unit in units]
)
rooms = st.integers(0, 200)


def best_of_all(units, budget: int) -> float:
    """The least loss over all assignments within the budget, one after another."""
    fitting = [picks for picks in itertools.product(*units) if sum(one.cost for one in picks) <= budget]
    return min(math.fsum(one.loss for one in picks) for picks in fitting)


@settings(max_examples=300, deadline=None)
@given(units=instances, room=rooms)
def test_no_assignment_within_the_budget_is_better(units, room):
    budget = least_cost(units) + room
    found = solve(units, budget)
    assert found.exact
    assert found.cost <= budget
    assert all(option in unit for option, unit in zip(found.options, units, strict=True))
    assert found.loss == pytest.approx(best_of_all(units, budget), abs=1e-9)


@settings(max_examples=200, deadline=None)
@given(units=instances, room=rooms)
def test_nothing_goes_below_the_bound(units, room):
    budget = least_cost(units) + room
    assert lagrangian_bound(units, budget) <= best_of_all(units, budget) + 1e-9
    found = solve(units, budget)
    assert found.bound <= found.loss


@settings(max_examples=100, deadline=None)
@given(units=instances, rooms=st.lists(rooms, min_size=2, max_size=6))
def test_a_larger_budget_is_never_worse(units, rooms):
    found = [solve(units, least_cost(units) + room).loss for room in sorted(rooms)]
    assert all(after <= before + 1e-9 for before, after in itertools.pairwise(found))


@settings(max_examples=100, deadline=None)
@given(units=instances, room=rooms)
def test_with_cells_that_are_too_few_the_budget_holds_and_the_gap_is_bounded(units, room):
    budget = least_cost(units) + room
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(knapsack, "CELLS", 7)
        found = solve(units, budget)
    assert found.cost <= budget
    assert found.bound <= best_of_all(units, budget) + 1e-9 <= found.loss + 2e-9


@pytest.mark.parametrize("bits", [2, 3, 4, 8])
def test_equal_units_all_get_the_choice_that_the_budget_is_for(bits):
    # Each bit quarters the loss, so by convexity any exchange (one up, one down) loses more than it gains.
    unit = [Option(one, 1000 * one, 4.0**-one) for one in (2, 3, 4, 8)]
    found = solve([unit] * 9, 9 * 1000 * bits)
    assert found.choices == (bits,) * 9
    assert found.choices == same_everywhere([unit] * 9, 9 * 1000 * bits).choices


def test_prices_of_billions_of_bits_are_told_apart_exactly():
    # 4.125, 3.125 and 8.125 bits for layers of 576 x 576 and 1536 x 576: price differences are multiples of 331776.
    sizes = [576 * 576, 1536 * 576, 1536 * 576] * 30
    units = [
        [Option(b, size * b + size // 8, size * 4.0**-b / (1 + n)) for b in (2, 3, 4, 8)]
        for n, size in enumerate(sizes)
    ]
    found = solve(units, 4 * sum(sizes))
    assert found.exact
    assert found.cost <= 4 * sum(sizes)
    assert found.loss - found.bound < 0.01 * found.loss


def test_a_budget_below_the_cheapest_is_refused():
    with pytest.raises(ValueError, match="the cheapest options cost 6"):
        solve([[Option(2, 6, 1.0), Option(3, 9, 0.5)]], 5)


@settings(max_examples=200, deadline=None)
@given(units=instances, room=rooms, seed=st.integers(0, 99))
def test_a_random_assignment_fits_fills_the_budget_and_is_the_same_for_the_same_seed(units, room, seed):
    budget = least_cost(units) + room
    found = at_random(units, budget, seed=seed)
    assert found == at_random(units, budget, seed=seed)
    assert found.cost <= budget
    for option, unit in zip(found.options, units, strict=True):
        dearer = [other.cost for other in unit if other.cost > option.cost]
        assert not dearer or found.cost - option.cost + min(dearer) > budget


def test_random_assignments_differ_between_seeds():
    unit = [Option(one, one, 0.0) for one in (2, 3, 4, 8)]
    assert len({at_random([unit] * 20, 80, seed=seed).choices for seed in range(10)}) > 5


def test_the_same_everywhere_is_the_largest_that_fits():
    unit = [Option(one, one, 0.0) for one in (2, 3, 4, 8)]
    narrow = [Option(3, 3, 0.0), Option(8, 8, 0.0)]
    assert same_everywhere([unit] * 5, 39).choices == (4,) * 5
    assert same_everywhere([unit, unit, narrow], 11).choices == (4, 4, 3)
    # 2 is what the first two take when all may have no more than 2; the third has no less than 3.
    assert same_everywhere([unit, unit, narrow], 8).choices == (2, 2, 3)
    with pytest.raises(ValueError, match="more than 6"):
        same_everywhere([unit, unit, narrow], 6)
