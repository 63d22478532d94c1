import doctest

import pytest
from hypothesis import given
from hypothesis import strategies as st

from harness.gate import numbers, untrusted, wording
from harness.gate.verdict import Counts, Number, Place
from harness.record import Interval


def number(value: float, low: float, high: float) -> Number:
    return Number(value=value, interval=Interval(low=low, high=high, method="by hand"))


def test_the_examples_in_docstrings_hold() -> None:
    known = {"Interval": Interval, "Number": Number, "Counts": Counts, "Place": Place}
    for module in (numbers, untrusted, wording):
        found = doctest.testmod(module, extraglobs=known)
        assert found.failed == 0
        assert found.attempted > 0


def test_a_loss_is_told_in_points_with_the_interval_of_the_loss() -> None:
    # Candidate less baseline is -0.018, so 1.8 points were lost; its ends -0.031 and -0.004 are losses of 3.1 and 0.4.
    assert numbers.lost(number(-0.018, -0.031, -0.004)) == "lost 1.8 points [0.4, 3.1]"


def test_a_gain_is_told_with_the_interval_of_the_gain() -> None:
    assert numbers.lost(number(0.005, -0.008, 0.018)) == "gained 0.5 points [-0.8, 1.8]"


def test_a_retention_and_its_interval_have_no_leading_zero() -> None:
    assert numbers.kept(number(0.982, 0.969, 0.995)) == ".982 [.969, .995]"


def test_an_interval_of_a_retention_is_never_rounded_onto_one() -> None:
    # To three digits the end .99996 would read 1.000, as if no loss were possible.
    assert numbers.kept(number(0.98, 0.96, 0.99996)) == ".98000 [.96000, .99996]"


def test_an_interval_is_never_rounded_across_the_margin() -> None:
    # A margin of 1 % is a retention of .99; the lower end .9904 is above it, and neither .99 nor .990 would show that.
    assert numbers.kept(number(1.02, 0.9904, 1.06), margin=0.01) == "1.0200 [.9904, 1.0600]"


def test_a_difference_is_never_rounded_onto_zero() -> None:
    # One digit would give an end of 0.0 points, as if it were open whether anything was lost.
    assert numbers.points(number(-0.02, -0.04, -0.0004)) == "-2.00 [-4.00, -0.04]"


def test_nothing_known_is_a_dash_and_never_a_number() -> None:
    absent = Number(reason="the reference scored nothing")
    assert numbers.kept(absent) == numbers.points(None) == numbers.times(absent) == numbers.NOTHING
    assert numbers.size(None) == numbers.number(None) == numbers.measured(None, "nats") == numbers.NOTHING
    assert numbers.lost(absent) == numbers.p_value(None) == numbers.more_items(None) == ""


def test_flips_name_both_sides_and_the_items() -> None:
    assert numbers.flips(Counts(n=1319, won=12, lost=31)) == "won 12, lost 31 of 1,319"
    assert numbers.flips(Counts(n=1319)) == ""


def test_items_that_are_needed_are_counted_in_words() -> None:
    assert numbers.more_items(1240) == "needs 1,240 more items"
    assert numbers.more_items(1) == "needs 1 more item"


@pytest.mark.parametrize(
    ("p", "shown"),
    [(0.0, "p < 1e-15"), (1e-16, "p < 1e-15"), (2.2e-5, "p = 2.2e-5"), (0.00123, "p = .0012"), (0.05, "p = .05")],
)
def test_a_p_value_is_never_zero(p: float, shown: str) -> None:
    assert numbers.p_value(p) == shown


def test_a_p_value_of_one_is_not_rounded_to_it() -> None:
    assert numbers.p_value(0.99999) == "p > .99"


@given(st.floats(0, 1), st.sampled_from([0.05, 0.001, 0.00003]))
def test_a_p_value_stays_on_its_side_of_what_it_is_held_against(p: float, alpha: float) -> None:
    told = numbers.p_value(p, against=alpha)
    assert "0.000" not in told
    if told.startswith("p = ") and abs(p - alpha) > 1e-5 * alpha:
        shown = float(told.removeprefix("p = "))
        assert shown > 0
        assert (shown > alpha) == (p > alpha)


@given(st.lists(st.floats(-2, 3), min_size=3, max_size=3).map(sorted))
def test_no_number_is_minus_zero(ends: list[float]) -> None:
    low, value, high = ends
    found = number(value, low, high)
    for shown in (numbers.kept(found), numbers.points(found), numbers.lost(found), numbers.times(found)):
        parts = shown.replace("[", " ").replace("]", " ").replace(",", " ").replace("×", " ").split()
        values = [part for part in parts if part[-1].isdigit()]
        assert len(values) == 3
        assert not [part for part in values if part.startswith("-") and float(part) == 0]
