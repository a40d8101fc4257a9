"""Gains are differences within a seed: from the twin, and from the baseline at equal rFD."""

import math

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from cartok.scaling.claim import at_rfd, claims_lines, claims_of, claims_tables, pairs_of


def study_of(arms):
    """Arms: name to codes, weight, and a seed's (rFD, gFD) each; None is a seed that failed."""
    config = [
        {
            "name": name,
            "tokenizer": {
                "model": {"quantizer": {"codebook_size": codes}},
                "causal": {"weight": weight},
            },
        }
        for name, (codes, weight, _) in arms.items()
    ]
    runs = [
        {"arm": name, "seed": seed, "scores": {"rfd": {"value": at[0]}, "gfd": {"value": at[1]}}}
        if at
        else {"arm": name, "seed": seed}
        for name, (_, _, seeds) in arms.items()
        for seed, at in enumerate(seeds)
    ]
    return {"config": {"arms": config}, "runs": runs}


def claim(arms, arm, key, at):
    (found,) = [c for c in claims_of(study_of(arms)) if (c.arm, c.key, c.at) == (arm, key, at)]
    return found


BASE = {
    "few": (256, 0.0, [(4.0, 16.0), (4.0, 18.0), (4.0, 14.0)]),
    "base": (512, 0.0, [(2.0, 20.0), (2.0, 21.0), (2.0, 19.0)]),
}
HALFWAY = math.sqrt(8)  # in log rFD between 2 and 4


def test_a_gain_is_the_mean_of_differences_within_seeds_with_students_interval():
    found = claim(
        BASE | {"causal": (512, 4.0, [(2.0, 18.0), (2.0, 20.0), (2.0, 16.0)])},
        "causal", "gfd", "at equal codes",
    )  # fmt: skip
    assert found.differences == {0: -2.0, 1: -1.0, 2: -3.0}
    assert found.mean == -2
    reach = 4.302653 / math.sqrt(3)  # Student's t of 2 degrees at 97.5 %, deviation 1
    assert (found.interval.low, found.interval.high) == pytest.approx((-2 - reach, -2 + reach))
    assert not found.is_clear
    assert found.text == "−2 [−4.484, 0.4841]; −2, −1, −3"


def test_a_seed_that_waits_is_told_from_one_that_has_no_number():
    study = study_of(BASE | {"causal": (512, 4.0, [(2.0, 18.0), None, None])})
    for run in study["runs"]:
        if run["arm"] == "causal" and run["seed"] == 2:
            run["status"] = "waiting"
    (found,) = [c for c in claims_of(study) if (c.key, c.at) == ("gfd", "at equal codes")]
    assert found.missing == {1: "causal has no number", 2: "causal has not been run"}


def test_at_equal_rfd_the_baseline_is_read_off_its_curve_seed_by_seed():
    arms = BASE | {"causal": (512, 4.0, [(HALFWAY, 17.0), (HALFWAY, 18.5), (HALFWAY, 15.4)])}
    found = claim(arms, "causal", "gfd", "at equal rFD")
    assert list(found.differences.values()) == pytest.approx([-1.0, -1.0, -1.1])
    assert found.is_clear
    worse = claim(arms, "causal", "rfd", "at equal codes")
    assert worse.mean == pytest.approx(HALFWAY - 2)


def test_beyond_the_baselines_curve_nothing_is_claimed():
    arms = BASE | {"causal": (512, 4.0, [(5.0, 10.0)])}
    found = claim(arms, "causal", "gfd", "at equal rFD")
    assert (found.mean, found.interval, found.is_clear) == (None, None, False)
    assert found.text == "seed 0: rFD 5 is not in 2 to 4"


def test_one_seed_has_no_interval():
    arms = BASE | {"causal": (512, 4.0, [(2.0, 18.0)])}
    assert claim(arms, "causal", "gfd", "at equal codes").text == "−2 (one seed)"


def test_seeds_that_are_left_out_are_told_and_leave_no_interval():
    """They are left out by how they ended, so the others are no fair sample."""
    arms = BASE | {"causal": (512, 4.0, [(2.0, 18.0), (9.0, 18.0), None])}
    at_rfd = claim(arms, "causal", "gfd", "at equal rFD")
    assert at_rfd.text == (
        "−2 (1 of 3 seeds; seed 1: rFD 9 is not in 2 to 4; seed 2: causal has no number)"
    )
    assert at_rfd.interval is None
    at_codes = claim(arms, "causal", "gfd", "at equal codes")
    assert at_codes.text == "−2, −3 (2 of 3 seeds; seed 2: causal has no number)"
    assert at_codes.interval is None
    arms["base"] = (512, 0.0, [None, (2.0, 18.0), (2.0, 18.0)])
    assert claim(arms, "causal", "gfd", "at equal codes").missing[0] == "base has no number"
    assert claim(arms, "causal", "gfd", "at equal rFD").missing[0] == "the baseline has no curve"


def test_a_number_that_is_not_there_or_is_0_breaks_nothing():
    arms = BASE | {"causal": (512, 4.0, [(None, 18.0), (2.0, 18.0), (2.0, 18.0)])}
    arms["base"] = (512, 0.0, [(2.0, 20.0), (0.0, 20.0), (2.0, 20.0)])
    found = claim(arms, "causal", "gfd", "at equal rFD")
    assert found.missing == {0: "causal has no number", 1: "rFD 2 is not in 0 to 4"}


def test_an_arm_is_compared_with_what_differs_in_the_regulariser_alone():
    arms = {"few": BASE["few"], "causal": (512, 4.0, [(2.0, 18.0)])}
    assert claims_of(study_of(arms)) == []
    assert {c.minus for c in claims_of(study_of(arms | {"base": BASE["base"]}))} == {"base"}


def test_each_of_several_priors_is_compared_too():
    study = study_of(BASE | {"causal": (512, 4.0, [(2.0, 18.0)])})
    for run in study["runs"]:
        for size in ("6x256", "12x512"):
            run["scores"][f"gfd/{size}"] = {"value": 1.0 + (run["arm"] == "causal")}
    names = [c.name for c in claims_of(study) if c.at == "at equal codes"]
    assert names == ["gFD", "gFD 12x512", "gFD 6x256", "rFD"]


def test_tables_hold_one_comparison_each_and_lines_follow_them():
    arms = BASE | {"causal": (512, 4.0, [(2.0, 18.0)]), "far": (512, 2.0, [(9.0, 18.0)])}
    tables = claims_tables(claims_of(study_of(arms)))
    said = {name: [(c.arm, c.minus, c.text) for c in some] for name, some in tables.items()}
    assert said == {
        "gFD at equal codes": [
            ("causal", "base", "−2 (one seed)"), ("far", "base", "−2 (one seed)"),
        ],
        "gFD at equal rFD": [
            ("causal", "base", "−2 (one seed)"),
            ("far", "base", "seed 0: rFD 9 is not in 2 to 4"),
        ],
        "gFD at an rFD no higher": [
            ("causal", "base", "−2 (one seed)"), ("far", "few", "+2 (one seed)"),
        ],
        "rFD at equal codes": [
            ("causal", "base", "0 (one seed)"), ("far", "base", "+7 (one seed)"),
        ],
    }  # fmt: skip
    lines = claims_lines(claims_of(study_of(arms)))
    assert lines[1] == ["causal", "base", "gFD at equal codes", "−2 (one seed)"]
    assert len(lines) == 9
    assert claims_tables([]) == {}


def test_the_best_baseline_is_the_lowest_on_average_of_those_that_reconstruct_as_well():
    """Whatever it is made of: a gain that a stronger commitment has, too, is not the form's."""
    arms = BASE | {
        "other": (64, 0.0, [(1.9, 15.0), (2.3, 21.0), (2.1, 15.0)]),
        "poor": (64, 0.0, [(8.0, 1.0), (8.0, 1.0), (8.0, 1.0)]),
        "causal": (512, 4.0, [(2.0, 14.0), (3.0, 20.0), (2.0, 14.0)]),
    }
    found = claim(arms, "causal", "gfd", "at an rFD no higher")
    assert (found.minus, found.differences) == ("other", {0: -1.0, 1: -1.0, 2: -1.0})
    assert found.is_clear
    arms["late"] = (64, 0.0, [(1.5, 1.0)])  # not yet to be judged: two seeds are to come
    assert claim(arms, "causal", "gfd", "at an rFD no higher").minus == "other"
    arms["causal"] = (512, 4.0, [(1.0, 14.0)])
    assert not [c for c in claims_of(study_of(arms)) if c.at == "at an rFD no higher"]


def test_an_arm_without_the_regulariser_is_held_against_the_first_ones_curve():
    arms = {
        "base": BASE["base"], "few": BASE["few"], "other": (512, 0.0, [(HALFWAY, 17.0)]),
        "odd": (100, 0.0, [(2.0, 3.0)]),
    }  # fmt: skip
    study = study_of(arms)
    for arm in study["config"]["arms"][2:]:
        arm["tokenizer"]["losses"] = {"commitment": 4.0}
    found = {(c.arm, c.minus, c.key, c.at): c.mean for c in claims_of(study)}
    assert found == {
        ("other", "base", "gfd", "at equal codes"): -3.0,
        ("other", "base", "gfd", "at equal rFD"): pytest.approx(-1.0),
        ("other", "base", "rfd", "at equal codes"): pytest.approx(HALFWAY - 2),
    }


def test_few_arms_of_several_seeds_are_compared_pair_by_pair():
    arms = BASE | {
        "causal": (512, 4.0, [(2.0, 14.0), None, (2.0, 16.0)]),
        "one": (1, 0.0, [(1, 1)]),
    }
    found = {(c.arm, c.minus): c.differences for c in pairs_of(study_of(arms))}
    assert found == {
        ("base", "few"): {0: 4.0, 1: 3.0, 2: 5.0},
        ("causal", "few"): {0: -2.0, 2: 2.0},
        ("causal", "base"): {0: -6.0, 2: -3.0},
    }
    many = {f"arm-{place}": arms["base"] for place in range(7)}
    assert pairs_of(study_of(many)) == []


@pytest.mark.parametrize("quantizer", [{"kind": "rvq", "codebook_size": 512}, {"kind": "fsq"}])
def test_codes_of_another_kind_are_not_as_many(quantizer):
    study = study_of({"base": BASE["base"], "other": (512, 0.0, [(2.0, 9.0)])})
    study["config"]["arms"][1]["tokenizer"]["model"]["quantizer"] = quantizer
    assert claims_of(study) == []


rfds = st.floats(0.5, 50)


@given(st.lists(st.tuples(rfds, st.floats(-9, 9)), min_size=2, max_size=6), rfds)
def test_a_curve_stays_between_its_neighbours_and_goes_through_its_points(points, rfd):
    assume(len({x for x, _ in points}) == len(points))
    value = at_rfd(points, rfd)
    xs, ys = zip(*points, strict=True)
    assert (value is None) == (not min(xs) <= rfd <= max(xs))
    if value is not None:
        assert min(ys) - 1e-9 <= value <= max(ys) + 1e-9
    assert at_rfd(points, points[0][0]) == pytest.approx(points[0][1], abs=1e-6)


def test_an_arm_shown_more_pixels_is_not_on_the_curve_over_codebook_sizes():
    arms = {
        name: {"name": name, "pixels": pixels, "tokenizer": {
            "model": {"quantizer": {"kind": "vq", "codebook_size": codes}},
            "causal": {"weight": weight}}}
        for name, codes, pixels, weight in (
            ("few", 64, 0, 0.0), ("many", 512, 0, 0.0), ("larger", 512, 48, 0.0),
            ("causal", 512, 0, 4.0))
    }  # fmt: skip
    numbers = {"few": (9.0, 30.0), "many": (5.0, 20.0), "larger": (6.0, 99.0), "causal": (5.5, 18)}
    runs = [
        {"arm": name, "seed": 0, "status": "finished", "scores": {
            "rfd": {"value": rfd, "receipt": {}}, "gfd": {"value": gfd, "receipt": {}}}}
        for name, (rfd, gfd) in numbers.items()
    ]  # fmt: skip
    found = claims_of({"config": {"arms": list(arms.values())}, "runs": runs})
    (claim,) = [c for c in found if (c.arm, c.key, c.at) == ("causal", "gfd", "at equal rFD")]
    expected = at_rfd([(5.0, 20.0), (9.0, 30.0)], 5.5)
    assert expected is not None
    assert claim.differences[0] == pytest.approx(18 - expected)
