"""A plan is what the laws that a study was drawn from say is best, or a refusal with the remedy."""

import copy
import json
import math
import re
import subprocess
import sys

import pytest

from cartok.core.errors import UserError
from cartok.scaling.arm_fits import fits_of
from cartok.scaling.crossing import crossing
from cartok.scaling.joint import JointLaw
from cartok.scaling.law import Law
from cartok.scaling.next_run import next_run
from cartok.scaling.planner import plan_under, rows_of, sentences_of

SMALL, LARGE = Law(5.0, -0.9, 32.5), Law(1.5, -0.6, 23.0)
CROSSING = crossing(SMALL, LARGE, (1e15, 1e17)) or 0.0
SIZE, TOKENS, BATCH = 6_000_000, 64, 256


def at(law):
    return lambda flops, parameters, pictures: law.score_at(flops)


ARMS = {"small": (64, TOKENS, 3.5, at(SMALL)), "large": (4096, TOKENS, 1.2, at(LARGE))}


@pytest.fixture
def crossed(grid_study):
    return grid_study(ARMS)


@pytest.mark.parametrize("budget", [3e14, 6e14, 1e15, 4e15, 1e16])
def test_the_tokenizer_whose_law_is_lower_there_is_recommended_with_its_score(crossed, budget):
    plan = plan_under(crossed, f"{budget}flop")
    name, law = min(("small", SMALL), ("large", LARGE), key=lambda one: one[1].score_at(budget))
    assert plan.best.arm == name
    assert (name == "large") == (budget > CROSSING)
    assert plan.best.score == pytest.approx(law.score_at(budget), rel=1e-4)
    assert plan.best.steps == int(budget / (6 * SIZE * TOKENS * BATCH))
    assert plan.best.size == "6x256"
    assert plan.best.first > 0.99
    assert plan.best.extrapolated == (budget > 5e15)


SIZES = {"2x64": 300_000, "4x128": 1_500_000, "6x256": SIZE}
JOINT = JointLaw(2.0, 7.0, 6.0, 0.5, 0.45)
BY_SIZE = {"one": (64, TOKENS, 3.5, lambda flops, n, d: JOINT.score_at(n, d))}


@pytest.mark.parametrize("budget", [1e13, 1e14, 1e15, 1e16])
def test_with_sizes_the_best_that_the_study_has_is_recommended_with_its_steps(grid_study, budget):
    plan = plan_under(grid_study(BY_SIZE, sizes=SIZES), f"{budget}flop")
    product = budget / (6 * TOKENS)
    scores = {size: JOINT.score_at(n, product / n) for size, n in SIZES.items()}
    best = min(scores, key=scores.__getitem__)
    assert plan.best.size == best
    assert plan.best.parameters == SIZES[best]
    assert plan.best.steps == int(product / SIZES[best] / BATCH)
    assert plan.best.score == pytest.approx(scores[best], rel=1e-4)
    assert not plan.has_one_size


def test_a_size_far_from_those_of_the_study_is_told_beside(grid_study):
    study = grid_study(BY_SIZE, sizes=SIZES)
    best = fits_of(study, "gfd")[0].joint.best_under(4e16)
    told = plan_under(study, "4e16flop").best.other_size
    assert f"a prior of {best.parameters / SIZE:.2g} times that size would do best" in told
    assert plan_under(study, "2e14flop").best.other_size == ""


def test_tables_of_embeddings_that_cost_nothing_change_no_law_and_no_plan(grid_study):
    """N with them would make FLOPs of a size differ from k N D."""
    study, heavy = (grid_study(BY_SIZE, sizes=SIZES) for _ in range(2))
    for run in heavy["runs"]:
        run["scores"]["prior_flops"]["receipt"]["parameters"] += 700_000
    plans = [plan_under(one, "1e15flop") for one in (study, heavy)]
    assert plans[1].best.score == plans[0].best.score
    assert plans[1].best.steps == plans[0].best.steps
    laws = [fits_of(one, "gfd")[0].law for one in (study, heavy)]
    flops = [run["scores"]["prior_flops"]["value"] for run in heavy["runs"]]
    assert laws[1].compute_seen == pytest.approx((min(flops), max(flops)))
    assert laws[1].law == laws[0].law


def test_hours_are_counted_by_what_the_studys_runs_did_in_a_second(crossed):
    plan = plan_under(crossed, "0.1gpuh")  # the study's runs did 1e13 a second
    assert plan.best.flops == pytest.approx(0.1 * 3600 * 1e13)
    assert plan.best.seconds == pytest.approx(360)
    assert plan.device == "cuda: one GPU"
    assert plan.best.peak_memory_bytes == 3_000_000_000
    lean = next(run for run in crossed["runs"] if run["arm"] == f"{plan.best.arm}@6x256-500")
    lean["scores"]["prior_flops"]["receipt"]["peak_memory_bytes"] = 2_000_000_000
    assert plan_under(crossed, "0.1gpuh").best.peak_memory_bytes == 2_000_000_000
    faster = plan_under(crossed, "0.1gpuh", 2e13)
    assert faster.best.flops == pytest.approx(2 * plan.best.flops)
    assert faster.best.seconds == pytest.approx(360)
    assert "as given" in faster.device


def test_runs_of_another_device_have_no_say_in_time(crossed):
    for run in crossed["runs"][:4]:
        run["provenance"] = {"device": "cpu"}
        run["scores"]["prior_flops"]["receipt"]["seconds"] *= 100
    plan = plan_under(crossed, "3e14flop")
    assert plan.device == "cuda: one GPU"
    assert plan.best.seconds == pytest.approx(30)


def test_a_budget_of_the_papers_unit_is_where_the_run_stands_on_its_axes(crossed):
    assert plan_under(crossed, f"{1e15 / 256!r}paper").best == plan_under(crossed, "1e15flop").best
    for run in crossed["runs"]:  # a quarter of the parameters are tables
        cost = run["scores"]["prior_flops"]
        cost["value"] *= 0.75
    best = plan_under(crossed, f"{1e15 / 256!r}paper").best
    assert best.flops == pytest.approx(0.75e15)
    assert 6 * SIZE * best.pictures * TOKENS / 256 == pytest.approx(1e15 / 256)


def test_a_run_in_the_direction_of_the_budget_is_the_one_to_add(grid_study):
    study = grid_study({"one": ARMS["small"]}, noise=0.01)
    far = plan_under(study, "4e16flop").next_run
    assert far is not None
    assert (far.steps, far.is_repeat) == (16_000, False)
    assert 0 < far.narrower < 1
    assert "16,000 steps (a length beyond the grid" in far.words


def test_no_run_to_add_costs_more_than_what_is_planned(grid_study):
    for budget in (3e14, 1e15, 4e15, 2e16):
        plan = plan_under(grid_study(ARMS, noise=0.02), f"{budget}flop")
        assert plan.next_run is None or plan.next_run.flops <= budget


def test_where_nothing_is_in_doubt_no_run_is_asked_for(crossed):
    fit = fits_of(crossed, "gfd")[0]
    found = next_run(fit, 1e15, fit.drawn_scores(1e15))
    assert found is None


@pytest.mark.parametrize("budget", ["1e18flop", "1e12flop", "3e15paper", "200gpuh"])
@pytest.mark.parametrize("sizes", [None, SIZES])
def test_a_budget_beyond_the_laws_is_refused_and_borne_once_the_advised_run_is_there(
    grid_study, sizes, budget
):
    arms = BY_SIZE if sizes else {"one": ARMS["small"]}
    study = grid_study(arms, sizes=sizes)
    with pytest.raises(UserError, match="at most 10 times beyond") as refused:
        plan_under(study, budget)
    told = re.search(r"the prior (\S+) for ([\d,]+) steps", str(refused.value))
    size, steps = told[1], int(told[2].replace(",", ""))
    run = copy.deepcopy(next(r for r in study["runs"] if r["arm"] == f"one@{size}-500"))
    cost = run["scores"]["prior_flops"]
    for part in (cost["receipt"], cost):
        for key in {"steps", "pictures", "paper_flops", "seconds", "value"} & set(part):
            part[key] = part[key] * steps / 500
    cost["receipt"] |= {"steps": steps, "pictures": BATCH * steps}
    n, flops = cost["receipt"]["parameters"], cost["value"]
    run["scores"]["gfd"]["value"] = arms["one"][3](flops, n, BATCH * steps)
    study["runs"].append(run | {"arm": f"one@{size}-{steps}", "digest": "added"})
    assert plan_under(study, budget).best.extrapolated


def test_more_compute_is_never_answered_with_something_worse(grid_study):
    """The better tokenizer's runs are the cheaper ones, and its law ends earlier."""
    study = grid_study(
        {"short": (64, TOKENS, 3.5, at(Law(3.0, -0.6, 22.0))), "long": (64, 256, 3.5, at(LARGE))}
    )
    scores = []
    for budget in (1e15, 1e16, 4.8e16, 1e17, 1.85e17):
        plan = plan_under(study, f"{budget}flop")
        scores.append(plan.best.score)
        assert plan.best.is_less == (plan.best.arm == "short" and budget > 5e16)
        assert plan.best.flops <= budget
        if plan.best.is_less:
            assert "That is less than the budget" in " ".join(sentences_of(plan))
            assert "the most its law bears" in rows_of(plan)[1][-1]
    assert scores == sorted(scores, reverse=True)


def test_a_frontier_that_ends_before_the_costliest_run_still_takes_part(grid_study):
    """Two sizes near each other have no joint form, and the law is of the runs on the frontier."""
    arms = {"near": (64, TOKENS, 3.5, at(SMALL)), "far": (64, 4 * TOKENS, 3.5, at(LARGE))}
    study = grid_study(arms, sizes={"5x256": 5_000_000, "6x256": SIZE})
    for run in study["runs"]:
        if run["arm"] == "near@6x256-8000":
            run["scores"]["gfd"]["value"] *= 3
    most = max(fits_of(study, "gfd")[0].law.compute_seen)
    near = next(arm for arm in plan_under(study, "4.9e16flop").arms if arm.arm == "near")
    assert most < 4.9e15
    assert (near.refused, near.is_less) == ("", True)
    assert near.flops == pytest.approx(10 * most)


def test_a_refusal_names_the_most_and_the_least_that_can_be_asked(crossed):
    for budget, word in (("1e19flop", "at most"), ("1e11flop", "at least")):
        with pytest.raises(UserError, match=word) as refused:
            plan_under(crossed, budget)
        limit = re.search(rf"{word} ([\d.]+) × 10([⁰¹²³⁴⁵⁶⁷⁸⁹]+) FLOPs \(", str(refused.value))
        power = int(limit[2].translate(str.maketrans("⁰¹²³⁴⁵⁶⁷⁸⁹", "0123456789")))
        near = 0.99 if word == "at most" else 1.01
        assert plan_under(crossed, f"{near * float(limit[1]) * 10**power}flop").best.extrapolated


def test_runs_that_are_missing_are_told(crossed):
    assert "have not finished" not in " ".join(sentences_of(plan_under(crossed, "1e15flop")))
    crossed["runs"][3] |= {"status": "waiting", "scores": {}}
    assert "1 runs of the study have not finished" in " ".join(
        sentences_of(plan_under(crossed, "1e15flop"))
    )


def test_less_than_a_step_is_no_training(crossed):
    with pytest.raises(UserError, match="less than a step of its smallest prior; give a larger"):
        plan_under(crossed, "1e9flop")


def test_a_best_size_far_from_those_seen_is_not_spoken_of(grid_study):
    joint = JointLaw(1.0, 14.0, 2.0, 0.9, 0.9)  # larger priors would be far better
    arms = {"one": (64, TOKENS, 3.5, lambda flops, n, d: joint.score_at(n, d))}
    study = grid_study(arms, sizes={"2x32": 20_000, "2x64": 100_000, "4x64": 200_000})
    best = plan_under(study, "1e15flop").best
    assert best.size == "4x64"
    assert re.search(
        "Of other sizes nothing is said: .*parameters from 20,000 to 200,000", best.other_size
    )


@pytest.mark.parametrize("device_flops", [0.0, -1.0, math.nan, math.inf])
def test_a_device_that_does_nothing_is_refused(crossed, device_flops):
    with pytest.raises(UserError, match="a device does more than 0 FLOPs"):
        plan_under(crossed, "1e15flop", device_flops)


def test_an_arm_without_a_law_is_left_out_and_why_is_said(grid_study):
    flat = {"flat": (16, TOKENS, 9.0, lambda flops, n, d: 9.0)}
    plan = plan_under(grid_study(ARMS | flat), "1e15flop")
    assert [arm.arm for arm in plan.arms] == ["small", "large", "flat"]
    assert "flat is left out: no law: scores must fall" in " ".join(sentences_of(plan))
    assert rows_of(plan)[-1][-1] == "left out"
    with pytest.raises(UserError, match="no tokenizer has one; flat: no law: scores must fall"):
        plan_under(grid_study(flat), "1e15flop")


def test_a_study_that_is_no_grid_and_a_budget_without_a_unit_are_refused(crossed):
    with pytest.raises(UserError, match="a budget names its unit"):
        plan_under(crossed, "3e18")
    crossed["config"]["apart"] = False
    with pytest.raises(UserError, match="a plan needs a grid"):
        plan_under(crossed, "1e15flop")


def test_hours_need_a_device_that_runs_have_told_the_time_of(crossed):
    for run in crossed["runs"]:
        run["scores"]["prior_flops"]["receipt"]["seconds"] = None
    with pytest.raises(UserError, match="hours of a GPU need the FLOPs"):
        plan_under(crossed, "1gpuh")
    assert plan_under(crossed, "1e15flop").best.seconds is None


def test_the_command_prints_the_plan_and_writes_it_without_importing_torch(crossed, tmp_path):
    (tmp_path / "study.json").write_text(json.dumps(crossed))
    code = (
        "import sys; from cartok.__main__ import main; "
        f"main(['plan', {str(tmp_path)!r}, '--budget', '1e15flop', "
        f"'--json', {str(tmp_path / 'plan.json')!r}]); "
        "assert 'torch' not in set(sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    table, _, words = done.stdout.partition("\n\n")
    assert table.splitlines()[1].startswith("small ")
    assert words.startswith("Train the prior 6x256, 6M parameters, on the tokens of small,")
    written = json.loads((tmp_path / "plan.json").read_text())
    assert written["arms"][0]["arm"] == "small"
    assert [*written["sentences"], "For the config of that prior give --prior FILE."] == (
        words.splitlines()
    )
