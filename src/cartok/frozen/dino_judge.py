"""DINOv2's class token, of which FD_DINOv2 is made (Stein et al. 2023), as dgm-eval computes it.

Beside its name and weights that takes two things that timm does otherwise. Pictures are resized as
Pillow does, to bytes. And the table of positions, 37 x 37, is brought to 16 x 16 as Meta's program
does: bicubic without antialiasing, on a grid that is 0.1 of a patch larger.
"""

from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from cartok.core.precision import full_precision
from cartok.core.shapes import Features, Image
from cartok.frozen.dino import DEVIATION, MEAN, fill, named_network, unfilled
from cartok.frozen.network import Frozen, freeze
from cartok.frozen.weights import Weights, read_weights

SIDE = 224
"""Pixels of the square that every picture is resized to."""

OFFSET = 0.1
"""By how much of a patch the grid of positions is taken to be larger."""


def dino_judge_of(
    weights: str = "", random_weights: bool = False, name: str = "dinov2-large"
) -> "DinoJudge":
    """The network with its published weights; ``weights`` is a path to them, see ``weights.find``.

    ``random_weights`` puts fixed random numbers in their place: the same shapes and cost, for tests
    and benchmarks; receipts then name the network ``dinov2-large-random``. Draws no random numbers.

    Raises:
        UserError: timm or the weights are missing, or the file is not the published one.
    """
    published, architecture = named_network(name)
    network = unfilled(architecture, name)
    if random_weights:
        used = Weights(f"{name}-random", file="", sha256="", source="")
        tensors = _random_like(network.state_dict())
    else:
        used, tensors = published, read_weights(published, weights)
    fill(network, tensors, name)
    return DinoJudge(network, used)


class DinoJudge(Frozen):
    """DINOv2's class token after the last norm: one row per picture, float32; no gradient.

    Of the large network 1.6 s a picture on one core.
    """

    mean: Tensor
    deviation: Tensor

    def __init__(self, network: Any, weights: Weights):
        super().__init__()
        self.weights, self.size = weights, SIDE
        rows: int = SIDE // network.patch_embed.patch_size[0]
        network.pos_embed = nn.Parameter(positions_of(network.pos_embed.detach(), rows))
        network.patch_embed.grid_size = (rows, rows)  # or they would be resized once more
        self.network = network
        self.register_buffer("mean", torch.tensor(MEAN).view(3, 1, 1), persistent=False)
        self.register_buffer("deviation", torch.tensor(DEVIATION).view(3, 1, 1), persistent=False)
        freeze(self.network)
        self.eval()

    @torch.no_grad()
    def forward(self, image: Image) -> Features:
        """One row per picture of any size, which is resized to a square of 224 pixels first."""
        with full_precision(image.device):
            unit = bytes_of_side(image, SIDE) / 255
            return self.network((unit - self.mean) / self.deviation)


def bytes_of_side(image: Image, side: int) -> Float[Tensor, "batch 3 _ _"]:
    """Whole numbers of 0 to 255, as Pillow resizes bytes; one in 100 differs, by 2 at most."""
    levels = ((image.float() + 1) * 127.5).round()
    if image.shape[2:] != (side, side):
        for size in ((image.shape[2], side), (side, side)):  # widths first, bytes in between
            levels = F.interpolate(levels, size, mode="bicubic", antialias=True)
            levels = (levels + 0.5).floor().clamp(0, 255)  # halves go up
    return levels.clamp(0, 255)


def positions_of(
    table: Float[Tensor, "1 places width"], rows: int
) -> Float[Tensor, "1 fewer width"]:
    """The class token's position, and those of patches brought to ``rows`` rows and columns."""
    places = table[:, 1:]
    side = round(places.shape[1] ** 0.5)
    grid = places.unflatten(1, (side, side)).permute(0, 3, 1, 2)
    scale = (rows + OFFSET) / side
    resized = F.interpolate(grid, scale_factor=(scale, scale), mode="bicubic")
    return torch.cat([table[:, :1], resized.flatten(2).mT], 1)


def _random_like(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """Small normal numbers, ones for gains and zeros for biases; the same every time."""
    generator = torch.Generator().manual_seed(0)
    found = {}
    for name, tensor in tensors.items():
        found[name] = torch.randn(tensor.shape, generator=generator) * 0.02
        if tensor.ndim == 1:
            found[name] = torch.full(tensor.shape, float(not name.endswith("bias")))
    return found
