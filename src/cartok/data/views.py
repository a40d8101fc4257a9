"""Square views of pictures: the random crop of training, the central one of evaluation.

A view is cut and scaled in one antialiased step: Lanczos over the window alone, so no pixel
outside it leaks in. (ADM's box halvings before a bicubic step were made for speed.) A window
that already has the right size is copied, never resampled. This module knows one picture at a
time and nothing of batches.
"""

from typing import Literal

import numpy as np
import torch
from jaxtyping import UInt8
from PIL import Image
from torch import Tensor

from cartok.core.config import config
from cartok.core.errors import UserError

Square = UInt8[Tensor, "3 size size"]
"""One view: RGB bytes."""

Squares = UInt8[Tensor, "view 3 size size"]
"""Several views of one picture: RGB bytes."""

Kind = Literal["center", "flip", "ten-crop"]
"""Which fixed views of a picture are taken; see ``views_of``."""

_TEN_CROP_SCALE = 1.1


@config
class View:
    """What part of a picture is seen, and how it may vary in training."""

    size: int
    """Side of the crop, in pixels."""
    min_scale: float = 1.0
    """The least share of the short side that a training crop covers; 1 is always all of it."""
    flip: bool = True
    """Mirror half of the training crops."""
    resize: bool = True
    """Scale the crop from the short side; otherwise cut it at the picture's own scale."""

    def __post_init__(self):
        if self.size < 1:
            raise ValueError(f"size is at least 1 px, but got {self.size}")
        if not 0 < self.min_scale <= 1:
            raise ValueError(f"min_scale is above 0 and at most 1, but got {self.min_scale}")


def train_view(picture: Image.Image, view: View, generator: np.random.Generator) -> Square:
    """A random crop, mirrored half of the time; always takes four numbers from the generator.

    The crop covers a share of the short side that is uniform between ``min_scale`` and 1. A
    square picture of the view's size stays as it is when ``min_scale`` is 1.
    """
    share, across, down, mirror = generator.random(4)
    share = 1 - share * (1 - view.min_scale)
    square = _square(picture, view, share, (across, down))
    return _tensor(square[:, ::-1] if view.flip and mirror < 0.5 else square)


def center_view(picture: Image.Image, view: View) -> Square:
    """The central crop, as large as the short side (or of the view's size without resizing)."""
    return _tensor(_square(picture, view, 1.0, (0.5, 0.5)))


def views_of(picture: Image.Image, view: View, kind: Kind) -> Squares:
    """The fixed views of a picture from which tokens are made.

    ``center``: the central crop. ``flip``: it and its mirror image. ``ten-crop``: the centre and
    the four corners of the central square scaled to 1.1 times the size, then their mirror images
    (the crops of LlamaGen's extraction). The first view is the central one in every kind.

    Raises:
        UserError: ``ten-crop`` of a view that does not resize.
    """
    if kind == "ten-crop":
        squares = _five_crops(picture, view)
    else:
        squares = [_square(picture, view, 1.0, (0.5, 0.5))]
    if kind != "center":
        squares += [square[:, ::-1] for square in squares]
    return torch.stack([_tensor(square) for square in squares])


def num_views(kind: Kind) -> int:
    """How many views ``views_of`` returns."""
    return {"center": 1, "flip": 2, "ten-crop": 10}[kind]


def transform_of(view: View, kind: Kind) -> str:
    """What ``views_of`` does to a picture, in words, for a receipt."""
    wide = round(_TEN_CROP_SCALE * view.size) if kind == "ten-crop" else view.size
    square = f"central square of the short side, Lanczos to {wide} px"
    if not view.resize:
        square = f"central {view.size} px at the picture's own scale"
    if kind == "ten-crop":
        square += f"; of it {view.size} px in the centre and the corners"
    return square + ("" if kind == "center" else ", each also mirrored")


def _five_crops(picture: Image.Image, view: View) -> list[np.ndarray]:
    if not view.resize:
        raise UserError("ten-crop scales pictures, but this view does not; set resize to true")
    wide = View(size=round(_TEN_CROP_SCALE * view.size))
    square = _square(picture, wide, 1.0, (0.5, 0.5))
    rest, middle = wide.size - view.size, (wide.size - view.size) // 2
    corners = [(middle, middle), (0, 0), (0, rest), (rest, 0), (rest, rest)]
    return [square[top : top + view.size, left : left + view.size] for top, left in corners]


def _square(
    picture: Image.Image, view: View, share: float, place: tuple[float, float]
) -> np.ndarray:
    """The window of a share of the short side, at a place of 0 to 1 across and down, as bytes."""
    short = min(picture.size)
    side = short * share if view.resize else view.size
    if side > short:
        raise UserError(
            f"a crop of {side} px at the picture's own scale needs a short side of as much, but "
            f"got {short} px; use a smaller size, or set resize to true"
        )
    # Whole offsets: a window of the right size is then copied without resampling.
    across, down = picture.width - side, picture.height - side
    left, top = int(place[0] * (across + 1)), int(place[1] * (down + 1))
    left, top = min(left, int(across)), min(top, int(down))
    box = (left, top, left + side, top + side)
    target = (view.size, view.size)
    return np.asarray(picture.resize(target, Image.Resampling.LANCZOS, box=box))


def _tensor(square: np.ndarray) -> Square:
    return torch.from_numpy(np.array(square.transpose(2, 0, 1), order="C"))
