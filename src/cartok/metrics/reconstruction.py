"""How faithful a reconstruction is, byte by byte: what a reader of the picture file gets."""

import torch
from jaxtyping import Float
from torch import Tensor

from cartok.core.shapes import Image, pixels_of


def psnr_db(image: Image, target: Image) -> float:
    """Mean over pictures of each picture's peak signal-to-noise ratio, in decibels."""
    return psnr_db_of_each(image, target).mean().item()


def psnr_db_of_each(image: Image, target: Image) -> Float[Tensor, " batch"]:
    """Each picture's 10 log10(255² / mean squared error of its bytes), float64.

    An exact copy counts as if one single byte were off by one (83 dB at 32x32), so that a mean
    over pictures stays finite.
    """
    error = pixels_of(image).double() - pixels_of(target).double()
    mean_square = error.square().flatten(1).mean(1)
    return 10 * torch.log10(255**2 / mean_square.clamp(min=1 / error[0].numel()))
