"""How a training step's speed and memory follow the number of tokens and of codes."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, fields, replace

import torch

from cartok.core.parallel import World
from cartok.lab.steps import Pace, Timed, job_of, noise, time_steps
from cartok.tokenizer.model import Tokenizer
from cartok.tokenizer.setup import TokenizerRun
from cartok.tokenizer.train import TokenizerJob

GIB = 2**30

HEAD = "pixels  tokens   codes  batch  images/s  tokens/s    GiB  TFLOP/s"
"""Over the rows."""


@dataclass(frozen=True)
class Grown:
    """One size of pictures and codebook."""

    pixels: int
    """A side."""
    tokens: int
    """Of a picture."""
    codes: int
    batch: int
    images_per_second: float
    tokens_per_second: float
    memory_gib: float
    tflops_per_second: float

    @property
    def row(self) -> str:
        """A line under ``HEAD``."""
        return (
            f"{self.pixels:>6}  {self.tokens:>6}  {self.codes:>6}  {self.batch:>5}  "
            f"{self.images_per_second:>8.1f}  {self.tokens_per_second:>8.0f}  "
            f"{self.memory_gib:>5.1f}  {self.tflops_per_second:>7.3g}"
        )


@dataclass(frozen=True)
class TooLarge:
    """One size whose batch the device's memory does not hold."""

    pixels: int
    tokens: int
    codes: int
    batch: int
    fault: str = "out of memory"

    @property
    def row(self) -> str:
        """A line under ``HEAD``."""
        return f"{self.pixels:>6}  {self.tokens:>6}  {self.codes:>6}  {self.batch:>5}  {self.fault}"


def grown(job: TokenizerJob, batch: int, timed: Timed) -> Grown:
    """A row, of a job whose steps have been timed."""
    tokens = _tokens_of(job.tokenizer, job.config)
    speed = batch / timed.seconds
    return Grown(
        pixels=job.config.view.size,
        tokens=tokens,
        codes=job.tokenizer.codebook_size,
        batch=batch,
        images_per_second=speed,
        tokens_per_second=speed * tokens,
        memory_gib=timed.peak.allocated / GIB,
        tflops_per_second=speed * job.flops.of(1, job.config.losses) / 1e12,
    )


def growth_of(
    run: TokenizerRun, world: World, pace: Pace, random_vgg: bool, say: Callable[[str], None]
) -> list[Grown | TooLarge]:
    """Trains at 1.25 and 1.5 times the side, and with a 16th and 8 times the codes; a job each.

    A batch of larger pictures has as many pixels as ``run.loop.batch`` of the usual size, at most.
    """
    found = []
    for bigger in grown_runs(run):
        found.append(_row(bigger, world, pace, random_vgg))
        say(found[-1].row)
    return found


def _row(run: TokenizerRun, world: World, pace: Pace, random_vgg: bool) -> Grown | TooLarge:
    batch, size = run.loop.batch, run.view.size
    try:
        job = job_of(run, world, random_vgg)
        return grown(job, batch, time_steps(job, noise(batch, size, world.device), pace))
    except torch.OutOfMemoryError:  # what was measured before must not be lost
        with torch.device("meta"):
            shapes = Tokenizer(run.model)
        return TooLarge(size, _tokens_of(shapes, run), shapes.codebook_size, batch)


def _tokens_of(tokenizer: Tokenizer, run: TokenizerRun) -> int:
    rows, places = tokenizer.grid_of(run.view.size, run.view.size)
    return rows * places


def grown_runs(run: TokenizerRun) -> Iterator[TokenizerRun]:
    """The runs that are trained; a quantizer that has no table has no other number of codes."""
    size, factor, batch = run.view.size, run.model.codec.factor, run.loop.batch
    for side in (size * 5 // 4, size * 3 // 2):
        if side % factor == 0:
            fewer = max(1, batch * size**2 // side**2)
            loop = replace(run.loop, batch=fewer)
            yield replace(run, view=replace(run.view, size=side), loop=loop)
    quantizer = run.model.quantizer
    has_table = any(field.name == "codebook_size" for field in fields(quantizer))
    codes = quantizer.codebook_size if has_table else 0
    for number in (codes // 16, codes * 8) if codes >= 32 else ():
        other = replace(quantizer, codebook_size=number)
        yield replace(run, model=replace(run.model, quantizer=other))
