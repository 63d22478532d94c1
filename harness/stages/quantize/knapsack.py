"""The multiple-choice knapsack: one option for every unit, least loss in all, under a budget of bits.

It is solved exactly by dynamic programming over the budget. Every unit takes its cheapest option first, and what is
left of the budget is handed out in cells of the greatest common divisor of all price differences, so that nothing is
rounded. Where that would be more than CELLS, a cell is as large as it must be and prices are rounded up to whole cells:
the budget holds all the same, and how much better any choice could be is bounded by the Lagrangian dual,

    max over lambda >= 0 of  sum_i min_o (loss_io + lambda cost_io) - lambda budget,

which no assignment under the budget can beat. The bound is piecewise linear and concave in lambda, so its maximum lies
where two options of a unit tie: all those are tried.

Two ways to choose without looking at losses are controls: the same choice everywhere, and a random one.

Source: Kellerer, Pferschy, Pisinger, "Knapsack Problems" (2004), chapter 11; Everett 1963 for the multipliers.

Shapes: B cells of budget, L multipliers.
"""

from __future__ import annotations

import math
import random
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
import numpy.typing as npt

CELLS: Final = 1 << 17
"""Most cells of budget that are told apart: 120 units of 5 options take under a second at this number."""


@dataclass(frozen=True)
class Option:
    """One way to treat a unit: a name for it (`choice`), what it costs in bits, and what it loses."""

    choice: int
    cost: int
    loss: float


@dataclass(frozen=True)
class Selection:
    """An option for every unit. None within the budget loses less than `bound`; `exact` says that none beats this one.

    Without a bound nothing is claimed: it was not chosen by its loss.
    """

    options: tuple[Option, ...]
    exact: bool
    bound: float | None

    @property
    def choices(self) -> tuple[int, ...]:
        return tuple(option.choice for option in self.options)

    @property
    def cost(self) -> int:
        return sum(option.cost for option in self.options)

    @property
    def loss(self) -> float:
        return math.fsum(option.loss for option in self.options)


Units = Sequence[Sequence[Option]]


def least_cost(units: Units) -> int:
    """Gives what the cheapest options cost together."""
    return sum(min(option.cost for option in unit) for unit in units)


def solve(units: Units, budget: int) -> Selection:
    """Gives the options of least loss whose costs add up to no more than `budget`.

    Of equal losses any may come. Raises ValueError when the cheapest options cost more than that.
    """
    base = least_cost(units)
    if base > budget:
        raise ValueError(f"the cheapest options cost {base}, which is more than {budget}")
    cheapest = [min(option.cost for option in unit) for unit in units]
    extras = [[option.cost - least for option in unit] for unit, least in zip(units, cheapest, strict=True)]
    unit_cell = math.gcd(*(extra for row in extras for extra in row)) or 1
    most = sum(max(row) for row in extras)
    cell = max(unit_cell, math.ceil(most / CELLS))
    capacity = min(budget - base, most) // cell
    cells = [[math.ceil(extra / cell) for extra in row] for row in extras]
    picks = _dynamic_program(units, cells, capacity)
    chosen = tuple(unit[pick] for unit, pick in zip(units, picks, strict=True))
    return Selection(chosen, cell == unit_cell, min(lagrangian_bound(units, budget), math.fsum(o.loss for o in chosen)))


def _dynamic_program(units: Units, cells: Sequence[Sequence[int]], capacity: int) -> list[int]:
    """Gives the index of each unit's option; `cells` are their prices, and `capacity` what all may cost."""
    best_B: npt.NDArray[np.float64] = np.zeros(capacity + 1)
    taken = np.zeros((len(units), capacity + 1), dtype=np.uint8)
    for number, (unit, prices) in enumerate(zip(units, cells, strict=True)):
        after_B: npt.NDArray[np.float64] = np.full(capacity + 1, math.inf)
        for index, (option, price) in enumerate(zip(unit, prices, strict=True)):
            if price > capacity:
                continue
            candidate_B = best_B[: capacity + 1 - price] + option.loss
            better_B = candidate_B < after_B[price:]
            after_B[price:][better_B] = candidate_B[better_B]
            taken[number, price:][better_B] = index
        best_B = after_B
    picks, left = [], capacity
    for number in reversed(range(len(units))):
        pick = int(taken[number, left])
        picks.append(pick)
        left -= cells[number][pick]
    return picks[::-1]


def lagrangian_bound(units: Units, budget: int) -> float:
    """Gives a loss that no selection within the budget goes below."""
    slopes = {0.0}
    for unit in units:
        for one in unit:
            slopes |= {(one.loss - two.loss) / (two.cost - one.cost) for two in unit if two.cost > one.cost}
    lambda_L = np.array(sorted(slope for slope in slopes if slope >= 0))
    bound_L = -lambda_L * budget
    for unit in units:
        bound_L += np.min([option.loss + lambda_L * option.cost for option in unit], axis=0)
    return float(bound_L.max())


def same_everywhere(units: Units, budget: int) -> Selection:
    """Gives the largest single choice that fits the budget; a unit that lacks it takes its next smaller one."""
    for choice in sorted({option.choice for unit in units for option in unit}, reverse=True):
        taken = tuple(_at_most(unit, choice) for unit in units)
        if sum(option.cost for option in taken) <= budget:
            return _unproven(taken)
    raise ValueError(f"the smallest choices cost more than {budget}")


def at_random(units: Units, budget: int, *, seed: int) -> Selection:
    """Gives random options within the budget, as costly as it allows; the same for the same seed.

    Every unit draws an option. Then units in random order step down until the budget holds, and step up while it does.
    """
    drawing = random.Random(seed)
    ladders = [sorted(unit, key=lambda option: option.cost) for unit in units]
    steps = [drawing.randrange(len(ladder)) for ladder in ladders]
    order = drawing.sample(range(len(units)), len(units))
    cost = sum(ladder[step].cost for ladder, step in zip(ladders, steps, strict=True))
    while cost > budget:
        lowered = [number for number in order if steps[number] > 0]
        if not lowered:
            raise ValueError(f"the cheapest options cost more than {budget}")
        number = drawing.choice(lowered)
        cost -= ladders[number][steps[number]].cost - ladders[number][steps[number] - 1].cost
        steps[number] -= 1
    for number in order:
        ladder = ladders[number]
        while (
            steps[number] + 1 < len(ladder)
            and cost + ladder[steps[number] + 1].cost - ladder[steps[number]].cost <= budget
        ):
            cost += ladder[steps[number] + 1].cost - ladder[steps[number]].cost
            steps[number] += 1
    return _unproven(tuple(ladder[step] for ladder, step in zip(ladders, steps, strict=True)))


def _at_most(unit: Sequence[Option], choice: int) -> Option:
    smaller = [option for option in unit if option.choice <= choice]
    return max(smaller, key=lambda option: option.choice) if smaller else min(unit, key=lambda option: option.choice)


def _unproven(options: tuple[Option, ...]) -> Selection:
    return Selection(options, exact=False, bound=None)
