"""How fast a prior draws pictures on a device, beside the least that its memory allows.

Every token needs all weights once, and the keys and values of all positions before it: those bytes
over the rate of a copy, measured in the same run, are the floor. Weights are random, which costs
what trained ones cost; tokens are drawn and not decoded.
"""

import time
from typing import Any

import torch

from cartok.core.config import config, dict_of
from cartok.core.parallel import World
from cartok.core.precision import Precision, keep_weights_in
from cartok.core.run import provenance
from cartok.core.shapes import Image, Tokens
from cartok.lab.goals import Numbers, Say, has_goals, sampler_goals
from cartok.lab.steps import Timed
from cartok.lab.timing import (
    GIB,
    ceilings_of,
    clear_memory,
    enough_memory,
    peak_of,
    refuse_slow,
    synchronise,
)
from cartok.prior.model import Prior, PriorConfig
from cartok.recipes import recipe_of
from cartok.recipes.prior import PRIORS
from cartok.sampling.sampler import Sampler, balanced_labels

_REPEATS = 3


@config
class SamplerBench:
    """What is measured of a prior that draws."""

    recipe: str = "775m"
    images: tuple[int, ...] = (1, 8, 64, 128)
    """How many are drawn at once; twice as many rows run, for guidance."""
    codebook_size: int = 16384
    side: int = 16
    """Of the grid of tokens."""
    precision: Precision = "bf16"
    """Of weights and cache."""
    guidance: float = 2.0
    tiny: bool = False
    """16 tokens of a toy: shows on any device that all of it runs; its numbers mean nothing."""

    def __post_init__(self):
        if not self.images or min(*self.images, self.codebook_size, self.side) < 1:
            raise ValueError(
                "images, codebook_size and side are 1 or more, but are "
                f"{self.images}, {self.codebook_size}, {self.side}"
            )


def usual_sampler_bench(tiny: bool) -> SamplerBench:
    """What is measured where nothing else is asked for."""
    if not tiny:
        return SamplerBench()
    return SamplerBench(
        recipe="toy", images=(1, 2), codebook_size=64, side=4, precision="fp32", tiny=True
    )


def bench_sampler(bench: SamplerBench, world: World, say: Say) -> dict[str, Any]:
    """Measures, says each number when it is known, and returns all as plain JSON values.

    Raises:
        UserError: there is no such recipe; the device has too little memory, or is no GPU and the
            bench not ``tiny``; there are several ranks.
    """
    device, made = world.device, provenance(world)
    transformer = recipe_of(PRIORS, bench.recipe).transformer
    refuse_slow("sampler", world, bench.tiny)
    shape = PriorConfig(
        transformer=transformer, codebook_size=bench.codebook_size, grid=(bench.side, bench.side)
    )
    say(
        f"{bench.recipe}, {shape.num_tokens} tokens of {bench.codebook_size:,} codes, guidance "
        f"{bench.guidance:g}, {bench.precision}, {made['device']}, torch {made['torch']}"
    )
    is_compared = has_goals(made["device"], bench.side, bench.codebook_size)
    numbers = Numbers(say, sampler_goals(bench.recipe, bench.images) if is_compared else None)
    add = numbers.add
    copy = ceilings_of(device, bench.tiny).copy
    add("ceiling.copy_before", copy / 1e12, "TB/s")
    with torch.device(device):
        prior = Prior(shape).eval()
    keep_weights_in(bench.precision, prior)
    for num in bench.images:
        with enough_memory(num, f"give --images without {num}"):
            taken = _time(prior, num, bench.guidance, device)
        floor = bytes_per_token(prior, num * (1 + (bench.guidance != 1))) / copy
        token = taken.seconds / shape.num_tokens
        at = f"at_{num}."
        add(f"{at}token", 1000 * token, "ms")
        add(f"{at}floor", 1000 * floor, "ms")
        add(f"{at}gap", token / floor, "x the floor")
        add(f"{at}speed", num / taken.seconds, "images/s")
        add(f"{at}warm_up", taken.first, "s")
        add(f"{at}memory", taken.peak.allocated / GIB, "GiB")
    add("ceiling.copy_after", ceilings_of(device, bench.tiny).copy / 1e12, "TB/s")
    return {
        "subject": "sampler",
        "bench": dict_of(bench),
        "prior": dict_of(shape),
        "numbers": numbers.to_json(),
        "provenance": made,
    }


def bytes_per_token(prior: Prior, rows: int) -> float:
    """What drawing one token of each row must read, on average over positions.

    All weights but those that are looked up, and keys and values of the positions so far, in the
    precision in which the prior is kept.
    """
    net, size = prior.config.transformer, prior.head.weight.element_size()
    looked_up = prior.class_embedding.weight.numel() + prior.token_embedding.weight.numel()
    weights = sum(weight.numel() for weight in prior.parameters()) - looked_up
    seen = (prior.config.num_tokens + 1) / 2
    return size * (weights + rows * seen * net.depth * 2 * net.width)


class _NoPictures:
    """Stands in for a tokenizer, of whose tokens the prior learned nothing."""

    digest = ""

    def image_of(self, tokens: Tokens) -> Image:
        raise NotImplementedError  # tokens are all that is drawn


def _time(prior: Prior, num: int, guidance: float, device: torch.device) -> Timed:
    """Whole batches, once whatever is recorded has been; the first are two, which warm up."""
    clear_memory(device)
    sampler = Sampler(prior, _NoPictures())
    labels = balanced_labels(num, prior.config.num_classes)

    def draw(seed: int) -> float:
        synchronise(device)
        begin = time.perf_counter()
        sampler.sample_tokens(labels, seed, guidance, batch=num)
        synchronise(device)
        return time.perf_counter() - begin

    warm_up = draw(0) + draw(1)  # kernel by kernel, then while it is recorded
    return Timed(warm_up, [draw(2 + place) for place in range(_REPEATS)], peak_of(device))
