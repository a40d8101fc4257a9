"""The resize of clean-fid, done to pictures before a network sees them."""

import numpy as np
import torch
from jaxtyping import Float
from PIL import Image as Picture
from torch import Tensor

from cartok.core.shapes import Pixels
from cartok.frozen.inception_v3 import SIDE

Brightness = Float[Tensor, "batch 3 side side"]
"""Pictures as float32 of 0 to 255, which rounding to bytes would change."""


def cleanly_resized(pixels: Pixels) -> Brightness:
    """To 299 pixels a side, each channel as floats, by Pillow's antialiased bicubic; clipped.

    Parmar et al. 2022: what is not antialiased scores JPEG and blur by chance.
    """
    channels = [
        np.asarray(Picture.fromarray(channel).resize((SIDE, SIDE), Picture.Resampling.BICUBIC))
        for channel in pixels.cpu().flatten(0, 1).float().numpy()
    ]
    resized = torch.from_numpy(np.stack(channels)).clamp(0, 255)
    return resized.unflatten(0, (-1, 3)).to(pixels.device)
