"""A plan is what the laws that a study was drawn from say is best, or a refusal with the remedy."""

import json
import math
import subprocess
import sys

import pytest

from cartok.core.errors import UserError
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
    assert plan.best.steps == round(budget / (6 * SIZE * TOKENS * BATCH))
    assert plan.best.size == "6x256"
    assert plan.best.first > 0.99
    assert plan.best.extrapolated == (budget > 5e15)


def test_with_sizes_the_best_split_of_the_joint_form_is_recommended(grid_study):
    joint = JointLaw(2.0, 7.0, 6.0, 0.5, 0.45)
    sizes = {"2x64": 300_000, "4x128": 1_500_000, "6x256": SIZE}
    arms = {"one": (64, TOKENS, 3.5, lambda flops, n, d: joint.score_at(n, d))}
    plan = plan_under(grid_study(arms, sizes=sizes), "1e15flop")
    product = 1e15 / (6 * TOKENS)
    scores = {n: joint.score_at(n, product / n) for n in [1e4 * 1.01**i for i in range(800)]}
    best = min(scores, key=scores.__getitem__)
    assert plan.best.parameters == pytest.approx(best, rel=0.02)
    assert plan.best.steps == pytest.approx(product / best / BATCH, rel=0.02)
    assert plan.best.score == pytest.approx(scores[best], rel=1e-4)
    assert not plan.has_one_size
    nearest = min(sizes, key=lambda size: abs(math.log(sizes[size] / best)))
    assert plan.best.size == nearest


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


def test_a_paper_unit_is_256_flops(crossed):
    assert plan_under(crossed, f"{1e15 / 256!r}paper").best == plan_under(crossed, "1e15flop").best


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
    from cartok.scaling.arm_fits import fits_of

    found = next_run(fits_of(crossed, "gfd")[0], 1e15)
    assert found is not None
    assert 0 <= found.narrower <= 1


@pytest.mark.parametrize(("budget", "steps"), [("1e18flop", 169_543), ("1e12flop", 17)])
def test_a_budget_beyond_the_laws_is_refused_with_the_run_that_would_bear_it(
    crossed, budget, steps
):
    with pytest.raises(UserError, match=f"add a run of .* for about {steps:,} steps") as refused:
        plan_under(crossed, budget)
    assert "at most 10 times beyond" in str(refused.value)


def test_a_best_size_far_from_those_seen_is_refused_by_that_name(grid_study):
    joint = JointLaw(1.0, 14.0, 2.0, 0.9, 0.9)  # larger priors would be far better
    arms = {"one": (64, TOKENS, 3.5, lambda flops, n, d: joint.score_at(n, d))}
    study = grid_study(arms, sizes={"2x32": 20_000, "2x64": 100_000, "4x64": 200_000})
    with pytest.raises(UserError, match=r"one: .*parameters from 20,000 to 200,000.* size first"):
        plan_under(study, "1e15flop")


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
    assert words.startswith("Train a prior of 6M parameters (nearest in the study: 6x256)")
    written = json.loads((tmp_path / "plan.json").read_text())
    assert written["arms"][0]["arm"] == "small"
    assert written["sentences"] == words.splitlines()
