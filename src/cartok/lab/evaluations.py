"""The evaluations a recipe can name, and what each measures while a training goes on."""

from collections.abc import Callable
from dataclasses import asdict

import numpy as np
import torch
from jaxtyping import Float
from PIL import Image as Picture
from torch import Tensor

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
from cartok.lab.probe import FrozenLatents, ProbeConfig, frozen_latents, probe, survival
from cartok.metrics.codes import TokenGrid, code_perplexity, code_usage
from cartok.metrics.reconstruction import psnr_db
from cartok.metrics.suite import score_pictures
from cartok.prior.train import PriorJob, nats_per_position
from cartok.tokenizer.model import Tokenizer
from cartok.tokenizer.train import TokenizerJob

Measure = Callable[[int], dict[str, float]]

BATCH = 64
"""Pictures at once, in evaluations."""
PROBE_PICTURES = 2_000
"""Training pictures that a probe learns from, however few it is scored on: R² grows with them, and
is compared between data sets that hold out 300 pictures and 50,000."""
STRETCHES = 8
"""Of a sequence, whose mean surprise is followed while a prior is trained: of 256 tokens in raster
order, two rows of the grid each."""
_HIGH_IS_GOOD = (
    "psnr_db", "code_usage", "code_perplexity", "r2_latents", "r2_codes", "latent_variance",
    "survival",
)  # fmt: skip


def tokenizer_evaluations(job: TokenizerJob, held: Pictures, run: Run) -> tuple[Evaluation, ...]:
    """The evaluations of a stage-1 recipe, each on ``num`` held-out pictures.

    Raises:
        UserError: a name is unknown, or ``loop.best`` is a value that should be high.
    """
    _refuse_high(job.config.loop.best)
    table: dict[str, Callable[[EvaluationConfig], Measure]] = {
        "reconstruction": lambda e: _reconstruction(job, held, e.num),
        "fd": lambda e: _reconstruction_fd(job, held, e.num),
        "pictures": lambda e: _pictures(job, held, e.num, run),
        "probe": lambda e: _probe(job, held, e.num),
    }
    return _chosen(job.config.evaluations, table)


def prior_evaluations(job: PriorJob, held: TokenShards) -> tuple[Evaluation, ...]:
    """The evaluations of a stage-2 recipe.

    ``validation`` is the mean surprise, and that of each of eight stretches of the sequence; the
    record of a finished run has it position by position.
    """
    device = job.world.device

    def validation(evaluation: EvaluationConfig) -> Measure:
        def measure(step: int) -> dict[str, float]:
            nats = nats_per_position(job.prior, held, evaluation.num, device)
            return {"nats_per_token": nats.mean().item(), **stretches_of(nats)}

        return measure

    return _chosen(job.config.evaluations, {"validation": validation})


def stretches_of(nats: Float[Tensor, " position"]) -> dict[str, float]:
    """Mean surprise in each of ``STRETCHES`` parts of the sequence, as equal as can be, in order.

    A sequence of fewer positions has as many stretches as positions.
    """
    parts = nats.tensor_split(min(STRETCHES, len(nats)))
    return {f"nats_in_stretch_{n}": part.mean().item() for n, part in enumerate(parts, 1)}


def some_images(pictures: Pictures, view: View, num: int) -> Image:
    """``num`` pictures, or all there are, spread evenly over the set, by their central view."""
    batches = all_images(spread(pictures, num), view, BATCH)
    return torch.cat([batch.image for batch in batches])


def spread(pictures: Pictures, num: int) -> Pictures:
    """``num`` pictures spread evenly over a collection, since folders come class by class."""
    at = np.linspace(0, len(pictures) - 1, min(num, len(pictures))).round().astype(int)
    return pictures.subset(at)


def sheet_of(image: Image, columns: int, rows: int = 6) -> Picture.Image:
    """A few of many pictures, spread evenly over them."""
    at = torch.linspace(0, len(image) - 1, columns * rows).long()
    return grid_of_pictures(pixels_of(image[at]), columns)


def reconstruct(tokenizer: Tokenizer, image: Image) -> Image:
    """Pictures through tokens and back, clipped; on the CPU."""
    device = next(tokenizer.parameters()).device
    parts = image.split(BATCH)
    return torch.cat([tokenizer.image_of(tokenizer.tokens_of(p.to(device))).cpu() for p in parts])


def resized(image: Image, side: int) -> Float[Tensor, "batch 3 side side"]:
    """Square pictures at another size, as they are if they have it; antialiased bicubic, clipped.

    How the paper brings the output of more tokens to the size at which it is scored.
    """
    if image.shape[-1] == side:
        return image
    scaled = torch.nn.functional.interpolate(image, (side, side), mode="bicubic", antialias=True)
    return scaled.clamp(-1, 1)


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
    chosen = spread(held, num)

    def measure(step: int) -> dict[str, float]:
        tokenizer, device = job.tokenizer, job.world.device
        parts, total = [], 0.0
        for batch in all_images(chosen, job.config.view, BATCH):
            parts.append(tokenizer.tokens_of(batch.image.to(device)))
            again = tokenizer.image_of(parts[-1]).cpu()
            total += psnr_db(again, batch.image) * len(again)
        tokens = torch.cat(parts).cpu()
        return {
            "psnr_db": total / len(tokens),
            **code_use(tokens, tokenizer),
            "num_pictures": float(len(tokens)),
        }

    return measure


def code_use(tokens: TokenGrid, tokenizer: Tokenizer) -> dict[str, float]:
    """Usage and perplexity of the codes, on a grid or in raster order.

    As in training, the levels of residual codes are told apart, each a codebook of its own.
    """
    levels, size = tokenizer.quantizer.tokens_per_cell, tokenizer.codebook_size
    apart = tokens + size * (torch.arange(tokens.shape[-1], device=tokens.device) % levels)
    return {
        "code_usage": code_usage(apart, levels * size),
        "code_perplexity": code_perplexity(apart, levels * size),
    }


def _reconstruction_fd(job: TokenizerJob, held: Pictures, num: int) -> Measure:
    image = some_images(held, job.config.view, num)

    def measure(step: int) -> dict[str, float]:
        again = pixels_of(reconstruct(job.tokenizer, image))
        device = str(job.world.device)
        scores = score_pictures(again, pixels_of(image), what="rfd", device=device)
        return {name: score.value for name, score in scores.items()}

    return measure


def _pictures(job: TokenizerJob, held: Pictures, num: int, run: Run) -> Measure:
    image = some_images(held, job.config.view, num)

    def measure(step: int) -> dict[str, float]:
        pairs = pixels_of(torch.cat([image, reconstruct(job.tokenizer, image)]))
        path = run.samples / f"reconstructions-{step:08d}.png"
        if job.world.is_main:
            save_png(grid_of_pictures(pairs, columns=len(image)), path)
        return {}

    return measure


def _probe(job: TokenizerJob, held: Pictures, num: int) -> Measure:
    """How predictable the latents are by now, on ``num`` held-out pictures."""

    def frozen(pictures: Pictures, num: int) -> FrozenLatents:
        batches = all_images(spread(pictures, num), job.config.view, BATCH)
        return frozen_latents(job.tokenizer, (batch.image for batch in batches))

    def measure(step: int) -> dict[str, float]:
        found, learned = frozen(held, num), frozen(job.pictures, PROBE_PICTURES)
        result = probe(learned, found, ProbeConfig(), job.world.device)
        return {
            **asdict(result),
            "quantisation_mse": found.quantisation_mse,
            "latent_variance": found.variance,
            "survival": survival(job.tokenizer, found.tokens),
        }

    return measure


def save_png(picture: Picture.Image, path) -> None:
    """Writes a PNG, whole or not at all."""
    with staged(path) as temporary:
        picture.save(temporary, format="PNG")


def _refuse_high(best: str) -> None:
    if best.split("/")[-1] in _HIGH_IS_GOOD:
        raise UserError(
            f"loop.best keeps the checkpoint where a value is lowest, but '{best}' should be high; "
            "take one that should be low, such as fd/fd_effnet64 of the evaluation 'fd'"
        )


def _chosen(
    wanted: tuple[EvaluationConfig, ...],
    table: dict[str, Callable[[EvaluationConfig], Measure]],
) -> tuple[Evaluation, ...]:
    for evaluation in wanted:
        if evaluation.name not in table:
            hint = nearest(evaluation.name, list(table))
            raise UserError(f"there is no evaluation '{evaluation.name}'; {hint}")
    return tuple(Evaluation(e.name, e.every, table[e.name](e)) for e in wanted)
