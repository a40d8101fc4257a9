"""One side of a score: a set of pictures as a network sees it, with what a receipt says of it."""

import hashlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from itertools import chain
from pathlib import Path

import torch

from cartok.core.parallel import World
from cartok.core.progress import Tick
from cartok.core.shapes import Features, Pixels
from cartok.data.arrays import Statistics
from cartok.frozen import DinoJudge, Lite0Features
from cartok.frozen.inception_v3 import SIDE, Inception
from cartok.metrics.activations import KINDS, Resize
from cartok.metrics.census import Census
from cartok.metrics.features import Pictures, device_of, features_of
from cartok.metrics.gaussian import Gaussian
from cartok.metrics.streaming import activations_of

STORED_COUNT = 10**9
"""Pictures behind stored statistics, whose files do not say it: enough for any dimension."""


@dataclass(frozen=True)
class Side:
    """A set of pictures as features, and stored statistics if it has some."""

    rows: dict[str, Features] = field(default_factory=dict)
    """By kind (``pool``, ``spatial``, ``logits``), on the CPU; empty without pictures."""
    stored: dict[str, Gaussian] = field(default_factory=dict)
    """By kind; used only where a preset asks for them."""
    stored_hash: str = ""
    count: int = 0
    hash: str = ""
    picture_size: tuple[int, int] = (0, 0)  # height, width
    converted: dict[str, int] = field(default_factory=dict)
    """Pictures that were not RGB, by their mode."""
    skipped: list[str] = field(default_factory=list)
    """Names of files that could not be used."""

    @property
    def num_skipped(self) -> int:
        """How many those are."""
        return len(self.skipped)


@dataclass(frozen=True)
class Extractor:
    """A network that scores are made of."""

    side_of: Callable[[Pictures, Path | None, World, Tick], Side]
    """Pictures of one size, a share of each rank's, to their side, whose rows are whole on the main
    rank; with a folder, what is kept there spares the network."""
    name: str
    sha256: str
    suffix: str
    """Marks the names of its scores; "" only where they are those that others publish."""
    size: int
    """Pixels a side that the network sees."""
    precision: str
    device: torch.device


def effnet_extractor(network: Lite0Features, precision: str) -> Extractor:
    """The offline judge."""
    return feature_extractor(network, len(network.head.weight), precision, "_effnet")


def dino_extractor(network: DinoJudge, precision: str) -> Extractor:
    """DINOv2, as ``frozen.dino_judge_of`` gives it."""
    suffix = "_dinov2" if network.weights.source else "_dinov2_own"
    return feature_extractor(network, network.network.embed_dim, precision, suffix)


def feature_extractor(
    network: Lite0Features | DinoJudge, width: int, precision: str, suffix: str
) -> Extractor:
    """A network that gives a row of ``width`` per image; nothing is kept of what it says."""

    def side_of(pictures: Pictures, folder: Path | None, world: World, tick: Tick) -> Side:
        census = Census()

        def seen() -> Iterator[Pixels]:
            for pixels in census.of(pictures):
                yield pixels
                tick(len(census.hashes), "")

        def rows() -> Features:
            batches = seen()
            first = next(batches, None)
            if first is None:  # this rank has no share
                return torch.empty(0, width)
            return features_of(chain([first], batches), network)

        found = torch.cat(world.parts(world.together(rows)))
        census = census.of_all(world)
        return Side(
            {"pool": found}, count=len(census.hashes), hash=census.hash, picture_size=census.size
        )

    return Extractor(
        side_of=side_of,
        name=network.weights.name,
        sha256=network.weights.sha256,
        suffix=suffix,
        size=network.size,
        precision=precision,
        device=device_of(network),
    )


def inception_extractor(network: Inception, resize: Resize = "network") -> Extractor:
    """Inception, as ``frozen.inception`` gives it; ``resize`` is that of ``activations_of``.

    Scores bear the names that others publish only on weights that somebody has published.
    """
    device = network.classes.device

    def side_of(pictures: Pictures, folder: Path | None, world: World, tick: Tick) -> Side:
        found = activations_of(
            pictures, network, kinds=KINDS, resize=resize, folder=folder, world=world, tick=tick,
            batch=16 if device.type == "cpu" else 256,
        )  # fmt: skip
        rows: dict[str, Features] = {kind: found.rows(kind) for kind in KINDS}
        return Side(rows, count=found.count, hash=found.hash, picture_size=found.picture_size)

    return Extractor(
        side_of=side_of,
        name=network.weights.name,
        sha256=network.weights.sha256,
        suffix="" if network.weights.source else "_own",
        size=SIDE,
        precision=network.precision,
        device=device,
    )


def stored_side(side: Side, statistics: dict[str, Statistics]) -> Side:
    """The side with statistics that were stored, and their hash."""
    digest = hashlib.sha256()
    stored = {}
    for kind, found in statistics.items():
        digest.update(kind.encode() + found.mean.tobytes() + found.cov.tobytes())
        mean, cov = torch.from_numpy(found.mean), torch.from_numpy(found.cov)
        stored[kind] = Gaussian(mean, cov, STORED_COUNT)
    return replace(side, stored=stored, stored_hash=digest.hexdigest()[:16])
