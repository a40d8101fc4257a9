"""A grid study's laws are those its runs were drawn from, and cross where those do."""

import copy
import json
import math

import pytest

from cartok.scaling.arm_fits import fits_of
from cartok.scaling.grid import grid_of
from cartok.scaling.joint import JointLaw
from cartok.scaling.law import Law
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
