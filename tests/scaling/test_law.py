"""A law is recovered from its points, and says how far it is to be believed."""

import math

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from cartok.core.errors import UserError
from cartok.scaling.law import Law, fit_law

LAW = Law(l_min=2.21, alpha=-0.65, intercept=25.91)
COMPUTE = np.geomspace(1e16, 3e18, 10)


def scores_of(law, compute=COMPUTE, noise=0.0, seed=0):
    exact = np.array([law.score_at(c) for c in compute.tolist()])
    return exact * np.exp(noise * np.random.default_rng(seed).standard_normal(len(exact)))


def assert_same(law, other, tolerance):
    for name in ("l_min", "alpha", "intercept"):
        assert getattr(law, name) == pytest.approx(getattr(other, name), rel=0, abs=tolerance)


@settings(max_examples=30, deadline=None)
@given(
    l_min=st.floats(0.0, 8.0),
    alpha=st.floats(-1.5, -0.1),
    top=st.floats(0.3, 3.0),
    decades=st.floats(1.5, 4.0),
    unit=st.floats(1.0, 1e20),
)
def test_points_without_noise_give_the_law_they_lie_on(l_min, alpha, top, decades, unit):
    compute = unit * np.geomspace(1.0, 10.0**decades, 9)
    law = Law(l_min, alpha, math.log(top) - alpha * math.log(compute[4]))
    assume(law.score_at(compute[-1]) < 1e6)
    fit = fit_law(compute, scores_of(law, compute), draws=2)
    assert_same(fit.law, law, 1e-6)
    assert fit.r2 == pytest.approx(1.0, abs=1e-6)
    assert np.abs(fit.residuals).max() < 1e-7


def test_a_unit_of_compute_moves_lambda_alone():
    scores = scores_of(LAW, noise=0.02)
    fit, scaled = fit_law(COMPUTE, scores), fit_law(COMPUTE * 256, scores)
    assert scaled.law.alpha == pytest.approx(fit.law.alpha, abs=1e-6)
    assert scaled.law.l_min == pytest.approx(fit.law.l_min, abs=1e-6)
    moved = -fit.law.alpha * math.log(256)
    assert scaled.law.intercept - fit.law.intercept == pytest.approx(moved, abs=1e-4)


@pytest.mark.parametrize("place", range(1, 9))
def test_one_stray_run_does_not_turn_the_fit(place):
    scores = scores_of(LAW, noise=0.01)
    strayed = scores.copy()
    strayed[place] *= 1.5
    fit = fit_law(COMPUTE, strayed, draws=2)
    assert abs(fit.law.alpha - fit_law(COMPUTE, scores, draws=2).law.alpha) < 0.035
    assert fit.residuals[place] == pytest.approx(math.log(1.5), abs=0.05)


def test_a_stray_run_of_least_compute_is_warned_of():
    scores = scores_of(LAW, noise=0.01)
    scores[0] *= 1.5
    assert "stray run among those of least" in fit_law(COMPUTE, scores, draws=2).warnings[0]


def test_a_given_minimum_is_held_in_every_draw():
    fit = fit_law(COMPUTE, scores_of(LAW, noise=0.02), l_min=2.0)
    assert fit.law.l_min == 2.0
    assert fit.held == "L_min at 2"
    assert (fit.draws[:, 0] == 2.0).all()


def test_a_given_minimum_that_is_right_narrows_the_interval_of_alpha():
    scores = scores_of(LAW, noise=0.02)
    free, held = fit_law(COMPUTE, scores), fit_law(COMPUTE, scores, l_min=2.21)
    width = [f.interval("alpha").high - f.interval("alpha").low for f in (free, held)]
    assert width[1] < width[0]
    assert fit_law(COMPUTE, scores).held == ""


def test_the_minimum_lies_between_the_floor_and_the_lowest_score():
    scores = scores_of(LAW, noise=0.1, seed=3)
    fit = fit_law(COMPUTE, scores, floor=1.5)
    assert fit.draws[:, 0].min() >= 1.5
    lower = scores_of(Law(0.2, -0.3, 12.0))
    fit = fit_law(COMPUTE, lower, floor=0.4)
    assert fit.law.l_min == 0.4 < lower.min()
    assert "no floor" in fit.warnings[0]


def test_a_fit_says_what_it_rests_on():
    fit = fit_law(COMPUTE, scores_of(LAW, noise=0.02))
    assert fit.num_points == 10
    assert fit.compute_seen == (pytest.approx(1e16), pytest.approx(3e18))
    assert 0.98 < fit.r2 < 1
    assert fit.warnings == ()
    assert fit.interval("alpha").low < fit.law.alpha < fit.interval("alpha").high
    assert len(fit.laws) == 400
    assert fit.laws[0].l_min == fit.draws[0, 0]


def test_the_same_seed_draws_the_same():
    scores = scores_of(LAW, noise=0.02)
    assert (fit_law(COMPUTE, scores).draws == fit_law(COMPUTE, scores).draws).all()
    assert (fit_law(COMPUTE, scores, seed=1).draws != fit_law(COMPUTE, scores).draws).any()


@given(st.floats(2.22, 100.0))
def test_the_compute_for_a_score_gives_that_score(score):
    assert LAW.score_at(LAW.compute_for(score)) == pytest.approx(score, rel=1e-9)


def test_no_compute_reaches_the_minimum():
    with pytest.raises(UserError, match="above its L_min"):
        LAW.compute_for(2.21)


# ------------------------------------------------------------------ how far it is asked


def test_beyond_the_compute_seen_a_prediction_is_marked():
    fit = fit_law(COMPUTE, scores_of(LAW, noise=0.02))
    inside, beyond = fit.prediction_at(1e17), fit.prediction_at(9e18)
    assert not inside.extrapolated
    assert beyond.extrapolated
    assert beyond.score == fit.law.score_at(9e18)
    assert beyond.interval.low < beyond.score < beyond.interval.high


@pytest.mark.parametrize("compute", [3.1e19, 0.9e15])
def test_more_than_ten_times_beyond_it_is_refused_with_the_run_to_add(compute):
    fit = fit_law(COMPUTE, scores_of(LAW, noise=0.02))
    with pytest.raises(UserError, match=r"within 10 times .* 1\.00 × 10¹⁶ to 3\.00 × 10¹⁸") as told:
        fit.prediction_at(compute)
    assert "add a run near" in str(told.value)


# ------------------------------------------------------------------ what is refused


def test_fewer_than_four_computes_are_refused():
    with pytest.raises(UserError, match="at 4 computes or more, but there are 3"):
        fit_law([1e16, 1e17, 1e18, 1e18], [9.0, 4.0, 2.5, 2.6])


def test_less_than_a_decade_is_refused_unless_the_minimum_is_given():
    compute = np.geomspace(1e17, 9e17, 6)
    scores = scores_of(LAW, compute)
    with pytest.raises(UserError, match=r"span a factor of 10, but spans 9"):
        fit_law(compute, scores)
    assert_same(fit_law(compute, scores, l_min=2.21).law, LAW, 1e-6)
    with pytest.raises(UserError, match="span a factor of 3"):
        fit_law(compute[:4] ** 0.5 * 1e8, scores[:4], l_min=2.21)


@pytest.mark.parametrize("factor", [0.0, 0.1])
def test_scores_that_do_not_fall_are_refused(factor):
    noise = np.array([0.1, -0.1] * 5)
    scores = 3.0 * np.exp(noise + factor * np.log(COMPUTE / 1e16))
    with pytest.raises(UserError, match="must fall with compute"):
        fit_law(COMPUTE, scores)


def test_scores_that_are_all_one_are_refused():
    with pytest.raises(UserError, match="must fall with compute"):
        fit_law(COMPUTE, np.full(10, 3.0))


@pytest.mark.parametrize("l_min", [-0.1, 9.4])
def test_a_minimum_that_is_not_below_the_scores_is_refused(l_min):
    with pytest.raises(UserError, match="below the lowest score"):
        fit_law(COMPUTE, scores_of(LAW), l_min=l_min)
