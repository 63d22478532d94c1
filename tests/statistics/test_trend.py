"""Planted steps are found and pure noise is left alone, as often as stated; what both series did cancels."""

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from harness.statistics.trend import Change, changes, frozen, normalized


def seeded(seed=0):
    return np.random.default_rng(seed)


def noise(generator, nights, *, correlation=0.0):
    """Unit noise in which neighbouring nights have the given correlation: x_t = φ x_(t-1) + sqrt(1 - φ²) e_t."""
    values = [generator.normal()]
    for _ in range(nights - 1):
        values.append(correlation * values[-1] + math.sqrt(1 - correlation**2) * generator.normal())
    return np.array(values)


def stepped(generator, nights, at, *, by):
    values_N = noise(generator, nights)
    values_N[at:] += by
    return list(values_N)


def slow_best_share(values):
    """The largest share of squares that one stretch's mean explains, by trying all and fitting two means."""
    values_N, best = np.asarray(values), 0.0
    total = ((values_N - values_N.mean()) ** 2).sum()
    for start in range(len(values)):
        for end in range(start + 5, len(values) + 1):
            inside_N = np.zeros(len(values), dtype=bool)
            inside_N[start:end] = True
            pieces = (start, len(values) - end)
            if inside_N.all() or any(0 < piece < 5 for piece in pieces) or sum(pieces) < 5:
                continue
            left = sum(((part - part.mean()) ** 2).sum() for part in (values_N[inside_N], values_N[~inside_N]))
            best = max(best, 1 - left / total)
    return best


def test_a_step_of_five_sd_is_found_within_a_night_of_where_it_came():
    # With 40 nights of the new level, a step of five standard deviations is nearly certain; 30 series.
    generator = seeded(1)
    found = [changes(stepped(generator, 90, 50, by=5.0), generator=generator) for _ in range(30)]
    assert np.mean([len(one) == 1 and abs(one[0].night_index - 50) <= 1 for one in found]) >= 0.95


def test_a_step_of_five_sd_is_found_six_nights_after_it_came():
    # Stated: 98 % of series of 60 nights; of 40 series at least 36 are then as good as certain.
    generator = seeded(2)
    found = [changes(stepped(generator, 60, 54, by=5.0), generator=generator) for _ in range(40)]
    assert np.mean([any(abs(change.night_index - 54) <= 1 for change in one) for one in found]) >= 0.90


def test_a_step_there_and_back_again_is_two_changes():
    generator, found = seeded(3), []
    for _ in range(20):
        values = noise(generator, 60)
        values[30:40] += 5.0
        found.append(changes(list(values), generator=generator))
    near = [
        len(one) == 2 and all(abs(c.night_index - at) <= 1 for c, at in zip(one, (30, 40), strict=True))
        for one in found
    ]
    assert np.mean(near) >= 0.90


@pytest.mark.parametrize("nights", [20, 60])
def test_nights_of_pure_noise_get_a_note_at_most_as_often_as_alpha(nights):
    # 200 series at alpha 0.05: standard error 0.015, so that 0.10 is three of them above.
    generator = seeded(4)
    noted = [bool(changes(list(noise(generator, nights)), generator=generator, alpha=0.05)) for _ in range(200)]
    assert np.mean(noted) < 0.10


def test_nights_that_resemble_their_neighbours_get_a_few_times_as_many_notes_and_no_more():
    # Correlation 0.5 inflates the F of a stretch threefold; what is left after the division stays below 20 % for 5 %.
    generator = seeded(5)
    noted = [
        bool(changes(list(noise(generator, 40, correlation=0.5)), generator=generator, alpha=0.05)) for _ in range(200)
    ]
    assert np.mean(noted) < 0.20


def test_p_is_the_share_of_shuffled_series_that_do_as_well():
    # Twelve nights, six at 0 and six at 1 without any noise: the only stretches of five to seven nights that explain
    # all are the halves. Of C(12, 6) = 924 orders, those with the six ones together and five or more, or no, nights on
    # either side do as well: ones first or last, 2 of 924.
    (found,) = changes([0.0] * 6 + [1.0] * 6, generator=seeded(6), alpha=0.05)
    assert (found.night_index, found.before, found.after) == (6, 0.0, 1.0)
    # 1999 shuffles: standard error sqrt(0.00216 / 1999) = 0.001.
    assert found.p == pytest.approx(2 / 924, abs=0.004)


@given(st.integers(0, 2**32 - 1), st.integers(11, 24))
@settings(max_examples=20, deadline=None)
def test_the_best_stretch_is_that_of_trying_all_of_them(seed: int, nights: int):
    from harness.statistics.trend import _explained

    values = seeded(seed).normal(size=nights)
    (share,), (start, end) = _explained((values - values.mean())[None])
    assert share == pytest.approx(slow_best_share(values))
    inside = values[start:end].mean()
    rest = np.delete(values, range(start, end)).mean()
    assert share == pytest.approx(
        (end - start) * (nights - end + start) / nights * (inside - rest) ** 2 / (nights * values.var())
    )


def test_what_both_series_did_cancels():
    # The machine became 30 % slower at night 20 for both: ln(0.7) is in both logarithms.
    generator = seeded(7)
    machine = np.exp(noise(generator, 40) * 0.05 + np.where(np.arange(40) < 20, 0.0, math.log(0.7)))
    own, canary = (list(rate * machine * np.exp(noise(generator, 40) * 0.01)) for rate in (200.0, 50.0))
    assert [change.night_index for change in changes(own, generator=generator)] == [20]
    assert changes(normalized(own, canary, scale="ratio"), generator=generator) == ()


def test_what_only_the_series_did_stays_after_the_canary():
    # 5 % slower from night 25 on, under machine noise of 5 % that the canary shares; 1 % of each one's own.
    generator = seeded(8)
    machine = np.exp(noise(generator, 40) * 0.05)
    own, canary = (list(rate * machine * np.exp(noise(generator, 40) * 0.01)) for rate in (200.0, 50.0))
    own = [value * (0.95 if night >= 25 else 1.0) for night, value in enumerate(own)]
    assert changes(own, generator=generator) == ()
    (found,) = changes(normalized(own, canary, scale="ratio"), generator=generator)
    assert abs(found.night_index - 25) <= 1
    assert found.after - found.before == pytest.approx(math.log(0.95), abs=0.01)


def test_a_canary_is_subtracted_on_its_scale_and_missing_where_either_is():
    assert normalized([0.6, 0.5, None], [0.5, None, 0.5], scale="difference") == (pytest.approx(0.1), None, None)
    assert normalized([200.0, 50.0], [100.0, 100.0], scale="ratio") == pytest.approx((math.log(2), -math.log(2)))


def test_a_ratio_needs_numbers_above_zero():
    with pytest.raises(ValueError, match=r"0\.0 has no ratio"):
        normalized([1.0, 0.0], [1.0, 1.0], scale="ratio")


def test_missing_nights_are_counted_and_not_measured():
    # Every third night is missing; the step is at night 30, the first measured night of the new level is 31.
    values = [None if night % 3 == 0 else value for night, value in enumerate(stepped(seeded(9), 60, 30, by=8.0))]
    (found,) = changes(values, generator=seeded(9))
    assert found.night_index == 31
    assert found.after - found.before == pytest.approx(8.0, abs=1.5)


def test_a_series_without_noise_shows_its_step_exactly():
    assert changes([0.61] * 20 + [0.59] * 15, generator=seeded()) == (
        Change(night_index=20, before=0.61, after=0.59, p=1 / 2000),
    )


@pytest.mark.parametrize("values", [[], [None] * 30, [1.0] * 30, [1.0] * 5 + [9.0] * 4, [0.1 + 0.2] * 12])
def test_series_that_are_too_short_or_never_moved_have_no_change(values):
    assert changes(values, generator=seeded()) == ()


def test_a_single_wild_night_is_no_level():
    values = list(noise(seeded(10), 40))
    values[17] = 100.0
    assert changes(values, generator=seeded(10)) == ()


def test_steps_too_small_to_matter_are_left_out_and_the_levels_run_on():
    # 0 for 15 nights, 1 for 15, 10 for 15: without the step of 1 the first level has 30 nights, half at 0, half at 1.
    values = [0.0] * 15 + [1.0] * 15 + [10.0] * 15
    assert [change.night_index for change in changes(values, generator=seeded())] == [15, 30]
    (found,) = changes(values, generator=seeded(), smallest=2.0)
    assert (found.night_index, found.before, found.after) == (30, 0.5, 10.0)


def test_the_same_seed_makes_the_same_notes():
    values = stepped(seeded(11), 60, 30, by=3.0)
    assert changes(values, generator=seeded(1)) == changes(values, generator=seeded(1))


@given(st.floats(0.01, 100), st.floats(-100, 100))
@settings(max_examples=20, deadline=None)
def test_the_unit_of_a_series_changes_no_note(scale: float, shift: float):
    values = stepped(seeded(12), 40, 20, by=4.0)
    moved = [value * scale + shift for value in values]
    first, second = changes(values, generator=seeded(1)), changes(moved, generator=seeded(1))
    assert [(one.night_index, one.p) for one in first] == [(one.night_index, one.p) for one in second]


def test_a_series_that_stopped_moving_says_for_how_long():
    moving = [7.13, 7.31, 7.22]
    assert frozen([*moving, 7.2, 7.2, None, 7.2, 7.2, None], 4) == 4
    assert frozen([*moving, 7.2, 7.2, 7.2], 4) is None
    assert frozen([7.2] * 6, 4) == 6


def test_series_without_numbers_are_not_frozen_but_missing():
    assert frozen([], 3) is None
    assert frozen([None] * 9, 3) is None
