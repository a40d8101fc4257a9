import importlib
import sys
from types import ModuleType

import pytest

from cartok.core.config import config
from cartok.core.errors import UserError
from cartok.core.run import Run
from cartok.core.trackers import Service, TensorBoard, Tracker, open_tracker


@config
class TrackedConfig:
    steps: int = 10


@pytest.fixture
def scalars():
    """A function that reads a run's TensorBoard events: name -> [(step, value), ...]."""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    def scalars(folder):
        events = EventAccumulator(str(folder / "tensorboard"))
        events.Reload()
        names = events.Tags()["scalars"]
        return {name: [(e.step, e.value) for e in events.Scalars(name)] for name in names}

    return scalars


def test_tensorboard_events_can_be_read_once_closed(tmp_path, scalars):
    tracker = open_tracker("tensorboard", tmp_path, {"steps": 10}, 1)
    assert isinstance(tracker, TensorBoard)
    tracker.log(1, {"codec/rebuild": 0.5, "rate": 2.0})
    tracker.log(2, {"codec/rebuild": 0.25})
    tracker.close()
    assert scalars(tmp_path) == {"codec/rebuild": [(1, 0.5), (2, 0.25)], "rate": [(1, 2.0)]}


def test_a_run_taken_up_again_shows_each_step_once(tmp_path, scalars):
    run = Run.open(tmp_path, TrackedConfig(), kind="toy")
    run.start_log(0, ("tensorboard",))
    for step in range(1, 8):
        run.log(step, {"loss": float(step)})
    run.close()
    run = Run.open(tmp_path, TrackedConfig(), kind="toy", resume=True)
    run.start_log(4, ("tensorboard",))
    run.log(5, {"loss": 50.0})
    run.finish()
    expected = [(1, 1.0), (2, 2.0), (3, 3.0), (4, 4.0), (5, 50.0)]
    assert scalars(tmp_path) == {"loss": expected}


def test_a_run_started_again_forgets_the_old_events(tmp_path, scalars):
    for value in (1.0, 2.0):
        run = Run.open(tmp_path, TrackedConfig(), kind="toy", overwrite=True)
        run.start_log(0, ("tensorboard",))
        run.log(3, {"loss": value})
        run.close()
    assert scalars(tmp_path) == {"loss": [(3, 2.0)]}


@pytest.mark.parametrize("name", ["wandb", "trackio"])
def test_a_tracker_that_is_not_installed_is_refused_in_one_line(tmp_path, monkeypatch, name):
    monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(UserError, match=f"'{name}' needs its package; install it") as refusal:
        open_tracker(name, tmp_path, {}, 1)
    assert len(str(refusal.value).splitlines()) == 1


@pytest.fixture
def service(monkeypatch):
    """A function that stands in for a service of that name; gives back the calls it gets."""

    def service(name):
        calls, module = [], ModuleType(name)
        module.init = lambda **settings: calls.append(("init", settings))
        module.log = lambda values, step: calls.append(("log", values, step))
        module.finish = lambda: calls.append(("finish",))
        monkeypatch.setitem(sys.modules, name, module)
        assert importlib.import_module(name) is module
        return calls

    return service


@pytest.mark.parametrize("name", ["wandb", "trackio"])
def test_a_service_is_told_everything_in_order(tmp_path, service, name):
    calls = service(name)
    run = Run.open(tmp_path / "demo" / "causal", TrackedConfig(), kind="toy")
    run.start_log(0, (name,))
    run.log(1, {"loss": 0.5, "bad": float("nan")})
    run.close()
    (_, settings), told, finished = calls
    assert settings["project"] == "cartok"
    assert settings["config"] == {"steps": 10}
    assert settings["resume"] == "allow"
    assert "demo-causal-" in settings["name"]
    # Weights & Biases resumes by id, and trackio has no such argument.
    assert settings.get("id") == (settings["name"] if name == "wandb" else None)
    assert told == ("log", {"loss": 0.5}, 1)
    assert finished == ("finish",)


def names_of(calls):
    return [call[1]["name"] for call in calls if call[0] == "init"]


def test_a_run_taken_up_again_goes_on_under_its_name(tmp_path, service):
    calls = service("trackio")
    for step, flag in ((0, False), (4, True), (8, True)):
        run = Run.open(tmp_path, TrackedConfig(), kind="toy", resume=flag)
        run.start_log(step, ("trackio",))
    assert len(set(names_of(calls))) == 1


def test_a_run_started_again_and_one_beside_it_have_names_of_their_own(tmp_path, service):
    calls = service("trackio")
    for place in ("plain/tokenizer", "causal/tokenizer", "causal/tokenizer"):
        run = Run.open(tmp_path / place, TrackedConfig(), kind="toy", overwrite=True)
        run.start_log(0, ("trackio",))
    assert len(set(names_of(calls))) == 3


def test_both_kinds_are_trackers(tmp_path, service):
    service("wandb")
    for name, kind in (("wandb", Service), ("tensorboard", TensorBoard)):
        tracker = open_tracker(name, tmp_path, {}, 1)
        assert isinstance(tracker, Tracker)
        assert isinstance(tracker, kind)
        tracker.close()


def test_the_last_lines_reach_the_trackers_when_a_training_fails(toy, tmp_path, scalars):
    loop = toy.LoopConfig(steps=9, batch=2, log_every=1, trackers=("tensorboard",))
    toy_config = toy.ToyConfig(loop=loop)
    job = toy.ToyJob(toy_config)

    def fail(step):
        if step == 3:
            raise RuntimeError("out of memory")

    job.in_prepare = fail
    run = Run.open(tmp_path, toy_config, kind="toy")
    with pytest.raises(RuntimeError, match="out of memory"):
        toy.fit(job, loop, run)
    assert [step for step, _ in scalars(tmp_path)["codec/rebuild"]] == [1, 2, 3]


def test_a_name_holds_nothing_of_what_lies_above_the_run(tmp_path, service):
    calls = service("wandb")
    run = Run.open(tmp_path / "alice" / "demo" / "causal", TrackedConfig(), kind="toy")
    run.start_log(0, ("wandb",))
    (name,) = names_of(calls)
    assert name.startswith("demo-causal-")
    assert len(name.split("-")) == 3
