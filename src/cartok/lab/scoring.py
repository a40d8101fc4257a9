"""Two sources of pictures to all numbers of a preset: what ``cartok score`` runs."""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from cartok import frozen
from cartok.core.config import config
from cartok.core.errors import UserError
from cartok.core.files import write_json
from cartok.core.parallel import World
from cartok.core.progress import Progress, Tick
from cartok.core.shapes import Pixels
from cartok.data.arrays import Statistics, write_npz
from cartok.data.crops import Crop
from cartok.data.sources import Source, open_source
from cartok.lab.score_page import copies_of, write_page
from cartok.metrics.activations import default_folder
from cartok.metrics.gaussian import gaussian_of
from cartok.metrics.numbers import METRICS
from cartok.metrics.pairs import PAIR_METRICS, lpips_metric, pair_numbers, too_small
from cartok.metrics.presets import Preset, preset_of
from cartok.metrics.protocol import Sides, receipt_of, score_sides
from cartok.metrics.score import Score
from cartok.metrics.sides import (
    Extractor,
    Side,
    effnet_extractor,
    inception_extractor,
    stored_side,
)
from cartok.metrics.suite import precision_of


@config
class ScoreConfig:
    """What is scored, and how."""

    preset: str = "effnet"
    """effnet, adm-imagenet256, clean, in1k-val-centercrop or own-data; cartok recipes says more."""
    paired: bool = False
    """Compare picture by picture too, in order: reconstructions with their originals."""
    indicative: bool = False
    """Allow few pictures: features are projected to 64 numbers, and scores bear other names."""
    size: int = 0
    """Pixels a side to which a preset that cuts squares brings all pictures; the generated ones',
    if not given."""
    network_size: int = 96
    """Pixels a side that the offline network sees; 224 is its own."""
    weights: str = ""
    """A file of Inception's published weights; else they are fetched once."""
    cache: bool = True
    """Keep what Inception says of pictures, 20 kB for each and 67 MB for a set, and look it up when
    they come again."""
    seed: int = 0
    """Of resampling."""


@dataclass(frozen=True)
class Scored:
    """All numbers by name, and lines that a person should read beside them."""

    scores: dict[str, Score]
    notes: list[str]


@dataclass(frozen=True)
class _Cut:
    """A source and how its pictures are cut."""

    source: Source
    crop: Crop
    size: int
    tick: Tick | None = None

    def __iter__(self) -> Iterator[Pixels]:
        done = 0
        for pixels in self.source.pixels(self.crop, self.size):
            yield pixels
            done += len(pixels)
            if self.tick is not None:
                self.tick(done, "")


def run_score(
    generated: str,
    reference: str,
    config: ScoreConfig,
    device: str,
    progress: Progress,
    path: Path | None = None,
    npz: Path | None = None,
    page: Path | None = None,
) -> Scored:
    """Scores two sources of pictures; writes the numbers with their receipts to ``path`` if given.

    ``npz``: also a file of the generated pictures and their statistics, as ADM's evaluator reads
    them.

    Raises:
        UserError: a source or a network cannot be opened, or a preset does not fit the pictures.
    """
    preset = preset_of(config.preset)
    sources = [open_source(generated), open_source(reference)]
    if not len(sources[0]):
        raise UserError(f"pictures are scored, but {generated} has statistics alone; name pictures")
    _refuse_size(preset, config.size)
    if config.paired:
        _refuse_unpaired(sources)
    world = World.join(device)
    extractor = extractor_of(preset, config, world.device)
    names = preset.pair_metrics if config.paired else ()
    pair_metrics = [
        lpips_metric(_lpips(world.device), world.device) if name == "lpips" else PAIR_METRICS[name]
        for name in names
    ]
    size = preset.side or config.size or _natural_size(preset, sources[0])
    cuts = [
        _Cut(source, crop, size)
        for source, crop in zip(
            sources, (preset.generated_crop, preset.reference_crop), strict=True
        )
    ]
    words = ("generated pictures", "reference pictures")
    kept = default_folder() if config.cache else None
    sides = [
        _side(cut, extractor, kept, progress, word) for cut, word in zip(cuts, words, strict=True)
    ]
    pairs = []
    if pair_metrics:
        _refuse_unpaired(sources)  # again: what does not decode is known by now
        with progress.stage("pairs", len(sources[0])) as tick:
            pairs = pair_numbers(replace(cuts[0], tick=tick), cuts[1], pair_metrics)
    scored = Sides(
        generated=sides[0], reference=sides[1], preset=preset, extractor=extractor,
        seed=config.seed, paired=config.paired, indicative=config.indicative,
    )  # fmt: skip
    scores, notes = score_sides(scored, pairs)
    smallest = min(sides[0].picture_size)
    notes = [*_conversions(sides), *too_small(pair_metrics, smallest), *notes]
    if page is not None:
        nearest = None
        if "pool" in sides[1].rows:
            receipt = receipt_of(METRICS["kd"], scored)
            nearest, share = copies_of(sides[0].rows["pool"], sides[1].rows["pool"], receipt)
            scores |= share
        write_page(page, scores, cuts[0].__iter__, cuts[1].__iter__, nearest, config.paired)
    if path is not None:
        write_json(path, {name: score.to_json() for name, score in scores.items()})
    if npz is not None:
        write_npz(npz, cuts[0], sides[0].count, _statistics(sides[0]))
    return Scored(scores, notes)


def extractor_of(preset: Preset, config: ScoreConfig, device: torch.device) -> Extractor:
    """The preset's network on its device: the one place where a score's network is made.

    Raises:
        UserError: its weights are neither here nor to be fetched.
    """
    if preset.network == "effnet-lite0":
        network = frozen.judge(config.network_size).to(device)
        return effnet_extractor(network, precision_of(device))
    path = Path(config.weights) if config.weights else None
    network = frozen.inception(path).to(device)
    return inception_extractor(network, preset.resize)


def _lpips(device: torch.device) -> Any:
    return frozen.teacher("lpips-vgg").to(device)


def _natural_size(preset: Preset, generated: Source) -> int:
    return generated.short_side if preset.generated_crop == "square" else 0


def _refuse_size(preset: Preset, size: int) -> None:
    if size and preset.generated_crop != "square":
        raise UserError(
            f"--size is for presets that cut squares, but {preset.name} takes pictures as they "
            "are; leave it away, or take own-data"
        )


def _side(
    cut: _Cut, extractor: Extractor, kept: Path | None, progress: Progress, words: str
) -> Side:
    side = Side()
    if len(cut.source):
        with progress.stage(words, len(cut.source)) as tick:
            side = extractor.side_of(replace(cut, tick=tick), kept)
    source = cut.source
    side = replace(side, converted=source.converted, num_skipped=len(source.skipped))
    return stored_side(side, source.statistics) if source.statistics else side


def _refuse_unpaired(sources: list[Source]) -> None:
    for source in sources:
        if source.skipped:
            fault = source.skipped[0]
            raise UserError(
                f"pairs need every picture, but {fault.name} cannot be used ({fault.reason}); "
                "repair it, or remove it on both sides"
            )
    if len(sources[0]) != len(sources[1]):
        raise UserError(
            f"pairs need one reference for each picture, but there are {len(sources[0]):,} "
            f"pictures and {len(sources[1]):,} references; give both in the same order"
        )


def _conversions(sides: list[Side]) -> list[str]:
    notes = []
    for side, words in zip(sides, ("generated", "reference"), strict=True):
        if side.converted:
            found = ", ".join(f"{count} of mode {mode}" for mode, count in side.converted.items())
            notes.append(f"{words} pictures converted to RGB, alpha on white: {found}")
        if side.num_skipped:
            notes.append(f"warning: {side.num_skipped} {words} files are no readable pictures")
    return notes


def _statistics(side: Side) -> dict[str, Statistics]:
    kinds = [kind for kind in ("pool", "spatial") if kind in side.rows]
    found = {kind: gaussian_of(side.rows[kind]) for kind in kinds}
    return {kind: Statistics(g.mean.numpy(), g.cov.numpy()) for kind, g in found.items()}
