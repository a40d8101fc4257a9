"""How a picture is cut for scoring: as it is, its central square, or as ADM cuts photographs."""

from typing import Literal

import numpy as np
import torch
from jaxtyping import UInt8
from PIL import Image
from torch import Tensor

from cartok.core.errors import UserError
from cartok.data.views import View, center_view

Cut = UInt8[Tensor, "3 height width"]
"""The part of a picture that is scored: RGB bytes."""

Crop = Literal["as-given", "square", "short-side"]

WORDS: dict[Crop, str] = {
    "as-given": "as given",
    "square": "central square of the short side, resized",
    "short-side": "short side by 2 x 2 boxes while twice as long, then bicubic; central square",
}
"""What each does, for a receipt."""


def cropped(picture: Image.Image, crop: Crop, size: int) -> Cut:
    """The bytes of a picture that are scored: ``size`` pixels a side; 0 of ``as-given`` is any.

    ``short-side`` is the crop of the ADM programs, with which most publish reconstructions.

    Raises:
        UserError: ``as-given`` of a picture of another size.
    """
    if picture.size == (size, size):  # every crop leaves it as it is
        return _bytes_of(picture)
    if crop == "square":
        return center_view(picture, View(size=size))
    if crop == "short-side":
        picture = _short_side(picture, size)
    elif size:
        raise UserError(
            f"these pictures are scored as they are, at {size} x {size} pixels, but one is "
            f"{picture.width} x {picture.height}; crop them, or take a preset that does"
        )
    return _bytes_of(picture)


def _bytes_of(picture: Image.Image) -> Cut:
    return torch.from_numpy(np.array(np.asarray(picture).transpose(2, 0, 1), order="C"))


def _short_side(picture: Image.Image, size: int) -> Image.Image:
    while min(picture.size) >= 2 * size:
        picture = picture.resize((picture.width // 2, picture.height // 2), Image.Resampling.BOX)
    scale = size / min(picture.size)
    whole = (round(picture.width * scale), round(picture.height * scale))
    picture = picture.resize(whole, Image.Resampling.BICUBIC)
    left, top = (picture.width - size) // 2, (picture.height - size) // 2
    return picture.crop((left, top, left + size, top + size))
