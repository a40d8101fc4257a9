"""An Inception with few features that takes no time, for tests of what carries pictures to it."""

from typing import ClassVar

import torch
from torch import nn

from cartok.frozen.inception_v3 import Inception, InceptionFeatures
from cartok.frozen.weights import Weights


class TinyInception(Inception):
    """Waves of the mean and the corner of each channel; the same for a picture in any batch."""

    widths: ClassVar = {"pool": 7, "spatial": 6, "logits": 5}

    def __init__(self, name="inception-tiny", sha256="0" * 64, tf32=False):
        nn.Module.__init__(self)
        self.weights, self.tf32 = Weights(name, "", sha256, source=""), tf32
        self.register_buffer("classes", torch.zeros(1))
        self.pictures_seen, self.batches_seen = 0, []

    def forward(self, pixels):
        self.pictures_seen += len(pixels)
        self.batches_seen.append(len(pixels))
        seen = torch.cat([pixels.double().mean((2, 3)), pixels[:, :, 0, 0].double()], dim=1)
        waves = (
            torch.sin(seen @ torch.arange(1, 6 * width + 1).view(6, width).double())
            for width in self.widths.values()
        )
        return InceptionFeatures(*(wave.float() for wave in waves))


def pictures(count, size=8, seed=0):
    """Noise as bytes."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(256, (count, 3, size, size), generator=generator, dtype=torch.uint8)
