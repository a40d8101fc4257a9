import json
import os
import signal

import pytest

from cartok.core.checkpoint import load_state
from cartok.core.loop import _asked_to_stop
from cartok.core.run import read_log


def without_clocks(folder):
    """A run's log, less what the clock decides."""
    lines = read_log(folder)
    return [{k: v for k, v in line.items() if not k.startswith("speed/")} for line in lines]


def record_of(folder):
    """A run's record, less what the clock and the allocator decide."""
    record = json.loads((folder / "record.json").read_text())
    del record["peak_memory_bytes"]
    record["curves"] = {k: v for k, v in record["curves"].items() if not k.startswith("speed/")}
    return record


@pytest.fixture(scope="module")
def uninterrupted(toy, apart, tmp_path_factory):
    """The run folder of a training that nothing disturbed."""
    folder = tmp_path_factory.mktemp("loop") / "whole"
    assert apart(errand_of(toy, folder)) == [0]
    return folder


def errand_of(toy, folder, **more):
    return toy.Errand(str(folder), toy.LOOP, {"critic_from": 2}, evaluate_every=2, **more)


def assert_ended_alike(toy, folder, whole):
    """Weights, optimizers, averages, random state, best checkpoint and log: bit for bit."""
    found, expected = load_state(folder / "checkpoints"), load_state(whole / "checkpoints")
    kinds = {name.split("/")[0] for name in expected.tensors}
    assert kinds == {"module", "optimizer", "average", "random"}
    assert found.step == expected.step == 12
    assert toy.same(found.tensors, expected.tensors)
    for key in ("best", "values", "drawn", "counts"):
        assert found.values[key] == expected.values[key]
    assert without_clocks(folder) == without_clocks(whole)
    states = sorted(path.name for path in (folder / "checkpoints").iterdir())
    assert states == sorted(path.name for path in (whole / "checkpoints").iterdir())
    assert record_of(folder) == record_of(whole)
    assert not list(folder.rglob("*.part"))


@pytest.mark.parametrize(
    ("strike", "at"),
    [
        ("step", 0),
        ("step", 1),
        ("step", 3),
        ("step", 7),
        ("step", 11),
        ("half written", 0),
        ("half written", 2),
        ("staged", 1),
        ("staged", 4),
        ("renamed", 1),
        ("renamed", 4),
        ("half removed", 1),
    ],
)
def test_a_killed_training_goes_on_to_the_same_end(toy, apart, uninterrupted, tmp_path, strike, at):
    folder = tmp_path / "killed"
    assert apart(errand_of(toy, folder, strike=strike, at=at)) == [-signal.SIGKILL]
    assert not (folder / "record.json").exists()
    assert apart(errand_of(toy, folder, resume=True)) == [0]
    assert_ended_alike(toy, folder, uninterrupted)


def test_a_training_killed_twice_goes_on_to_the_same_end(toy, apart, uninterrupted, tmp_path):
    folder = tmp_path / "killed"
    assert apart(errand_of(toy, folder, strike="staged", at=1)) == [-signal.SIGKILL]
    again = errand_of(toy, folder, resume=True, strike="step", at=9)
    assert apart(again) == [-signal.SIGKILL]
    assert apart(errand_of(toy, folder, resume=True)) == [0]
    assert_ended_alike(toy, folder, uninterrupted)


@pytest.mark.parametrize("asks", ["SIGTERM", "SIGINT"])
@pytest.mark.parametrize("at", [0, 4, 11])
def test_a_training_asked_to_stop_saves_and_goes_on_to_the_same_end(
    toy, apart, uninterrupted, tmp_path, at, asks
):
    folder = tmp_path / "stopped"
    assert apart(errand_of(toy, folder, strike="step", at=at, signal=asks)) == [0]
    assert load_state(folder / "checkpoints").step == at + 1
    assert (folder / "record.json").exists() == (at == 11)
    assert apart(errand_of(toy, folder, resume=True)) == [0]
    assert_ended_alike(toy, folder, uninterrupted)


def test_a_training_gives_the_signals_back_to_who_had_them(toy, tmp_path):
    signals = (signal.SIGTERM, signal.SIGINT)
    before = [signal.getsignal(number) for number in signals]
    toy.train(toy.Errand(str(tmp_path / "run"), toy.LOOP | {"steps": 1, "best": ""}))
    assert [signal.getsignal(number) for number in signals] == before


def test_a_second_ctrl_c_does_not_wait_for_the_step():
    with _asked_to_stop() as asked:
        os.kill(os.getpid(), signal.SIGINT)
        os.kill(os.getpid(), signal.SIGTERM)
        assert asked == [signal.SIGINT, signal.SIGTERM]
        with pytest.raises(KeyboardInterrupt):
            os.kill(os.getpid(), signal.SIGINT)


# ------------------------------------------------------------------ after what was not finite


def faulty(toy, folder, **more):
    """Leaves out batch 2 and batches 8 to 10; goes back at batch 11, from step 7 to step 6."""
    loop = toy.LOOP | {"on_non_finite": "recover"}
    return toy.Errand(str(folder), loop, {"spoilt": (8, 32, 36, 40, 44)}, evaluate_every=2, **more)


@pytest.fixture(scope="module")
def recovered(toy, apart, tmp_path_factory):
    """The run folder of a training that recovered and was not interrupted."""
    folder = tmp_path_factory.mktemp("loop") / "recovered"
    assert apart(faulty(toy, folder)) == [0]
    record = json.loads((folder / "record.json").read_text())
    assert (record["steps"], record["skips"], record["rollbacks"]) == (12, 4, 1)
    state = load_state(folder / "checkpoints")
    assert state.values["drawn"] == 12 + 4 + 1 + 1  # the one that made it go back, a step undone
    return folder


@pytest.mark.parametrize("sample", [8, 12, 24, 32, 36, 44, 48, 60])
def test_a_training_that_recovers_and_is_killed_goes_on_to_the_same_end(
    toy, apart, recovered, tmp_path, sample
):
    folder = tmp_path / "killed"
    killed = faulty(toy, folder, strike="sample", at=sample)
    assert apart(killed) == [-signal.SIGKILL]
    assert apart(faulty(toy, folder, resume=True)) == [0]
    assert_ended_alike(toy, folder, recovered)


def test_a_training_asked_to_stop_at_a_batch_it_leaves_out_stops_after_the_next(
    toy, apart, recovered, tmp_path
):
    folder = tmp_path / "stopped"
    asked = faulty(toy, folder, strike="sample", at=8, signal="SIGTERM")
    assert apart(asked) == [0]
    assert load_state(folder / "checkpoints").step == 3
    assert apart(faulty(toy, folder, resume=True)) == [0]
    assert_ended_alike(toy, folder, recovered)


def test_a_checkpoint_that_a_stop_adds_forgives_no_batch_left_out_before(toy, apart, tmp_path):
    """Two before it and two after are four too many since the last checkpoint that was due."""
    loop = toy.LOOP | {"on_non_finite": "recover", "best": ""}

    def counts_of(name, **strike):
        folder = tmp_path / name
        errand = toy.Errand(str(folder), loop, {"spoilt": (16, 20, 28, 32)}, **strike)
        assert apart(errand) == [0]
        if strike:
            assert load_state(folder / "checkpoints").step == 5  # 3 was due
            assert apart(toy.Errand(str(folder), loop, errand.toy, resume=True)) == [0]
        record = json.loads((folder / "record.json").read_text())
        return record["skips"], record["rollbacks"]

    assert counts_of("whole") == (3, 1)
    assert counts_of("stopped", strike="sample", at=24, signal="SIGTERM") == (3, 1)
