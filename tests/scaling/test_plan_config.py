"""What a plan recommends can be started as it is written."""

import json
from dataclasses import replace

import pytest

from cartok.__main__ import main
from cartok.core.config import dict_of, read_config
from cartok.core.files import write_json
from cartok.prior.train import PriorRun
from cartok.recipes import recipe_of
from cartok.recipes.study import STUDIES
from cartok.scaling.arm_plan import ArmPlan
from cartok.scaling.plan_config import prior_config, tokens_of


@pytest.fixture
def study():
    return {"config": dict_of(recipe_of(STUDIES, "cifar-tradeoff"))}


@pytest.mark.parametrize("steps", [100, 16_000])
def test_the_config_is_the_studys_prior_of_that_size_for_the_planned_steps(study, steps, tmp_path):
    plan = ArmPlan("codes-64", size="4x128", steps=steps)
    write_json(tmp_path / "prior.json", prior_config(study, plan))
    made = read_config(PriorRun, tmp_path / "prior.json")
    sizes = recipe_of(STUDIES, "cifar-tradeoff").priors
    (longest,) = [p for p in sizes if p.transformer.width == 128 and p.loop.steps == 8_000]
    assert made.loop == replace(longest.loop, steps=steps)
    share = longest.optim.warmup_steps / 8_000
    assert made.optim.warmup_steps == pytest.approx(share * steps, abs=1)
    assert made.evaluations[0].every == steps // 4
    assert replace(made, loop=longest.loop, optim=longest.optim, evaluations=()) == replace(
        longest, evaluations=()
    )
    assert study["config"]["priors"][9]["loop"]["steps"] == 8_000  # as it was


def test_tokens_are_those_of_the_first_arm_with_that_tokenizer_at_the_arms_pixels(study, tmp_path):
    assert tokens_of(study, ArmPlan("codes-1024-48px"), tmp_path) is None
    for name, size in (("codes-1024", 32), ("codes-1024", 48), ("codes-64", 48)):
        for seed in (0, 1):
            tokens = tmp_path / "tokenizers" / f"{name}-s{seed}-ab12" / f"{size}px-cd34" / "tokens"
            tokens.mkdir(parents=True)
            (tokens / "manifest.json").write_text("{}")
    found = tokens_of(study, ArmPlan("codes-1024-48px"), tmp_path)
    assert found == tmp_path / "tokenizers/codes-1024-s0-ab12/48px-cd34/tokens"
    assert tokens_of(study, ArmPlan("codes-1024"), tmp_path).parent.name == "32px-cd34"


def test_the_command_writes_it_and_names_the_command_that_trains_it(grid_study, tmp_path, capsys):
    study = grid_study({"one": (64, 64, 3.5, lambda flops, n, d: 5 + (flops / 1e12) ** -0.3)})
    full = dict_of(recipe_of(STUDIES, "cifar-tradeoff"))["priors"][4]
    study["config"]["priors"] = [full]
    (tmp_path / "study.json").write_text(json.dumps(study))
    file = tmp_path / "prior.json"
    assert main(["plan", str(tmp_path), "--budget", "1e15flop", "--prior", str(file)]) == 0
    out = capsys.readouterr().out
    assert "does not hold the tokens of one" in out
    assert f"cartok train-prior --config {file} --tokens TOKENS --out RUN" in out
    assert read_config(PriorRun, file).loop.steps == int(1e15 / (6 * 6_000_000 * 64 * 256))
