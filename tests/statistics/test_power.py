import pytest

from harness.statistics.power import detectable_margin, power_of, required_items

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
