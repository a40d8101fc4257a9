"""Where laws cross, and what one saves."""

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cartok.core.errors import UserError
from cartok.scaling.crossing import crossing, equal_score_compute_ratio
from cartok.scaling.law import Law

EARLY, LATE = Law(3.0, -0.5, 20.0), Law(2.0, -0.5, 21.0)


@given(
    st.floats(-1.0, -0.2), st.floats(-1.0, -0.2), st.floats(0.0, 3.0), st.floats(0.0, 3.0),
    st.floats(36.0, 41.0),
)  # fmt: skip
def test_laws_made_to_meet_are_found_to_meet(alpha, other_alpha, l_min, other_l_min, place):
    """The law of the lower floor is the steeper one, so they meet once."""
    steep, flat = sorted((alpha, other_alpha))
    low, high = sorted((l_min, other_l_min))
    if high - low < 0.05 or flat - steep < 0.05:
        return
    early = Law(high, flat, -flat * place)
    late = Law(low, steep, math.log(1.0 + high - low) - steep * place)
    found = crossing(early, late, (1e10, 1e25))
    assert found is not None
    assert math.log(found) == pytest.approx(place, abs=1e-6)


def test_of_two_crossings_the_last_is_given():
    """A law that is steeper and has the higher floor is the lower one only in between."""
    between, flat = Law(1.5, -1.0, 10.0), Law(1.0, -0.2, 2.0)
    last = crossing(between, flat, (1.0, 1e12))
    assert last is not None
    first = crossing(between, flat, (1.0, last / 2))
    assert first is not None
    for compute, sign in ((first / 2, 1), (math.sqrt(first * last), -1), (last * 2, 1)):
        assert sign * (between.score_at(compute) - flat.score_at(compute)) > 0


def test_beyond_the_crossing_the_other_law_is_the_lower():
    place = crossing(EARLY, LATE, (1e15, 1e20))
    assert place is not None
    assert EARLY.score_at(place / 2) < LATE.score_at(place / 2)
    assert EARLY.score_at(place * 2) > LATE.score_at(place * 2)
    assert crossing(LATE, EARLY, (1e15, 1e20)) == pytest.approx(place)


def test_outside_the_range_there_is_none():
    place = crossing(EARLY, LATE, (1e15, 1e20))
    assert place is not None
    assert crossing(EARLY, LATE, (1e15, place / 2)) is None
    assert crossing(EARLY, EARLY, (1e15, 1e20)) is None


def test_an_empty_range_is_refused():
    with pytest.raises(UserError, match="rises from above 0"):
        crossing(EARLY, LATE, (1e20, 1e15))


@given(st.floats(3.1, 50.0), st.floats(1.1, 10.0))
def test_a_law_that_needs_less_by_a_factor_saves_that_factor(score, factor):
    saving = Law(EARLY.l_min, EARLY.alpha, EARLY.intercept + EARLY.alpha * math.log(factor))
    assert equal_score_compute_ratio(EARLY, saving, score) == pytest.approx(factor)
    assert equal_score_compute_ratio(saving, EARLY, score) == pytest.approx(1 / factor)


def test_a_score_that_one_law_never_reaches_is_refused():
    with pytest.raises(UserError, match="above its L_min, 3"):
        equal_score_compute_ratio(LATE, EARLY, 2.5)
