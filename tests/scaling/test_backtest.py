"""Laws are held against runs that they have not seen."""

import pytest

from cartok.scaling.backtest import foretold
from cartok.scaling.law import Law

SIZES = {"2x64": 200_000, "4x128": 1_000_000, "6x256": 6_000_000}
LAW = Law(5.0, -0.5, 18.0)
LENGTHS = (250, 500, 1000, 2000, 4000, 8000)


def by_law(flops, parameters, pictures):
    return LAW.score_at(flops)


def by_size(flops, parameters, pictures):
    return 2 + 300 / parameters**0.4 + 900 / pictures**0.5


@pytest.mark.parametrize(("gfd", "sizes"), [(by_law, None), (by_size, SIZES)])
def test_what_follows_a_law_is_foretold(grid_study, gfd, sizes):
    (row,) = foretold(grid_study({"one": (64, 64, 1.5, gfd)}, sizes, LENGTHS))
    assert row.prior == "6x256-8000"
    assert row.beyond == pytest.approx(2)
    assert row.prediction.score == pytest.approx(row.measured, rel=1e-3)


def test_runs_that_break_with_the_law_are_told_apart(grid_study):
    study = grid_study({"one": (64, 64, 1.5, by_law)}, lengths=LENGTHS, noise=0.01)
    assert foretold(study)[0].is_within
    for run in study["runs"]:
        if run["arm"].endswith("-8000"):
            run["scores"]["gfd"]["value"] *= 1.5  # had they been seen, they would have bent the law
    (row,) = foretold(study)
    assert not row.is_within
    assert row.measured == pytest.approx(1.5 * row.prediction.score, rel=0.05)


def test_the_mean_over_seeds_is_foretold_and_a_law_that_is_missing_told(grid_study):
    arms = {"one": (64, 64, 1.5, by_law), "flat": (16, 64, 9.0, lambda *_: 9.0)}
    study = grid_study(arms, lengths=LENGTHS)
    longest = [run for run in study["runs"] if run["arm"] == "one@6x256-8000"]
    longest[0]["scores"]["gfd"]["value"] *= 1.2
    one, flat = foretold(study)
    assert one.measured == pytest.approx(1.1 * longest[1]["scores"]["gfd"]["value"])
    assert (flat.prediction, flat.is_within) == (None, False)
    assert "scores must fall" in flat.refused


def test_one_prior_or_none_leaves_nothing_to_fit(grid_study):
    assert foretold(grid_study({"one": (64, 64, 1.5, by_law)}, lengths=(500,))) == []
    study = grid_study({"one": (64, 64, 1.5, by_law)})
    assert foretold(study | {"runs": []}) == []
