import pytest
from hypothesis import given
from hypothesis import strategies as st

from cartok.scaling.numbers import Cell, Interval, shown, signed, students

_LOWERED = str.maketrans("⁻⁰¹²³⁴⁵⁶⁷⁸⁹", "-0123456789")


def read(text):
    digits, _, power = text.replace("−", "-").replace(",", "").partition(" × 10")
    return float(digits) * 10.0 ** int(power.translate(_LOWERED) or 0)


@given(st.floats(-1e12, 1e12, allow_subnormal=False))
def test_a_number_is_shown_to_three_digits_or_more(value):
    assert read(shown(value)) == pytest.approx(value, rel=5.1e-3, abs=1e-300)
    if 1e-3 <= abs(value) < 1e6:
        assert read(shown(value)) == pytest.approx(value, rel=5.1e-4)


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (0.0, "0"),
        (350, "350"),
        (110_912_000, "110,912,000"),
        (14.2071234, "14.21"),
        (0.0171239, "0.01712"),
        (-0.31, "−0.3100"),
        (-1.5e-5, "−1.50 × 10⁻⁵"),
        (3.1e13, "3.10 × 10¹³"),
        (float("inf"), "not finite"),
    ],
)
def test_how_numbers_look(value, text):
    assert shown(value) == text


def test_a_rise_has_a_plus():
    assert (signed(1.5), signed(-1.5), signed(0.0)) == ("+1.500", "−1.500", "0")


def test_an_interval_comes_from_the_bootstrap_or_the_standard_error():
    bootstrap = Cell(2.0, "", {"bootstrap": {"level": 0.9, "interval": [1.5, 2.75]}})
    assert (bootstrap.interval.low, bootstrap.interval.high) == (1.5, 2.75)
    error = Cell(2.0, "", {"standard_error": 0.1}).interval
    assert (error.low, error.high) == pytest.approx((1.8355, 2.1645))
    assert Cell(2.0, "", {}).interval is None


@given(*[st.floats(0, 10)] * 4)
def test_intervals_overlap_if_and_only_if_a_point_is_in_both(a, b, c, d):
    first, second = Interval(min(a, b), max(a, b), ""), Interval(min(c, d), max(c, d), "")
    shared = max(first.low, second.low) <= min(first.high, second.high)
    assert first.overlaps(second) == second.overlaps(first) == shared


def test_students_interval_is_the_tables():
    """Values 1, 2, 3: mean 2, standard error 1/sqrt(3), t of 2 degrees at 95 % is 2.919986."""
    low, high = students([1.0, 2.0, 3.0], 0.9)
    assert (low, high) == pytest.approx((2 - 2.919986 / 3**0.5, 2 + 2.919986 / 3**0.5))
