"""The evaluations a recipe can name, and what each measures while a training goes on."""

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import torch
from PIL import Image as Picture

from cartok.core.config import nearest
from cartok.core.errors import UserError
from cartok.core.files import staged
from cartok.core.job import Evaluation, EvaluationConfig
from cartok.core.run import Run
from cartok.core.shapes import Image, Pixels, pixels_of
from cartok.data.batches import all_images
from cartok.data.pictures import Pictures
from cartok.data.tokens import TokenShards
from cartok.data.views import View
from cartok.metrics.codes import code_perplexity, code_usage
from cartok.metrics.reconstruction import psnr_db_of_each
from cartok.metrics.suite import score_pictures
from cartok.prior.train import PriorJob, nats_per_position
from cartok.tokenizer.model import Tokenizer
from cartok.tokenizer.train import TokenizerJob

Measure = Callable[[int], dict[str, float]]


def tokenizer_evaluations(job: TokenizerJob, held: Pictures, run: Run) -> tuple[Evaluation, ...]:
    """The evaluations of a stage-1 recipe, on the first ``num`` held-out pictures.

    Raises:
        UserError: a name is unknown.
    """
    table: dict[str, Callable[[EvaluationConfig], Measure]] = {
        "reconstruction": lambda e: _reconstruction(job, held, e.num),
        "fd": lambda e: _reconstruction_fd(job, held, e.num),
        "pictures": lambda e: _pictures(job, held, e.num, run),
    }
    return _chosen(job.config.evaluations, table)


def prior_evaluations(job: PriorJob, held: TokenShards) -> tuple[Evaluation, ...]:
    """The evaluations of a stage-2 recipe."""
    device = job.world.device

    def validation(evaluation: EvaluationConfig) -> Measure:
        def measure(step: int) -> dict[str, float]:
            nats = nats_per_position(job.prior, held, evaluation.num, device)
            return {"nats_per_token": nats.mean().item()}

        return measure

    return _chosen(job.config.evaluations, {"validation": validation})


def held_batches(pictures: Pictures, view: View, num: int, batch: int = 64) -> list[Image]:
    """The first ``num`` pictures in [-1, 1], in batches, in their order."""
    batches, seen = [], 0
    for item in all_images(pictures, view, batch):
        batches.append(item.image[: num - seen])
        seen += len(batches[-1])
        if seen >= num:
            break
    return batches


def spread(pictures: Pictures, num: int) -> Pictures:
    """``num`` pictures spread evenly over a collection, since folders come class by class."""
    at = np.linspace(0, len(pictures) - 1, min(num, len(pictures))).round().astype(int)
    return replace(
        pictures, rows=pictures.rows[at], labels=pictures.labels[at], sizes=pictures.sizes[at],
        _cache={}, _broken={},
    )  # fmt: skip


def reconstruct(tokenizer: Tokenizer, image: Image) -> Image:
    """Pictures through tokens and back, clipped; on the device they came on."""
    device = next(tokenizer.parameters()).device
    return tokenizer.image_of(tokenizer.tokens_of(image.to(device))).to(image.device)


def grid_of_pictures(pixels: Pixels, columns: int, zoom: int = 1, gap: int = 2) -> Picture.Image:
    """One picture of many, row by row."""
    num, _, height, width = pixels.shape
    rows = -(-num // columns)
    sheet = Picture.new(
        "RGB", (columns * (width + gap) - gap, rows * (height + gap) - gap), "white"
    )
    for index, item in enumerate(pixels.permute(0, 2, 3, 1).numpy()):
        at = (index % columns * (width + gap), index // columns * (height + gap))
        sheet.paste(Picture.fromarray(item), at)
    return sheet.resize((sheet.width * zoom, sheet.height * zoom), Picture.Resampling.NEAREST)


def _reconstruction(job: TokenizerJob, held: Pictures, num: int) -> Measure:
    images = held_batches(held, job.config.view, num)

    def measure(step: int) -> dict[str, float]:
        tokenizer, device = job.tokenizer, job.world.device
        tokens = [tokenizer.tokens_of(image.to(device)).cpu() for image in images]
        pairs = zip(tokens, images, strict=True)
        psnr = [psnr_db_of_each(tokenizer.image_of(t.to(device)).cpu(), i) for t, i in pairs]
        everything = torch.cat(tokens)
        return {
            "psnr_db": torch.cat(psnr).mean().item(),
            "code_usage": code_usage(everything, tokenizer.codebook_size),
            "code_perplexity": code_perplexity(everything, tokenizer.codebook_size),
        }

    return measure


def _reconstruction_fd(job: TokenizerJob, held: Pictures, num: int) -> Measure:
    images = held_batches(held, job.config.view, num)
    reference = torch.cat([pixels_of(image) for image in images])

    def measure(step: int) -> dict[str, float]:
        again = torch.cat([pixels_of(reconstruct(job.tokenizer, image)) for image in images])
        scores = score_pictures(again, reference, what="rfd", device=str(job.world.device))
        return {name: score.value for name, score in scores.items()}

    return measure


def _pictures(job: TokenizerJob, held: Pictures, num: int, run: Run) -> Measure:
    images = torch.cat(held_batches(held, job.config.view, num))

    def measure(step: int) -> dict[str, float]:
        pairs = torch.cat([images, reconstruct(job.tokenizer, images)])
        save_png(grid_of_pictures(pixels_of(pairs), columns=len(images)),
                 run.samples / f"reconstructions-{step:08d}.png")  # fmt: skip
        return {}

    return measure


def save_png(picture: Picture.Image, path) -> None:
    """Writes a PNG, whole or not at all."""
    with staged(path) as temporary:
        picture.save(temporary, format="PNG")


def _chosen(
    wanted: tuple[EvaluationConfig, ...],
    table: dict[str, Callable[[EvaluationConfig], Measure]],
) -> tuple[Evaluation, ...]:
    for evaluation in wanted:
        if evaluation.name not in table:
            hint = nearest(evaluation.name, list(table))
            raise UserError(f"there is no evaluation '{evaluation.name}'; {hint}")
    return tuple(Evaluation(e.name, e.every, table[e.name](e)) for e in wanted)
