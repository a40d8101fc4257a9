"""How fast a prior trains on a device, in one run and beside what the device can do at best.

The step is the real one, on tokens of nothing that lie on the device. FLOPs are those that run: the
matrices that a token meets and causal attention, forwards and twice that backwards.
"""

from dataclasses import replace
from typing import Any

import numpy as np
import torch

from cartok.core.config import config, dict_of
from cartok.core.job import LoopConfig
from cartok.core.parallel import World
from cartok.core.precision import Precision
from cartok.core.run import provenance
from cartok.data.tokens import TokenBatch, TokenManifest, TokenShards
from cartok.data.views import View
from cartok.lab.goals import Numbers, Say, has_goals, prior_goals
from cartok.lab.steps import Pace, Timed, time_prior_steps
from cartok.lab.timing import GIB, ceilings_of, enough_memory, refuse_slow
from cartok.prior.model import flops_per_token, parameter_census
from cartok.prior.train import PriorJob, PriorRun
from cartok.recipes import recipe_of
from cartok.recipes.prior import PRIORS

_NEVER = 10**9


@config
class PriorBench:
    """What is measured of a prior that trains."""

    recipe: str = "775m"
    batch: int = 64
    """Pictures of a step."""
    codebook_size: int = 16384
    side: int = 16
    """Of the grid of tokens."""
    num_classes: int = 1000
    compile: bool = False
    """Fuse each layer by torch.compile, on a GPU, in place of kernels of our own."""
    replay: bool = False
    """Replay forward and backward passes as one CUDA graph, on a GPU."""
    tiny: bool = False
    """16 tokens of a toy: shows on any device that all of it runs; its numbers mean nothing."""

    def __post_init__(self):
        if min(self.batch, self.codebook_size, self.side) < 1 or self.num_classes < 0:
            raise ValueError(
                "batch, codebook_size and side are 1 or more, num_classes 0 or more, but are "
                f"{self.batch}, {self.codebook_size}, {self.side}, {self.num_classes}"
            )


def usual_prior_bench(tiny: bool) -> PriorBench:
    """What is measured where nothing else is asked for."""
    if not tiny:
        return PriorBench()
    return PriorBench(recipe="toy", batch=4, codebook_size=64, side=4, num_classes=10, tiny=True)


def bench_prior(bench: PriorBench, world: World, say: Say) -> dict[str, Any]:
    """Measures, says each number when it is known, and returns all as plain JSON values.

    Raises:
        UserError: there is no such recipe; the device has too little memory, or is no GPU and the
            bench not ``tiny``; there are several ranks.
    """
    device, made = world.device, provenance(world)
    on_gpu = device.type == "cuda"
    run = run_of(bench, "bf16" if on_gpu else "fp32", on_gpu)
    refuse_slow("prior", world, bench.tiny)
    is_compared = has_goals(made["device"], bench.side, bench.codebook_size)
    numbers = Numbers(say, prior_goals(bench.recipe, bench.batch) if is_compared else None)
    add = numbers.add
    say(
        f"{bench.recipe}, {bench.batch} pictures of {bench.side**2} tokens of "
        f"{bench.codebook_size:,} codes, {run.loop.precision}, {made['device']}, torch "
        f"{made['torch']}"
    )
    matmul = ceilings_of(device, bench.tiny).matmul
    add("ceiling.matmul_before", matmul / 1e12, "TFLOP/s")
    with enough_memory(bench.batch, f"give --batch {max(1, bench.batch // 2)}"):
        job = PriorJob(run, _no_tokens(bench), world)
        timed = _timed(job, bench)
    shape, tokens = job.prior.config, bench.batch * bench.side**2
    add("parameters", sum(parameter_census(shape).values()) / 1e6, "M")
    add("training.speed", bench.batch / timed.seconds, "images/s")
    add("training.tokens", tokens / timed.seconds, "tokens/s")
    add("training.step", 1000 * timed.seconds, "ms")
    compute = 3 * flops_per_token(shape) * tokens / timed.seconds
    add("training.compute", compute / 1e12, "TFLOP/s")
    add("training.share", 100 * compute / matmul, "% of matmul")
    add("training.memory", timed.peak.allocated / GIB, "GiB")
    add("training.first_step", timed.first, "s")
    add("ceiling.matmul_after", ceilings_of(device, bench.tiny).matmul / 1e12, "TFLOP/s")
    return {
        "subject": "prior",
        "bench": dict_of(bench),
        "run": dict_of(run),
        "numbers": numbers.to_json(),
        "provenance": made,
    }


def run_of(bench: PriorBench, precision: Precision, on_gpu: bool) -> PriorRun:
    """The recipe with a loop that neither logs nor saves.

    Raises:
        UserError: there is no such recipe; names the nearest.
    """
    loop = LoopConfig(
        steps=_NEVER, batch=bench.batch, precision=precision, log_every=_NEVER, save_every=_NEVER,
        replay=bench.replay and on_gpu, trackers=(),
    )  # fmt: skip
    run = recipe_of(PRIORS, bench.recipe)
    return replace(run, loop=loop, compile=bench.compile and on_gpu, evaluations=())


def _timed(job: PriorJob, bench: PriorBench) -> Timed:
    device = job.world.device
    generator = torch.Generator().manual_seed(0)
    tokens = torch.randint(bench.codebook_size, (bench.batch, bench.side**2), generator=generator)
    labels = torch.arange(bench.batch) % max(1, bench.num_classes)
    batch = TokenBatch(tokens.to(device), labels.to(device), torch.arange(bench.batch))
    pace = Pace(warm=1, counted=2) if bench.tiny else Pace(warm=6, counted=12)
    return time_prior_steps(job, batch, pace)


def _no_tokens(bench: PriorBench) -> TokenShards:
    manifest = TokenManifest(
        tokenizer_digest="", codebook_size=bench.codebook_size, grid=(bench.side, bench.side),
        classes=tuple(map(str, range(bench.num_classes))), source="nothing", picture_digests={},
        view=View(size=bench.side), kind="center",
    )  # fmt: skip
    return TokenShards(manifest, [], np.zeros(0, np.int64))
