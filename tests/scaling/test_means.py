"""A study's means over seeds: Student's interval, and only what every seed has."""

import pytest

from cartok.scaling.means import arm_means


def score(value, **receipt):
    return {"value": value, "unit": "", "receipt": receipt}


def test_the_interval_over_seeds_is_students():
    runs = [
        {"arm": "a", "status": "finished", "scores": {"gfd": score(value, seed=value)}}
        for value in (1.0, 2.0, 3.0)
    ]
    (arm,) = arm_means([*runs, {"arm": "a", "status": "failed", "reason": "died"}])
    assert (arm.finished, arm.failures) == (3, ["died"])
    low, high = arm.scores["gfd"]["receipt"]["over_seeds"]["interval"]
    assert arm.scores["gfd"]["value"] == 2
    assert high - 2 == pytest.approx(2.919986 / 3**0.5, rel=1e-6)  # t of 95 %, 2 degrees of freedom
    assert low == pytest.approx(4 - high)


def test_a_score_that_one_seed_lacks_is_no_score_of_the_arm():
    runs = [
        {"arm": "a", "status": "finished", "scores": {"gfd": score(1.0), "rfd": score(1.0)}},
        {"arm": "a", "status": "finished", "scores": {"gfd": score(2.0)}},
    ]
    assert set(arm_means(runs)[0].scores) == {"gfd"}
