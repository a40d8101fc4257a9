"""Inception v3 of 2015, whose features published scores are made of: FID, sFID, IS and others.

The layers are torch-fidelity's, which agree with the TensorFlow graph that published scores came
from. Batch norms are folded into the convolutions before them.
"""

import importlib
import io
from pathlib import Path
from typing import Any, NamedTuple

import torch
from jaxtyping import Float, Shaped
from torch import Tensor, nn
from torch.nn.utils.fusion import fuse_conv_bn_eval

from cartok.core.errors import UserError
from cartok.core.precision import full_precision, rounding
from cartok.frozen.network import FeatureMap, Frozen, freeze
from cartok.frozen.weights import INCEPTION, Weights, missing_package, read_weights

SIDE = 299
"""Pixels of the square that every picture is resized to."""

SPATIAL_LAYER, SPATIAL_CHANNELS = "Mixed_6d", 7
"""The layer that sFID reads (``mixed_6/conv:0`` of the graph), and how many channels of it."""

WIDTHS = {"pool": 2048, "spatial": 17 * 17 * SPATIAL_CHANNELS, "logits": 1008}
"""Features of a picture, by kind."""


class InceptionFeatures(NamedTuple):
    """What one pass says of each picture, float32; see ``Inception``."""

    pool: Float[Tensor, "batch 2048"]
    spatial: Float[Tensor, "batch 2023"]
    logits: Float[Tensor, "batch 1008"]


class Inception(Frozen):
    """Inception v3, from bytes to its features, in float32 even under autocast; no gradient.

    ``pool``: the last layer's mean over space, for FID, precision and recall.

    ``spatial``: the first 7 channels of the first branch of ``Mixed_6d``, 17 x 17, rows first and
    channels last, for sFID. The ADM evaluator reads ``mixed_6/conv:0``: its graph counts blocks
    from ``mixed`` (Mixed_5b) to ``mixed_10`` (Mixed_7c), its ``conv`` is the 1 x 1 branch after
    its ReLU, and that branch comes first where the branches are joined.

    ``logits``: without the last layer's bias, as published Inception Scores take them.
    """

    widths = WIDTHS
    classes: Tensor

    def __init__(self, network: Any, weights: Weights, tf32: bool = False):
        super().__init__()
        self.weights, self.tf32 = weights, tf32
        for block in network.modules():
            if hasattr(block, "bn"):
                block.conv, block.bn = fuse_conv_bn_eval(block.conv, block.bn), nn.Identity()
        layers = dict(network.float().named_children())  # in the order that they run in
        fc = layers.pop("fc")
        cut = [*layers].index(SPATIAL_LAYER) + 1
        self.early = nn.Sequential(*[*layers.values()][:cut])
        self.late = nn.Sequential(*[*layers.values()][cut:])
        self.register_buffer("classes", fc.weight.detach(), persistent=False)
        freeze(self)
        self.to(memory_format=torch.channels_last)
        self.eval()

    @property
    def precision(self) -> str:
        """What a receipt says of the arithmetic."""
        return "float32, convolutions tf32" if self.tf32 else "float32"

    @torch.no_grad()
    def forward(self, pixels: Shaped[Tensor, "..."]) -> InceptionFeatures:
        """One row per picture; bytes of RGB pictures of any one size (``Pixels``).

        Floats are taken as brightness of 0 to 255 that was resized before, as clean-fid does.

        Raises:
            UserError: these are no RGB pictures, or floats that are no brightness.
        """
        _check(pixels)
        with full_precision(pixels.device), rounding(self.tf32):
            features = self.early(_prepared(pixels))
            spatial = features[:, :SPATIAL_CHANNELS].permute(0, 2, 3, 1).flatten(1)
            pool = self.late(features).flatten(1)
            return InceptionFeatures(pool, spatial, pool @ self.classes.T)


def inception_of(
    path: Path | None = None, random_weights: bool = False, tf32: bool = False
) -> Inception:
    """The network with its published weights; ``path`` leads to them, see ``weights.find``.

    ``random_weights`` puts fixed random numbers in their place: the same shapes and cost, for tests
    and benchmarks; receipts then name the network ``inception-random``. ``tf32`` lets a GPU round
    the factors of convolutions to 10 bits, which published scores do not. Building it draws no
    random numbers.

    Raises:
        UserError: torch-fidelity or the weights are missing, or the file is not the published one.
    """
    network = _unfilled()
    if random_weights:
        used = Weights("inception-random", file="", sha256="", source="")
        tensors = _random(network.state_dict())
    else:
        used, tensors = INCEPTION, read_weights(INCEPTION, str(path or ""))
    nn.Module.load_state_dict(network, tensors, strict=True, assign=True)
    return Inception(network.double(), used, tf32)


def _unfilled() -> Any:
    """torch-fidelity's network without numbers.

    Its constructor reads a file, running what code is pickled in it: it is given an empty one.
    """
    try:
        module: Any = importlib.import_module("torch_fidelity.feature_extractor_inceptionv3")
    except ImportError:
        raise missing_package("torch-fidelity", INCEPTION.name) from None

    class Unfilled(module.FeatureExtractorInceptionV3):
        def load_state_dict(self, *_: Any, **__: Any) -> None:
            pass

    empty = io.BytesIO()
    torch.save({}, empty)
    empty.seek(0)
    with torch.device("meta"):
        return Unfilled("inception-v3-compat", ["2048"], feature_extractor_weights_path=empty)


def _random(shapes: dict[str, Tensor]) -> dict[str, Tensor]:
    """Numbers that keep the size of activations, and batch norms that do something."""
    generator = torch.Generator().manual_seed(0)
    tensors = {}
    for name, tensor in shapes.items():
        if tensor.ndim > 1:
            scale = (2 / tensor[0].numel()) ** 0.5  # He et al. 2015
            tensors[name] = torch.randn(tensor.shape, generator=generator) * scale
        elif name.endswith(("bn.weight", "running_var")):
            tensors[name] = torch.rand(tensor.shape, generator=generator) + 0.5
        elif tensor.ndim:
            tensors[name] = torch.randn(tensor.shape, generator=generator) * 0.1
        else:
            tensors[name] = torch.zeros(tensor.shape, dtype=tensor.dtype)
    return tensors


def _prepared(pixels: Shaped[Tensor, "batch 3 height width"]) -> FeatureMap:
    """Resized as TensorFlow 1 does, then (rgb - 128) / 128.

    The pixel at 0 stays at 0 and there is no antialiasing: whatever else looks better gives other
    scores. Rows first are resized along their length, then rows are mixed.
    """
    (above, below, down), (left, right, along) = (
        _places(length, pixels.device) for length in pixels.shape[2:]
    )
    start, end = pixels[..., left].float(), pixels[..., right].float()
    rows = start + (end - start) * along
    top = rows[:, :, above]
    resized = top + (rows[:, :, below] - top) * down[:, None]
    return ((resized - 128) / 128).contiguous(memory_format=torch.channels_last)


def _places(length: int, device: torch.device) -> tuple[Tensor, Tensor, Tensor]:
    """For each of 299 places along a line of pixels: the pixels around it, and where between."""
    places = torch.arange(SIDE, device=device, dtype=torch.float32)
    places = places * torch.tensor(length / SIDE, dtype=torch.float32)
    before = places.long()
    return before, (before + 1).clamp_max(length - 1), places - before.float()


def _check(pixels: Shaped[Tensor, "..."]) -> None:
    shape = tuple(pixels.shape)
    is_brightness = (
        pixels.dtype == torch.float32 and shape[2:] == (SIDE, SIDE) and bool((pixels >= 0).all())
    )
    if (
        len(shape) != 4
        or shape[1] != 3
        or 0 in shape
        or not (pixels.dtype == torch.uint8 or is_brightness)
    ):
        raise UserError(
            f"Inception sees bytes of RGB pictures, (batch, 3, height, width) in uint8, but these "
            f"are {shape} in {pixels.dtype}; turn floats into bytes with pixels_of"
        )
