"""What all arms of a comparison share: pictures to score with, their features, and the floor."""

from collections.abc import Iterable
from dataclasses import dataclass, replace
from itertools import islice
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from cartok.core.errors import UserError
from cartok.core.parallel import World
from cartok.core.shapes import Image, pixels_of
from cartok.data.batches import image_batches
from cartok.data.pictures import Pictures
from cartok.data.views import View
from cartok.lab.evaluations import some_images
from cartok.lab.probe import ProbeConfig
from cartok.metrics.score import Score
from cartok.metrics.suite import Featurised, featurise, score_pictures
from cartok.recipes.yardstick import Yardstick

NUM_PROBE = 1536
LEAST = 32
"""Pictures on each side; where a side has fewer than 576, several random crops of each are scored.
"""
MANY = 576
FEW_SCALE = 0.7
COLUMNS = 10
MOST_TOKENISED = 12_000

Scores = dict[str, dict[str, Any]]
"""By name: value, unit, receipt."""


@dataclass(frozen=True)
class Seen:
    """Pictures as a tokenizer is shown them."""

    probe_image: Float[Tensor, "probe 3 height width"]
    held_image: Image


@dataclass(frozen=True)
class ArmInputs:
    """Equal for every arm, so that their scores compare."""

    device: str
    yardstick: Yardstick
    num_classes: int
    columns: int
    most_tokenised: int
    """Training pictures the prior learns from: no more than it sees; 0: all."""
    probe_image: Float[Tensor, "probe 3 height width"]
    """Training pictures that the probe learns from."""
    held_image: Image
    at_other_sizes: dict[int, "Seen"]
    """Both again as tokenizers see them that are shown more pixels, by those."""
    held_features: Featurised
    train_features: Featurised
    scan_features: Featurised | None
    """Of other training pictures, by which a guidance is chosen; there if there are several."""
    floor: Scores
    """Held-out against training pictures: what no sampler can be expected to beat."""
    crop: str
    probe: ProbeConfig

    @property
    def has_few(self) -> bool:
        """True if there are so few pictures that several crops of each are scored."""
        return self.crop != _CENTRAL

    def seen_at(self, pixels: int) -> Seen:
        """Pictures at a size; 0 is that at which they are scored."""
        if pixels in (0, self.held_image.shape[-1]):
            return Seen(self.probe_image, self.held_image)
        return self.at_other_sizes[pixels]


_CENTRAL = "central square of the short side, resized"


def arm_inputs(
    view: View,
    train: Pictures,
    held: Pictures,
    world: World,
    device: str,
    yardstick: Yardstick = Yardstick(),  # noqa: B008
    sizes: Iterable[int] = (),
) -> ArmInputs:
    """Inputs for arms whose pictures have this view, and for those that are shown other sizes.

    Raises:
        UserError: there are too few pictures for a score.
    """
    if min(len(train), len(held)) < LEAST:
        raise UserError(
            f"scores need {LEAST} pictures or more on each side, but there are {len(train)} "
            f"for training and {len(held)} for validation; give more pictures"
        )
    few = min(len(train), len(held)) < MANY
    cut = replace(view, min_scale=FEW_SCALE if few else 1.0)
    crop = _CENTRAL
    if few:
        crop = f"random squares of {FEW_SCALE:g} to 1 of the short side, several a picture, resized"

    def featurised(image: Image) -> Featurised:
        return featurise(pixels_of(image), size=yardstick.size, crop=crop, device=world.device)

    scans = len(yardstick.guidances) > 1 and train.num_classes > 0
    scanned, reference = _two_parts(train, yardstick, few, scans)
    held_image = _crops(held, cut, yardstick.held, few)

    def seen_at(pixels: int) -> Seen:
        probed = some_images(train, replace(view, size=pixels), NUM_PROBE)
        return Seen(probed, _crops(held, replace(cut, size=pixels), yardstick.held, few))

    held_features = featurised(held_image)
    train_features = featurised(_crops(reference, cut, yardstick.reference, few))
    floor = score_pictures(held_features, train_features, what="floor", device=world.device)
    return ArmInputs(
        device=device,
        yardstick=yardstick,
        num_classes=train.num_classes,
        columns=COLUMNS,
        most_tokenised=MOST_TOKENISED,
        probe_image=some_images(train, view, NUM_PROBE),
        held_image=held_image,
        at_other_sizes={size: seen_at(size) for size in {*sizes} - {0, view.size}},
        held_features=held_features,
        train_features=train_features,
        scan_features=featurised(_crops(scanned, cut, yardstick.scan_samples, few))
        if scans
        else None,
        floor=named_scores("floor", floor),
        crop=crop,
        probe=ProbeConfig(),
    )


def named_scores(what: str, distances: dict[str, Score]) -> Scores:
    """Distances under the names of scores: ``gfd`` and ``gkd``, ``rfd`` and ``rkd``, or ``floor``.

    The Frechet distance is ``fd_effnet`` where there are pictures enough for it; ``fd_effnet64``,
    which has an interval, then stands beside it.
    """
    frechet, kernel, projected = (
        ("floor", "floor_kd", "floor64")
        if what == "floor"
        else (f"{what}fd", f"{what}kd", f"{what}fd64")
    )
    scores = {kernel: distances["kd_effnet"].to_json()}
    if "fd_effnet" not in distances:
        return {frechet: distances["fd_effnet64"].to_json()} | scores
    return {
        frechet: distances["fd_effnet"].to_json(),
        projected: distances["fd_effnet64"].to_json(),
    } | scores


def _two_parts(
    train: Pictures, yardstick: Yardstick, few: bool, scans: bool
) -> tuple[Pictures, Pictures]:
    """Where guidances are tried and where samples are scored: no picture in both, but of few."""
    if few or not scans:
        return train, train
    share = yardstick.scan_samples / (yardstick.scan_samples + yardstick.reference)
    places = np.arange(len(train))
    first = np.floor((places + 1) * share) > np.floor(places * share)  # evenly over the set
    return train.subset(places[first]), train.subset(places[~first])


def _crops(pictures: Pictures, view: View, num: int, few: bool) -> Image:
    """``num`` pictures by their central view; of few pictures, as many random crops instead."""
    if not few:
        return some_images(pictures, view, num)
    batches = image_batches(pictures, view, batch=64, seed=0, start=0, augment=True)
    return torch.cat([batch.image for batch in islice(batches, -(-num // 64))])[:num]
