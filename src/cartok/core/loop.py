"""fit(job): the one training loop, for any job that is a list of phases.

A job prepares a batch once; each of its phases moves some modules by an objective of the outcome.
The loop knows steps, accumulation, clipping, schedules, averages, saving and stopping; it does
not know what a picture or a token is.
"""

import math
import signal
import time
from collections.abc import Generator, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from cartok.core.average import Average
from cartok.core.checkpoint import (
    TrainingState,
    load_state,
    put_optimizer,
    put_tensors,
    save_state,
    tensors_of_optimizer,
)
from cartok.core.files import finite
from cartok.core.job import (
    Evaluation,
    Job,
    LoopConfig,
    NonFiniteError,
    Phase,
    Terms,
    refuse_unfit,
    refuse_unmeasured,
)
from cartok.core.parallel import World
from cartok.core.precision import computing_in
from cartok.core.progress import Tick
from cartok.core.run import Run


@dataclass(frozen=True)
class Outcome:
    """How a training ended."""

    step: int
    finished: bool
    seconds: float
    stall_share: float
    values: dict[str, float]
    """The last evaluations."""


def fit(
    job: Job,
    config: LoopConfig,
    run: Run,
    *,
    evaluations: tuple[Evaluation, ...] = (),
    tick: Tick = lambda done, words: None,
) -> Outcome:
    """Trains a job to its end, going on from the run's newest checkpoint if there is one.

    SIGTERM saves and returns early. On the CPU a training that was killed at any step and taken up
    again ends bit-identical to one that was not.

    Raises:
        NonFiniteError: before the weights move; names the term, the step and the batch.
        UserError: the batch cannot be shared by the ranks, or ``best`` is no evaluation's value.
    """
    refuse_unfit(config, evaluations, run.world.size)
    try:
        return _Fit(job, config, run, evaluations, tick).go()
    except BaseException:
        run.close()  # the trackers still hold the last lines, which tell what went wrong
        raise


class _Fit:
    def __init__(self, job: Job, config: LoopConfig, run: Run, evaluations, tick: Tick):
        self.job, self.config, self.run, self.evaluations = job, config, run, evaluations
        self.tick, self.world = tick, run.world
        self.average = Average(job, config.ema)
        self.seconds = self.stalled = 0.0
        self.best = math.inf
        self.values: dict[str, float] = {}

    def go(self) -> Outcome:
        start = self.resume()
        self.run.start_log(start, self.config.trackers)
        stream = self.job.batches(start * self.config.batch)
        step = start
        with _asked_to_stop() as stop:
            while step < self.config.steps:
                begin = time.monotonic()
                values = self.step(stream, step)
                step += 1
                self.seconds += time.monotonic() - begin
                self.report(step, values)
                improved = self.evaluate(step)
                stopping = self.world.any(bool(stop))
                last = step == self.config.steps
                if improved or last or stopping or step % self.config.save_every == 0:
                    self.save(step, improved)
                if stopping:
                    break
        if step == self.config.steps:
            self.average.put_in()
        share = self.stalled / self.seconds if self.seconds else 0.0
        finished = step == self.config.steps
        return Outcome(step, finished, self.seconds, share, self.values)

    def step(self, stream: Iterator[Any], step: int) -> dict[str, Tensor]:
        """One optimizer step of every phase; returns the terms' means."""
        outcomes: list[Any] = []
        sums: dict[str, Tensor] = {}
        parts = self.config.accumulate
        phases = [phase for phase in self.job.phases if phase.active(step)]
        for _ in range(parts):
            begin = time.monotonic()
            batch = next(stream)
            self.stalled += time.monotonic() - begin
            with computing_in(self.config.precision, self.world.device):
                outcome = self.job.prepare(batch, step)
            for phase in phases:
                with computing_in(self.config.precision, self.world.device):
                    terms = phase.objective(outcome, step)
                _refuse_non_finite(terms, phase.name, step, batch, self.world)
                moved = [p for mover in phase.movers for p in mover.parameters]
                (terms.total / parts).backward(inputs=moved)
                for name, value in (terms.losses | terms.watched).items():
                    name = f"{phase.name}/{name}"
                    sums[name] = sums.get(name, 0) + value.detach().float() / parts
            outcomes.append(outcome)
        norms = self.norms(phases, step)
        for phase in phases:
            for mover in phase.movers:
                for group in mover.optimizer.param_groups:
                    group["lr"] = mover.rate(step)
                mover.optimizer.step()
                mover.optimizer.zero_grad(set_to_none=True)
        self.job.after_step(outcomes, step)
        self.average.follow()
        return sums | norms

    def norms(self, phases: list[Phase], step: int) -> dict[str, Tensor]:
        """Clips all gradients; returns their norms before. Nothing moves if one is not finite."""
        norms = {}
        for phase in phases:
            for mover in phase.movers:
                self.world.average_gradients(mover.parameters)
                norm = nn.utils.clip_grad_norm_(mover.parameters, mover.clip or math.inf)
                norms[f"gradient/{mover.name}"] = norm
        bad = [name for name, norm in norms.items() if not bool(norm.isfinite())]
        if self.world.any(bool(bad)):
            raise NonFiniteError(
                f"the {' and the '.join(bad) or 'gradient of another rank'} is not finite at step "
                f"{step}; no weight was moved; lower the learning rate or set a clip"
            )
        return norms

    def report(self, step: int, values: dict[str, Tensor]) -> None:
        if step % self.config.log_every and step != self.config.steps:
            if step % 10 == 0:
                self.tick(step, "")
            return
        plain = {name: float(self.world.mean(value)) for name, value in values.items()}
        stall = self.stalled / self.seconds
        plain |= {
            f"rate/{mover.name}": mover.rate(step - 1)
            for phase in self.job.phases
            for mover in phase.movers
        }
        plain |= {"speed/seconds_per_step": self.seconds / step, "speed/stall_share": stall}
        self.run.log(step, plain)
        first = next(iter(plain.items()))
        self.tick(step, f"{first[0]} {first[1]:.4g}, waiting for data {stall:.0%}")

    def evaluate(self, step: int) -> bool:
        """Takes the evaluations that are due; true if the value to keep by has improved."""
        last = step == self.config.steps
        due = [e for e in self.evaluations if last or step % e.every == 0]
        if not due:
            return False
        fresh: dict[str, float] = {}
        with self.average.instead(), _undisturbed(self.job, self.world):
            for evaluation in due:
                found = evaluation.measure(step)
                fresh |= {f"{evaluation.name}/{key}": value for key, value in found.items()}
        refuse_unmeasured(self.config, [e.name for e in due], list(fresh))
        self.values |= fresh
        self.run.log(step, fresh)
        value = fresh.get(self.config.best, math.inf)
        # Ranks may differ in the last digit, but must save together; false for NaN.
        improved = self.world.any(self.world.is_main and value < self.best)
        self.best = value if improved else self.best
        return improved

    def save(self, step: int, is_best: bool) -> None:
        state = TrainingState(step, self.tensors(), finite({
            "seconds": self.seconds, "stalled": self.stalled, "best": self.best,
            "values": self.values,
        }))  # fmt: skip
        if self.world.is_main:
            save_state(self.run.checkpoints, state, is_best=is_best)
        self.world.barrier()

    def tensors(self) -> dict[str, Tensor]:
        tensors = {f"random/{name}": value for name, value in _random(self.world).items()}
        for name, module in self.job.modules.items():
            tensors |= {f"module/{name}/{k}": v for k, v in module.state_dict().items()}
        for mover in (m for phase in self.job.phases for m in phase.movers):
            state = tensors_of_optimizer(mover.optimizer)
            tensors |= {f"optimizer/{mover.name}/{k}": v for k, v in state.items()}
        return tensors | {f"average/{k}": v for k, v in self.average.tensors.items()}

    def resume(self) -> int:
        state = load_state(self.run.checkpoints)
        if state is None:
            return 0
        for name, module in self.job.modules.items():
            put_tensors(module, _below(state.tensors, f"module/{name}/"), f"'{name}'")
        for mover in (m for phase in self.job.phases for m in phase.movers):
            put_optimizer(mover.optimizer, _below(state.tensors, f"optimizer/{mover.name}/"))
        self.average.restore(_below(state.tensors, "average/"))
        _set_random(_below(state.tensors, "random/"), self.world)
        self.seconds, self.stalled = state.values["seconds"], state.values["stalled"]
        self.values = state.values["values"]
        self.best = math.inf if state.values["best"] is None else state.values["best"]
        return state.step


def _refuse_non_finite(terms: Terms, phase: str, step: int, batch: Any, world: World) -> None:
    names = [name for name in terms.losses if terms.weights[name]]
    fine = torch.stack([terms.losses[name].detach().float() for name in names]).isfinite()
    if not world.any(not bool(fine.all())):
        return
    bad = [name for name, ok in zip(names, fine.tolist(), strict=True) if not ok]
    where = getattr(batch, "indices", None)
    samples = f" (samples {where.tolist()[:8]} ...)" if isinstance(where, Tensor) else ""
    raise NonFiniteError(
        f"the loss term '{phase}/{(bad or ['of another rank'])[0]}' is not finite at step {step}"
        f"{samples}; no weight was moved; lower the learning rate, or look at those samples"
    )


@contextmanager
def _asked_to_stop() -> Generator[list[int]]:
    """Yields a list that is empty until SIGTERM comes."""
    asked: list[int] = []
    try:
        before = signal.signal(signal.SIGTERM, lambda number, frame: asked.append(number))
    except ValueError:  # not the main thread: signals cannot be caught here
        yield asked
        return
    try:
        yield asked
    finally:
        signal.signal(signal.SIGTERM, before)


@contextmanager
def _undisturbed(job: Job, world: World) -> Generator[None]:
    """Evaluation mode without gradients; the training's random state is as before afterwards."""
    devices = [world.device] if world.device.type == "cuda" else []
    parts = [part for module in job.modules.values() for part in module.modules()]
    modes = [part.training for part in parts]  # one by one: a part may be frozen in evaluation
    for module in job.modules.values():
        module.eval()
    try:
        with torch.random.fork_rng(devices), torch.no_grad():
            yield
    finally:
        for part, mode in zip(parts, modes, strict=True):
            part.training = mode


def _random(world: World) -> dict[str, Tensor]:
    """Every rank's random states, a row each."""
    states = {"cpu": torch.get_rng_state()}
    if world.device.type == "cuda":
        states["cuda"] = torch.cuda.get_rng_state(world.device)
    return {k: world.gather(state[None].to(world.device)).cpu() for k, state in states.items()}


def _set_random(states: dict[str, Tensor], world: World) -> None:
    for name, rows in states.items():
        if world.rank >= len(rows):
            continue  # a rank that was not there before keeps the state it was seeded with
        state = rows[world.rank].clone()  # torch 2.15 reads a row from its tensor's beginning
        if name == "cpu":
            torch.set_rng_state(state)
        elif world.device.type == name:
            torch.cuda.set_rng_state(state, world.device)


def _below(tensors: dict[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {k.removeprefix(prefix): v for k, v in tensors.items() if k.startswith(prefix)}
