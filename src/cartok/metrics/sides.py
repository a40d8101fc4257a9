"""One side of a score: a set of pictures as a network sees it, with what a receipt says of it."""

import hashlib
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from PIL import Image as Picture
from torch import Tensor

from cartok.core.errors import UserError
from cartok.core.shapes import Features, Pixels, image_of_pixels
from cartok.data.arrays import Statistics
from cartok.frozen import Lite0Features
from cartok.metrics.census import Census
from cartok.metrics.gaussian import Gaussian

CLEAN_SIDE = 299
"""Pixels a side that clean-fid resizes to."""

STORED_COUNT = 10**9
"""Pictures behind stored statistics, whose files do not say it: enough for any dimension."""

Brightness = Float[Tensor, "batch 3 side side"]
"""Pictures as float32 of 0 to 255, which rounding to bytes would change."""


@dataclass(frozen=True)
class Extractor:
    """A network that scores are made of: bytes to rows of features, by their kind."""

    rows_of: Callable[[Pixels], dict[str, Features]]
    name: str
    sha256: str
    suffix: str
    """Marks the names of its scores; "" only where they are those that others publish."""
    size: int
    """Pixels a side that the network sees."""
    precision: str
    device: torch.device


@dataclass(frozen=True)
class Side:
    """A set of pictures as features, and stored statistics if it has some."""

    rows: dict[str, Features] = field(default_factory=dict)
    """By kind (``pool``, ``spatial``, ``logits``); empty without pictures."""
    stored: dict[str, Gaussian] = field(default_factory=dict)
    """By kind; used only where a preset asks for them."""
    stored_hash: str = ""
    count: int = 0
    hash: str = ""
    picture_size: tuple[int, int] = (0, 0)  # height, width
    converted: dict[str, int] = field(default_factory=dict)
    """Pictures that were not RGB, by their mode."""
    num_skipped: int = 0
    """Files that could not be used."""


def effnet_extractor(network: Lite0Features, precision: str) -> Extractor:
    """The offline judge."""
    return Extractor(
        rows_of=lambda pixels: {"pool": network(image_of_pixels(pixels))},
        name=network.weights.name,
        sha256=network.weights.sha256,
        suffix="_effnet",
        size=network.size,
        precision=precision,
        device=network.head.weight.device,
    )


def inception_extractor(network: Any, device: torch.device, *, clean: bool = False) -> Extractor:
    """Inception, as ``frozen.inception`` gives it; with ``clean`` pictures are resized before.

    Scores bear the names that others publish only on weights that somebody has published.
    """

    def rows_of(pixels: Pixels) -> dict[str, Features]:
        return network(cleanly_resized(pixels) if clean else pixels)._asdict()

    return Extractor(
        rows_of=rows_of,
        name=network.weights.name,
        sha256=network.weights.sha256,
        suffix="" if network.weights.source else "_own",
        size=CLEAN_SIDE,
        precision=network.precision,
        device=device,
    )


def cleanly_resized(pixels: Pixels) -> Brightness:
    """To 299 pixels a side, each channel as floats, by Pillow's antialiased bicubic; clipped.

    Parmar et al. 2022: what is not antialiased scores JPEG and blur by chance.
    """
    size = (CLEAN_SIDE, CLEAN_SIDE)
    channels = [
        np.asarray(Picture.fromarray(channel).resize(size, Picture.Resampling.BICUBIC))
        for channel in pixels.cpu().flatten(0, 1).float().numpy()
    ]
    resized = torch.from_numpy(np.stack(channels)).clamp(0, 255)
    return resized.unflatten(0, (-1, 3)).to(pixels.device)


def stored_side(side: Side, statistics: dict[str, Statistics]) -> Side:
    """The side with statistics that were stored, and their hash."""
    digest = hashlib.sha256()
    stored = {}
    for kind, found in statistics.items():
        digest.update(kind.encode() + found.mean.tobytes() + found.cov.tobytes())
        mean, cov = torch.from_numpy(found.mean), torch.from_numpy(found.cov)
        stored[kind] = Gaussian(mean, cov, STORED_COUNT)
    return replace(side, stored=stored, stored_hash=digest.hexdigest()[:16])


def side_of(batches: Iterable[Tensor], extractor: Extractor) -> Side:
    """Features, hash, count and size of pictures of one size, read once, a batch at a time.

    Raises:
        UserError: there is no picture, they differ in size, or they are none.
    """
    census = Census()
    parts: dict[str, list[Tensor]] = {}
    at_once = 16 if extractor.device.type == "cpu" else 256  # as in ``features_of``
    for pixels in census.of(batches):
        for part in pixels.split(at_once):
            for kind, rows in extractor.rows_of(part.to(extractor.device)).items():
                parts.setdefault(kind, []).append(rows.cpu())
    if not parts:
        raise UserError("a score needs at least one picture on each side, but none came")
    rows = {kind: torch.cat(some) for kind, some in parts.items()}
    return Side(rows=rows, count=len(census.hashes), hash=census.hash, picture_size=census.size)
