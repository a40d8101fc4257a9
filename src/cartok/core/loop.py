"""fit(job): the one training loop, for any job that is a list of phases.

A job prepares a batch once; each of its phases moves some modules by an objective of the outcome.
The loop knows steps, accumulation, clipping, schedules, averages, saving and stopping; it does
not know what a picture or a token is.
"""

import math
import signal
from collections.abc import Generator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor

from cartok.core.ahead import Ahead
from cartok.core.average import Average
from cartok.core.capture import Computed, Replayed, records_on
from cartok.core.checkpoint import TrainingState, load_state, save_state
from cartok.core.clock import Clock
from cartok.core.compiled import as_written
from cartok.core.fault import fault_of
from cartok.core.files import finite
from cartok.core.job import (
    Evaluation,
    Job,
    LoopConfig,
    Mover,
    Phase,
    Terms,
    refuse_unfit,
    refuse_unmeasured,
)
from cartok.core.parallel import World, backward, clip_gradients, divides
from cartok.core.precision import computing_in
from cartok.core.progress import Tick
from cartok.core.readings import Reading, Readings
from cartok.core.run import Run, forget_peak
from cartok.core.sentinel import Sentinel
from cartok.core.snapshot import Buffers, put_training, tensors_of_training


@dataclass(frozen=True)
class Outcome:
    """How a training ended."""

    step: int
    finished: bool
    clock: Clock
    """What it took."""
    values: dict[str, float]
    """The last evaluations."""
    skips: int = 0
    """Batches left out since something in their step was not finite."""
    rollbacks: int = 0
    """Times the training went back to a checkpoint for that reason."""


def fit(
    job: Job,
    config: LoopConfig,
    run: Run,
    *,
    evaluations: tuple[Evaluation, ...] = (),
    tick: Tick = lambda done, words: None,
) -> Outcome:
    """Trains a job to its end, going on from the run's newest checkpoint if there is one.

    SIGTERM, or Ctrl-C, saves and returns early. On the CPU a training that was killed at any step
    and taken up again ends bit-identical to one that was not; so does one that a signal stopped,
    unless under ``recover`` it later goes back to the checkpoint of that moment, which the other
    has not.

    Raises:
        NonFiniteError: before the weights move, if the config or the sentinel's budget says so;
            names the term, the step and the samples, and leaves ``fault.md`` in the run's folder.
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
        assert len(job.phases) == 1 or not any(map(divides, job.modules.values())), "see backward"
        self.average = Average(job, config.ema)
        self.sentinel, self.buffers = Sentinel(config, run), Buffers(job.modules)
        self.replayed = _replayed(job, config, run.world)
        self.drawn = 0  # batches, also those that moved nothing
        self.clock = Clock(run.world.device)
        forget_peak(run.world.device)
        self.best = math.inf
        self.values: dict[str, float] = {}

    def go(self) -> Outcome:
        step = self.resume()
        self.run.start_log(step, self.config.trackers)
        stream = Ahead(self.job.batches(self.drawn * self.config.batch), self.world.device)
        _put_into_training(self.job)
        with _asked_to_stop() as asked:
            while step < self.config.steps:
                with self.clock.running():
                    reading = self.step(stream, step, asked)
                self.clock.stalled += stream.stall()
                if not reading.is_finite:
                    step = self.recover(reading, step)
                    continue
                step += 1
                self.report(step, reading)
                improved = self.evaluate(step)
                last = step == self.config.steps
                if improved or last or step % self.config.save_every == 0:
                    self.sentinel.forgive()
                    self.save(step, improved)
                elif reading.is_stopping:  # a checkpoint more than planned forgives nothing
                    self.save(step, is_best=False)
                if reading.is_stopping:
                    break
        finished = step == self.config.steps
        if finished:
            self.average.put_in()
        return Outcome(step, finished, self.clock, self.values, **self.sentinel.counts)

    def step(self, stream: Ahead, step: int, asked: list[int]) -> Reading:
        """One optimizer step of every phase; nothing moves if something is not finite."""
        phases = [phase for phase in self.job.phases if phase.active(step)]
        movers = [mover for phase in phases for mover in phase.movers]
        readings = Readings(self.world)
        if self.config.on_non_finite == "recover":
            self.buffers.keep()
        outcomes = [
            self.part(stream, phases, step, readings) for _ in range(self.config.accumulate)
        ]
        self.drawn += 1
        readings.add_norms({mover.name: self.norm(mover) for mover in movers})
        reading = readings.read(bool(asked))
        if reading.is_finite:
            for mover in movers:
                for group in mover.optimizer.param_groups:
                    group["lr"] = mover.rate(step)
                mover.optimizer.step()
            self.job.after_step(outcomes, step)
            self.average.follow()
        for mover in movers:
            mover.optimizer.zero_grad(set_to_none=True)
        return reading

    def part(self, stream: Ahead, phases: list[Phase], step: int, readings: Readings) -> Any:
        """Adds a part's gradients to those of the movers; returns what it prepared."""
        batch = stream.take()
        readings.add_part(batch)
        compute = partial(self.compute, phases, step)
        if self.replayed is None:
            computed = compute(batch)
        else:
            key = (tuple(phase.name for phase in phases), self.job.fixed_at(step))
            computed = self.replayed(compute, batch, key)
        stream.fetch()
        for name, terms in computed.terms.items():
            readings.add_terms(name, terms)
        return computed.outcome

    def compute(self, phases: list[Phase], step: int, batch: Any) -> Computed:
        """Forward once, and back in every phase."""
        found: dict[str, Terms] = {}
        with computing_in(self.config.precision, self.world.device):
            outcome = self.job.prepare(batch, step)
        for phase in phases:
            with computing_in(self.config.precision, self.world.device):
                terms = found[phase.name] = phase.objective(outcome, step)
            moved = [p for mover in phase.movers for p in mover.parameters]
            backward(terms.total / self.config.accumulate, moved)
        return Computed(outcome, found)

    def norm(self, mover: Mover) -> Tensor:
        """Averages a mover's gradient over the ranks and clips it; returns its norm before."""
        self.world.average_gradients(mover.parameters)
        return clip_gradients(mover.parameters, mover.clip or math.inf)

    def recover(self, reading: Reading, step: int) -> int:
        """Leaves a batch out, or goes back; returns the steps that are done then."""
        fault = fault_of(reading, self.job.phases, step, self.world)
        state = self.sentinel.answer(fault)
        self.buffers.put_back()
        if state is not None:
            step = self.put_back(state)
            self.run.close()
            self.run.start_log(step, self.config.trackers)
        self.run.log(step + 1, self.sentinel.values_of(fault))
        self.tick(step, f"{fault.words}; {'skipped' if state is None else f'back at step {step}'}")
        return step

    def report(self, step: int, reading: Reading) -> None:
        if step % self.config.log_every and step != self.config.steps:
            if step % 10 == 0:
                self.tick(step, "")
            return
        stall = self.clock.stall_share
        plain = reading.means | {
            f"rate/{mover.name}": mover.rate(step - 1)
            for phase in self.job.phases
            for mover in phase.movers
        }
        plain |= {"speed/seconds_per_step": self.clock.seconds / step, "speed/stall_share": stall}
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
        tensors = tensors_of_training(self.job, self.average, self.world)
        state = TrainingState(step, tensors, finite({
            **self.clock.to_json(), "best": self.best,
            "values": self.values, "drawn": self.drawn, "counts": self.sentinel.counts,
            "skips_since": self.sentinel.skips_since,
        }))  # fmt: skip
        save_state(self.run.checkpoints, state, self.world, is_best=is_best)
        self.sentinel.settle()
        self.world.barrier()

    def resume(self) -> int:
        state = load_state(self.run.checkpoints)
        if state is None:
            return 0
        self.clock.go_on(state.values)
        self.drawn, self.sentinel.counts = state.values["drawn"], state.values["counts"]
        self.sentinel.skips_since = state.values.get("skips_since", 0)  # older ones do not say
        return self.put_back(state)

    def put_back(self, state: TrainingState) -> int:
        """All but the place in the data, the clocks and the counts."""
        put_training(self.job, self.average, self.world, state.tensors)
        self.values = state.values["values"]
        self.best = math.inf if state.values["best"] is None else state.values["best"]
        return state.step


def _replayed(job: Job, config: LoopConfig, world: World) -> Replayed | None:
    """Where steps can be recorded: on one GPU, a batch in one part."""
    if not (config.replay and records_on(world.device) and world.size == config.accumulate == 1):
        return None
    movers = (mover for phase in job.phases for mover in phase.movers)
    return Replayed(p for mover in movers for p in mover.parameters)


def _put_into_training(job: Job) -> None:
    """Turns on noise where a whole module is in evaluation mode; a part frozen in it stays so."""
    for module in job.modules.values():
        if not module.training:
            module.train()


@contextmanager
def _asked_to_stop() -> Generator[list[int]]:
    """Yields a list that is empty until SIGTERM or Ctrl-C comes; a second Ctrl-C does not wait."""
    asked: list[int] = []

    def note(number: int, frame: Any) -> None:
        if number == signal.SIGINT and number in asked:
            raise KeyboardInterrupt
        asked.append(number)

    before: dict[int, Any] = {}
    try:
        for number in (signal.SIGTERM, signal.SIGINT):
            before[number] = signal.signal(number, note)
    except ValueError:  # not the main thread: signals cannot be caught here
        yield asked
        return
    try:
        yield asked
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


@contextmanager
def _undisturbed(job: Job, world: World) -> Generator[None]:
    """Evaluation mode without gradients; the training's random state is as before afterwards."""
    devices = [world.device] if world.device.type == "cuda" else []
    parts = [part for module in job.modules.values() for part in module.modules()]
    modes = [part.training for part in parts]  # one by one: a part may be frozen in evaluation
    for module in job.modules.values():
        module.eval()
    try:
        with torch.random.fork_rng(devices), torch.no_grad(), as_written():
            yield
    finally:
        for part, mode in zip(parts, modes, strict=True):
            part.training = mode
