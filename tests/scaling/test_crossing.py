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
    """The lower floor starts higher, so that they meet once."""
    steep, flat = sorted((alpha, other_alpha))
    low, high = sorted((l_min, other_l_min))
    if high - low < 0.05 or flat - steep < 0.05:
        return
    early = Law(high, steep, math.log(1.0) - steep * place)
    late = Law(low, flat, math.log(1.0 + high - low) - flat * place)
    found = crossing(early, late, (1e10, 1e25))
    gap = early.score_at(math.exp(place)) - late.score_at(math.exp(place))
    assert gap == pytest.approx(0.0, abs=1e-9)
    assert found is not None
    assert early.score_at(found) == pytest.approx(late.score_at(found), rel=1e-8)


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
