"""The prior's bench: its numbers hang together, and its step is the one that trains."""

import json

import pytest
import torch

from cartok.__main__ import main
from cartok.core.errors import UserError
from cartok.core.parallel import World
from cartok.lab.bench_prior import PriorBench, bench_prior, run_of, usual_prior_bench
from cartok.lab.goals import FASTER, prior_goals
from cartok.prior.model import PriorConfig, flops_per_token
from cartok.recipes.prior import PRIORS


@pytest.fixture(scope="module")
def measured():
    lines: list[str] = []
    return lines, bench_prior(usual_prior_bench(tiny=True), World(), lines.append)


def test_every_number_is_said_once_and_written(measured):
    lines, found = measured
    for name, number in found["numbers"].items():
        assert sum(line.startswith(f"{name} ") for line in lines) == 1
        assert number["value"] > 0
        assert number["unit"]


def test_rates_and_shares_are_those_of_the_same_run(measured):
    value = {name: number["value"] for name, number in measured[1]["numbers"].items()}
    seconds, bench = value["training.step"] / 1000, measured[1]["bench"]
    tokens = bench["batch"] * bench["side"] ** 2
    assert value["training.speed"] == pytest.approx(bench["batch"] / seconds)
    assert value["training.tokens"] == pytest.approx(tokens / seconds)
    shape = PriorConfig(
        transformer=PRIORS["toy"].build().transformer, codebook_size=64, grid=(4, 4), num_classes=10
    )
    flops = 3 * flops_per_token(shape) * tokens
    assert value["training.compute"] == pytest.approx(flops / seconds / 1e12)
    share = 100 * value["training.compute"] / value["ceiling.matmul_before"]
    assert value["training.share"] == pytest.approx(share)


def test_what_is_timed_is_the_recipes_training():
    run, recipe = (
        run_of(PriorBench(recipe="111m", compile=True, replay=True), "bf16", True),
        PRIORS["111m"].build(),
    )
    assert (run.transformer, run.optim) == (recipe.transformer, recipe.optim)
    assert (run.compile, run.loop.replay, run.loop.batch) == (True, True, 64)
    on_cpu = run_of(PriorBench(recipe="111m", compile=True, replay=True), "fp32", False)
    assert not on_cpu.compile
    assert not on_cpu.loop.replay


def test_goals_are_those_of_a_size_and_a_batch_that_the_peer_ran():
    assert prior_goals("775m", 64)["training.speed"].target == pytest.approx(FASTER * 329)
    assert prior_goals("775m", 32) == {}


def test_the_verb_writes_its_numbers_and_refuses_in_one_line(tmp_path, capsys):
    path = tmp_path / "bench.json"
    assert main(["bench", "prior", "--tiny", "--device", "cpu", "--json", str(path)]) == 0
    assert json.loads(path.read_text())["subject"] == "prior"
    capsys.readouterr()
    assert main(["bench", "prior", "--device", "cpu"]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert "give --tiny" in line
    assert main(["bench", "priors"]) == 2
    assert "did you mean 'prior'" in capsys.readouterr().err
    with pytest.raises(UserError, match="1 or more"):
        PriorBench(batch=0)
    with pytest.raises(UserError, match="runs in one process"):
        bench_prior(usual_prior_bench(tiny=True), World(size=2), print)


def test_a_prior_without_classes_is_measured_too():
    bench = PriorBench(recipe="toy", batch=2, codebook_size=8, side=2, num_classes=0, tiny=True)
    assert bench_prior(bench, World(device=torch.device("cpu")), lambda line: None)["numbers"]


def test_the_help_names_every_subject(capsys):
    assert main(["bench", "--help"]) == 0
    shown = capsys.readouterr().out
    assert all(f"  {subject} " in shown for subject in ("tokenizer", "prior", "sampler"))
