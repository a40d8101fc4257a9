"""How faithful a reconstruction is, byte by byte: what a reader of the picture file gets."""

import torch
from jaxtyping import Float
from torch import Tensor

from cartok.core.errors import UserError
from cartok.core.shapes import Pixels
from cartok.metrics.features import checked_pixels


def psnr_db(pictures: Tensor, targets: Tensor) -> float:
    """Mean over pictures of each picture's peak signal-to-noise ratio, in decibels."""
    return psnr_db_of_each(pictures, targets).mean().item()


def psnr_db_of_each(pictures: Tensor, targets: Tensor) -> Float[Tensor, " batch"]:
    """Each picture's 10 log10(255² / mean squared error of its bytes), float64.

    An exact copy counts as if one single byte were off by one (83 dB at 32x32), so that a mean
    over pictures stays finite.

    Raises:
        UserError: these are no pictures of one size.
    """
    pixels, wanted = paired_pixels(pictures, targets)
    error = pixels.double() - wanted.double()
    mean_square = error.square().flatten(1).mean(1)
    return 10 * torch.log10(255**2 / mean_square.clamp(min=1 / error[0].numel()))


def paired_pixels(
    pictures: Tensor, targets: Tensor, smallest: int = 1, what: str = "a comparison"
) -> tuple[Pixels, Pixels]:
    """Bytes of two batches that are compared picture by picture; each ``Pixels`` or ``Image``.

    Raises:
        UserError: a side is no batch of pictures; they differ in number or size; or a side of them
            is shorter than ``smallest`` pixels, which is too small for what is measured.
    """
    pixels, wanted = checked_pixels(pictures), checked_pixels(targets)
    if pixels.shape != wanted.shape:
        raise UserError(
            f"pictures are compared with targets of their own number and size, but these are "
            f"{tuple(pixels.shape)} and {tuple(wanted.shape)}; pair and crop them alike"
        )
    if min(pixels.shape[2:]) < smallest:
        height, width = pixels.shape[2:]
        raise UserError(
            f"{what} needs pictures of {smallest} pixels or more each way, but these are "
            f"{height} x {width}; score larger pictures, or leave it out"
        )
    return pixels, wanted
