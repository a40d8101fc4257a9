"""Feature alignment: the encoder is asked to say what a frozen network sees.

A small projector, trained with the codec, maps the encoder's output to the features of a network
such as DINOv2, cell by cell; the loss is one less their cosine (VA-VAE, Yao et al. 2025;
GigaTok, Xiong et al. 2025). No part of the paper: latents that mean something are another way to
make tokens predictable, to be compared with the causal term or joined to it.
"""

from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F

from cartok.core.config import config
from cartok.core.precision import full_precision
from cartok.core.shapes import Image, Latents
from cartok.frozen import TokenFeatures


@config
class AlignmentConfig:
    """The alignment term; off by default, as in the paper."""

    weight: float = 0.0
    """0: no projector, no frozen network."""
    network: Literal["dinov2-small"] = "dinov2-small"
    """Whose features; a DINO critic judges by the same."""
    hidden: int = 0
    """Width of the projector's hidden layer; 0: one linear map, which leaves the encoder no room to
    let the projector do the work."""
    margin: float = 0.0
    """Cells whose cosine is above 1 less this are let be; VA-VAE takes 0.5."""

    def __post_init__(self):
        if self.weight < 0 or self.hidden < 0:
            raise ValueError(
                f"weight and hidden must not be negative: {self.weight:g}, {self.hidden}"
            )
        if not 0 <= self.margin < 2:
            raise ValueError(f"margin must be in [0, 2), but is {self.margin:g}")


class AlignmentHead(nn.Module):
    """A projector from the encoder's ``channels`` to frozen features of ``width`` channels.

    ``features`` makes ``TokenFeatures`` of pictures, as ``frozen.DinoFeatures`` does; the last
    layer counts. It holds nothing that is trained or saved.
    """

    def __init__(self, config: AlignmentConfig, features: nn.Module, channels: int, width: int):
        super().__init__()
        assert not features.state_dict(), "frozen features hold nothing that is saved or moved"
        self.config = config
        self.features = features
        if config.hidden:
            first, last = nn.Conv2d(channels, config.hidden, 1), nn.Conv2d(config.hidden, width, 1)
            self.project = nn.Sequential(first, nn.SiLU(), last)
        else:
            self.project = nn.Conv2d(channels, width, 1)

    def forward(self, encoder_output: Latents, image: Image) -> Float[Tensor, ""]:
        """Mean over cells of relu(1 - margin - cosine), in float32; 0 is aligned."""
        rows, cols = encoder_output.shape[-2:]
        with torch.no_grad():
            wanted = on_grid(self.features(image), rows, cols)
        seen = self.project(encoder_output)
        with full_precision(image.device):
            cosine = F.cosine_similarity(seen.float(), wanted, dim=1, eps=1e-6)
            return F.relu(1 - self.config.margin - cosine).mean()


def on_grid(features: TokenFeatures, rows: int, cols: int) -> Latents:
    """The last layer's vectors on another grid, bilinear with antialiasing, in float32."""
    grid = features.layers[-1].float().transpose(1, 2)
    grid = grid.unflatten(2, (features.rows, features.columns))
    if grid.shape[2:] == (rows, cols):
        return grid
    return F.interpolate(grid, (rows, cols), mode="bilinear", antialias=True)
