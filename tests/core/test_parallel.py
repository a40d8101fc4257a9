import json
import os

import pytest
import torch

from cartok.core import parallel
from cartok.core.checkpoint import load_state
from cartok.core.errors import UserError
from cartok.core.parallel import World, as_stored, gpus_of, see_one_gpu

# ------------------------------------------------------------------ a world of one


def test_a_program_started_plainly_is_a_world_of_one(monkeypatch):
    for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK"):
        monkeypatch.delenv(name, raising=False)
    world = World.join("cpu")
    assert (world.rank, world.size, world.is_main) == (0, 1, True)
    assert world.device == torch.device("cpu")
    assert not torch.distributed.is_initialized()


def test_a_world_of_one_agrees_with_itself():
    world, value = World(), torch.tensor([1.0, 2.0])
    assert torch.equal(world.mean(value), value)
    assert torch.equal(world.gather(value), value)
    assert (world.any(True), world.any(False)) == (True, False)
    parameter = torch.nn.Parameter(value)
    parameter.grad = value.clone()
    world.average_gradients([parameter])
    assert torch.equal(parameter.grad, value)
    assert world.first(lambda: 3) == 3
    world.barrier()
    world.leave()


def test_gradients_that_lie_channels_last_are_flattened_as_they_lie():
    plain = torch.randn(4, 3, 2, 2)
    last = plain.contiguous(memory_format=torch.channels_last)
    assert as_stored(last).is_contiguous()
    assert as_stored(last).data_ptr() == last.data_ptr()
    assert torch.equal(as_stored(last).permute(0, 3, 1, 2), plain)
    for other in (plain, plain.flatten(), plain[0]):
        assert as_stored(other) is other


@pytest.mark.parametrize(
    "name", ["gpu", "", "CPU", "cuda:", "cuda:x", "cuda:-1", "meta", "xpu", "cpu:1", "cuda 0", "0"]
)
def test_a_device_of_another_name_is_refused_in_one_line(name):
    with pytest.raises(UserError) as refusal:
        World.join(name)
    expected = f"--device is auto, cpu, cuda, cuda:N or mps, but got '{name}'"
    assert str(refusal.value) == expected


@pytest.mark.parametrize("name", ["cuda", "cuda:0", "cuda:7", "mps"])
def test_a_device_that_is_not_there_is_refused_in_one_line(name, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: False)
    with pytest.raises(UserError, match=f"'{name}'; use --device cpu"):
        World.join(name)


def test_a_gpu_beyond_those_there_are_is_refused(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    with pytest.raises(UserError, match="--device cuda:2 was asked for, but 2 exist"):
        World.join("cuda:2")


def test_each_rank_takes_the_gpu_of_its_number(monkeypatch):
    taken = []
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(torch.cuda, "set_device", taken.append)
    assert parallel._device("auto", 1) == torch.device("cuda:1")
    assert parallel._device("cuda:0", 1) == torch.device("cuda:0")
    assert taken == [torch.device("cuda:1"), torch.device("cuda:0")]


def test_without_a_gpu_auto_is_the_cpu(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: False)
    assert World.join("auto").device == torch.device("cpu")


def test_a_world_without_its_others_is_refused_in_one_line(monkeypatch):
    for name in ("MASTER_ADDR", "MASTER_PORT"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setenv("RANK", "0")
    with pytest.raises(UserError, match=r"the 2 processes .* start them with torchrun") as refusal:
        World.join("cpu")
    assert len(str(refusal.value).splitlines()) == 1


# ------------------------------------------------------------------ two ranks


def test_two_ranks_hear_the_same_of_each_other(toy, apart, tmp_path):
    assert apart(toy.Errand(str(tmp_path), {}), ranks=2, call="talk") == [0, 0]
    heard = [json.loads((tmp_path / f"{rank}.json").read_text()) for rank in range(2)]
    assert [one.pop("is_main") for one in heard] == [True, False]
    assert heard[0] == heard[1] == {
        "any": [True, True, False],
        "mean": [0.5, 2.0],
        "gather": [[0, 7], [1, 7]],
        "weight": [1.0, 1.0],
        "gradient": [0.0, 1.5, 3.0],
    }  # fmt: skip


@pytest.mark.parametrize("strike", ["", "main"])
def test_the_main_rank_goes_first_and_if_it_fails_the_others_do_not_wait(
    toy, apart, tmp_path, strike
):
    errand = toy.Errand(str(tmp_path), {}, strike=strike)
    assert apart(errand, ranks=2, call="take_turns") == [0, 0]
    said = [(tmp_path / f"{rank}.txt").read_text() for rank in range(2)]
    failed = ["OSError: no network", "UserError: the main rank failed; its own message says why"]
    assert said == (failed if strike else ["found False", "found True"])


def loop_of(**changes):
    return {"steps": 6, "batch": 8, "save_every": 2, "ema": 0.75, "trackers": ()} | changes


@pytest.mark.parametrize("parts", [1, 2])
def test_two_ranks_train_like_one_with_all_their_samples(toy, apart, tmp_path, parts):
    exact = {"double": True, "dropout": 0.0, "critic_from": 2}
    whole, _, _ = toy.train(toy.Errand(str(tmp_path / "one"), loop_of(), exact))
    errand = toy.Errand(str(tmp_path / "two"), loop_of(accumulate=parts), exact, evaluate_every=3)
    assert apart(errand, ranks=2) == [0, 0]
    found = load_state(tmp_path / "two" / "checkpoints").tensors
    for name, weights in whole.trace[-1].items():
        torch.testing.assert_close(found[f"module/{name}"], weights, rtol=0, atol=1e-10)
    record = json.loads((tmp_path / "two" / "record.json").read_text())
    assert record["provenance"]["world_size"] == 2


def test_two_ranks_killed_and_taken_up_again_end_like_those_that_were_not(toy, apart, tmp_path):
    """Each rank's noise is its own, also after the break."""
    assert apart(toy.Errand(str(tmp_path / "whole"), loop_of()), ranks=2) == [0, 0]
    broken = str(tmp_path / "broken")
    assert apart(toy.Errand(broken, loop_of(), strike="step", at=3), ranks=2) == [-9, -9]
    assert apart(toy.Errand(broken, loop_of(), resume=True), ranks=2) == [0, 0]
    ends = [load_state(tmp_path / name / "checkpoints").tensors for name in ("whole", "broken")]
    assert ends[0].keys() == ends[1].keys()
    assert all(torch.equal(ends[0][name], ends[1][name]) for name in ends[0])
    noise = ends[0]["random/cpu"]
    assert len(noise) == 2
    assert not torch.equal(noise[0], noise[1])


def test_one_rank_asked_to_stop_stops_both(toy, apart, tmp_path):
    errand = toy.Errand(str(tmp_path / "run"), loop_of(), strike="rank 1", at=3, signal="SIGTERM")
    assert apart(errand, ranks=2) == [0, 0]
    assert load_state(tmp_path / "run" / "checkpoints").step == 4


def test_a_loss_that_is_not_finite_on_one_rank_stops_both(toy, apart, tmp_path):
    errand = toy.Errand(str(tmp_path / "run"), loop_of(), strike="poison", at=3)
    assert apart(errand, ranks=2) == [3, 3]
    assert load_state(tmp_path / "run" / "checkpoints").step == 2


def test_a_run_that_one_rank_makes_is_no_obstacle_to_the_other(toy, apart, tmp_path):
    """And a folder that holds files is refused by both, though only one looks."""
    (tmp_path / "thesis.tex").write_text("all of it")
    assert apart(toy.Errand(str(tmp_path), loop_of()), ranks=2, call="refuse") == [0, 0]
    said = [(tmp_path / f"{rank}.txt").read_text() for rank in range(2)]
    assert "--out must be new or empty" in said[0]
    assert "the main rank refused" in said[1]


def test_a_batch_that_the_ranks_cannot_share_is_refused(toy, tmp_path):
    config = toy.ToyConfig(loop=toy.LoopConfig(**loop_of()))
    run = toy.Run.open(tmp_path / "run", config, kind="toy")
    run.world = World(size=3)
    with pytest.raises(UserError, match="8 samples are no multiple of 1 parts x 3 ranks"):
        toy.fit(toy.ToyJob(config), config.loop, run)


@pytest.mark.parametrize(("visible", "seen"), [(None, "1"), ("4,6", "6"), ("GPU-a,GPU-b", "GPU-b")])
def test_a_process_sees_one_of_the_visible_gpus_alone(visible, seen, monkeypatch):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible or "")
    if visible is None:
        monkeypatch.delenv("CUDA_VISIBLE_DEVICES")
    see_one_gpu(1)
    assert os.environ["CUDA_VISIBLE_DEVICES"] == seen


def test_work_is_dealt_out_to_all_gpus_unless_a_device_is_named(monkeypatch):
    monkeypatch.setattr("torch.cuda.device_count", lambda: 3)
    on_gpu = World(device=torch.device("cuda", 0))
    assert gpus_of("auto", on_gpu) == gpus_of("cuda", on_gpu) == [0, 1, 2]
    assert gpus_of("cuda:1", on_gpu) == gpus_of("auto", World()) == []
