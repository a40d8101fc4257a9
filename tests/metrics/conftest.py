import importlib.util
from pathlib import Path

import numpy as np
import pytest
import torch
from skimage import data

TINY = Path(__file__).with_name("tiny_inception.py")


@pytest.fixture(scope="session")
def photo_crops():
    """A function: that many random 32-pixel crops of photographs, as bytes."""
    photos = [data.astronaut(), data.coffee(), data.chelsea(), data.rocket(), data.retina()]

    def crops(count, seed, size=32, step=3):
        generator = np.random.default_rng(seed)
        pictures = []
        for index in range(count):
            photo = photos[index % len(photos)][::step, ::step]
            top, left = (generator.integers(length - size + 1) for length in photo.shape[:2])
            pictures.append(photo[top : top + size, left : left + size])
        return torch.from_numpy(np.stack(pictures)).permute(0, 3, 1, 2).contiguous()

    return crops


@pytest.fixture(scope="session")
def tiny():
    """The module ``tiny_inception``, which the ranks' script imports, too."""
    spec = importlib.util.spec_from_file_location("tiny_inception", TINY)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module
