"""Pictures out of a prior, into a folder; pictures out of folders, into scores."""

from pathlib import Path

import torch
from PIL import Image as Picture

from cartok.core.config import config, dict_of
from cartok.core.errors import UserError
from cartok.core.files import write_json
from cartok.core.parallel import World
from cartok.core.progress import Progress
from cartok.core.shapes import Pixels, pixels_of
from cartok.data.batches import all_images
from cartok.data.images import open_pictures
from cartok.data.pictures import Pictures
from cartok.data.views import View
from cartok.lab.evaluations import grid_of_pictures, save_png
from cartok.metrics.score import Score
from cartok.metrics.suite import Featurised, featurise, score_pictures
from cartok.prior.model import Prior
from cartok.sampling.sampler import Sampler, balanced_labels
from cartok.tokenizer.model import Tokenizer


@config
class SampleConfig:
    """What is drawn, and how."""

    num: int = 64
    """Pictures."""
    labels: tuple[str, ...] = ()
    """Class names or numbers, taken in turn; all classes in turn if none is given."""
    seed: int = 0
    guidance: float = 1.0
    """1: none; the paper searches 1.5 to 2.25."""
    schedule: str = "constant"
    """Of the guidance over positions: constant or linear."""
    temperature: float = 1.0
    top_k: int = 0
    """0: all codes."""
    top_p: float = 1.0
    batch: int = 64
    """Pictures at once; the pictures do not depend on it."""

    def __post_init__(self):
        if self.num < 1:
            raise ValueError(f"num must be at least 1, but is {self.num}")


def run_sample(
    prior_source: str,
    tokenizer_source: str,
    config: SampleConfig,
    out: Path,
    device: str,
    progress: Progress,
    *,
    overwrite: bool = False,
) -> Path:
    """Writes ``CLASS/NUMBER.png``, ``grid.png`` and ``samples.json``; returns the grid's path.

    Raises:
        UserError: the prior belongs to another tokenizer, a label is unknown, or the folder holds
            files.
    """
    world = World.join(device)
    if out.is_dir() and any(out.iterdir()) and not overwrite:
        raise UserError(
            f"--out must be new or empty, but {out} holds files; give --overwrite or another --out"
        )
    tokenizer = Tokenizer.from_pretrained(tokenizer_source).to(world.device)
    prior = Prior.from_pretrained(prior_source).to(world.device)
    labels = _labels(config, prior)
    with progress.stage("samples", config.num) as tick:
        samples = Sampler(prior, tokenizer).sample(
            labels.to(world.device),
            config.seed,
            config.guidance,
            schedule=config.schedule,
            temperature=config.temperature,
            top_k=config.top_k,
            top_p=config.top_p,
            batch=config.batch,
            progress=lambda done: tick(done, ""),
        )
    pixels = pixels_of(samples).cpu()
    names = [prior.classes[label] if prior.classes else "all" for label in labels.tolist()]
    for index, (item, name) in enumerate(zip(pixels, names, strict=True)):
        picture = Picture.fromarray(item.permute(1, 2, 0).numpy())
        save_png(picture, out / "pictures" / name.replace("/", "-") / f"{index:06d}.png")
    grid = out / "grid.png"
    save_png(grid_of_pictures(pixels[:64], columns=8, zoom=2), grid)
    write_json(out / "samples.json", {
        "prior": str(prior_source), "tokenizer_digest": tokenizer.digest, **dict_of(config),
    })  # fmt: skip
    return grid


def run_score(
    generated: str,
    reference: str,
    *,
    size: int,
    network_size: int,
    seed: int,
    device: str,
    path: Path | None,
) -> dict[str, Score]:
    """Scores two sources of pictures; writes them with their receipts to ``path`` if given.

    Raises:
        UserError: a source has fewer than 512 pictures, or none.
    """
    world = World.join(device)
    made = open_pictures(generated, "all")
    real = open_pictures(reference, "all")
    size = size or int(made.short_sides.min())
    sides = [_featurised(side, size, network_size, world) for side in (made, real)]
    scores = score_pictures(*sides, size=network_size, seed=seed, device=world.device)
    if path is not None:
        write_json(path, {name: score.to_json() for name, score in scores.items()})
    return scores


def _featurised(pictures: Pictures, size: int, network_size: int, world: World) -> Featurised:
    batches = (_pixels(batch.image) for batch in all_images(pictures, View(size=size), 64))
    crop = "central square of the short side, resized"
    return featurise(batches, size=network_size, crop=crop, device=world.device)


def _pixels(image: torch.Tensor) -> Pixels:
    return pixels_of(image)


def _labels(config: SampleConfig, prior: Prior) -> torch.Tensor:
    num_classes = prior.config.num_classes
    if not config.labels:
        return balanced_labels(config.num, max(1, num_classes))
    chosen = torch.tensor([_label(name, prior) for name in config.labels])
    return chosen[torch.arange(config.num) % len(chosen)]


def _label(name: str, prior: Prior) -> int:
    if name in prior.classes:
        return prior.classes.index(name)
    if name.isdigit() and int(name) < max(1, prior.config.num_classes):
        return int(name)
    known = ", ".join(prior.classes[:10]) or "none: this prior is unconditional"
    raise UserError(f"a label is a class of the prior ({known}) or its number, but got '{name}'")
