import json
import math

import pytest
import torch

from cartok.core.checkpoint import load_state
from cartok.core.errors import UserError
from cartok.core.job import Evaluation, LoopConfig
from cartok.core.loop import fit
from cartok.core.run import Run


@pytest.fixture
def train(toy, tmp_path):
    """A function that trains the toy in this process: changes of loop and toy, by name."""

    def train(name="run", evaluate_every=0, toy_changes=None, **loop):
        settings = toy.LOOP | ({} if evaluate_every else {"best": ""}) | loop
        return toy.train(
            toy.Errand(str(tmp_path / name), settings, toy_changes or {}, evaluate_every)
        )

    return train


# ------------------------------------------------------------------ averages and evaluations


def test_the_average_is_its_closed_form_and_is_what_a_training_leaves(train):
    job, _, run = train(ema=0.75)
    key = "codec/there.weight"
    mean = job.trace[0][key].double()
    for weights in job.trace[1:]:
        mean = 0.75 * mean + 0.25 * weights[key].double()
    left = job.codec.there.weight.detach().double()
    torch.testing.assert_close(left, mean, rtol=0, atol=1e-6)
    assert not torch.allclose(left, job.trace[-1][key].double(), atol=1e-4)
    state = load_state(run.checkpoints).tensors
    assert torch.equal(state["module/" + key], job.trace[-1][key])
    assert torch.equal(state["average/" + key], job.codec.there.weight)


def test_counts_are_not_averaged(train):
    job, _, _ = train(ema=0.75)
    assert job.codec.steps.item() == 12


def test_an_evaluation_sees_the_averaged_weights_in_evaluation_mode(toy, tmp_path):
    config = toy.ToyConfig(loop=LoopConfig(**toy.LOOP | {"best": ""}))
    job = toy.ToyJob(config)
    seen = {}

    def look(step):
        weight = job.codec.there.weight
        seen[step] = weight.detach().clone(), job.codec.noise.training, torch.is_grad_enabled()
        return {}

    run = Run.open(tmp_path / "run", config, kind="toy")
    fit(job, config.loop, run, evaluations=(Evaluation("look", 5, look),))
    assert sorted(seen) == [5, 10, 12]
    mean = job.trace[0]["codec/there.weight"]
    for weights in job.trace[1:6]:
        mean = 0.75 * mean + 0.25 * weights["codec/there.weight"]
    torch.testing.assert_close(seen[5][0], mean, rtol=0, atol=1e-6)
    assert not torch.allclose(seen[5][0], job.trace[5]["codec/there.weight"], atol=1e-5)
    assert seen[5][1:] == (False, False)
    assert job.codec.noise.training


def test_evaluations_leave_no_trace_in_a_training(toy, train):
    plain, _, _ = train("plain")
    watched, _, _ = train("watched", evaluate_every=1)
    assert all(map(toy.same, plain.trace, watched.trace))


def test_a_part_frozen_in_evaluation_mode_stays_so_after_an_evaluation(toy, tmp_path):
    config = toy.ToyConfig(loop=LoopConfig(**toy.LOOP | {"steps": 2}))
    job = toy.ToyJob(config)
    job.codec.noise.eval()
    run = Run.open(tmp_path / "run", config, kind="toy")
    fit(job, config.loop, run, evaluations=toy.held_out(job, 1))
    assert not job.codec.noise.training
    assert job.codec.training


def test_a_failing_evaluation_leaves_live_weights_and_modes(toy, tmp_path):
    config = toy.ToyConfig(loop=LoopConfig(**toy.LOOP))
    job = toy.ToyJob(config)

    def fail(step):
        raise RuntimeError("no reference")

    run = Run.open(tmp_path / "run", config, kind="toy")
    with pytest.raises(RuntimeError, match="no reference"):
        fit(job, config.loop, run, evaluations=(Evaluation("held", 4, fail),))
    assert toy.same(toy.weights_of(job), job.trace[4])
    assert job.codec.training


def test_the_best_checkpoint_is_kept_beside_the_newest(toy, tmp_path):
    config = toy.ToyConfig(loop=LoopConfig(**toy.LOOP | {"save_every": 4}))
    run = Run.open(tmp_path / "run", config, kind="toy")
    answers = {2: 5.0, 4: 3.0, 6: 1.0, 8: 2.0, 10: 1.0, 12: 7.0}
    judge = Evaluation("held", 2, lambda step: {"loss": answers[step]})
    fit(toy.ToyJob(config), config.loop, run, evaluations=(judge,))
    kept = sorted(path.name for path in run.checkpoints.iterdir())
    assert kept == ["step-00000006", "step-00000012"]
    state = json.loads((run.checkpoints / kept[-1] / "state.json").read_text())
    assert state["best"] == "step-00000006"


def test_an_evaluation_that_is_not_finite_is_null_and_stops_nothing(toy, tmp_path):
    config = toy.ToyConfig(loop=LoopConfig(**toy.LOOP))
    run = Run.open(tmp_path / "run", config, kind="toy")
    answers = {3: 5.0, 6: math.nan, 9: 4.0, 12: math.inf}
    judge = Evaluation("held", 3, lambda step: {"loss": answers[step]})
    outcome = fit(toy.ToyJob(config), config.loop, run, evaluations=(judge,))
    assert outcome.finished
    record = run.finish(scores=outcome.values)
    assert record["scores"] == {"held/loss": None}
    assert record["curves"]["held/loss"] == [[3, 5.0], [9, 4.0]]
    assert json.loads((run.folder / "record.json").read_text()) == record
    state = json.loads((run.checkpoints / "step-00000012" / "state.json").read_text())
    assert state["best"] == "step-00000009"
    assert state["values"]["best"] == 4.0


# ------------------------------------------------------------------ refusals


def test_a_best_value_of_no_evaluation_is_refused_at_the_start(train, tmp_path):
    with pytest.raises(UserError, match="'hold/loss' is not: the evaluations are held"):
        train(evaluate_every=4, best="hold/loss")
    assert not (tmp_path / "run" / "log.jsonl").exists()


def test_a_best_value_that_its_evaluation_does_not_give_is_refused_when_first_taken(train):
    with pytest.raises(UserError, match="'held/los' is not; did you mean 'held/loss'"):
        train(evaluate_every=4, best="held/los")
