"""What all arms of a comparison share: pictures to score with, their features, and the floor."""

from dataclasses import dataclass, replace
from itertools import islice
from typing import Any

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
from cartok.metrics.suite import Featurised, featurise, score_pictures

NUM_HELD, NUM_REFERENCE, NUM_SAMPLES, NUM_PROBE = 576, 1024, 576, 1536
LEAST = 32
"""Pictures on each side; below NUM_HELD several random crops of each are scored."""
FEW_SCALE = 0.7
GUIDANCE = 1.5
COLUMNS = 10
MOST_TOKENISED = 12_000

Scores = dict[str, dict[str, Any]]
"""By name: value, unit, receipt."""


@dataclass(frozen=True)
class ArmInputs:
    """Equal for every arm, so that their scores compare."""

    device: str
    guidance: float
    num_samples: int
    num_classes: int
    columns: int
    most_tokenised: int
    """Training pictures the prior learns from: no more than it sees."""
    probe_image: Float[Tensor, "probe 3 height width"]
    """Training pictures that the probe learns from."""
    held_image: Image
    held_features: Featurised
    train_features: Featurised
    floor: Scores
    """Held-out against training pictures: what no sampler can be expected to beat."""
    crop: str
    probe: ProbeConfig


def arm_inputs(view: View, train: Pictures, held: Pictures, world: World, device: str) -> ArmInputs:
    """Inputs with the demo's counts, for arms whose pictures have this view.

    Raises:
        UserError: there are too few pictures for a score.
    """
    if min(len(train), len(held)) < LEAST:
        raise UserError(
            f"scores need {LEAST} pictures or more on each side, but there are {len(train)} "
            f"for training and {len(held)} for validation; give more pictures"
        )
    few = min(len(train), len(held)) < NUM_HELD
    cut = replace(view, min_scale=FEW_SCALE if few else 1.0)
    crop = "central square of the short side, resized"
    if few:
        crop = f"random squares of {FEW_SCALE:g} to 1 of the short side, several a picture, resized"
    held_image = _crops(held, cut, NUM_HELD, few)
    held_features = featurise(pixels_of(held_image), crop=crop, device=world.device)
    reference = _crops(train, cut, NUM_REFERENCE, few)
    train_features = featurise(pixels_of(reference), crop=crop, device=world.device)
    floor = score_pictures(held_features, train_features, what="floor")
    return ArmInputs(
        device=device,
        guidance=GUIDANCE if train.num_classes else 1.0,
        num_samples=NUM_SAMPLES,
        num_classes=train.num_classes,
        columns=COLUMNS,
        most_tokenised=MOST_TOKENISED,
        probe_image=some_images(train, view, NUM_PROBE),
        held_image=held_image,
        held_features=held_features,
        train_features=train_features,
        floor={
            "floor": floor["fd_effnet64"].to_json(),
            "floor_kd": floor["kd_effnet"].to_json(),
        },
        crop=crop,
        probe=ProbeConfig(),
    )


def _crops(pictures: Pictures, view: View, num: int, few: bool) -> Image:
    """``num`` pictures by their central view; of few pictures, as many random crops instead."""
    if not few:
        return some_images(pictures, view, num)
    batches = image_batches(pictures, view, batch=64, seed=0, start=0, augment=True)
    return torch.cat([batch.image for batch in islice(batches, -(-num // 64))])[:num]
