import numpy as np
import pytest

from harness.statistics.power import (
    detectable_loss,
    detectable_margin,
    items_to_breach,
    paired_variance,
    power_of,
    required_items,
    score_power,
)

# Paired items to prove that a loss is below δ when nothing is lost, one-sided α = 5 %: ρ by (δ, power).
TABLE = {
    0.01: (155, 619, 857, 2474),
    0.02: (310, 1237, 1713, 4947),
    0.05: (773, 3092, 4283, 12367),
    0.10: (1546, 6184, 8565, 24733),
    0.15: (2319, 9275, 12848, 37100),
    0.20: (3092, 12367, 17130, 49466),
}
COLUMNS = ((0.02, 0.8), (0.01, 0.8), (0.01, 0.9), (0.005, 0.8))


@pytest.mark.parametrize("discordance", TABLE)
def test_required_items_are_those_of_the_published_table(discordance):
    found = [required_items(discordance, margin=margin, power=power) for margin, power in COLUMNS]
    # The table was made with quantiles of four digits: (1.645 + 0.8416)² = 6.1832 and not 6.1826, one part in 10 000.
    assert found == pytest.approx(TABLE[discordance], rel=1.6e-4, abs=1)


def test_a_true_loss_is_paid_for_in_items():
    assert required_items(0.08, margin=0.01, loss=0.005) == pytest.approx(4 * required_items(0.08, margin=0.01), abs=4)


def test_items_margin_and_power_are_three_views_of_one_equation():
    n = required_items(0.08, margin=0.01, power=0.9)
    assert detectable_margin(n, discordance=0.08, power=0.9) == pytest.approx(0.01, rel=1e-3)
    assert power_of(n, discordance=0.08, margin=0.01) == pytest.approx(0.9, abs=1e-3)


@pytest.mark.parametrize(("n", "loss", "power"), [(6000, 0.0, 0.86), (12032, 0.0, 0.99), (12032, 0.003, 0.86)])
def test_the_power_of_known_suites_is_the_published_one(n, loss, power):
    # GSM8K-sized and MMLU-Pro-sized suites at ρ = 0.08 and a margin of one point
    assert power_of(n, discordance=0.08, margin=0.01, loss=loss) == pytest.approx(power, abs=0.01)


@pytest.mark.parametrize(("n", "power"), [(1319, 0.22), (6000, 0.61), (12032, 0.86)])
def test_a_loss_already_there_takes_power_as_published(n, power):
    assert power_of(n, discordance=0.08, margin=0.01, loss=0.003) == pytest.approx(power, abs=0.01)


def test_a_margin_of_one_relative_percent_at_sixty_takes_as_many_times_more_as_published():
    # One percent of 0.6 are 0.6 points, and (1 / 0.6)² = 2.78.
    ratio = required_items(0.08, margin=0.006) / required_items(0.08, margin=0.01)
    assert ratio == pytest.approx(2.8, abs=0.03)


def test_breaching_by_as_much_as_accepting_takes_as_many_items():
    # Loss 0 against a margin of 0.02, and loss 0.04 against the same: both are 0.02 away.
    assert items_to_breach(0.05, excess=0.02, alpha=0.05) == required_items(0.05, margin=0.02)


def test_tests_asked_together_share_their_error():
    # z of 0.001 / 20 is 3.8906 (any table of the normal distribution), z of 0.8 is 0.8416.
    expected = (3.8906 + 0.8416) ** 2 * 0.05 / 0.02**2
    assert items_to_breach(0.05, excess=0.02, tests=20) == pytest.approx(expected, rel=1e-4, abs=1)


def test_a_loss_that_can_be_detected_is_one_that_the_items_suffice_for():
    loss = detectable_loss(5000, discordance=0.06, margin=0.01, alpha=0.001)
    assert items_to_breach(0.06, excess=loss - 0.01, alpha=0.001) == pytest.approx(5000, abs=1)


def test_the_published_example_of_many_items_detects_half_a_point():
    # 602 changed of 12 032 (statistics.md 3.5): 2.487 * sqrt(0.05003 / 12032) = 0.507 points.
    assert detectable_loss(12032, discordance=602 / 12032) == pytest.approx(0.0051, abs=1e-4)


def test_repeats_take_what_one_answer_adds_and_leave_what_items_differ_in():
    assert paired_variance(0.02, within=0.05, repeats=1) == pytest.approx(0.12)
    assert paired_variance(0.02, within=0.05, repeats=10**6) == pytest.approx(0.02, rel=1e-4)


def test_the_variance_with_repeats_is_that_of_simulated_means():
    # True differences ±0.1 (ω² = 0.01), answers right with 0.6 ± 0.05, so σ² = 0.65 * 0.35 or 0.55 * 0.45.
    generator, K, n = np.random.default_rng(2), 4, 200_000
    up = generator.random(n) < 0.5
    own = generator.binomial(K, np.where(up, 0.65, 0.55)) / K
    other = generator.binomial(K, np.where(up, 0.55, 0.65)) / K
    within = (0.65 * 0.35 + 0.55 * 0.45) / 2
    assert np.var(own - other) == pytest.approx(paired_variance(0.01, within=within, repeats=K), rel=0.02)


def test_the_power_of_a_score_test_is_the_simple_one_where_many_answers_change():
    # ρ = 0.2 against a margin of one point: the margin's own variance is a twentieth of ρ.
    shares, values = (0.5, 0.1, 0.1, 0.3), (0.01, 1.01, -0.99, 0.01)
    assert score_power(shares, values, n=12000) == pytest.approx(
        power_of(12000, discordance=0.2, margin=0.01), abs=0.02
    )


def test_answers_that_never_change_pass_from_one_size_on():
    # Tango's statistic is sqrt(n D / (1 - D)); it exceeds 1.645 at 1 % from n = 2.7055 * 99 = 267.8 on.
    shares, values = (0.6, 0.0, 0.0, 0.4), (0.01, 1.01, -0.99, 0.01)
    assert score_power(shares, values, n=267) == 0
    assert score_power(shares, values, n=269) == 1
