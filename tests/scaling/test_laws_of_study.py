"""A grid study's laws are those its runs were drawn from, and cross where those do."""

import copy
import json
import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from cartok.scaling.arm_fits import ArmFit, fits_of
from cartok.scaling.grid import GridArm, grid_of
from cartok.scaling.joint import JointLaw
from cartok.scaling.law import Law, LawFit
from cartok.scaling.laws_of_study import crossings_of, laws_of

SMALL, LARGE = Law(5.0, -0.9, 32.5), Law(1.5, -0.6, 23.0)
"""The small codebook's floor is high, its fall steep: it wins at first, and loses later."""


def at(law):
    return lambda flops, parameters, pictures: law.score_at(flops)


@pytest.fixture
def crossed(grid_study):
    return grid_study({"small": (64, 64, 3.5, at(SMALL)), "large": (4096, 64, 1.2, at(LARGE))})


def test_a_study_drawn_from_laws_gives_these_laws_with_the_runs_behind_them(crossed):
    arms = laws_of(crossed)["arms"]
    points = {arm.name: arm.points for arm in grid_of(crossed)}
    for name, law in (("small", SMALL), ("large", LARGE)):
        found = arms[name]["laws"]["gfd"]
        for parameter in ("l_min", "alpha", "intercept"):
            assert found[parameter]["value"] == pytest.approx(getattr(law, parameter), rel=1e-5)
            low, high = found[parameter]["interval"]
            assert low <= found[parameter]["value"] + 1e-6
            assert high >= found[parameter]["value"] - 1e-6
        assert found["r2"] == pytest.approx(1.0)
        assert found["runs"] == [point.run for point in points[name]]
        assert len(found["runs"]) == 10
    assert [arms[name]["rfd"] for name in arms] == [3.5, 1.2]


def test_laws_cross_where_those_that_runs_were_drawn_from_do(crossed):
    (found,) = crossings_of(fits_of(crossed, "gfd"))
    assert found.is_seen
    assert found.flops is not None
    assert SMALL.score_at(found.flops) == pytest.approx(LARGE.score_at(found.flops), rel=1e-4)
    assert (found.below, found.above) == ("small", "large")
    assert found.words.startswith("small is better below ")
    assert found.share == 1.0


def test_where_noise_hides_a_crossing_its_interval_and_the_share_of_refits_say_so(grid_study):
    noisy = {"small": (64, 64, 3.5, at(SMALL)), "large": (4096, 64, 1.2, at(LARGE))}
    (sure,) = crossings_of(fits_of(grid_study(noisy, noise=0.003), "gfd"))
    (unsure,) = crossings_of(fits_of(grid_study(noisy, noise=0.05), "gfd"))
    assert sure.interval is not None
    assert unsure.interval is not None
    width = [found.interval.high / found.interval.low for found in (sure, unsure)]
    assert 1 < width[0] < width[1]
    assert width[1] - 1 > 10 * (width[0] - 1)
    assert sure.share >= unsure.share


def fit_with(name, laws):
    """A fit that has seen 1e12 to 1e15 FLOPs: its law is the first, draws are the others."""
    draws = np.array([[law.l_min, law.alpha, law.intercept] for law in laws[1:]])
    fit = LawFit(laws[0], 1.0, np.zeros(8), (1e12, 1e15), "", (), draws)
    return ArmFit(GridArm(name), "gfd", (), law=fit)


def bent(first, last):
    """A law of alpha -.8 that beats ``STRAIGHT`` between two computes and nowhere else.

    Over u = C^-.4 it is l + B u^2 and the straight one 1 + 100 u, a parabola and a line that meet
    where their difference B (u - u1) (u - u2) is 0.
    """
    u1, u2 = first**-0.4, last**-0.4
    bend = 100 / (u1 + u2)
    return Law(1 + bend * u1 * u2, -0.8, math.log(bend))


STRAIGHT = Law(1.0, -0.4, math.log(100.0))
FAR = 1e20
"""Beyond all that is looked at."""


@given(
    st.floats(12.2, 14.8),
    st.lists(
        st.tuples(st.floats(11.6, 15.9), st.one_of(st.none(), st.floats(0.1, 3.0))),
        min_size=1, max_size=30,
    ),
    st.booleans(),
)  # fmt: skip
def test_a_refit_crosses_where_it_turns_the_points_way_wherever_else_it_turns(
    place, draws, is_first
):
    """``draws`` are where the bent law comes to lead, and for how many decades, if not for good."""
    last = [10 ** (first + lead) if lead else FAR for first, lead in draws]
    laws = [bent(10**place, FAR)]
    laws += [bent(10**first, end) for (first, _), end in zip(draws, last, strict=True)]
    pair = [fit_with("bent", laws), fit_with("straight", [STRAIGHT] * len(laws))]
    (found,) = crossings_of(pair if is_first else pair[::-1])
    assert found.flops == pytest.approx(10**place, rel=1e-6)
    assert (found.below, found.above) == ("straight", "bent")
    assert found.share == 1.0
    ends = np.quantile([10**first for first, _ in draws], (0.05, 0.95))
    assert (found.interval.low, found.interval.high) == pytest.approx(tuple(ends), rel=0.04)
    surely, perhaps = (
        np.mean([12 + slack < first < 15 - slack for first, _ in draws]) for slack in (0.02, -0.02)
    )
    assert surely <= found.share_within <= perhaps
    surely, perhaps = (np.mean([end < 1e16 * slack for end in last]) for slack in (0.95, 1.05))
    assert surely <= found.share_twice <= perhaps


def test_the_sentence_tells_how_many_refits_cross_so_and_how_many_cross_twice():
    """Of 20 refits 14 cross as the laws do, two of them beyond; 6 cross the other way alone."""
    once = [bent(1e3, 1e14)] * 10 + [bent(1e3, 3e15)] * 2
    laws = [bent(1e3, 1e14), *once, *[bent(2e11, 1e14)] * 2, *[bent(1e14, FAR)] * 6]
    (found,) = crossings_of([fit_with("bent", laws), fit_with("straight", [STRAIGHT] * 21)])
    assert (found.share, found.share_within, found.share_twice) == (0.7, 0.6, 0.1)
    assert "70% of refits cross so (60% within what both have seen), 90 % of those" in found.words
    assert found.words.endswith("; 10% of refits cross twice.")
    (found,) = crossings_of([fit_with("bent", laws[:13]), fit_with("straight", [STRAIGHT] * 13)])
    assert (found.share, found.share_twice) == (1.0, 0.0)
    assert "twice" not in found.words


def test_laws_that_do_not_cross_say_which_is_better_all_over(grid_study):
    better = Law(SMALL.l_min, SMALL.alpha, SMALL.intercept - 0.5)
    study = grid_study({"one": (64, 64, 3.5, at(SMALL)), "two": (64, 64, 3.5, at(better))})
    (found,) = crossings_of(fits_of(study, "gfd"))
    assert found.flops is None
    assert found.words.startswith("two is better than one from ")
    assert "100% of refits agree at the low end" in found.words


def test_two_sizes_of_prior_give_the_joint_form_and_its_frontier(grid_study):
    joint = JointLaw(2.0, 7.0, 6.0, 0.5, 0.45)
    study = grid_study(
        {"one": (64, 64, 3.5, lambda flops, n, d: joint.score_at(n, d))},
        sizes={"2x64": 300_000, "4x128": 1_500_000, "6x256": 6_000_000},
    )
    (fit,) = fits_of(study, "gfd")
    assert fit.joint is not None
    assert fit.joint.law.a == pytest.approx(joint.a, abs=1e-4)
    assert fit.law is not None
    assert fit.law.law.alpha == pytest.approx(-0.5 * 0.45 / 0.95, abs=1e-4)
    written = laws_of(study)["arms"]["one"]["laws"]["gfd"]
    assert written["joint"]["b"]["value"] == pytest.approx(joint.b, abs=1e-4)
    assert "joint form" in written["fitted_to"]


def test_where_the_joint_form_is_not_borne_the_frontiers_law_stands_with_the_reason(grid_study):
    study = grid_study(
        {"one": (64, 64, 3.5, at(SMALL))}, sizes={"6x256": 6_000_000, "6x258": 6_100_000}
    )
    written = laws_of(study)["arms"]["one"]["laws"]["gfd"]
    assert "about of one size" in written["joint"]["refused"]
    assert written["alpha"]["value"] == pytest.approx(SMALL.alpha, abs=1e-3)
    assert "frontier" in written["fitted_to"]


@pytest.mark.parametrize(
    ("lengths", "gfd", "why"),
    [
        ((500, 1000, 2000, 4000), at(SMALL), "must span a factor of 10"),
        ((500, 2000, 8000), at(SMALL), "needs points at 4 computes or more"),
        ((500, 1000, 2000, 4000, 8000), lambda flops, n, d: 5.0 + d / 1e9, "must fall"),
    ],
)
def test_what_the_runs_do_not_bear_is_a_refusal_in_words(grid_study, lengths, gfd, why):
    study = grid_study({"one": (64, 64, 3.5, gfd), "two": (64, 64, 1.0, gfd)}, lengths=lengths)
    written = laws_of(study)
    for arm in written["arms"].values():
        assert why in arm["laws"]["gfd"]["refused"]
        assert "alpha" not in arm["laws"]["gfd"]
    assert written["crossings"] == []


def test_an_arm_without_a_finished_run_is_there_with_a_refusal(crossed):
    for run in crossed["runs"]:
        if run["arm"].startswith("large@"):
            run |= {"status": "failed", "scores": {}}
    arms = laws_of(crossed)["arms"]
    assert "no run of it has finished" in arms["large"]["laws"]["gfd"]["refused"]
    assert "alpha" in arms["small"]["laws"]["gfd"]


def test_a_score_that_was_not_finite_is_left_out(crossed):
    crossed["runs"][0]["scores"]["gfd"]["value"] = None
    fit = fits_of(crossed, "gfd")[0]
    assert crossed["runs"][0]["digest"] not in fit.runs
    assert len(fit.runs) == 9


def test_points_come_by_rising_compute_whatever_the_order_of_runs(crossed):
    turned = copy.deepcopy(crossed)
    turned["runs"].reverse()
    assert grid_of(turned) == grid_of(crossed)
    assert laws_of(turned) == laws_of(crossed)


def test_laws_are_plain_json_and_the_same_each_time(crossed):
    written = laws_of(crossed)
    assert json.loads(json.dumps(written, allow_nan=False)) == written
    assert laws_of(crossed) == written
    point = grid_of(crossed)[0].points[0]
    assert point.flops / point.paper_flops == written["flops_per_paper_unit"]
    assert math.isclose(point.flops, 6 * point.parameters * point.pictures * 64)
