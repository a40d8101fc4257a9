from dataclasses import dataclass, field, replace

import pytest
import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

from cartok.core import loop
from cartok.core.checkpoint import load_state
from cartok.core.job import LoopConfig, Mover, Phase, Terms
from cartok.core.loop import fit
from cartok.core.parallel import World
from cartok.core.run import Run, read_log


@pytest.fixture
def train(toy, tmp_path):
    """A function that trains the toy in this process: changes of loop and toy, by name."""

    def train(name="run", evaluate_every=0, toy_changes=None, **loop):
        settings = toy.LOOP | ({} if evaluate_every else {"best": ""}) | loop
        return toy.train(
            toy.Errand(str(tmp_path / name), settings, toy_changes or {}, evaluate_every)
        )

    return train


# ------------------------------------------------------------------ the step


@pytest.mark.parametrize("parts", [2, 4])
def test_a_batch_in_parts_moves_the_weights_like_a_whole_one(toy, train, parts):
    exact = {"double": True, "dropout": 0.0}
    whole, _, _ = train("whole", toy_changes=exact)
    in_parts, _, _ = train("parts", toy_changes=exact, accumulate=parts)
    assert whole.seen[:48] == in_parts.seen[:48] == list(range(48))
    assert toy.largest_difference(whole.trace[-1], in_parts.trace[-1]) < 1e-12
    assert toy.largest_difference(whole.trace[-1], whole.trace[0]) > 1e-2


def test_the_peak_of_memory_is_the_trainings_own_not_an_earlier_ones(train, monkeypatch):
    told = []
    monkeypatch.setattr(loop, "forget_peak", lambda device: told.append(device.type))
    result, _, _ = train()
    assert result.trace
    assert told == ["cpu"]


class HandJob:
    """Two movers of one phase and one of another, under plain gradient descent."""

    averaged = ("one",)

    def __init__(self, clip=0.0, rate=0.5, dtype=torch.float64):
        torch.manual_seed(0)
        self.dtype = dtype
        self.modules = {name: nn.Linear(2, 2).to(dtype) for name in ("one", "two", "three")}
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
            yield torch.ones(3, 2, dtype=self.dtype)

    def prepare(self, batch, step):
        return self.two(self.one(batch).tanh())

    def first(self, outcome, step):
        losses = {"fit": (outcome - 2).square().mean(), "please": self.three(outcome).mean()}
        return Terms(losses, {"fit": 1.0, "please": 0.25})

    def second(self, outcome, step):
        return Terms({"judge": self.three(outcome).square().mean()}, {"judge": 2.0})

    def fixed_at(self, step):
        return ()

    def after_step(self, outcomes, step):
        self.clean.append(self.weights())


def fit_by_hand(job, folder, steps):
    loop = LoopConfig(steps=steps, batch=3, log_every=1, trackers=())
    run = Run.open(folder, replace(loop, steps=99), kind="hand", resume=True)
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


def test_a_phase_that_is_not_active_neither_moves_nor_trains(toy, train):
    job, _, run = train(toy_changes={"critic_from": 5}, log_every=1)
    critic = [{k: v for k, v in weights.items() if k.startswith("critic")} for weights in job.trace]
    assert all(toy.same(critic[0], weights) for weights in critic[:6])
    assert not toy.same(critic[5], critic[6])
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


def test_a_module_in_evaluation_mode_is_trained_in_training_mode(toy, tmp_path):
    config = toy.ToyConfig(loop=LoopConfig(**toy.LOOP | {"steps": 2, "best": ""}))
    job = toy.ToyJob(config)
    job.codec.eval()
    modes = []
    job.in_prepare = lambda step: modes.append(job.codec.noise.training)
    fit(job, config.loop, Run.open(tmp_path / "run", config, kind="toy"))
    assert modes == [True, True]


def test_a_part_frozen_in_evaluation_mode_is_trained_so(toy, tmp_path):
    config = toy.ToyConfig(loop=LoopConfig(**toy.LOOP | {"steps": 2, "best": ""}))
    job = toy.ToyJob(config)
    job.codec.noise.eval()
    fit(job, config.loop, Run.open(tmp_path / "run", config, kind="toy"))
    assert not job.codec.noise.training


class Calls(TorchDispatchMode):
    """Remembers the names of all operators that run."""

    def __init__(self):
        super().__init__()
        self.names = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.names.append(func.name())
        return func(*args, **(kwargs or {}))


def test_no_number_is_taken_to_the_host_by_itself_in_a_step(tmp_path):
    """A GPU idles while the host waits for a number; so a step takes all of them at once."""
    job, calls = HandJob(clip=1.0), Calls()
    plain = job.after_step

    def after_step(outcomes, step):
        plain(outcomes, step)
        if step == 0:
            calls.__enter__()
        if step == 8:
            calls.__exit__(None, None, None)

    job.after_step = after_step
    fit_by_hand(job, tmp_path, steps=10)
    assert calls.names.count("aten::cat") == 8
    assert "aten::_local_scalar_dense" not in calls.names
    assert "aten::is_nonzero" not in calls.names


@dataclass(frozen=True)
class Listening(World):
    """A world of one that counts what it exchanges."""

    heard: list = field(default_factory=list)

    def gather(self, value):
        self.heard.append("gather")
        return super().gather(value)

    def mean(self, value):
        self.heard.append("mean")
        return super().mean(value)

    def any(self, claim):
        self.heard.append("any")
        return super().any(claim)


@pytest.mark.parametrize("parts", [1, 2])
def test_a_step_tells_the_other_ranks_all_its_numbers_in_one_exchange(toy, tmp_path, parts):
    loop = LoopConfig(**toy.LOOP | {"best": "", "save_every": 99, "accumulate": parts})
    config, world = toy.ToyConfig(loop=loop), Listening()
    run = Run.open(tmp_path / "run", config, kind="toy", world=world)
    job = toy.ToyJob(config, world)
    world.heard.clear()
    fit(job, loop, run)
    assert world.heard == ["gather"] * (12 + 1)  # a step each, and the random state in the end


OPTIMIZERS = {
    "momentum": lambda p: torch.optim.SGD(p, lr=1.0, momentum=0.9),
    "fused": lambda p: torch.optim.AdamW(p, lr=1.0, fused=True),
    "nadam": lambda p: torch.optim.NAdam(p, lr=1.0),
    "adagrad": lambda p: torch.optim.Adagrad(p, lr=1.0),
    "rmsprop": lambda p: torch.optim.RMSprop(p, lr=1.0, centered=True),
    "adafactor": lambda p: torch.optim.Adafactor(p, lr=1.0),
    "muon": lambda p: torch.optim.Muon([w for w in p if w.ndim == 2], lr=1.0),
}


@pytest.mark.parametrize("kind", OPTIMIZERS)
def test_any_optimizer_moves_a_module_and_is_taken_up_again(tmp_path, kind):
    def job():
        job = HandJob(dtype=torch.float32)
        movers = [
            Mover(name, module, OPTIMIZERS[kind]([*module.parameters()]), lambda step: 0.01)
            for name, module in job.modules.items()
        ]
        job.phases = (
            Phase("first", tuple(movers[:2]), job.first),
            Phase("second", tuple(movers[2:]), job.second, lambda step: step >= 1),
        )
        return job

    whole, first, second = job(), job(), job()
    fit_by_hand(whole, tmp_path / "whole", steps=4)
    fit_by_hand(first, tmp_path / "parts", steps=2)
    fit_by_hand(second, tmp_path / "parts", steps=4)
    assert not torch.equal(whole.clean[0][0], whole.clean[2][0])
    assert all(map(torch.equal, first.weights(), whole.clean[2]))
    assert all(map(torch.equal, second.weights(), whole.weights()))


def test_a_term_of_weight_zero_may_be_nan_and_is_logged_as_null(train):
    _, outcome, run = train()
    assert outcome.finished
    assert {line["codec/unused"] for line in read_log(run.folder)} == {None}


# ------------------------------------------------------------------ precision


def test_bfloat16_computes_in_it_keeps_float32_weights_and_stays_close(toy, tmp_path):
    ends, kinds = {}, {}
    for precision in ("fp32", "bf16"):
        loop = LoopConfig(**toy.LOOP | {"best": "", "precision": precision})
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
    difference = toy.largest_difference(ends["fp32"][0], ends["bf16"][0])
    assert 0 < difference < 0.02
    assert ends["bf16"][1] == pytest.approx(ends["fp32"][1], rel=0.02)
