"""One arm of a comparison: a tokenizer, its tokens, a prior, samples, and the arm's scores."""

import time
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from cartok.core.files import read_json, write_json
from cartok.core.progress import Progress
from cartok.core.shapes import Image, Pixels, pixels_of
from cartok.data.tokens import TokenManifest, open_tokens, read_manifest
from cartok.lab.evaluations import grid_of_pictures, reconstruct, save_png, sheet_of
from cartok.lab.probe import ProbeConfig, frozen_latents, probe
from cartok.lab.stages import Launch, run_extract, run_prior, run_tokenizer
from cartok.metrics.codes import code_perplexity, code_usage
from cartok.metrics.reconstruction import psnr_db
from cartok.metrics.suite import Featurised, featurise, score_pictures
from cartok.prior.model import Prior
from cartok.prior.train import PriorRun, first_views
from cartok.sampling.sampler import Sampler, balanced_labels
from cartok.tokenizer.model import Tokenizer
from cartok.tokenizer.train import TokenizerRun

Scores = dict[str, dict[str, Any]]
"""By name: value, unit, receipt."""


@dataclass(frozen=True)
class ArmInputs:
    """What both arms share."""

    size: int
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


def run_arm(
    name: str, recipe: TokenizerRun, prior_recipe: PriorRun, out: Path, inputs: ArmInputs,
    progress: Progress,
) -> None:  # fmt: skip
    """Runs one arm into ``out/name`` and ends with ``scores.json``.

    What is there already, from an earlier try, is taken up.
    """
    folder = out / name
    if (folder / "scores.json").exists():
        progress.say(f"{name}: finished already")
        return
    started = time.monotonic()

    def launch(part: str) -> Launch:
        return Launch(out=folder / part, device=inputs.device, resume=True)

    run = run_tokenizer(recipe, launch("tokenizer"), progress, f"{name} tokenizer")
    _stop_if_interrupted(run.is_finished)
    tokens = _tokens(name, folder, launch("tokens"), inputs.most_tokenised, progress)
    config = replace(prior_recipe, tokens=str(folder / "tokens"))
    run = run_prior(config, launch("prior"), progress, f"{name} prior")
    _stop_if_interrupted(run.is_finished)
    tokenizer = Tokenizer.from_pretrained(folder / "tokenizer").to(run.world.device)
    scores = _tokenizer_scores(name, folder, out, tokenizer, inputs, progress)
    scores |= _prior_scores(folder, tokens)
    scores |= _sample_scores(name, folder, out, tokenizer, recipe.seed, inputs, progress)
    scores |= inputs.floor
    scores["seconds"] = _seconds(folder, time.monotonic() - started)
    write_json(folder / "scores.json", scores)


def _tokens(
    name: str, folder: Path, launch: Launch, most: int, progress: Progress
) -> TokenManifest:
    if (launch.out / "manifest.json").exists():
        return read_manifest(launch.out)
    return run_extract(
        str(folder / "tokenizer"), replace(launch, overwrite=True), progress,
        kind="flip", most=most, title=f"{name} tokens",
    )  # fmt: skip


def _tokenizer_scores(
    name: str, folder: Path, out: Path, tokenizer: Tokenizer, inputs: ArmInputs, progress: Progress
) -> Scores:
    """Reconstruction, codes and predictability on held-out pictures."""
    held = inputs.held_image
    with progress.stage(f"{name} scores", 3) as tick:
        again = reconstruct(tokenizer, held)
        save_png(sheet_of(again, inputs.columns),
                 out / "pictures" / f"{name}-reconstructions.png")  # fmt: skip
        shards = open_tokens(folder / "tokens", "val")
        codes = first_views(shards, range(len(shards)))
        tick(1, "")
        features = featurise(
            pixels_of(again), crop=inputs.crop, device=next(tokenizer.parameters()).device
        )
        distances = score_pictures(features, inputs.held_features, what="rfd")
        tick(2, "")
        budget = inputs.probe
        train_latents = frozen_latents(tokenizer, inputs.probe_image)
        held_latents = frozen_latents(tokenizer, held)
        result = probe(train_latents, held_latents, budget, next(tokenizer.parameters()).device)
        tick(3, "")
    record = read_json(folder / "tokenizer" / "record.json", "a record")
    probed = {"pictures": len(held), "probe_steps": budget.steps, "split": "validation"}
    counted = {"tokens": codes.numel(), "split": "validation"}
    size = tokenizer.codebook_size
    return {
        "tokenizer_steps": _score(record["steps"], "steps", flops=record["flops"]),
        "psnr_db": _score(psnr_db(again, held), "dB", pictures=len(held), split="validation"),
        "rfd": distances["fd_effnet64"].to_json(),
        "rkd": distances["kd_effnet"].to_json(),
        "code_usage": _score(code_usage(codes, size), "share of codes", **counted),
        "code_perplexity": _score(code_perplexity(codes, size), "codes", **counted),
        "next_latent_r2": _score(result.r2_latents, "share of variance", **probed),
        "probe_r2_quantised": _score(result.r2_codes, "share of variance", **probed),
        "next_latent_mse": _score(result.next_latent_mse, "squared latent units", **probed),
        "commitment_mse": _score(
            held_latents.commitment_mse, "squared latent units", pictures=len(held)
        ),
        "latent_variance": _score(
            held_latents.variance, "squared latent units", pictures=len(held)
        ),
    }


def _prior_scores(folder: Path, tokens: TokenManifest) -> Scores:
    record = read_json(folder / "prior" / "record.json", "a record")
    nats = torch.tensor(record["nats_per_position"], dtype=torch.float64)
    bits = nats.sum().item() / torch.log(torch.tensor(2.0)).item()
    receipt = {"split": "validation", "tokens_of": tokens.tokenizer_digest}
    return {
        "prior_nats_per_token": _score(nats.mean().item(), "nats/token", **receipt),
        "prior_bits_per_image": _score(bits, "bits/image", **receipt),
    }


def _sample_scores(
    name: str, folder: Path, out: Path, tokenizer: Tokenizer, seed: int, inputs: ArmInputs,
    progress: Progress,
) -> Scores:  # fmt: skip
    """Samples of balanced labels, by guidance, against training pictures."""
    device = next(tokenizer.parameters()).device
    prior = Prior.from_pretrained(folder / "prior").to(device)
    labels = balanced_labels(inputs.num_samples, max(1, inputs.num_classes)).to(device)
    with progress.stage(f"{name} samples", inputs.num_samples) as tick:
        samples = Sampler(prior, tokenizer).sample(
            labels, seed, inputs.guidance, batch=96, progress=lambda done: tick(done, "")
        )
    pixels = pixels_of(samples).cpu()
    order = labels.cpu().argsort(stable=True)
    save_png(_sample_sheet(pixels[order], labels.cpu()[order], inputs),
             out / "pictures" / f"{name}-samples.png")  # fmt: skip
    distances = score_pictures(
        featurise(pixels, crop=inputs.crop, device=device), inputs.train_features, what="gfd"
    )
    drawn = {"guidance": inputs.guidance, "seed": seed}
    scores = {"gfd": distances["fd_effnet64"], "gkd": distances["kd_effnet"]}
    return {
        key: score.to_json() | {"receipt": score.receipt | drawn} for key, score in scores.items()
    }


def _sample_sheet(pixels: Pixels, labels: torch.Tensor, inputs: ArmInputs):
    """A row a class, at most ten; six rows when there are no classes."""
    if not inputs.num_classes:
        return grid_of_pictures(pixels[: 6 * inputs.columns], inputs.columns)
    rows = [pixels[labels == label][: inputs.columns] for label in labels.unique()[:10]]
    return grid_of_pictures(torch.cat(rows), min(inputs.columns, len(rows[0])))


def _seconds(folder: Path, this_try: float) -> dict[str, Any]:
    """Everything the arm took; of earlier tries that were stopped, the trainings alone."""
    records = [read_json(folder / part / "record.json", "a record") for part in _TRAININGS]
    trained = sum(record["seconds"] for record in records)
    return _score(max(this_try, trained), "s", training_seconds=trained)


_TRAININGS = ("tokenizer", "prior")


def _score(value: float, unit: str, **receipt: Any) -> dict[str, Any]:
    return {"value": value, "unit": unit, "receipt": receipt}


def _stop_if_interrupted(is_finished: bool) -> None:
    """After a SIGTERM the stage has saved; the same command with --resume goes on from there."""
    if not is_finished:
        raise SystemExit(0)
