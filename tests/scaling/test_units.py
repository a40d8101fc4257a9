"""Budgets name their unit, and units convert without loss."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cartok.core.errors import UserError
from cartok.scaling.units import (
    Budget,
    budget_of,
    budget_text,
    flops_of_training,
    paper_units_of_training,
)

AMOUNTS = st.floats(1e6, 1e26)


@given(AMOUNTS, st.sampled_from(["flop", "paper", "gpuh"]), st.floats(1e9, 1e16))
def test_a_budget_is_read_as_it_was_written(flops, unit, speed):
    text = budget_text(Budget(flops), unit, speed)
    assert budget_of(text, speed).flops == pytest.approx(flops, rel=1e-14)


@given(AMOUNTS)
def test_in_flops_not_a_digit_is_lost(flops):
    assert budget_of(budget_text(Budget(flops))).flops == flops


@given(st.floats(1e6, 1e10), st.floats(1e3, 1e10), st.integers(1, 2048))
def test_a_budget_of_a_training_buys_its_images(parameters, images, tokens):
    budget = Budget(flops_of_training(parameters, images, tokens))
    assert budget.images(parameters, tokens) == pytest.approx(images)
    units = paper_units_of_training(parameters, images, tokens)
    assert budget.paper_units == pytest.approx(units)
    assert budget_of(f"{units!r}paper").flops == pytest.approx(budget.flops)


def test_the_papers_unit_counts_a_picture_of_256_tokens_as_one():
    assert paper_units_of_training(111e6, 1e6, 256) == pytest.approx(6 * 111e6 * 1e6)
    assert paper_units_of_training(111e6, 1e6, 576) == pytest.approx(6 * 111e6 * 1e6 * 576 / 256)
    assert budget_of("3e18paper").flops == 256 * budget_of("3e18flop").flops


@pytest.mark.parametrize("text", ["2gpuh", " 2 GPUh ", "2.0gpuh", "20e-1gpuh"])
def test_hours_are_those_of_a_device(text):
    assert budget_of(text, 1e14).flops == 2 * 3600 * 1e14
    assert budget_of(text, 1e14).gpu_hours(1e14) == 2.0


@pytest.mark.parametrize("speed", [None, 0.0, -1.0, float("inf")])
def test_hours_without_a_device_are_refused(speed):
    with pytest.raises(UserError, match="FLOPs that it does in a second"):
        budget_of("2gpuh", speed)


def test_a_bare_number_is_refused_with_the_reason():
    with pytest.raises(UserError, match=r"units differ 256-fold: write 3e18flop .* 3e18paper"):
        budget_of("3e18")


@pytest.mark.parametrize("text", ["", "flop", "3e18 stones", "1.2.3flop", "0flop", "-1flop",
                                  "1e999flop", "nanflop", "3e18flop4"])  # fmt: skip
def test_what_is_no_budget_is_refused(text):
    with pytest.raises(UserError, match="budget"):
        budget_of(text)
