"""How alike the structure of two pictures is: SSIM, and over five scales MS-SSIM.

On bytes (peak 255) of RGB, in float64: each channel for itself, then their mean. Windows are whole:
none reaches over the edge. SSIM equals scikit-image's with Gaussian weights, sigma 1.5 and
population covariances.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from cartok.metrics.reconstruction import paired_pixels

WINDOW, SIGMA = 11, 1.5
"""Pixels across the Gaussian window, and its standard deviation; Wang et al. 2004."""

C1, C2 = (0.01 * 255) ** 2, (0.03 * 255) ** 2
"""Keep flat and dark windows from dividing by 0: (K1 L)² and (K2 L)², with K1 .01 and K2 .03."""

SCALE_WEIGHTS = (0.0448, 0.2856, 0.3001, 0.2363, 0.1333)
"""From fine to coarse; Wang, Simoncelli and Bovik 2003, who measured them on observers."""

SMALLEST_MS = (WINDOW - 1) * 2 ** (len(SCALE_WEIGHTS) - 1) + 1
"""Pixels across that leave one window at the coarsest scale: 161."""

AT_ONCE = 8
"""Pictures whose maps are in memory at a time: 30 ms a picture of 256 pixels on one core."""

Channels = Float[Tensor, "batch channel _ _"]
"""Maps of any size, which windows and scales make smaller."""

PerChannel = Float[Tensor, "batch channel"]
"""One number for each channel of each picture."""


def ssim(pictures: Tensor, targets: Tensor) -> float:
    """The mean over pictures of ``ssim_of_each``."""
    return ssim_of_each(pictures, targets).mean().item()


def ssim_of_each(pictures: Tensor, targets: Tensor) -> Float[Tensor, " batch"]:
    """Each picture's structural similarity (Wang et al. 2004, eq. 13), float64; 1 for equal ones.

    Raises:
        UserError: these are no pictures of one size, or they are smaller than 11 pixels.
    """

    def similarity(a: Channels, b: Channels) -> PerChannel:
        return _likeness(a, b).whole

    return _in_parts(similarity, *paired_pixels(pictures, targets, WINDOW, "SSIM"))


def ms_ssim(pictures: Tensor, targets: Tensor) -> float:
    """The mean over pictures of ``ms_ssim_of_each``."""
    return ms_ssim_of_each(pictures, targets).mean().item()


def ms_ssim_of_each(pictures: Tensor, targets: Tensor) -> Float[Tensor, " batch"]:
    """Each picture's similarity over five scales (Wang et al. 2003, eq. 7), float64.

    Contrast and structure count at every scale, brightness at the coarsest alone. From scale to
    scale 2x2 pixels are averaged; an odd edge repeats, as in the authors' program. A channel whose
    structure is reversed at some scale, below 0, scores 0. The product over scales is each
    channel's own, as in TensorFlow; torchmetrics averages channels first, which differs slightly.

    Raises:
        UserError: these are no pictures of one size, or they are smaller than 161 pixels.
    """
    return _in_parts(_over_scales, *paired_pixels(pictures, targets, SMALLEST_MS, "MS-SSIM"))


@dataclass(frozen=True)
class _Likeness:
    """Means over windows: of contrast and structure, and of these times brightness."""

    structure: PerChannel
    whole: PerChannel


def _over_scales(a: Channels, b: Channels) -> PerChannel:
    product = torch.ones_like(a[:, :, 0, 0])
    for weight in SCALE_WEIGHTS[:-1]:
        product = product * _likeness(a, b).structure.clamp(min=0) ** weight
        a, b = _halved(a), _halved(b)
    return product * _likeness(a, b).whole.clamp(min=0) ** SCALE_WEIGHTS[-1]


def _in_parts(
    similarity: Callable[[Channels, Channels], PerChannel], a: Tensor, b: Tensor
) -> Float[Tensor, " batch"]:
    parts = zip(a.split(AT_ONCE), b.split(AT_ONCE), strict=True)
    return torch.cat([similarity(x.double(), y.double()).mean(1) for x, y in parts])


def _likeness(a: Channels, b: Channels) -> _Likeness:
    down, across = (_windows(length, a.device) for length in a.shape[2:])

    def local(maps: Channels) -> Channels:
        return down @ maps @ across.T

    mean_a, mean_b = local(a), local(b)
    variances = local(a * a + b * b) - mean_a**2 - mean_b**2
    covariance = local(a * b) - mean_a * mean_b
    structure = (2 * covariance + C2) / (variances + C2)
    brightness = (2 * mean_a * mean_b + C1) / (mean_a**2 + mean_b**2 + C1)
    return _Likeness(structure.mean((2, 3)), (brightness * structure).mean((2, 3)))


def _windows(length: int, device: torch.device) -> Float[Tensor, "window pixel"]:
    """One window a row: as a product eight times as fast as a convolution in float64."""
    offsets = torch.arange(WINDOW, dtype=torch.float64, device=device) - WINDOW // 2
    weights = torch.exp(-(offsets**2) / (2 * SIGMA**2))
    weights = weights / weights.sum()
    rows = weights.new_zeros(length - WINDOW + 1, length)
    for place, weight in enumerate(weights):
        rows.diagonal(place).fill_(weight)
    return rows


def _halved(maps: Channels) -> Channels:
    height, width = maps.shape[2:]
    return F.avg_pool2d(F.pad(maps, (0, width % 2, 0, height % 2), mode="replicate"), 2)
