"""Pictures to scores: what the demo and studies call, a receipt on every number.

The scores are Frechet and kernel distances on EfficientNet-Lite0 features, which install with the
package. They are not FID or KID, and do not compare with published ones. ``cartok score`` measures
more, by presets: see ``protocol``.
"""

from dataclasses import dataclass, replace
from typing import Any

import torch

from cartok import __version__
from cartok.core.errors import UserError
from cartok.core.shapes import Features
from cartok.frozen import judge
from cartok.metrics.census import Census
from cartok.metrics.features import ROUNDING, Pictures, features_of
from cartok.metrics.frechet import MIN_PICTURES, frechet_distance
from cartok.metrics.numbers import (
    DISTANCE,
    FULL_FROM,
    Number,
    fd_effnet64_number,
    kernel_number,
)
from cartok.metrics.protocol import FIRM_FROM, scores_of
from cartok.metrics.score import EVALUATOR, Score

KINDS = ("gfd", "rfd", "redrawn", "floor")
"""What is scored: generated pictures, reconstructions, those of redrawn tokens, or real ones."""


@dataclass(frozen=True)
class Featurised:
    """A set of pictures as features, with what a receipt says about it.

    It can be scored any number of times without running the network again.
    """

    features: Features
    hash: str
    picture_size: tuple[int, int]  # height, width
    crop: str
    network: str
    network_sha256: str
    size: int  # the network's input, pixels
    precision: str

    @property
    def count(self) -> int:
        """How many pictures."""
        return len(self.features)


def score_pictures(
    generated: Pictures | Featurised,
    reference: Pictures | Featurised,
    *,
    size: int = 96,
    what: str = "gfd",
    seed: int = 0,
    device: str | torch.device = "cpu",
) -> dict[str, Score]:
    """Scores by name: ``fd_effnet64``, ``kd_effnet`` and, from 5,000 pictures, ``fd_effnet``.

    ``size`` is the network's input in pixels, 96 for speed and 224 in full, for a side that is not
    featurised yet; ``seed`` draws the bootstrap. Lower is better for all. ``what`` goes into the
    receipts. Distances are computed on ``device`` in float64: 17 s for 10,000 pictures against
    25,000 on a core, next to nothing on a data centre's GPU.

    Raises:
        UserError: a side has fewer than 512 pictures or no pictures at all, or the two sides were
            not made alike.
    """
    if what not in KINDS:
        raise UserError(f"what is scored is one of {', '.join(KINDS)}, but got '{what}'")
    generated, reference = (
        side if isinstance(side, Featurised) else featurise(side, size=size, device=device)
        for side in (generated, reference)
    )
    _check_alike(generated, reference)
    receipt = _receipt(generated, reference, what)
    generated, reference = (
        replace(side, features=side.features.to(device)) for side in (generated, reference)
    )
    numbers = [
        fd_effnet64_number(generated.features, reference.features, seed),
        kernel_number(generated.features, reference.features),
    ]
    if min(generated.count, reference.count) >= FULL_FROM:
        value = frechet_distance(generated.features, reference.features)
        numbers.append(Number("fd{}", value, DISTANCE))
    return scores_of(numbers, "_effnet", receipt)


def featurise(
    pictures: Pictures,
    *,
    size: int = 96,
    crop: str = "as given",
    device: str | torch.device = "cpu",
) -> Featurised:
    """Features and hash of a set of pictures, in one pass; batches are read one at a time.

    ``crop`` says in words how the pictures were cut, for the receipt.

    Raises:
        UserError: fewer than 512 pictures, pictures of several sizes, or no RGB pictures.
    """
    network = judge(size).to(device)
    census = Census()
    features = features_of(census.of(pictures), network)
    if len(features) < MIN_PICTURES:
        raise UserError(
            f"a score needs {MIN_PICTURES} pictures or more on each side, but one side has "
            f"{len(features)}; make more pictures"
        )
    return Featurised(
        features=features,
        hash=census.hash,
        picture_size=census.size,
        crop=crop,
        network=network.weights.name,
        network_sha256=network.weights.sha256,
        size=size,
        precision=precision_of(torch.device(device)),
    )


def _check_alike(generated: Featurised, reference: Featurised) -> None:
    for field in ("size", "picture_size", "crop", "network_sha256", "precision"):
        ours, theirs = getattr(generated, field), getattr(reference, field)
        if ours != theirs:
            raise UserError(
                f"both sides of a score are made alike, but their {field} differs: "
                f"{ours} against {theirs}; featurise both with the same settings"
            )


def _receipt(generated: Featurised, reference: Featurised, what: str) -> dict[str, Any]:
    """What the scores of two sets share."""
    return {
        "what": what,
        "reference": reference.hash,
        "reference_count": reference.count,
        "generated": generated.hash,
        "generated_count": generated.count,
        "picture_size": list(reference.picture_size),
        "crop": reference.crop,
        "rounding": ROUNDING,
        "size": reference.size,
        "precision": reference.precision,
        "network": reference.network,
        "network_sha256": reference.network_sha256,
        "indicative": min(generated.count, reference.count) < FIRM_FROM,
        "evaluator": EVALUATOR,
        "cartok": __version__,
    }


def precision_of(device: torch.device) -> str:
    """Float32, and on a GPU what cuDNN makes of it: as a receipt of the offline judge says it."""
    if device.type != "cuda":
        return "float32"
    return f"float32, convolutions {torch.backends.cudnn.conv.fp32_precision}"  # type: ignore
