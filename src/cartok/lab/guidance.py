"""Which guidance a prior's samples come nearest to real pictures with, and how near.

As the paper does (A.2): samples at each of a few guidances are compared with training pictures; the
nearest wins, and is scored once more, on samples and on training pictures that had no part in that.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, fields, replace
from typing import Any

import numpy as np
import torch

from cartok.core.config import config, dict_of
from cartok.core.errors import UserError
from cartok.core.parallel import World
from cartok.core.precision import Precision, keep_weights_in
from cartok.core.progress import Progress
from cartok.core.shapes import Pixels, pixels_of
from cartok.data.batches import all_images
from cartok.data.images import open_pictures
from cartok.data.pictures import Pictures
from cartok.data.views import View, transform_of
from cartok.lab.evaluations import BATCH, spread
from cartok.lab.extraction import trained_with
from cartok.lab.stages import DATA_KINDS
from cartok.metrics.frechet import MIN_PICTURES, extrapolated_frechet
from cartok.metrics.score import Score
from cartok.metrics.suite import Featurised, featurise, score_pictures
from cartok.prior.model import Prior
from cartok.sampling.options import SamplingConfig
from cartok.sampling.sampler import Sampler, balanced_labels
from cartok.tokenizer.model import Tokenizer

SCAN_SEED = 2**32
"""Added to the seed of samples by which a guidance is chosen: they are never scored again."""

SHARES = "generated: every class alike; reference: as in the data"
"""Of classes: where a set has them unevenly, that adds to every guidance's distance."""

_OPTIONS = {field.name for field in fields(SamplingConfig)} - {"guidance", "seed", "first_index"}


@config
class GuideConfig(SamplingConfig):
    """What is tried, on how many pictures; the rest is how samples are drawn."""

    guidances: tuple[float, ...] = (1.5, 1.75, 2.0, 2.25)
    """Tried one after the other; the paper's (A.2)."""
    num: int = 1024
    """Samples of each guidance, and training pictures they are compared with: as many others each
    for the score. The paper takes 50,000."""
    network_size: int = 96
    """Pixels a side that the judge sees; 224 is its own."""
    drawn_in: Precision = "fp32"
    """Of the prior's weights while samples are drawn; bf16 is faster on a GPU."""
    seed: int = 0

    def __post_init__(self):
        super().__post_init__()
        if self.guidance != 1:
            raise ValueError(f"guidances names what is tried, but guidance is {self.guidance:g}")
        if len({*self.guidances}) < max(2, len(self.guidances)) or min(self.guidances) <= 0:
            raise ValueError(
                f"guidances are two or more, above 0 and different, but are {self.guidances}"
            )
        if self.seed >= 2**64 - SCAN_SEED:
            raise ValueError(f"seed is below 2^64 - 2^32, but is {self.seed}")
        if self.num < MIN_PICTURES:
            raise ValueError(f"num is {MIN_PICTURES} or more, but is {self.num}")
        if self.network_size not in (96, 224):
            raise ValueError(f"network_size is 96 or 224, but is {self.network_size}")


@dataclass(frozen=True)
class Guided:
    """What came of it."""

    tried: dict[float, Score]
    """By guidance: the distance of its samples, lower is nearer."""
    guidance: float
    """The nearest."""
    scores: dict[str, Score]
    """Of other samples at it, against other training pictures."""
    about: dict[str, Any]

    @property
    def is_at_end(self) -> bool:
        """Whether the nearest is the least or the greatest tried, so that it may lie beyond."""
        return self.guidance in (min(self.tried), max(self.tried))

    def to_json(self) -> dict[str, Any]:
        """Every number with its receipt, as plain JSON values."""
        return {
            **self.about,
            "guidance": self.guidance,
            "is_at_end": self.is_at_end,
            "tried": [{"guidance": g, **asdict(score)} for g, score in self.tried.items()],
            "scores": {name: asdict(score) for name, score in self.scores.items()},
        }


def scan(
    guidances: Sequence[float],
    samples_at: Callable[[float], Featurised],
    reference: Featurised,
    device: torch.device,
) -> dict[float, Score]:
    """How far samples of each guidance are from reference pictures.

    By the distance in full features, without its bias in few pictures, which would favour strong
    guidance; projected features put the best guidance elsewhere than the verdict does.
    """
    found, features = {}, reference.features.to(device)
    for guidance in guidances:
        samples = samples_at(guidance)
        value = extrapolated_frechet(samples.features.to(device), features)
        receipt = {
            "metric": "fd_effnet, extrapolated to endless samples",
            "guidance": guidance,
            "reference": reference.hash,
            "reference_count": reference.count,
            "generated": samples.hash,
            "generated_count": samples.count,
            "picture_size": list(reference.picture_size),
            "crop": reference.crop,
            "class_shares": SHARES,
            "size": reference.size,
            "precision": reference.precision,
            "network": reference.network,
            "network_sha256": reference.network_sha256,
        }
        found[guidance] = Score(value, "squared feature distance", receipt)
    return found


def nearest(tried: dict[float, Score]) -> float:
    """The guidance whose samples came nearest."""
    return min(tried, key=lambda guidance: tried[guidance].value)


def run_guide(
    prior_source: str,
    tokenizer_source: str,
    data: str,
    config: GuideConfig,
    device: str,
    progress: Progress,
) -> Guided:
    """Tries guidances; ``data`` are the tokenizer's training pictures, if none are named.

    Raises:
        UserError: the prior is unconditional or of another tokenizer; there are too few pictures.
    """
    world = World.join(device)
    tokenizer = Tokenizer.from_pretrained(tokenizer_source).to(world.device)
    prior = Prior.from_pretrained(prior_source).to(world.device)
    if not prior.config.num_classes:
        raise UserError("guidance needs a prior with classes, but this one is unconditional")
    sampler = Sampler(prior, tokenizer)
    keep_weights_in(config.drawn_in, prior)
    trained = trained_with(tokenizer_source)
    data = data or (trained.data if trained else "")
    if not data:
        raise UserError(f"{tokenizer_source} does not say its pictures; give --data {DATA_KINDS}")
    view = _view_of(prior, tokenizer, trained.view if trained else View(size=1))
    crop = transform_of(view, "center")
    parts = _two_parts(open_pictures(data, "train", size=view.size), config.num)

    def featurised(batches: Iterator[Pixels]) -> Featurised:
        return featurise(batches, size=config.network_size, crop=crop, device=world.device)

    def samples_at(guidance: float, seed: int) -> Featurised:
        name = f"guidance {guidance:g}" + ("" if seed == config.seed else ", tried")
        return featurised(_drawn(sampler, config, guidance, seed, name, progress))

    scanned, reference = (
        featurised(batch.pixels for batch in all_images(part, view, BATCH)) for part in parts
    )
    tried = scan(
        config.guidances,
        lambda guidance: samples_at(guidance, SCAN_SEED + config.seed),
        scanned,
        world.device,
    )
    chosen = nearest(tried)
    scores = score_pictures(
        samples_at(chosen, config.seed), reference, seed=config.seed, device=world.device
    )
    about = {
        "prior": str(prior_source), "tokenizer_digest": tokenizer.digest, "data": data,
        "class_shares": SHARES, "config": dict_of(config),
    }  # fmt: skip
    return Guided(tried, chosen, scores, about)


def _drawn(
    sampler: Sampler, config: GuideConfig, guidance: float, seed: int, name: str, progress: Progress
) -> Iterator[Pixels]:
    """Samples of balanced labels, a batch at a time, so that any number fits in memory."""
    prior, options = sampler.prior, {name: getattr(config, name) for name in _OPTIONS}
    labels = balanced_labels(config.num, prior.config.num_classes, prior.unseen)
    with progress.stage(name, config.num) as tick:
        for start in range(0, config.num, config.batch):
            some = labels[start : start + config.batch]
            first = config.first_index + start
            yield pixels_of(
                sampler.sample(some, seed, guidance, first_index=first, **options)
            ).cpu()
            tick(start + len(some), "")


def _view_of(prior: Prior, tokenizer: Tokenizer, trained: View) -> View:
    """Pictures as the tokenizer was trained on them, as large as the prior's samples."""
    rows, cols = prior.config.grid
    size = rows * tokenizer.factor
    if tokenizer.grid_of(size, size) != (rows, cols):
        raise UserError(
            f"samples are compared with square pictures, but this prior draws {rows} rows of "
            f"{cols} tokens"
        )
    return replace(trained, size=size)


def _two_parts(train: Pictures, num: int) -> tuple[Pictures, Pictures]:
    """Where guidances are tried and where the nearest is scored: no picture in both."""
    if len(train) < 2 * MIN_PICTURES:
        raise UserError(
            f"guidances are tried and scored on {MIN_PICTURES} training pictures or more each, "
            f"but there are {len(train)} in all; give more pictures"
        )
    first, second = (train.subset(np.arange(start, len(train), 2)) for start in (0, 1))
    return spread(first, num), spread(second, num)
