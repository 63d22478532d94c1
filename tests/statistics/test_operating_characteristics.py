"""How often the tests are wrong, and how often they find what is there, by drawing items many times.

The grid is that of statistics.md 3.4: items, the reference's accuracy, the share of changed answers, and the retention
at the margin. The truth is put exactly on the margin for the error, and on "nothing lost" for the power. As a script it
prints the table: python -m tests.statistics.test_operating_characteristics 8000
"""

import itertools
import math
import sys
from dataclasses import dataclass

import numpy as np
import pytest
from scipy import stats

from harness.statistics.contrasts import SIDES, Pairs
from harness.statistics.noninferiority import loss_test, score_statistic
from harness.statistics.power import power_of, score_power

Z = 1.6448536269514722  # one-sided 5 %
SCALES = ("retention", "difference")
# The rows printed in section 3.4, with the rates published there for Tango's and Tang's tests.
PUBLISHED = {
    (164, 0.6, 0.02, 0.97): (0.046, 0.043),
    (164, 0.85, 0.02, 0.99): (0.029, 0.029),
    (164, 0.3, 0.02, 0.99): (0.031, 0.031),
    (500, 0.6, 0.02, 0.97): (0.047, 0.042),
    (500, 0.85, 0.02, 0.99): (0.049, 0.047),
    (1319, 0.6, 0.02, 0.97): (0.044, 0.043),
    (1319, 0.6, 0.06, 0.99): (0.048, 0.048),
    (5000, 0.6, 0.06, 0.99): (0.054, 0.054),
}


@dataclass(frozen=True)
class Cell:
    """Items, the reference's accuracy, the share of changed answers, and the retention at the margin."""

    n: int
    accuracy: float
    discordance: float
    kept: float

    def margin(self, scale: str) -> float:
        return 1 - self.kept if scale == "retention" else self.accuracy * (1 - self.kept)

    def shares(self, loss: float) -> tuple[float, float, float, float]:
        """Probabilities of both right, only the candidate, only the reference, neither, at a loss of score."""
        won, lost = (self.discordance - loss) / 2, (self.discordance + loss) / 2
        return self.accuracy - lost, won, lost, 1 - self.accuracy - won

    def values(self, scale: str) -> list[float]:
        keep, shift = (self.kept, 0.0) if scale == "retention" else (1.0, self.margin(scale))
        return [own - keep * other + shift for own, other in SIDES]


# Four sizes, three accuracies, three discordances, two margins: 72 cells, less the four whose loss is more than what
# changes (3 % of 0.85 is 0.0255), which makes the 68 of the text.
GRID = [
    cell
    for cell in itertools.starmap(
        Cell, itertools.product((164, 500, 1319, 5000), (0.3, 0.6, 0.85), (0.02, 0.06, 0.12), (0.97, 0.99))
    )
    if cell.margin("difference") <= cell.discordance
]


def accepted(cell: Cell, scale: str, *, loss: float, reps: int) -> float:
    """The share of draws in which the loss is shown to be below the margin at a one-sided 5 %."""
    seed = [cell.n, *(round(1000 * part) for part in (cell.accuracy, cell.discordance, cell.kept, loss))]
    draws = np.random.default_rng(seed).multinomial(cell.n, cell.shares(loss), size=reps)
    if scale == "difference":
        # Items alike on both sides score the margin, whichever they are: fewer tables to test.
        draws[:, 0], draws[:, 3] = draws[:, 0] + draws[:, 3], 0
    distinct, times = np.unique(draws, axis=0, return_counts=True)
    statistics = [
        score_statistic(tuple(map(int, counts)), margin=cell.margin(scale), scale=scale) for counts in distinct
    ]
    return float(sum(k for t, k in zip(statistics, times, strict=True) if t is not None and t >= Z) / reps)


def noise(rate: float, reps: int) -> float:
    """Three standard deviations of a rate over so many draws."""
    return 3 * math.sqrt(rate * (1 - rate) / reps)


def check_error(cell: Cell, scale: str, reps: int) -> None:
    rate = accepted(cell, scale, loss=cell.margin("difference"), reps=reps)
    assert rate <= 0.055 + noise(0.055, reps), f"{cell} {scale}: {rate:.4f}"


def exact_error(cell: Cell) -> float:
    """The error of Tango's test summed over all tables there can be, with his closed form (statistics.md 3.3).

    The changed answers are binomial, and of those the won ones are again; only the two counts enter the statistic.
    """
    n, margin = cell.n, cell.margin("difference")
    _, won_share, _, _ = cell.shares(margin)
    total = 0.0
    for changed in range(
        int(stats.binom.ppf(1e-9, n, cell.discordance)), int(stats.binom.isf(1e-9, n, cell.discordance)) + 1
    ):
        won = np.arange(changed + 1)
        lost = changed - won
        linear, constant = -changed + (2 * n - lost + won) * margin, -won * margin * (1 - margin)
        q = (np.sqrt(linear**2 - 8 * n * constant) - linear) / (4 * n)
        rejected = (won - lost + n * margin) / np.sqrt(n * (2 * q + margin * (1 - margin))) >= Z
        chances = stats.binom.pmf(won, changed, won_share / cell.discordance)
        total += stats.binom.pmf(changed, n, cell.discordance) * float(chances[rejected].sum())
    return total


def predicted(cell: Cell, scale: str) -> float:
    return score_power(cell.shares(0.0), cell.values(scale), n=cell.n)


def check_power(cell: Cell, scale: str, reps: int) -> None:
    """The planner speaks of a continuous normal sum, the draws are whole changes: a step of it is what they may differ.

    The statistic moves by 1 / sqrt(n ρ) with one change, hence the power by up to φ(0) = 0.4 of that.
    """
    rate, plan = accepted(cell, scale, loss=0.0, reps=reps), predicted(cell, scale)
    step = 0.4 / math.sqrt(cell.n * cell.discordance)
    assert abs(rate - plan) <= step + noise(max(0.05, min(rate, 0.5)), reps), f"{cell} {scale}: {rate:.3f}, {plan:.3f}"


@pytest.mark.parametrize("scale", SCALES)
@pytest.mark.parametrize("row", PUBLISHED)
def test_a_loss_at_the_margin_is_accepted_about_as_often_as_published(row, scale):
    reps = 2000
    published = PUBLISHED[row][scale == "retention"]
    rate = accepted(Cell(*row), scale, loss=Cell(*row).margin("difference"), reps=reps)
    # Both numbers are simulated, the published one with 8000 draws.
    assert rate == pytest.approx(published, abs=noise(published, reps) + noise(published, 8000))
    check_error(Cell(*row), scale, reps)


@pytest.mark.parametrize("scale", SCALES)
@pytest.mark.parametrize("cell", GRID[::5], ids=str)
def test_a_loss_at_the_margin_is_seldom_accepted_and_none_as_often_as_planned(cell, scale):
    check_error(cell, scale, 500)
    check_power(cell, scale, 500)


def test_the_exact_error_of_tangos_test_is_at_most_a_quarter_point_above_nominal():
    errors = {cell: exact_error(cell) for cell in GRID}
    assert max(errors.values()) <= 0.0525
    # The draws above see the same: 4000 of them in the cell with the largest error.
    worst = max(errors, key=errors.__getitem__)
    rate = accepted(worst, "difference", loss=worst.margin("difference"), reps=4000)
    assert rate == pytest.approx(errors[worst], abs=noise(errors[worst], 4000))


@pytest.mark.slow
@pytest.mark.parametrize("scale", SCALES)
@pytest.mark.parametrize("cell", GRID, ids=str)
def test_the_whole_grid_keeps_its_error_and_its_power(cell, scale):
    check_error(cell, scale, 8000)
    check_power(cell, scale, 8000)


def test_the_grid_is_that_of_the_text():
    assert len(GRID) == 68
    # Its first printed row lies on the grid, and so do all others.
    assert {(c.n, c.accuracy, c.discordance, c.kept) for c in GRID} >= set(PUBLISHED)


def repeated(generator, *, n: int, answers: int, loss: float) -> Pairs:
    """Means of several answers an item: most items are sure either way, and a few lose or win a share of them."""
    sure = (generator.random(n) < 0.6).astype(float)
    moved = generator.choice([-1, 0, 1], size=n, p=[0.02 + loss, 0.96 - loss, 0.02])
    by = generator.integers(1, answers + 1, n) / answers
    # E |by| = (K + 1) / (2 K): the loss of score is that times the loss in items.
    start = np.where(moved < 0, 1.0, np.where(moved > 0, 0.0, sure))
    return Pairs(tuple(start + moved * by), tuple(start))


def test_means_of_repeated_answers_accept_a_loss_at_the_margin_seldom():
    generator, reps, answers = np.random.default_rng(17), 400, 4
    margin = 0.012 * (answers + 1) / (2 * answers)
    tests = [
        loss_test([repeated(generator, n=300, answers=answers, loss=0.012)], margin=margin, scale="difference")
        for _ in range(reps)
    ]
    assert np.mean([found.p_accept <= 0.05 for found in tests]) <= 0.055 + noise(0.055, reps)


def test_items_in_clusters_accept_a_loss_at_the_margin_seldom():
    # 60 passages of 5 questions; a passage that is lost loses each of its questions with 0.6: items alone would be
    # taken for 300 independent ones.
    generator, reps = np.random.default_rng(19), 400
    names, hits = tuple(str(i // 5) for i in range(300)), 0
    for _ in range(reps):
        fate = np.repeat(generator.choice([-1, 0, 1], size=60, p=[0.08, 0.88, 0.04]), 5)
        change = fate * (generator.random(300) < 0.6)
        other = np.where(change < 0, 1.0, np.where(change > 0, 0.0, generator.random(300) < 0.6))
        pairs = Pairs(tuple(other + change), tuple(other))
        # The true loss is (0.08 - 0.04) * 0.6 = 0.024.
        hits += loss_test([pairs], margin=0.024, scale="difference", clusters=[names]).p_accept <= 0.05
    assert hits / reps <= 0.055 + noise(0.055, reps)


def main(reps: int) -> None:
    print("| n | accuracy | changed | kept | exact error, Tango | drawn | Tang, drawn | power | planned | simple |")
    print("|---|---|---|---|---|---|---|---|---|---|")
    for cell in GRID:
        loss = cell.margin("difference")
        errors = [accepted(cell, scale, loss=loss, reps=reps) for scale in ("difference", "retention")]
        power = accepted(cell, "difference", loss=0.0, reps=reps)
        simple = power_of(cell.n, discordance=cell.discordance, margin=loss)
        row = (exact_error(cell), *errors, power, predicted(cell, "difference"), simple)
        print(f"| {cell.n} | {cell.accuracy} | {cell.discordance} | {cell.kept} |", *(f"{x:.3f} |" for x in row))


if __name__ == "__main__":
    main(int(sys.argv[1]))
