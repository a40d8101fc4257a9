"""The table of metrics that compare picture by picture: reconstructions with their originals."""

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from itertools import zip_longest
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from cartok.core.errors import UserError
from cartok.core.parallel import World
from cartok.core.precision import full_precision, rounding
from cartok.core.progress import Tick, unseen
from cartok.core.shapes import Pixels, image_of_pixels
from cartok.metrics.numbers import Number
from cartok.metrics.reconstruction import psnr_db_of_each
from cartok.metrics.ssim import SMALLEST_MS, WINDOW, ms_ssim_of_each, ssim_of_each

LPIPS_SMALLEST = 16
"""Pixels each way that VGG16 needs."""

Each = Float[Tensor, " batch"]


@dataclass(frozen=True)
class PairMetric:
    """What is measured of each pair; ``smallest`` is the least number of pixels each way."""

    name: str
    unit: str
    measure: Callable[[Pixels, Pixels], Each]
    smallest: int = 1
    own: dict[str, Any] = field(default_factory=dict)
    """What a receipt says of it alone."""


PAIR_METRICS: dict[str, PairMetric] = {
    "psnr": PairMetric("psnr_db", "dB", psnr_db_of_each),
    "ssim": PairMetric("ssim", "similarity, at most 1", ssim_of_each, WINDOW),
    "ms-ssim": PairMetric("ms_ssim", "similarity, at most 1", ms_ssim_of_each, SMALLEST_MS),
}


def lpips_metric(network: Any, device: torch.device) -> PairMetric:
    """LPIPS, as ``frozen.teacher`` gives it: a network of images that knows its weights.

    In float32, which a GPU would round in convolutions.
    """

    @torch.no_grad()
    def measure(pixels: Pixels, wanted: Pixels) -> Each:
        sides = (image_of_pixels(side.to(device)) for side in (pixels, wanted))
        with full_precision(device), rounding(tf32=False):
            return network(*sides).double().cpu()

    weights = network.weights
    own = {"network": weights.name, "network_sha256": weights.sha256, "precision": "float32"}
    return PairMetric("lpips", "perceptual distance", measure, LPIPS_SMALLEST, own)


def pair_numbers(
    generated: Iterable[Tensor],
    reference: Iterable[Tensor],
    metrics: Iterable[PairMetric],
    world: World | None = None,
    tick: Tick = unseen,
) -> list[Number]:
    """The mean of each metric over pairs in order, with its standard error; a batch at a time.

    A metric that needs larger pictures is left out: see ``too_small``. Each of several ranks gives
    its own share of the pairs, and all get the numbers of all.

    Raises:
        UserError: the sides have other numbers of pictures, or of other sizes.
    """
    metrics, world = list(metrics), world or World()
    found = world.together(lambda: _values(generated, reference, metrics, tick))
    numbers = []
    for metric in metrics:
        each = torch.cat(world.parts(found[metric.name]))
        if len(each):
            own = metric.own | _error(each)
            numbers.append(Number(metric.name, each.mean().item(), metric.unit, own))
    return numbers


def too_small(metrics: Iterable[PairMetric], side: int) -> list[str]:
    """For each metric that pictures of ``side`` pixels are too small for, a line that says so."""
    return [
        f"{metric.name} is left out: it needs {metric.smallest} pixels each way, and these have "
        f"{side}"
        for metric in metrics
        if side < metric.smallest
    ]


def _values(
    generated: Iterable[Tensor], reference: Iterable[Tensor], metrics: list[PairMetric], tick: Tick
) -> dict[str, Each]:
    """Of each pair what each metric measures, float64; nothing where pictures are too small."""
    values = {metric.name: [torch.empty(0, dtype=torch.float64)] for metric in metrics}
    done = 0
    for pixels, wanted in _together(generated, reference):
        for metric in metrics:
            if min(pixels.shape[2:]) >= metric.smallest:
                values[metric.name].append(metric.measure(pixels, wanted))
        done += len(pixels)
        tick(done, "")
    return {name: torch.cat(each) for name, each in values.items()}


def _together(
    generated: Iterable[Tensor], reference: Iterable[Tensor]
) -> Iterator[tuple[Tensor, Tensor]]:
    for pixels, wanted in zip_longest(generated, reference):
        if pixels is None or wanted is None or len(pixels) != len(wanted):
            raise UserError(
                "pairs need one reference for each picture, but the sides have other numbers of "
                "them; give both in the same order, or leave --paired away"
            )
        yield pixels, wanted


def _error(each: Each) -> dict[str, Any]:
    if len(each) < 2:
        return {}
    return {"standard_error": each.std().item() / len(each) ** 0.5}
