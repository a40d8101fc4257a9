import pytest
import torch
import torch.nn.functional as F


@pytest.fixture
def noise():
    """Pictures of uniform noise in [-1, 1], always the same."""

    def made(*shape):
        return torch.rand(*shape, generator=torch.Generator().manual_seed(0)) * 2 - 1

    return made


@pytest.fixture
def photo():
    """A batch of one, from the middle square of a photograph in [0, 1] or bytes."""

    def made(array, size):
        scale = 255 if array.dtype.kind == "u" else 1
        height, width = array.shape[:2]
        side = min(height, width)
        top, left = (height - side) // 2, (width - side) // 2
        square = torch.tensor(array[top : top + side, left : left + side] / scale).float()
        square = square.permute(2, 0, 1)[None] * 2 - 1
        return F.interpolate(square, (size, size), mode="bicubic", antialias=True).clamp(-1, 1)

    return made
