"""The real training step of a stage, on one batch that lies on the device: no disk, no decoder.

The loop is ``core.loop.fit``, the job the one that trains. The loop waits for the device once a
step, so the time between the ends of two steps is what a step takes.
"""

import tempfile
import time
from collections.abc import Callable, Generator, Hashable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from itertools import pairwise
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import torch

from cartok.core.errors import STOPPED
from cartok.core.job import LoopConfig
from cartok.core.loop import fit
from cartok.core.parallel import World
from cartok.core.precision import Precision
from cartok.core.run import Run
from cartok.core.shapes import Pixels
from cartok.data.batches import Batch
from cartok.data.pictures import Pictures
from cartok.data.stores import FolderStore
from cartok.data.tokens import TokenBatch
from cartok.frozen import lpips_of
from cartok.lab.timing import Peak, clear_memory, peak_of
from cartok.prior.train import PriorJob
from cartok.tokenizer.cost import count_flops
from cartok.tokenizer.setup import TokenizerRun
from cartok.tokenizer.train import TokenizerJob

REGULARISER = ("causal", "twin")
"""Names of the modules that a run without the regulariser has not."""

_NEVER = 10**9


@dataclass(frozen=True)
class Pace:
    """How many steps a measurement takes."""

    warm: int
    """Before any is counted; the first compiles."""
    counted: int


@dataclass(frozen=True)
class Timed:
    """What steps of one kind took."""

    first: float
    """Seconds of the first of all: it compiles, and tries kernels."""
    counted: list[float]
    """Seconds of each that counts."""
    peak: Peak

    @property
    def seconds(self) -> float:
        """Of a step: the median."""
        return median(self.counted)

    def with_later(self, later: "Timed") -> "Timed":
        """Both as one; memory is that of the later steps, which try no kernels."""
        return Timed(self.first, [*self.counted, *later.counted], later.peak)


def all_at_once(run: TokenizerRun, batch: int, precision: Precision) -> TokenizerRun:
    """The run as it is once everything in it has begun: the critic, and the regulariser in full."""
    critic = replace(run.losses.critic, start=0, ramp=0, warm=0)
    loop = LoopConfig(
        steps=_NEVER, batch=batch, precision=precision, ema=run.loop.ema, log_every=_NEVER,
        save_every=_NEVER, on_non_finite=run.loop.on_non_finite, trackers=(),
    )  # fmt: skip
    return replace(
        run,
        data="",
        causal=replace(run.causal, anneal_steps=0),
        losses=replace(run.losses, critic=critic),
        loop=loop,
        equal_compute=False,
        evaluations=(),
        workers=0,
    )


def job_of(run: TokenizerRun, world: World, random_vgg: bool) -> TokenizerJob:
    """The run's job without pictures; ``random_vgg`` makes its perceptual term LPIPS of nothing.

    That costs what the published weights cost, and needs no download.

    Raises:
        UserError: weights that the recipe names are missing.
    """
    random_vgg = random_vgg and run.losses.perceptual > 0
    losses = replace(run.losses, perceptual=0.0) if random_vgg else run.losses
    job = TokenizerJob(replace(run, losses=losses, compile=False), _no_pictures(), world)
    if random_vgg:
        vgg = lpips_of(random_weights=True).to(world.device)
        job.config, job.parts = run, replace(job.parts, perceptual=vgg)
        job.flops = count_flops(job.parts.on_meta, run.losses, run.view.size)
    if run.compile:
        job.parts.compile()
    return job


def noise(num: int, size: int, device: torch.device) -> Pixels:
    """Pictures of nothing."""
    return torch.randint(256, (num, 3, size, size), dtype=torch.uint8, device=device)


def time_steps(
    job: TokenizerJob, pixels: Pixels, pace: Pace, without: tuple[str, ...] = ()
) -> Timed:
    """Times steps on one batch, and looks at their memory; see ``step_seconds``."""
    clear_memory(job.world.device)
    taken = step_seconds(job, pixels, pace.warm + pace.counted, without=without)
    return Timed(taken[0], taken[pace.warm :], peak_of(job.world.device))


def step_seconds(
    job: TokenizerJob,
    pixels: Pixels,
    num: int,
    *,
    without: tuple[str, ...] = (),
    after_step: Callable[[int], None] = lambda done: None,
) -> list[float]:
    """Seconds of each of ``num`` steps on one batch; the first makes ready what later ones need.

    ``without`` names modules that are left out, as if the run had none of them. ``after_step`` is
    told how many steps are done; its own time is part of the next. Weights move.
    """
    nothing = torch.zeros(len(pixels), dtype=torch.long)
    batch = Batch(pixels, nothing, nothing, nothing)
    with _left_out(job, without):
        return _seconds(_OnOneBatch(job, batch, num, without, after_step), "tokenizer")


def time_prior_steps(job: PriorJob, batch: TokenBatch, pace: Pace) -> Timed:
    """Times a prior's steps on one batch, and looks at their memory. Weights move."""
    clear_memory(job.world.device)
    taken = _seconds(_OnOneBatch(job, batch, pace.warm + pace.counted), "prior")
    return Timed(taken[0], taken[pace.warm :], peak_of(job.world.device))


def _seconds(timed: "_OnOneBatch", kind: str) -> list[float]:
    """Of each step; the first makes ready what later ones need."""
    with tempfile.TemporaryDirectory() as folder:
        run = Run.open(Path(folder), timed.config, kind=kind, world=timed.world)
        begin = time.perf_counter()
        with suppress(_NoMoreBatchesError):  # never its end, where a training saves a gigabyte
            fit(timed, timed.config.loop, run)
            raise SystemExit(STOPPED)  # it returns where it was asked to stop, and nowhere else
    return [after - before for before, after in pairwise([begin, *timed.ends])]


class _NoMoreBatchesError(Exception):
    """Ends a training before it ends itself."""


class _OnOneBatch:
    """A job that sees one batch again and again, and notes when each step ends."""

    def __init__(
        self,
        job: TokenizerJob | PriorJob,
        batch: Any,
        num: int,
        without: tuple[str, ...] = (),
        told: Callable[[int], None] = lambda done: None,
    ):
        self._job, self._batch, self._num, self._told = job, batch, num, told
        self.config, self.world = job.config, job.world
        self.modules = {name: m for name, m in job.modules.items() if name not in without}
        self.averaged = job.averaged
        self.phases = tuple(
            replace(phase, movers=tuple(m for m in phase.movers if m.name not in without))
            for phase in job.phases
        )
        self.ends: list[float] = []

    def batches(self, start: int) -> Iterator[Any]:
        for _ in range(self._num):
            yield self._batch
        raise _NoMoreBatchesError

    def prepare(self, batch: Any, step: int) -> Any:
        return self._job.prepare(batch, step)

    def fixed_at(self, step: int) -> Hashable:
        return self._job.fixed_at(step)

    def after_step(self, outcomes: list[Any], step: int) -> None:
        self._job.after_step(outcomes, step)
        self.ends.append(time.perf_counter())
        self._told(len(self.ends))


@contextmanager
def _left_out(job: TokenizerJob, names: tuple[str, ...]) -> Generator[None]:
    whole = job.parts
    job.parts = replace(whole, **dict.fromkeys(names))
    try:
        yield
    finally:
        job.parts = whole


def _no_pictures() -> Pictures:
    none = np.zeros(0, np.int64)
    store = FolderStore(Path(), ())
    return Pictures(store, none, none, (), none.reshape(0, 2), (), [], digest="none")
