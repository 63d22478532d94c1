import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from harness.statistics.multiplicity import benjamini_hochberg, holm

P_VALUES = st.lists(st.floats(0, 1), min_size=1, max_size=12)


def test_holm_by_hand():
    # Sorted 0.005, 0.01, 0.03, 0.04 times 4, 3, 2, 1: 0.02, 0.03, 0.06, and 0.04 may not fall below 0.06.
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx((0.03, 0.06, 0.06, 0.02))


def test_benjamini_and_hochberg_by_hand():
    # Sorted times 4/1, 4/2, 4/3, 4/4: 0.02, 0.02, 0.04, 0.04.
    assert benjamini_hochberg([0.01, 0.04, 0.03, 0.005]) == pytest.approx((0.02, 0.04, 0.04, 0.02))


def test_the_paper_of_benjamini_and_hochberg_rejects_four_and_holms_procedure_three():
    # The fifteen p-values of JRSS B 57, section 3.2, at 5 %: the paper's procedure rejects four, and Bonferroni's
    # 0.05 / 15 = 0.0033 three (0.0001, 0.0004, 0.0019); Holm's next step, 0.05 / 12 = 0.0042, stops at 0.0095.
    p = [
        0.0001,
        0.0004,
        0.0019,
        0.0095,
        0.0201,
        0.0278,
        0.0298,
        0.0344,
        0.0459,
        0.3240,
        0.4262,
        0.5719,
        0.6528,
        0.7590,
        1,
    ]
    assert sum(q <= 0.05 for q in benjamini_hochberg(p)) == 4
    assert sum(q <= 0.05 for q in holm(p)) == 3


def closed(p, index):
    """Holm's procedure as a closed test: the worst Bonferroni p of any set of hypotheses that holds this one."""
    largest = sorted(range(len(p)), key=lambda i: -p[i])
    found = 0.0
    for size in range(1, len(p) + 1):
        # The set of a size that is hardest to reject holds this hypothesis and the largest others.
        others = [i for i in largest if i != index][: size - 1]
        found = max(found, min(1.0, size * min(p[i] for i in [index, *others])))
    return found


@given(P_VALUES)
def test_holm_is_the_closed_bonferroni_test(p):
    assert holm(p) == pytest.approx([closed(p, index) for index in range(len(p))])


@given(P_VALUES)
def test_the_share_of_false_ones_is_scipys(p):
    assert benjamini_hochberg(p) == pytest.approx(stats.false_discovery_control(p))


@given(P_VALUES)
def test_holm_is_between_the_plain_value_and_bonferronis(p):
    for plain, adjusted in zip(p, holm(p), strict=True):
        assert plain <= adjusted <= min(1.0, len(p) * plain) + 1e-12


def test_no_question_needs_no_correction():
    assert holm([]) == benjamini_hochberg([]) == ()
