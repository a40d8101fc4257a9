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
from cartok.core.progress import Progress
from cartok.core.shapes import Pixels
from cartok.core.threads import num_threads
from cartok.data.arrays import Statistics, write_npz
from cartok.data.crops import Crop
from cartok.data.sources import Source, open_source
from cartok.lab.score_page import copies_of, write_page
from cartok.metrics.activations import default_folder
from cartok.metrics.gaussian import gaussian_of
from cartok.metrics.numbers import METRICS
from cartok.metrics.pairs import PAIR_METRICS, PairMetric, lpips_metric, pair_numbers, too_small
from cartok.metrics.presets import Preset, preset_of
from cartok.metrics.protocol import Sides, receipt_of, refuse_few, refuse_reference, score_sides
from cartok.metrics.score import Score
from cartok.metrics.sides import (
    Extractor,
    Side,
    dino_extractor,
    effnet_extractor,
    inception_extractor,
    stored_side,
)
from cartok.metrics.streaming import share_of
from cartok.metrics.suite import precision_of

PAIRS_AT_ONCE = 64
"""More would take LPIPS more memory than a small GPU has."""


@config
class ScoreConfig:
    """What is scored, and how."""

    preset: str = "effnet"
    """effnet, adm-imagenet256, clean, in1k-val-centercrop, own-data or dinov2; cartok recipes says
    more."""
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
    """A file of Inception's or DINOv2's published weights; else they are fetched once."""
    lpips_vgg: str = ""
    """A file of VGG16's published weights, for LPIPS; else they are fetched once."""
    lpips_heads: str = ""
    """A file of the weights that LPIPS learned; else those in its package."""
    cache: bool = True
    """Keep what Inception says of pictures, 20 kB for each and 67 MB for a set, and look it up when
    they come again."""
    workers: int | None = None
    """Threads that read pictures ahead; one a core, 16 at most, if not given; 0 is none."""
    seed: int = 0
    """Of resampling."""

    def __post_init__(self):
        if self.workers is not None and self.workers < 0:
            raise ValueError(f"--workers is at least 0, but got {self.workers}")


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
    threads: int
    batch: int
    rows: range | None = None
    """Those of a share; None is all."""

    def __iter__(self) -> Iterator[Pixels]:
        return self.source.pixels(
            self.crop, self.size, self.batch, rows=self.rows, threads=self.threads
        )

    def share(self, world: World, batch: int = 0) -> "_Cut":
        """What one of several ranks reads of it."""
        rows = share_of(len(self.source), world)
        return replace(self, rows=rows, batch=batch or self.batch)


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
    them. Of several ranks each sees a share of the pictures; the main one alone has numbers, and
    writes.

    Raises:
        UserError: a source or a network cannot be opened, or a preset does not fit the pictures.
    """
    preset = preset_of(config.preset)
    world = World.join(device)
    sources = world.together(lambda: [open_source(generated), open_source(reference)])
    if not len(sources[0]):
        raise UserError(f"pictures are scored, but {generated} has statistics alone; name pictures")
    _refuse_size(preset, config.size)
    _refuse_unread(preset, config)
    refuse_reference(preset, sources[1].statistics, len(sources[1]) > 0, config.indicative)
    counts = [len(source) for source in sources if len(source)]
    refuse_few(preset, min(counts), config.indicative)
    if config.paired:
        _refuse_unpaired(sources)
    extractor = world.first(lambda: extractor_of(preset, config, world.device))
    pair_metrics = world.first(lambda: _pair_metrics(preset, config, world.device))
    cuts = _cuts(sources, preset, config, world)
    kept = default_folder() if config.cache else None
    sides = [
        _side(cut, extractor, kept, world, progress, f"{word} pictures")
        for cut, word in zip(cuts, ("generated", "reference"), strict=True)
    ]
    pairs = []
    if pair_metrics:
        _refuse_unpaired(sources)  # again: what does not decode is known by now
        shares = [cut.share(world, PAIRS_AT_ONCE) for cut in cuts]
        with progress.stage("pairs", len(share_of(len(sources[0]), world))) as tick:
            pairs = pair_numbers(*shares, pair_metrics, world, tick)
    scored = Sides(
        generated=sides[0], reference=sides[1], preset=preset, extractor=extractor,
        seed=config.seed, paired=config.paired, indicative=config.indicative,
    )  # fmt: skip

    def finished() -> Scored:
        if not world.is_main:
            return Scored({}, [])
        scores, notes = score_sides(scored, pairs)
        smallest = min(sides[0].picture_size)
        notes = [*_conversions(sides), *too_small(pair_metrics, smallest), *notes]
        if path is not None:
            _write(path, scores)  # now: the page reads pictures again, and may fail
        if page is not None:
            scores |= _page(page, scores, scored, cuts)
        if path is not None and page is not None:
            _write(path, scores)
        if npz is not None:
            write_npz(npz, cuts[0], sides[0].count, _statistics(sides[0], preset))
        return Scored(scores, notes)

    return world.together(finished)


def _write(path: Path, scores: dict[str, Score]) -> None:
    write_json(path, {name: score.to_json() for name, score in scores.items()})


def _page(
    folder: Path, scores: dict[str, Score], scored: Sides, cuts: list[_Cut]
) -> dict[str, Score]:
    """Writes the page; returns the scores that are made for it."""
    nearest, more = None, {}
    ours, theirs = scored.generated.rows, scored.reference.rows
    if "pool" in theirs and not scored.paired:  # reconstructions are to be near their originals
        nearest, more = copies_of(ours["pool"], theirs["pool"], receipt_of(METRICS["kd"], scored))
    write_page(folder, scores | more, cuts[0].__iter__, cuts[1].__iter__, nearest, scored.paired)
    return more


def _cuts(sources: list[Source], preset: Preset, config: ScoreConfig, world: World) -> list[_Cut]:
    size = preset.side or config.size or _natural_size(preset, sources[0])
    threads = num_threads(world.size) if config.workers is None else config.workers
    batch = 256 if world.device.type == "cuda" else 64
    crops = (preset.generated_crop, preset.reference_crop)
    return [
        _Cut(source, crop, size, threads, batch)
        for source, crop in zip(sources, crops, strict=True)
    ]


def _pair_metrics(preset: Preset, config: ScoreConfig, device: torch.device) -> list[PairMetric]:
    names = preset.pair_metrics if config.paired else ()
    return [
        lpips_metric(_lpips(config, device), device) if name == "lpips" else PAIR_METRICS[name]
        for name in names
    ]


def extractor_of(preset: Preset, config: ScoreConfig, device: torch.device) -> Extractor:
    """The preset's network on its device: the one place where a score's network is made.

    Raises:
        UserError: its weights are neither here nor to be fetched.
    """
    if preset.network == "effnet-lite0":
        network = frozen.judge(config.network_size).to(device)
        return effnet_extractor(network, precision_of(device))
    if preset.network == "dinov2-large":
        network = frozen.dino_judge_of(config.weights).to(device)
        return dino_extractor(network, precision_of(device))
    path = Path(config.weights) if config.weights else None
    network = frozen.inception(path).to(device)
    return inception_extractor(network, preset.resize)


def _lpips(config: ScoreConfig, device: torch.device) -> Any:
    return frozen.teacher("lpips-vgg", config.lpips_vgg, config.lpips_heads).to(device)


def _natural_size(preset: Preset, generated: Source) -> int:
    return generated.short_side if preset.generated_crop == "square" else 0


def _refuse_size(preset: Preset, size: int) -> None:
    if size and preset.generated_crop != "square":
        raise UserError(
            f"--size is for presets that cut squares, but {preset.name} takes pictures as they "
            "are; leave it away, or take own-data"
        )


def _refuse_unread(preset: Preset, config: ScoreConfig) -> None:
    """Refuses files of weights that nobody would look at."""
    if config.weights and preset.network == "effnet-lite0":
        raise UserError(
            f"--weights is for Inception or DINOv2, but {preset.name} has a network that installs "
            "with the package; leave it away, or take another preset"
        )
    is_used = config.paired and "lpips" in preset.pair_metrics
    if (config.lpips_vgg or config.lpips_heads) and not is_used:
        raise UserError(
            "--lpips-vgg and --lpips-heads are for LPIPS, which takes --paired and a preset of "
            "Inception's; leave them away"
        )


def _side(
    cut: _Cut, extractor: Extractor, kept: Path | None, world: World, progress: Progress, words: str
) -> Side:
    side, source = Side(), cut.source
    if len(source):
        with progress.stage(words, len(share_of(len(source), world))) as tick:
            side = extractor.side_of(cut.share(world), kept, world, tick)
        _count_broken(source, world)
    skipped = [fault.name for fault in source.skipped]
    side = replace(side, converted=source.converted, skipped=skipped)
    return stored_side(side, source.statistics) if source.statistics else side


def _count_broken(source: Source, world: World) -> None:
    """Tells every rank what did not decode on any, and holds all of it to the 1 % rule."""
    parts = world.parts(torch.tensor(source.broken, dtype=torch.int64))
    world.together(lambda: source.count_broken(torch.cat(parts).tolist()))


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
            first = ", ".join(side.skipped[:3]) + (", ..." if side.num_skipped > 3 else "")
            notes.append(
                f"warning: {side.num_skipped} {words} files are no readable pictures: {first}"
            )
    return notes


def _statistics(side: Side, preset: Preset) -> dict[str, Statistics]:
    """Of Inception's features: ADM's evaluator takes any mu and sigma for those."""
    if preset.network != "inception":
        return {}
    kinds = [kind for kind in ("pool", "spatial") if kind in side.rows]
    found = {kind: gaussian_of(side.rows[kind]) for kind in kinds}
    return {kind: Statistics(g.mean.numpy(), g.cov.numpy()) for kind, g in found.items()}
