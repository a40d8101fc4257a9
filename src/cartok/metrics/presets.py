"""Protocols by name: what exactly is done to pictures before a number is made of them.

Numbers of two protocols never compare. A preset states its own whole; one entry of the table is one
preset.
"""

from typing import Literal

from cartok.core.config import config, nearest
from cartok.core.errors import UserError
from cartok.data.crops import Crop

INCEPTION_METRICS = ("fd", "sfd", "kd", "is", "prdc")
PAIR_METRICS = ("psnr", "ssim", "ms-ssim", "lpips")


@config
class Preset:
    """One protocol; a change of any field makes other numbers."""

    name: str
    summary: str
    network: Literal["effnet-lite0", "inception", "dinov2-large"] = "inception"
    resize: Literal["network", "clean"] = "network"
    """By the network itself, as published; or before it, antialiased, as clean-fid does."""
    side: int = 0
    """Pixels a side at which pictures are scored; 0: as large as the generated ones are."""
    generated_crop: Crop = "as-given"
    reference_crop: Crop = "as-given"
    statistics: Literal["computed", "stored"] = "computed"
    """Of the reference, for Frechet distances: of its pictures, or mu and sigma beside them."""
    k: int = 3
    """The neighbour that precision and recall reach to."""
    coverage_k: int = 5
    """The neighbour that density and coverage reach to."""
    split: int = 5000
    """Pictures in each split of the Inception Score, in their order, never shuffled."""
    metrics: tuple[str, ...] = INCEPTION_METRICS
    """By their names in ``metrics.numbers``."""
    indicative_metrics: tuple[str, ...] = ("fd64", "kd", "is", "prdc")
    """In place of those, with ``--indicative``."""
    pair_metrics: tuple[str, ...] = PAIR_METRICS
    """By their names in ``metrics.pairs``, with ``--paired``."""


_TABLE = (
    Preset(
        name="effnet",
        summary="offline, on EfficientNet-Lite0; compares with nothing published",
        network="effnet-lite0",
        generated_crop="square",
        reference_crop="square",
        metrics=("fd-effnet64", "fd-large", "kd", "prdc"),
        indicative_metrics=("kd", "prdc"),  # its distance is projected as it is
        pair_metrics=("psnr", "ssim", "ms-ssim"),  # what needs no download
    ),
    Preset(
        name="adm-imagenet256",
        summary="gFID as the ADM evaluator computes it, against its npz of ImageNet",
        side=256,
        statistics="stored",
    ),
    Preset(
        name="clean",
        summary="as clean-fid resizes: antialiased bicubic to 299 before the network",
        resize="clean",
    ),
    Preset(
        name="in1k-val-centercrop",
        summary="rFID against validation photographs, cut as the ADM programs do",
        side=256,
        reference_crop="short-side",
    ),
    Preset(
        name="own-data",
        summary="FID and the rest between any two sets, central squares of the same size",
        generated_crop="square",
        reference_crop="square",
    ),
    Preset(
        name="dinov2",
        summary="FD on DINOv2's large network, as Stein et al. (2023), of central squares",
        network="dinov2-large",
        generated_crop="square",
        reference_crop="square",
        k=5,  # of all four, as dgm-eval has it
        metrics=("fd", "kd", "prdc"),
        indicative_metrics=("fd64", "kd", "prdc"),
    ),
)

PRESETS: dict[str, Preset] = {preset.name: preset for preset in _TABLE}


def preset_of(name: str) -> Preset:
    """The preset of that name.

    Raises:
        UserError: there is none; names the nearest.
    """
    if name not in PRESETS:
        raise UserError(f"there is no preset '{name}'; {nearest(name, list(PRESETS))}")
    return PRESETS[name]
