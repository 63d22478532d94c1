import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from harness.statistics.attribution import Table, effect, gap_closed, interaction

Z2 = 1.959963984540054**2


def right(*counts, of):
    """Columns of right-or-wrong items: column c is right on its first counts[c] items."""
    return Table(tuple((1.0,) * count + (0.0,) * (of - count) for count in counts))


def measured(*columns):
    return Table(tuple(tuple(map(float, column)) for column in columns), continuous=True)


def ends(found):
    return found.interval.low, found.interval.high


def test_the_effect_on_one_task_has_the_published_tango_interval():
    # Cavo et al. 2012 (59 both right, 6 only after, 16 only before, 80 neither), as in R's contingencytables
    before = (1.0,) * 59 + (0.0,) * 6 + (1.0,) * 16 + (0.0,) * 80
    after = (1.0,) * 65 + (0.0,) * 96
    found = effect([Table((before, after))])
    assert found.value == pytest.approx(-10 / 161)
    assert ends(found) == pytest.approx((-0.1240, -0.0054), abs=5e-5)
    assert found.n == 161


@pytest.mark.parametrize("n", [10, 100, 5000])
def test_no_item_changed_is_no_proof_that_none_would(n):
    # A mean of D needs a share D of changed items, whose variance is D (1 - D); D² = z² D (1 - D) / n gives the end.
    end = Z2 / (n + Z2)
    assert ends(effect([right(n // 2, n // 2, of=n)])) == pytest.approx((-end, end))


def test_the_effect_on_one_measured_task_is_a_paired_t_interval():
    # differences 1, 2, 3, 4: mean 2.5, variance 5/3, t(3) = 3.182446
    found = effect([measured([0, 1, 0, 1], [1, 3, 3, 5])])
    reach = 3.182446 * math.sqrt(5 / 3 / 4)
    assert found.value == 2.5
    assert ends(found) == pytest.approx((2.5 - reach, 2.5 + reach))
    assert found.interval.method == "paired-t"


def test_tasks_are_independent_strata_with_satterthwaites_degrees_of_freedom():
    # (a + b) / 2 with a and b from samples of different spread is half of Welch's difference between a and -b.
    generator = np.random.default_rng(3)
    a, b = generator.normal(0.4, 1, 9), generator.normal(0.1, 5, 5)
    found = effect([measured(np.zeros(9), a), measured(np.zeros(5), b)])
    welch = stats.ttest_ind(a, -b, equal_var=False).confidence_interval()
    assert found.value == pytest.approx((a.mean() + b.mean()) / 2)
    assert ends(found) == pytest.approx((welch.low / 2, welch.high / 2))
    assert found.interval.method == "stratified-t"


def test_a_task_weighs_the_same_however_many_items_it_has():
    found = effect([right(5, 10, of=10), right(100, 100, of=1000)])
    assert found.value == pytest.approx((0.5 + 0) / 2)


def test_an_interaction_is_both_less_each_plus_neither():
    # 0.8 alone, 0.5 after the first, 0.7 after the second, 0.3 after both: 0.3 - 0.5 - 0.7 + 0.8 = -0.1
    found = interaction([right(80, 50, 70, 30, of=100)])
    assert found.value == pytest.approx(-0.1)
    # z is 0 on items 0-29 (all right), -1 on 30-49 (1 - 1 - 1 + 0), 0 on 50-69, 1 on 70-79, 0 after: s² = (30 - 1) / 99
    plain = 1.96 * math.sqrt((30 - 1) / 99 / 100)
    assert found.interval.high - found.interval.low == pytest.approx(2 * plain, rel=0.1)


def test_stages_whose_effects_add_up_on_every_item_have_no_interaction():
    # No z but 0 was seen; a mean of D needs a share D/2 of items at 2, whose variance is 2 D - D².
    found = interaction([right(60, 60, 60, 60, of=100)])
    end = 2 * Z2 / (100 + Z2)
    assert found.value == 0
    assert ends(found) == pytest.approx((-end, end))


def test_the_interaction_of_measured_values_is_a_t_interval_of_the_double_difference():
    neither, first, second, both = [1, 2, 3, 4], [2, 2, 4, 4], [1, 3, 3, 5], [5, 4, 3, 8]
    z = [3, 1, -1, 3]  # 5-2-1+1, 4-2-3+2, 3-4-3+3, 8-4-5+4
    oracle = stats.ttest_1samp(z, 0).confidence_interval()
    found = interaction([measured(neither, first, second, both)])
    assert found.value == 1.5
    assert ends(found) == pytest.approx((oracle.low, oracle.high))


SCORES = st.lists(st.tuples(*[st.sampled_from([0.0, 1.0])] * 4), min_size=2, max_size=30)


@settings(deadline=None, max_examples=50)
@given(SCORES, st.randoms(use_true_random=False))
def test_neither_the_order_of_items_nor_which_stage_is_called_first_matters(rows, random):
    shuffled = list(rows)
    random.shuffle(shuffled)
    swapped = [(neither, second, first, both) for neither, first, second, both in shuffled]
    found, other = (interaction([Table(tuple(zip(*each, strict=True)))]) for each in (rows, swapped))
    assert found.value == pytest.approx(other.value)
    assert ends(found) == pytest.approx(ends(other))
    assert found.interval.low <= found.value <= found.interval.high


@settings(deadline=None, max_examples=50)
@given(SCORES)
def test_an_effect_turned_around_is_its_negative(rows):
    before, after, *_ = zip(*rows, strict=True)
    there, back = effect([Table((before, after))]), effect([Table((after, before))])
    assert there.value == pytest.approx(-back.value)
    assert ends(there) == pytest.approx(tuple(-end for end in reversed(ends(back))))


def fieller(student, teacher, floor):
    """E. C. Fieller's interval by its quadratic: (s - θ t)² = t_quantile² var(s - θ t) / n, solved for θ."""
    s, t = np.array(student) - floor, np.array(teacher) - floor
    n, c = len(s), np.cov(s, t)
    q = stats.t.ppf(0.975, n - 1) ** 2 / n
    a = t.mean() ** 2 - q * c[1, 1]
    b = -2 * (s.mean() * t.mean() - q * c[0, 1])
    return sorted(np.roots([a, b, s.mean() ** 2 - q * c[0, 0]]))


def test_the_gap_closed_on_measured_values_has_fiellers_interval():
    generator = np.random.default_rng(5)
    floor = generator.normal(0, 1, 20)
    teacher = floor + generator.normal(2, 0.5, 20)
    student = floor + generator.normal(1.2, 0.7, 20)
    found = gap_closed([measured(floor, student, teacher)])
    assert found.value == pytest.approx((student - floor).mean() / (teacher - floor).mean())
    assert ends(found) == pytest.approx(tuple(fieller(student, teacher, floor)))
    assert found.interval.method == "fieller-t"


def test_a_student_between_floor_and_teacher_closed_its_share_of_the_gap():
    # floor 50 of 100, student 70, teacher 80: (70 - 50) / (80 - 50)
    found = gap_closed([right(50, 70, 80, of=100)])
    assert found.value == pytest.approx(2 / 3)
    assert 0 < found.interval.low < 2 / 3 < found.interval.high < 1


@pytest.mark.parametrize(("student", "value"), [(50, 0.0), (80, 1.0), (45, -1 / 6)])
def test_the_floor_closes_nothing_the_teacher_all_and_harm_is_negative(student, value):
    found = gap_closed([right(50, student, 80, of=100)])
    assert found.value == pytest.approx(value)
    assert found.interval.low < value < found.interval.high


def test_right_or_wrong_and_measured_items_agree_when_there_are_many():
    binary = right(5000, 6000, 8000, of=10_000)
    exact, plain = gap_closed([binary]), gap_closed([Table(binary.columns, continuous=True)])
    assert ends(exact) == pytest.approx(ends(plain), abs=1e-3)


@pytest.mark.parametrize(
    ("table", "reason"),
    [
        (right(80, 70, 80, of=100), "not better than the floor"),
        (right(80, 70, 60, of=100), "not better than the floor"),
        # one item of 100 won and none lost: its interval reaches below 0
        (right(50, 50, 51, of=100), "may be zero: it is 0.01, interval [-"),
        (measured([0, 0], [1, 1], [1, 9]), "may be zero"),
    ],
)
def test_a_share_of_a_gap_that_may_be_zero_is_absent_with_the_reason(table, reason):
    found = gap_closed([table])
    assert found.value is None
    assert found.interval is None
    assert reason in found.reason


def test_values_without_any_spread_have_an_estimate_and_no_interval():
    assert effect([measured([1, 2], [2, 3])]).interval is None
    assert "no spread" in effect([measured([1, 2], [2, 3])]).reason
    found = gap_closed([measured([0, 0, 0], [4, 5, 6], [8, 10, 12])])
    assert (found.value, found.interval) == (pytest.approx(0.5), None)


def test_a_single_measured_item_has_no_interval():
    found = effect([measured([1], [2]), right(1, 2, of=9)])
    assert found.interval is None
    assert "single item" in found.reason


def test_the_effects_interval_covers_as_often_as_it_says():
    # 60 items, of which 5 % are lost and 2 % won in truth; 200 draws: 95 % less 3 standard errors of 1.5 points
    generator = np.random.default_rng(11)
    covered = 0
    for _ in range(200):
        drawn = generator.multinomial(60, [0.05, 0.02, 0.53, 0.40])
        before = (1.0,) * drawn[0] + (0.0,) * drawn[1] + (1.0,) * drawn[2] + (0.0,) * drawn[3]
        after = (0.0,) * drawn[0] + (1.0,) * drawn[1] + (1.0,) * drawn[2] + (0.0,) * drawn[3]
        low, high = ends(effect([Table((before, after))]))
        covered += low <= -0.03 <= high
    assert covered >= 0.905 * 200
