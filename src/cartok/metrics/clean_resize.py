"""The resize of clean-fid, done to pictures before a network sees them."""

from collections import deque

import numpy as np
import torch
from jaxtyping import Float
from PIL import Image as Picture
from torch import Tensor

from cartok.core.shapes import Pixels
from cartok.core.threads import in_threads, num_threads
from cartok.frozen.inception_v3 import SIDE

Brightness = Float[Tensor, "batch 3 side side"]
"""Pictures as float32 of 0 to 255, which rounding to bytes would change."""


def cleanly_resized(pixels: Pixels) -> Brightness:
    """To 299 pixels a side, each channel as floats, by Pillow's antialiased bicubic; clipped.

    Parmar et al. 2022: what is not antialiased scores JPEG and blur by chance.
    """
    source = pixels.cpu().numpy()
    made = np.empty((len(source), 3, SIDE, SIDE), np.float32)

    def resize(index: int) -> None:
        for channel, row in zip(source[index], made[index], strict=True):
            picture = Picture.fromarray(channel.astype(np.float32))
            resized = picture.resize((SIDE, SIDE), Picture.Resampling.BICUBIC)
            np.clip(np.asarray(resized), 0, 255, out=row)

    deque(in_threads(resize, range(len(source)), min(num_threads(), len(source) // 2)), maxlen=0)
    return torch.from_numpy(made).to(pixels.device)
