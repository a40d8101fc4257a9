import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image as Picture

from cartok.frozen.inception_v3 import SIDE
from cartok.metrics.clean_resize import cleanly_resized


def as_pillow(pixels):
    """What clean-fid does: each channel as floats by Pillow's bicubic, then clipped."""
    rows = [
        np.asarray(Picture.fromarray(row).resize((SIDE, SIDE), Picture.Resampling.BICUBIC))
        for row in pixels.flatten(0, 1).float().numpy()
    ]
    return torch.from_numpy(np.stack(rows)).unflatten(0, (-1, 3)).clamp(0, 255)


@given(st.integers(8, 700), st.integers(8, 700), st.integers(0, 99))
def test_it_is_pillows_to_a_ten_millionth_of_the_range(height, width, seed):
    generator = torch.Generator().manual_seed(seed)
    noise = torch.randint(0, 256, (1, 3, height, width), generator=generator, dtype=torch.uint8)
    resized = cleanly_resized(noise)
    assert resized.dtype == torch.float32
    assert (resized - as_pillow(noise)).abs().max() <= 3e-5


@pytest.mark.parametrize("value", [0, 255])
def test_it_stays_within_brightness_where_a_bicubic_overshoots(value):
    edge = torch.full((1, 3, 64, 64), value, dtype=torch.uint8)
    edge[..., 32:] = 255 - value
    resized = cleanly_resized(edge)
    assert resized.min() == 0
    assert resized.max() == 255
