"""Networks we never train: by name, their files checked by hash before anything is loaded.

The judge is never the teacher. Scores come from EfficientNet-Lite0, or from Inception or DINOv2's
large network where they are to compare with published ones; the perceptual training term from
EfficientNet-Lite2's early blocks or, as in the paper, from VGG16 (LPIPS). So no tokenizer is
trained against its own judge; but one that is aligned with DINOv2's small network pleases the large
one.
Nothing here has parameters: weights are buffers that no optimizer, parameter count or checkpoint
sees.
"""

from pathlib import Path
from typing import Literal

from torch import nn

from cartok.core.config import nearest
from cartok.core.errors import UserError
from cartok.frozen.dino import DinoFeatures, TokenFeatures, dino_of
from cartok.frozen.dino_judge import DinoJudge, dino_judge_of
from cartok.frozen.efficientnet import (
    PERCEPTUAL_BLOCKS,
    PERCEPTUAL_SCALE,
    Lite0Features,
    PerceptualDistance,
    read_network,
)
from cartok.frozen.inception_v3 import Inception, InceptionFeatures, inception_of
from cartok.frozen.lpips import LPIPS, lpips_of
from cartok.frozen.network import FeatureMap, Frozen, FrozenConv
from cartok.frozen.weights import (
    DINOV2_LARGE,
    DINOV2_SMALL,
    INCEPTION,
    LITE0,
    LITE2,
    VGG16,
    Weights,
    find,
    read_weights,
)

__all__ = [
    "DINOV2_LARGE",
    "DINOV2_SMALL",
    "INCEPTION",
    "LITE0",
    "LITE2",
    "LPIPS",
    "PERCEPTUAL_BLOCKS",
    "PERCEPTUAL_SCALE",
    "TEACHERS",
    "VGG16",
    "DinoFeatures",
    "DinoJudge",
    "FeatureMap",
    "Frozen",
    "FrozenConv",
    "Inception",
    "InceptionFeatures",
    "Lite0Features",
    "PerceptualDistance",
    "Teacher",
    "TokenFeatures",
    "Weights",
    "dino_judge_of",
    "dino_of",
    "find",
    "inception",
    "judge",
    "lpips_of",
    "read_network",
    "read_weights",
    "teacher",
]

Teacher = Literal["effnet-lite2", "lpips-vgg"]
"""A perceptual training term; the first needs no download, the second is the paper's."""

TEACHERS: dict[str, Weights] = {"effnet-lite2": LITE2, "lpips-vgg": VGG16}
"""The weights behind each; never the judge's."""


def judge(size: int = 96) -> Lite0Features:
    """The network whose features scores are made of; ``size`` is 96 in the demo, 224 in full."""
    return Lite0Features(size)


def inception(
    path: Path | None = None, random_weights: bool = False, tf32: bool = False
) -> Inception:
    """The network whose features published scores are made of; see ``inception_of``."""
    return inception_of(path, random_weights, tf32)


def teacher(network: str = "effnet-lite2", weights: str = "", heads: str = "") -> nn.Module:
    """The perceptual training term: called with pictures and targets, one distance per pair.

    ``weights`` is a path to the network's published file, ``heads`` one to LPIPS's learned weights;
    without them, see ``weights.find``.

    Raises:
        UserError: there is no such teacher, or its weights are neither here nor to be fetched.
    """
    if network not in TEACHERS:
        raise UserError(f"there is no teacher '{network}'; {nearest(network, list(TEACHERS))}")
    if network == "lpips-vgg":
        return lpips_of(weights, heads=heads)
    return PerceptualDistance(weights=weights)
