"""DINOv2's tokens (Oquab et al. 2023), layer by layer; needs timm, of the extra ``dino``."""

import importlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from cartok.core.config import nearest
from cartok.core.errors import UserError
from cartok.core.shapes import Image, Sequence
from cartok.frozen.network import Frozen, freeze
from cartok.frozen.weights import (
    DINOV2_LARGE,
    DINOV2_SMALL,
    Weights,
    own_weights,
    read_tensors,
    read_weights,
)

NETWORKS = {
    "dinov2-small": (DINOV2_SMALL, "vit_small_patch14_dinov2"),
    "dinov2-large": (DINOV2_LARGE, "vit_large_patch14_dinov2"),
}
"""The published weights, and timm's name for the network they are for."""

MEAN = (0.485, 0.456, 0.406)
DEVIATION = (0.229, 0.224, 0.225)
"""Of the pictures that it was trained on, from 0 to 1."""


@dataclass(frozen=True)
class TokenFeatures:
    """What chosen layers say of each patch of each picture; the class token is left out."""

    layers: tuple[Sequence, ...]
    """Float32, each after the network's last norm; patches in raster order."""
    rows: int
    columns: int


def dino_of(
    name: str = "dinov2-small",
    weights: str = "",
    layers: tuple[int, ...] = (2, 5, 8, 11),
    size: int | None = None,
) -> "DinoFeatures":
    """A DINO network by name; ``layers`` are counted from 0.

    ``weights`` is a path to the published file or to a ``.pth`` or ``.safetensors`` file of the
    same network, timm's for one; without it, see ``weights.find``. ``size`` as in
    ``DinoFeatures``. Draws no random numbers.

    Raises:
        UserError: the network, a layer, timm or the weights are missing, or the file is not of
            this network.
    """
    published, architecture = named_network(name)
    network = unfilled(architecture, name)
    depth = len(network.blocks)
    if not layers or not all(0 <= layer < depth for layer in layers):
        raise UserError(f"{name} has layers 0 to {depth - 1}, but layers are {layers}")
    used = own_weights(weights, name) if weights else published
    tensors = read_tensors(Path(weights)) if weights else read_weights(published)
    fill(network, tensors, name)
    return DinoFeatures(network, used, layers, size)


def named_network(name: str) -> tuple[Weights, str]:
    """An entry of ``NETWORKS``.

    Raises:
        UserError: there is none of that name.
    """
    if name not in NETWORKS:
        raise UserError(f"there is no DINO network '{name}'; {nearest(name, list(NETWORKS))}")
    return NETWORKS[name]


class DinoFeatures(Frozen):
    """A vision transformer's tokens; the gradient passes through to the picture.

    ``size`` resizes pictures to that square first; None keeps their size. Either way to the
    nearest multiple of the patch (14 for DINOv2): 256 pixels become 252, or 18 x 18 tokens, and
    size 224 gives the 16 x 16 tokens of a tokenizer of stride 16.
    """

    mean: Tensor
    deviation: Tensor

    def __init__(
        self, network: Any, weights: Weights, layers: tuple[int, ...], size: int | None = None
    ):
        super().__init__()
        self.weights, self.layers, self.size = weights, layers, size
        self.patch: int = network.patch_embed.patch_size[0]
        self.network = network
        self.register_buffer("mean", torch.tensor(MEAN).view(3, 1, 1), persistent=False)
        self.register_buffer("deviation", torch.tensor(DEVIATION).view(3, 1, 1), persistent=False)
        freeze(self.network)
        self.eval()

    def forward(self, image: Image) -> TokenFeatures:
        """Each layer's tokens, after antialiased bicubic resizing, not clipped."""
        rows, columns = (self._patches(self.size or length) for length in image.shape[2:])
        layers = self.network.forward_intermediates(
            self._prepared(image, rows, columns),
            indices=list(self.layers),
            norm=True,
            stop_early=True,
            output_fmt="NLC",
            intermediates_only=True,
        )
        return TokenFeatures(tuple(tokens.float() for tokens in layers), rows, columns)

    def _patches(self, length: int) -> int:
        return max(1, (2 * length + self.patch) // (2 * self.patch))

    def _prepared(self, image: Image, rows: int, columns: int) -> Float[Tensor, "batch 3 _ _"]:
        size = (rows * self.patch, columns * self.patch)
        image = image.float()
        if image.shape[2:] != size:
            image = F.interpolate(image, size, mode="bicubic", antialias=True)
        return (image * 0.5 + 0.5 - self.mean) / self.deviation


def unfilled(architecture: str, name: str) -> Any:
    """The network without numbers, for pictures of any size.

    Raises:
        UserError: timm is missing.
    """
    try:
        timm = importlib.import_module("timm")
    except ImportError:
        raise UserError(
            f"{name} needs the package timm, which is missing; install cartok[dino]"
        ) from None
    with torch.device("meta"):
        return timm.create_model(
            architecture, pretrained=False, num_classes=0, dynamic_img_size=True
        )


def fill(network: nn.Module, tensors: dict[str, Tensor], name: str) -> None:
    """Puts the numbers in, in float32: every tensor by its name and shape, and none left over.

    Raises:
        UserError: says which one is another.
    """
    found = {key: value.float() for key, value in tensors.items() if key != "mask_token"}
    wanted = network.state_dict()
    for key in sorted({*found, *wanted}):
        here, there = (tuple(d[key].shape) if key in d else None for d in (found, wanted))
        if here != there:
            raise UserError(
                f"the weights are not those of {name}: {key} must be {there or 'absent'}, "
                f"but is {here or 'absent'}; give the published file or timm's"
            )
    network.load_state_dict(found, strict=True, assign=True)
