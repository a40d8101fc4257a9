import json
import os
import signal
import subprocess
import sys
from dataclasses import asdict, replace

import pytest
import torch

from cartok.__main__ import main
from cartok.core import loop
from cartok.core.errors import UserError
from cartok.core.parallel import World
from cartok.lab import bench, growth
from cartok.lab.anatomy import KINDS, Kernel, anatomy_of
from cartok.lab.bench import BenchConfig, bench_tokenizer, run_of, why_not_compared
from cartok.lab.goals import GOALS, Goal, Number, goals_at
from cartok.lab.growth import grown_runs
from cartok.lab.steps import REGULARISER, Pace, Timed, job_of, noise, step_seconds
from cartok.lab.timing import Peak, enough_memory
from cartok.recipes.tokenizer import causal_16k
from cartok.tokenizer.quantize.fsq import FSQConfig

CPU = torch.device("cpu")
TINY = BenchConfig(tiny=True, batch=4, inference_batch=4)


@pytest.fixture(scope="module")
def measured(tmp_path_factory):
    """A tiny bench of a recipe without LPIPS: its lines, its JSON, and its table of kernels."""
    folder = tmp_path_factory.mktemp("bench")
    lines: list[str] = []
    config = replace(TINY, recipe="causal-toy", growth=True)
    found = bench_tokenizer(config, World(), lines.append, folder / "profile.md")
    return lines, json.loads(json.dumps(found)), (folder / "profile.md").read_text()


def value(found, name: str) -> float:
    return found["numbers"][name]["value"]


# ------------------------------------------------------------------ what a bench says


@pytest.mark.slow
def test_every_number_is_said_once_and_written(measured):
    lines, found, _ = measured
    for name, number in found["numbers"].items():
        assert sum(line.startswith(f"{name} ") for line in lines) == 1
        assert number["value"] > 0 or name.startswith("regulariser.")
        assert number["unit"]
    assert {"training.speed", "encode.speed", "decode.speed", "training.memory",
            "regulariser.overhead", "regulariser.twin"} <= found["numbers"].keys()  # fmt: skip
    assert found["provenance"]["device"].startswith("cpu")


@pytest.mark.slow
@pytest.mark.parametrize("name", ["training", "encode", "decode"])
def test_rates_and_shares_are_those_of_the_same_run(measured, name):
    _, found, _ = measured
    seconds = value(found, f"{name}.step") / 1000
    assert value(found, f"{name}.speed") == pytest.approx(4 / seconds)
    flops = value(found, f"{name}.flops") * 1e9
    assert value(found, f"{name}.compute") == pytest.approx(4 * flops / seconds / 1e12)
    ceiling = value(found, "ceiling.matmul_before")
    share = 100 * value(found, f"{name}.compute") / ceiling
    assert value(found, f"{name}.share") == pytest.approx(share)


@pytest.mark.slow
def test_the_overhead_is_what_the_regulariser_adds_to_a_step_without_it(measured):
    _, found, _ = measured
    whole, bare, alone = (
        value(found, f"training.step{name}")
        for name in ("", "_without_regulariser", "_without_twin")
    )
    assert value(found, "regulariser.overhead") == pytest.approx(100 * (whole - bare) / bare)
    assert value(found, "regulariser.twin") == pytest.approx(100 * (whole - alone) / bare)


@pytest.mark.slow
def test_growth_follows_tokens_and_codes(measured):
    lines, found, _ = measured
    sizes = [(row["pixels"], row["tokens"], row["codes"]) for row in found["growth"]]
    assert sizes == [(32, 64, 32), (40, 100, 32), (48, 144, 32), (32, 64, 2), (32, 64, 256)]
    assert sum(line.split()[:2] == ["48", "144"] for line in lines) == 1


@pytest.mark.slow
def test_the_profile_is_a_table_whose_kinds_add_up(measured):
    _, _, text = measured
    rows = [line.split("|")[1:-1] for line in text.splitlines() if line.startswith("| ")]
    kinds = {row[0].strip(): float(row[1]) for row in rows if row[0].strip() in {*KINDS, "other"}}
    (total,) = [float(row[1]) for row in rows if row[0].strip() == "all"]
    assert sum(kinds.values()) == pytest.approx(total, abs=0.2)
    assert total > 0


def test_the_command_line_prints_the_table_and_writes_the_json(tmp_path, capsys):
    path = tmp_path / "bench.json"
    assert main(["bench", "tokenizer", "--tiny", "--device", "cpu", "--json", str(path)]) == 0
    shown = capsys.readouterr().out
    assert "training.speed" in shown
    assert json.loads(path.read_text())["subject"] == "tokenizer"


@pytest.mark.slow
def test_two_ranks_measure_themselves_and_then_train_together(tmp_path):
    path = tmp_path / "bench.json"
    launch = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    toy = ["--recipe", "causal-toy", "--tiny", "--device", "cpu"]
    asked = ["bench", "tokenizer", *toy, "--json", str(path)]
    done = subprocess.run(
        [sys.executable, *launch, "-m", "cartok", *asked],
        capture_output=True, text=True, timeout=280, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-2000:]
    found = json.loads(path.read_text())
    assert value(found, "together.ranks") == 2
    seconds = value(found, "together.step") / 1000
    assert value(found, "together.speed") == pytest.approx(2 * 4 / seconds)
    assert value(found, "together.speedup") > 0
    assert done.stdout.count("training.speed ") == 1  # one rank talks


# ------------------------------------------------------------------ what is measured


def test_what_is_timed_is_the_whole_step_from_its_first():
    run = run_of(BenchConfig(), CPU, "bf16")
    assert run.losses.critic.weight_at(0) == causal_16k().losses.critic.weight
    assert run.losses.critic.learns_at(0)
    assert run.causal.weight_at(0) == causal_16k().causal.weight
    assert run.model == causal_16k().model
    assert run.loop.batch == 64


def test_steps_move_all_modules_but_those_that_are_left_out():
    job = job_of(run_of(TINY, CPU, "fp32"), World(), random_vgg=True)
    pixels = noise(4, 32, CPU)

    def state():
        return {n: [p.clone() for p in m.parameters()] for n, m in job.modules.items()}

    def moved(before):
        now = state()
        return {n for n in now if not all(map(torch.equal, now[n], before[n]))}

    before = state()
    assert len(step_seconds(job, pixels, 2)) == 2
    assert moved(before) == set(job.modules)
    before = state()
    step_seconds(job, pixels, 2, without=REGULARISER)
    assert moved(before) == {"tokenizer", "critic"}
    assert job.parts.causal is not None


def test_a_timed_step_saves_nothing_and_hides_no_failure(monkeypatch):
    job = job_of(run_of(TINY, CPU, "fp32"), World(), random_vgg=True)
    monkeypatch.setattr(loop, "save_state", None)
    step_seconds(job, noise(4, 32, CPU), 1)
    monkeypatch.setattr(job, "after_step", lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        step_seconds(job, noise(4, 32, CPU), 1)


def test_a_bench_that_is_asked_to_stop_stops_and_measures_no_more(monkeypatch):
    job = job_of(run_of(TINY, CPU, "fp32"), World(), random_vgg=True)
    monkeypatch.setattr(job, "after_step", lambda *_: os.kill(os.getpid(), signal.SIGTERM))
    with pytest.raises(SystemExit, match="130"):
        step_seconds(job, noise(4, 32, CPU), 5)


def test_a_quantizer_without_a_table_grows_in_tokens_alone():
    run = run_of(TINY, CPU, "fp32")
    bits = replace(run, model=replace(run.model, quantizer=FSQConfig(levels=(4, 4, 4, 4))))
    assert [r.view.size for r in grown_runs(bits)] == [40, 48]


def test_growth_is_in_tokens_then_in_codes():
    run = run_of(TINY, CPU, "fp32")
    assert [r.model.quantizer.codebook_size for r in grown_runs(run)] == [32, 32, 2, 256]
    batches = [r.loop.batch for r in grown_runs(replace(run, loop=replace(run.loop, batch=64)))]
    assert batches == [40, 28, 64, 64]  # no more pixels than 64 pictures of the usual size


def test_a_size_that_does_not_fit_is_a_row_and_what_was_measured_is_kept(monkeypatch):
    def time_steps(job, pixels, pace):
        if pixels.shape[-1] == 48:
            raise torch.OutOfMemoryError
        return Timed(1.0, [2.0], Peak(0, 0))

    monkeypatch.setattr(growth, "time_steps", time_steps)
    run = run_of(TINY, CPU, "fp32")
    run = replace(run, losses=replace(run.losses, perceptual=0.0))
    lines = []
    rows = growth.growth_of(run, World(), Pace(0, 1), False, lines.append)
    assert asdict(rows[1]) == {
        "pixels": 48, "tokens": 144, "codes": 32, "batch": 1, "fault": "out of memory",
    }  # fmt: skip
    assert lines[1].split() == ["48", "144", "32", "1", "out", "of", "memory"]
    assert [row.images_per_second for row in (rows[0], *rows[2:])] == [1.0, 2.0, 2.0]


@pytest.mark.parametrize(
    ("arguments", "batches"),
    [
        ([], (64, 128)),
        (["--tiny"], (4, 4)),
        (["--tiny", "--batch", "64"], (64, 4)),
        (["--batch", "16", "--tiny", "--inference-batch", "2"], (16, 2)),
    ],
)
def test_as_many_pictures_are_measured_as_are_asked_for(arguments, batches, monkeypatch):
    found = []
    monkeypatch.setattr(bench, "bench_tokenizer", lambda config, *_: found.append(config))
    assert main(["bench", "tokenizer", "--device", "cpu", *arguments]) == 0
    assert [(config.batch, config.inference_batch) for config in found] == [batches]
    assert found[0].tiny is ("--tiny" in arguments)


def test_a_rank_leaves_when_its_bench_fails(monkeypatch):
    left = []
    monkeypatch.setattr(World, "leave", lambda world: left.append(world.rank))
    assert main(["bench", "tokenizer", "--device", "cpu"]) == 2
    assert left == [0]


# ------------------------------------------------------------------ goals


@pytest.mark.parametrize(
    ("name", "number", "said"),
    [
        ("training.speed", 282.0, "target at least 280: met"),
        (
            "training.speed_without_regulariser",
            141.0,
            "target at least 280: missed; peer 70.50: 2.00x",
        ),
        ("training.memory", 60.5, "target at most 60: missed; peer 67.10: 0.90x"),
        ("regulariser.overhead", 4.9, "target at most 5: met"),
    ],
)
def test_a_number_is_held_against_target_and_peer(name, number, said):
    assert Number(name, number, "", GOALS[name]).verdict == said


def test_without_a_goal_nothing_is_claimed():
    assert Number("encode.step", 3.0, "ms").verdict == ""
    assert Number("encode.step", 3.0, "ms").to_json() == {"value": 3.0, "unit": "ms"}


def test_the_targets_of_a_training_step_hold_from_a_batch_on():
    assert goals_at(64) == GOALS
    small = goals_at(32)
    assert small["training.speed"] == Goal()
    assert small["training.speed_without_regulariser"] == Goal(peer=70.5)
    assert small["encode.speed"] == GOALS["encode.speed"]
    assert goals_at(64, ranks=2)["together.speedup"] == Goal(target=1.9)


def test_only_the_papers_recipe_on_an_h100_is_compared():
    run = run_of(BenchConfig(), CPU, "bf16")
    card = "cuda: NVIDIA H100 80GB HBM3"
    assert why_not_compared(BenchConfig(), run, card) == ""
    assert "set on an H100" in why_not_compared(BenchConfig(), run, "cuda: NVIDIA A100")
    assert "tiny" in why_not_compared(TINY, run, card)
    other = BenchConfig(recipe="causal-opt")
    assert "causal-16k" in why_not_compared(other, run_of(other, CPU, "bf16"), card)


# ------------------------------------------------------------------ kernels and mistakes


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        ("sm90_xmma_fprop_implicit_gemm_bf16bf16", "convolution fprop"),
        ("sm90_xmma_wgrad_indexed_implicit_gemm", "convolution wgrad"),
        ("gradient_kernel", "norm kernels of cartok"),
        ("add_kernel", "sum kernel of cartok"),
        ("triton_poi_fused_convolution_relu_5", "compiled by torch (triton)"),
        ("nvjet_sm90_tst_256x128_64x4_1x2_h_bz_coopA_NNT", "matmul and attention"),
        ("void at::native::reduce_kernel<512, 1>", "reductions"),
        ("void multi_tensor_apply_kernel<FusedAdam>", "optimizer and clipping"),
        ("something new", "other"),
    ],
)
def test_a_kernel_is_known_by_its_name(name, kind):
    assert Kernel(name, 1.0, 1).kind == kind


def test_no_kernels_are_no_table():
    assert "saw no kernel" in anatomy_of([], "title")


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["bench"], "bench names a subject first, but got nothing"),
        (["bench", "tokeniser"], "did you mean 'tokenizer'?"),
        (["bench", "tokenizer", "--recipe", "causal-16"], "did you mean 'causal-16k'?"),
        (["bench", "tokenizer", "--device", "cpu"], "needs a CUDA GPU"),
        (["bench", "tokenizer", "--batch", "0"], "1 or more"),
        (["bench", "tokenizer", "--tiny", "--json", "."], "an answer is written to a file"),
    ],
)
def test_a_mistake_is_one_line(arguments, said, capsys):
    assert main(arguments) == 2
    shown = capsys.readouterr().err
    assert said in shown
    assert shown.count("\n") == 1


def test_too_little_memory_ends_in_advice():
    with (
        pytest.raises(UserError, match="one of 64 pictures does not; give --batch 32"),
        enough_memory(64, "give --batch 32"),
    ):
        raise torch.OutOfMemoryError
