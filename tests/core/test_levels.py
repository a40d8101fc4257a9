"""Numbers as one character each come back as near as the characters allow."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cartok.core.levels import text_of_levels, values_of_levels


@given(st.floats(1e-6, 1e6), st.lists(st.floats(0, 1)))
def test_values_come_back_within_half_a_level(most, shares):
    values = [share * most for share in shares]
    text = text_of_levels(values, most)
    assert len(text) == len(values)
    assert values_of_levels(text, most) == pytest.approx(values, abs=most / 70 * 1.001)


def test_nothing_and_the_maximum_are_kept_exactly():
    assert text_of_levels([0.0, 0.7, 0.35, 0.01], 0.7) == "0zi0"
    assert values_of_levels("0z", 0.7) == [0.0, 0.7]


@pytest.mark.parametrize(("values", "most"), [([1.5], 1.0), ([-0.1], 1.0), ([0.0], 0.0)])
def test_values_outside_are_refused(values, most):
    with pytest.raises(ValueError, match="levels are of values"):
        text_of_levels(values, most)


def test_other_characters_are_no_levels():
    with pytest.raises(ValueError, match="not found"):
        values_of_levels("0A", 1.0)
