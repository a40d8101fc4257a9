import json
import math
import signal

import pytest
import torch
from torch import nn

from cartok.core.checkpoint import load_state
from cartok.core.errors import UserError
from cartok.core.job import Evaluation, LoopConfig, Mover, NonFiniteError, Phase, Terms
from cartok.core.loop import fit
from cartok.core.run import Run, read_log

LOOP = {"steps": 12, "batch": 4, "log_every": 2, "save_every": 3, "ema": 0.75, "best": "held/loss",
        "trackers": ()}  # fmt: skip


@pytest.fixture
def train(toy, tmp_path):
    """A function that trains the toy in this process: changes of loop and toy, by name."""

    def train(name="run", evaluate_every=0, toy_changes=None, **loop):
        settings = LOOP | ({} if evaluate_every else {"best": ""}) | loop
        return toy.train(
            toy.Errand(str(tmp_path / name), settings, toy_changes or {}, evaluate_every)
        )

    return train


def same(one, other):
    """True if two dicts of tensors agree in every bit."""
    return one.keys() == other.keys() and all(torch.equal(one[k], other[k]) for k in one)


def largest_difference(one, other):
    return max(float((one[key].double() - other[key].double()).abs().max()) for key in one)


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


# ------------------------------------------------------------------ the step


@pytest.mark.parametrize("parts", [2, 4])
def test_a_batch_in_parts_moves_the_weights_like_a_whole_one(train, parts):
    exact = {"double": True, "dropout": 0.0}
    whole, _, _ = train("whole", toy_changes=exact)
    in_parts, _, _ = train("parts", toy_changes=exact, accumulate=parts)
    assert whole.seen[:48] == in_parts.seen[:48] == list(range(48))
    assert largest_difference(whole.trace[-1], in_parts.trace[-1]) < 1e-12
    assert largest_difference(whole.trace[-1], whole.trace[0]) > 1e-2


class HandJob:
    """Two movers of one phase and one of another, under plain gradient descent."""

    averaged = ("one",)

    def __init__(self, clip=0.0, rate=0.5):
        torch.manual_seed(0)
        self.modules = {name: nn.Linear(2, 2).double() for name in ("one", "two", "three")}
        self.one, self.two, self.three = self.modules.values()
        movers = [self.mover(name, clip, rate) for name in self.modules]
        self.phases = (
            Phase("first", tuple(movers[:2]), self.first),
            Phase("second", tuple(movers[2:]), self.second, lambda step: step >= 1),
        )
        self.clean = [self.weights()]

    def mover(self, name, clip, rate):
        module = self.modules[name]
        optimizer = torch.optim.SGD(module.parameters(), lr=123.0)
        return Mover(name, module, optimizer, lambda step: rate, clip)

    def weights(self):
        return [p.detach().clone() for m in self.modules.values() for p in m.parameters()]

    def batches(self, start):
        while True:
            yield torch.ones(3, 2, dtype=torch.float64)

    def prepare(self, batch, step):
        return self.two(self.one(batch).tanh())

    def first(self, outcome, step):
        losses = {"fit": (outcome - 2).square().mean(), "please": self.three(outcome).mean()}
        return Terms(losses, {"fit": 1.0, "please": 0.25})

    def second(self, outcome, step):
        return Terms({"judge": self.three(outcome).square().mean()}, {"judge": 2.0})

    def after_step(self, outcomes, step):
        self.clean.append(self.weights())


def fit_by_hand(job, tmp_path, steps, config=None, **more):
    loop = LoopConfig(steps=steps, batch=3, log_every=1, trackers=(), **more)
    run = Run.open(tmp_path / "hand", loop, kind="hand")
    return run, fit(job, loop, run)


def test_each_phase_moves_its_own_modules_along_its_own_gradient(tmp_path):
    job, by_hand = HandJob(), HandJob()
    fit_by_hand(job, tmp_path, steps=2)
    for step in range(2):
        outcome = by_hand.prepare(next(by_hand.batches(0)), step)
        first = [*by_hand.one.parameters(), *by_hand.two.parameters()]
        second = [*by_hand.three.parameters()] if step >= 1 else []
        total = by_hand.first(outcome, step).losses
        moves = torch.autograd.grad(total["fit"] + 0.25 * total["please"], first, retain_graph=True)
        if second:
            judged = by_hand.second(outcome.detach(), step).losses["judge"]
            moves += torch.autograd.grad(2.0 * judged, second)
        with torch.no_grad():
            for weight, move in zip(first + second, moves, strict=True):
                weight -= 0.5 * move
    for found, expected in zip(job.weights(), by_hand.weights(), strict=True):
        torch.testing.assert_close(found, expected, rtol=0, atol=1e-14)


def test_a_phase_that_is_not_active_neither_moves_nor_trains(train):
    job, _, run = train(toy_changes={"critic_from": 5}, log_every=1)
    critic = [{k: v for k, v in weights.items() if k.startswith("critic")} for weights in job.trace]
    assert all(same(critic[0], weights) for weights in critic[:6])
    assert not same(critic[5], critic[6])
    logged = {line["step"] for line in read_log(run.folder) if "critic/hinge" in line}
    assert logged == set(range(6, 13))
    state = load_state(run.checkpoints).tensors
    steps = {name: float(value) for name, value in state.items() if name.endswith("/step")}
    assert steps == {k: 7.0 if "/critic/" in k else 12.0 for k in steps}


def test_a_gradient_is_clipped_to_its_limit_and_logged_as_it_was(tmp_path):
    job = HandJob(clip=0.125, rate=1.0)
    run, _ = fit_by_hand(job, tmp_path, steps=1)
    before, after = job.clean
    for number, name in enumerate(("one", "two")):
        moved = [a - b for a, b in zip(after, before, strict=True)][2 * number : 2 * number + 2]
        norm = float(torch.cat([part.flatten() for part in moved]).norm())
        logged = read_log(run.folder)[0][f"gradient/{name}"]
        assert logged > 0.125
        assert norm == pytest.approx(0.125, rel=1e-4)


def test_the_rate_is_the_schedules_at_every_step(train, toy):
    job, _, run = train(log_every=1)
    rate = job.phases[0].movers[0].rate
    logged = [line["rate/codec"] for line in read_log(run.folder)]
    assert logged == [rate(step) for step in range(12)]
    assert job.phases[0].movers[0].optimizer.param_groups[0]["lr"] == rate(11)


def test_logged_losses_are_the_means_over_a_batchs_parts(train, toy):
    exact = {"double": True, "dropout": 0.0}
    _, _, whole = train("whole", toy_changes=exact, steps=1)
    _, _, parts = train("parts", toy_changes=exact, steps=1, accumulate=4)
    one, four = read_log(whole.folder)[0], read_log(parts.folder)[0]
    for name in ("codec/rebuild", "codec/size", "critic/hinge", "gradient/codec"):
        assert one[name] == pytest.approx(four[name], rel=1e-6)


def test_a_term_of_weight_zero_may_be_nan_and_is_logged_as_null(train):
    _, outcome, run = train()
    assert outcome.finished
    assert {line["codec/unused"] for line in read_log(run.folder)} == {None}


# ------------------------------------------------------------------ what is not finite


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_a_loss_that_is_not_finite_stops_before_any_weight_moves(train, toy, monkeypatch, bad):
    plain = toy.sample_values

    def poisoned(indices):
        return plain(indices) if 14 not in indices else plain(indices) * bad

    monkeypatch.setattr(toy, "sample_values", poisoned)
    with pytest.raises(NonFiniteError, match=r"'codec/rebuild' .* step 3 \(samples \[12, 13, 14"):
        train()


def test_weights_and_checkpoints_are_those_before_the_loss_that_is_not_finite(tmp_path):
    job = HandJob()
    plain = job.second
    job.second = None
    bad = {3: math.nan}

    def second(outcome, step):
        terms = plain(outcome, step)
        return Terms({"judge": terms.losses["judge"] * bad.get(step, 1.0)}, terms.weights)

    job.phases = (job.phases[0], Phase("second", job.phases[1].movers, second))
    with pytest.raises(NonFiniteError, match="'second/judge' is not finite at step 3"):
        fit_by_hand(job, tmp_path, steps=9, save_every=1)
    assert len(job.clean) == 4
    assert all(map(torch.equal, job.weights(), job.clean[-1]))
    assert load_state(tmp_path / "hand" / "checkpoints").step == 3


def test_a_gradient_that_is_not_finite_stops_before_any_weight_moves(tmp_path):
    job = HandJob()
    plain = job.first

    def first(outcome, step):
        terms = plain(outcome, step)
        # Zero going forward; its slope is infinite times zero.
        spoilt = (outcome.sum() * 0.0).sqrt() if step == 2 else 0.0
        return Terms({**terms.losses, "fit": terms.losses["fit"] + spoilt}, terms.weights)

    job.phases = (Phase("first", job.phases[0].movers, first), job.phases[1])
    with pytest.raises(NonFiniteError, match=r"gradient/one and the gradient/two is not .* step 2"):
        fit_by_hand(job, tmp_path, steps=9)
    assert all(map(torch.equal, job.weights(), job.clean[2]))


def test_an_evaluation_that_is_not_finite_is_null_and_stops_nothing(toy, tmp_path):
    config = toy.ToyConfig(loop=LoopConfig(**LOOP))
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
    config = toy.ToyConfig(loop=LoopConfig(**LOOP | {"best": ""}))
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


def test_evaluations_leave_no_trace_in_a_training(train):
    plain, _, _ = train("plain")
    watched, _, _ = train("watched", evaluate_every=1)
    assert all(map(same, plain.trace, watched.trace))


def test_a_part_frozen_in_evaluation_mode_stays_so_after_an_evaluation(toy, tmp_path):
    config = toy.ToyConfig(loop=LoopConfig(**LOOP | {"steps": 2}))
    job = toy.ToyJob(config)
    job.codec.noise.eval()
    run = Run.open(tmp_path / "run", config, kind="toy")
    fit(job, config.loop, run, evaluations=toy.held_out(job, 1))
    assert not job.codec.noise.training
    assert job.codec.training


def test_a_failing_evaluation_leaves_live_weights_and_modes(toy, tmp_path):
    config = toy.ToyConfig(loop=LoopConfig(**LOOP))
    job = toy.ToyJob(config)

    def fail(step):
        raise RuntimeError("no reference")

    run = Run.open(tmp_path / "run", config, kind="toy")
    with pytest.raises(RuntimeError, match="no reference"):
        fit(job, config.loop, run, evaluations=(Evaluation("held", 4, fail),))
    assert same(toy.weights_of(job), job.trace[4])
    assert job.codec.training


def test_the_best_checkpoint_is_kept_beside_the_newest(toy, tmp_path):
    config = toy.ToyConfig(loop=LoopConfig(**LOOP | {"save_every": 4}))
    run = Run.open(tmp_path / "run", config, kind="toy")
    answers = {2: 5.0, 4: 3.0, 6: 1.0, 8: 2.0, 10: 1.0, 12: 7.0}
    judge = Evaluation("held", 2, lambda step: {"loss": answers[step]})
    fit(toy.ToyJob(config), config.loop, run, evaluations=(judge,))
    kept = sorted(path.name for path in run.checkpoints.iterdir())
    assert kept == ["step-00000006", "step-00000012"]
    state = json.loads((run.checkpoints / kept[-1] / "state.json").read_text())
    assert state["best"] == "step-00000006"


# ------------------------------------------------------------------ refusals


def test_a_best_value_of_no_evaluation_is_refused_at_the_start(train, tmp_path):
    with pytest.raises(UserError, match="'hold/loss' is not: the evaluations are held"):
        train(evaluate_every=4, best="hold/loss")
    assert not (tmp_path / "run" / "log.jsonl").exists()


def test_a_best_value_that_its_evaluation_does_not_give_is_refused_when_first_taken(train):
    with pytest.raises(UserError, match="'held/los' is not; did you mean 'held/loss'"):
        train(evaluate_every=4, best="held/los")


# ------------------------------------------------------------------ killed and taken up again


@pytest.fixture(scope="module")
def uninterrupted(toy, apart, tmp_path_factory):
    """The run folder of a training that nothing disturbed."""
    folder = tmp_path_factory.mktemp("loop") / "whole"
    assert apart(errand_of(toy, folder)) == [0]
    return folder


def errand_of(toy, folder, **more):
    return toy.Errand(str(folder), LOOP, {"critic_from": 2}, evaluate_every=2, **more)


def assert_ended_alike(folder, whole):
    """Weights, optimizers, averages, random state, best checkpoint and log: bit for bit."""
    found, expected = load_state(folder / "checkpoints"), load_state(whole / "checkpoints")
    kinds = {name.split("/")[0] for name in expected.tensors}
    assert kinds == {"module", "optimizer", "average", "random"}
    assert found.step == expected.step == 12
    assert same(found.tensors, expected.tensors)
    for key in ("best", "values"):
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
    assert_ended_alike(folder, uninterrupted)


def test_a_training_killed_twice_goes_on_to_the_same_end(toy, apart, uninterrupted, tmp_path):
    folder = tmp_path / "killed"
    assert apart(errand_of(toy, folder, strike="staged", at=1)) == [-signal.SIGKILL]
    again = errand_of(toy, folder, resume=True, strike="step", at=9)
    assert apart(again) == [-signal.SIGKILL]
    assert apart(errand_of(toy, folder, resume=True)) == [0]
    assert_ended_alike(folder, uninterrupted)


@pytest.mark.parametrize("at", [0, 4, 11])
def test_a_training_asked_to_stop_saves_and_goes_on_to_the_same_end(
    toy, apart, uninterrupted, tmp_path, at
):
    folder = tmp_path / "stopped"
    assert apart(errand_of(toy, folder, strike="step", at=at, signal="SIGTERM")) == [0]
    assert load_state(folder / "checkpoints").step == at + 1
    assert (folder / "record.json").exists() == (at == 11)
    assert apart(errand_of(toy, folder, resume=True)) == [0]
    assert_ended_alike(folder, uninterrupted)


def test_a_training_gives_the_signal_back_to_who_had_it(train):
    before = signal.getsignal(signal.SIGTERM)
    train(steps=1)
    assert signal.getsignal(signal.SIGTERM) is before


# ------------------------------------------------------------------ precision


def test_bfloat16_computes_in_it_keeps_float32_weights_and_stays_close(toy, tmp_path):
    ends, kinds = {}, {}
    for precision in ("fp32", "bf16"):
        loop = LoopConfig(**LOOP | {"best": "", "precision": precision})
        job = toy.ToyJob(toy.ToyConfig(loop=loop, dropout=0.0))
        plain = job.after_step

        def after_step(outcomes, step, plain=plain, precision=precision):
            kinds[precision] = outcomes[0].back.dtype
            plain(outcomes, step)

        job.after_step = after_step
        run = Run.open(tmp_path / precision, job.config, kind="toy")
        fit(job, loop, run)
        ends[precision] = job.trace[-1], read_log(run.folder)[-1]["codec/rebuild"]
        assert {p.dtype for p in job.codec.parameters()} == {torch.float32}
    assert kinds == {"fp32": torch.float32, "bf16": torch.bfloat16}
    difference = largest_difference(ends["fp32"][0], ends["bf16"][0])
    assert 0 < difference < 0.02
    assert ends["bf16"][1] == pytest.approx(ends["fp32"][1], rel=0.02)
