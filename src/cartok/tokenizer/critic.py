"""The critic: judges whether patches of a picture are photographs or reconstructions.

PatchGAN (Isola et al. 2017) with the hinge loss. The paper's text says Wasserstein; the losses it
plots are those of a hinge at weight 0.5, as in LlamaGen.
"""

import math
from typing import Literal

from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F

from cartok.core.config import config
from cartok.core.shapes import Image

Verdicts = Float[Tensor, "batch 1 row column"]


@config
class CriticConfig:
    """The critic and when it speaks; the defaults are the paper's (A.1) but for ``norm``."""

    weight: float = 0.5
    """Of its term in the codec's loss; 0: no critic at all."""
    channels: int = 64
    layers: int = 3
    """Halvings of the grid; 3 give patches of 70 pixels."""
    norm: Literal["group", "batch"] = "group"
    """Batch is the paper's; group makes parts of a batch and ranks give equal results."""
    start: int = 20_000
    """Step from which the codec hears the critic."""
    ramp: int = 2_000
    """Steps over which its weight rises from 0, along a cosine."""
    warm: int = 0
    """Steps before ``start`` for which the critic already learns."""

    def __post_init__(self):
        if self.weight < 0 or min(self.start, self.ramp, self.warm) < 0:
            raise ValueError("weight, start, ramp and warm must not be negative")
        if self.channels < 1 or self.layers < 1:
            raise ValueError("a critic has at least 1 channel and 1 layer")

    def weight_at(self, step: int) -> float:
        """Weight of the critic's term at a step."""
        if step < self.start:
            return 0.0
        share = min(1.0, (step - self.start) / self.ramp) if self.ramp else 1.0
        return self.weight * 0.5 * (1 - math.cos(math.pi * share))

    def learns_at(self, step: int) -> bool:
        """True if the critic itself learns at a step."""
        return self.weight > 0 and step >= self.start - self.warm


class Critic(nn.Module):
    """Convolutions that give every patch a verdict: high for photographs."""

    def __init__(self, config: CriticConfig):
        super().__init__()
        width = config.channels
        layers: list[nn.Module] = [nn.Conv2d(3, width, 4, 2, 1), nn.LeakyReLU(0.2)]
        for index in range(1, config.layers + 1):
            before, width = width, config.channels * min(2**index, 8)
            stride = 2 if index < config.layers else 1
            conv = nn.Conv2d(before, width, 4, stride, 1, bias=False)
            layers += [conv, _norm(config.norm, width), nn.LeakyReLU(0.2)]
        self.layers = nn.Sequential(*layers, nn.Conv2d(width, 1, 4, 1, 1))
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.normal_(module.weight, 0.0, 0.02)

    def forward(self, image: Image) -> Verdicts:
        """A verdict for every patch."""
        return self.layers(image)


def critic_loss(real: Verdicts, fake: Verdicts) -> Float[Tensor, ""]:
    """Hinge: 1 at chance, 0 when every verdict is right by a margin."""
    return 0.5 * (F.relu(1 - real).mean() + F.relu(1 + fake).mean())


def codec_loss(fake: Verdicts) -> Float[Tensor, ""]:
    """What the codec minimises: the negative of the verdicts on its reconstructions."""
    return -fake.mean()


def _norm(name: str, width: int) -> nn.Module:
    return nn.BatchNorm2d(width) if name == "batch" else nn.GroupNorm(math.gcd(16, width), width)
