"""What is measured of an arm: reconstruction, predictability, and samples of its prior."""

from dataclasses import dataclass

import torch

from cartok.core.files import read_json
from cartok.core.precision import keep_weights_in
from cartok.core.run import read_log
from cartok.core.shapes import Pixels, image_of_pixels, pixels_of
from cartok.data.tokens import open_tokens, read_manifest
from cartok.lab.arm import Arm, score_of
from cartok.lab.code_pictures import maps_of, plane_score
from cartok.lab.evaluations import (
    code_use,
    grid_of_pictures,
    reconstruct,
    resized,
    save_png,
    sheet_of,
)
from cartok.lab.guidance import SCAN_SEED, nearest, scan
from cartok.lab.inputs import ArmInputs, Scores, named_scores
from cartok.lab.one_step import redrawn
from cartok.lab.probe import frozen_latents, probe
from cartok.lab.token_survey import survey_tokens
from cartok.metrics.frechet import MIN_PICTURES
from cartok.metrics.reconstruction import psnr_db
from cartok.metrics.suite import Featurised, featurise, score_pictures
from cartok.prior.model import Prior
from cartok.prior.train import first_views
from cartok.sampling.sampler import Sampler, balanced_labels
from cartok.tokenizer.model import Tokenizer

_EVALUATED = "validation/nats_per_token"
_SAMPLED, _SAMPLED_ON_GPU = 96, 2048  # at once
_AT_ONCE = 256
_CACHED_ON_GPU = 2**33  # bytes of keys and values, where several arms share a GPU


def tokenizer_scores(arm: Arm) -> Scores:
    """Reconstruction, codes and predictability on held-out pictures."""
    inputs, tokenizer = arm.inputs, arm.tokenizer()
    seen, device = inputs.seen_at(arm.pixels), next(tokenizer.parameters()).device
    held, wanted = seen.held_image, inputs.held_image
    with arm.progress.stage(f"{arm.name} scores", 3) as tick:
        again = resized(reconstruct(tokenizer, held), wanted.shape[-1])
        save_png(sheet_of(again, inputs.columns), arm.sheets / f"{arm.name}-reconstructions.png")
        shards = open_tokens(arm.place("tokens"), "val")
        codes = first_views(shards, range(len(shards)))
        tick(1, "")
        features = _featurised(pixels_of(again), inputs, device)
        distances = score_pictures(features, inputs.held_features, what="rfd", device=device)
        tick(2, "")
        train_latents = frozen_latents(tokenizer, seen.probe_image.split(64))
        held_latents = frozen_latents(tokenizer, held.split(64))
        result = probe(train_latents, held_latents, inputs.probe, device)
        tick(3, "")
    probed = {"pictures": len(held), "probe_steps": inputs.probe.steps, "split": "validation"}
    counted = {"tokens": codes.numel(), "split": "validation"}
    use = code_use(codes, tokenizer)
    return {
        "psnr_db": score_of(psnr_db(again, wanted), "dB", pictures=len(held), split="validation"),
        **named_scores("r", distances),
        "code_usage": score_of(use["code_usage"], "share of codes", **counted),
        "code_perplexity": score_of(use["code_perplexity"], "codes", **counted),
        "next_latent_r2": score_of(result.r2_latents, "share of variance", **probed),
        "probe_r2_quantised": score_of(result.r2_codes, "share of variance", **probed),
        "next_latent_mse": score_of(result.next_latent_mse, "squared latent units", **probed),
        "commitment_mse": score_of(
            held_latents.quantisation_mse, "squared latent units", pictures=len(held)
        ),
        "latent_variance": score_of(
            held_latents.variance, "squared latent units", pictures=len(held)
        ),
        "code_dimension": score_of(
            held_latents.code_dimension, "participation ratio", pictures=len(held)
        ),
        **plane_score(held, held_latents.tokens, tokenizer),
        **code_scores(arm, tokenizer),
    }


def code_scores(arm: Arm, tokenizer: Tokenizer) -> Scores:
    """How codes are spread over positions, and what a neighbour tells of one, in bits a token."""
    found = survey_tokens(arm.place("tokens"))
    counted = {"pictures": found.num_counted, "split": "train"}
    bits = {"unigram_bits": found.unigram_bits, "position_bits": found.position_bits}
    if found.context is not None:
        bits["bits_given_left"] = found.context.given_before
        bits["bits_given_above"] = found.context.given_above
    scores = {name: score_of(value, "bits/token", **counted) for name, value in bits.items()}
    maps = maps_of(found.tokens, tokenizer)
    scores["position_bits"]["receipt"]["corrected"] = found.position_bits_corrected
    drawn = {"by_chance": found.skew_by_chance} | ({"maps": maps} if maps else {})
    return scores | {"code_skew": score_of(found.skew, "share", **counted, **drawn)}


def prior_scores(arm: Arm, part: str) -> Scores:
    """What a prior needs for held-out tokens, in the end and on its way."""
    record = read_json(arm.folder / part / "record.json", "a record")
    nats = torch.tensor(record["nats_per_position"], dtype=torch.float64)
    bits = nats.sum().item() / torch.log(torch.tensor(2.0)).item()
    digest = read_manifest(arm.place("tokens")).tokenizer_digest
    receipt = {"split": "validation", "tokens_of": digest}
    positions = [round(value, 4) for value in record["nats_per_position"]]
    # On the way, of as many pictures as the evaluation takes: what more training would bring.
    way = [
        [line["step"], line[_EVALUATED] * bits / nats.mean().item()]
        for line in read_log(arm.folder / part)
        if line.get(_EVALUATED) is not None
    ]
    return {
        "prior_nats_per_token": score_of(nats.mean().item(), "nats/token", **receipt),
        "prior_bits_per_image": score_of(
            bits, "bits/image", **receipt, over_steps=way,
            per_position=positions, grid=record["grid"],  # in nats
        ),
    }  # fmt: skip


def redrawn_scores(arm: Arm, part: str, seed: int) -> Scores:
    """What the prior's doubts cost in pictures: held-out tokens against one draw a position."""
    inputs, tokenizer = arm.inputs, arm.tokenizer()
    device = next(tokenizer.parameters()).device
    prior = Prior.from_pretrained(arm.folder / part).to(device)
    shards = open_tokens(arm.place("tokens"), "val")
    found = redrawn(prior, tokenizer, shards, inputs.yardstick.held, seed)
    receipt = {"pictures": len(found.true), "seed": seed, "split": "validation"}
    scores = {
        "redrawn_kept": score_of(found.share_kept, "share of tokens", **receipt),
        "redrawn_psnr_db": score_of(found.psnr_db, "dB", **receipt),
    }
    if len(found.true) < MIN_PICTURES:
        return scores
    drawn, true = (_featurised(them, inputs, device) for them in (found.drawn, found.true))
    distances = score_pictures(drawn, true, what="redrawn", device=device)
    return scores | named_scores("redrawn_", distances)


def sample_scores(arm: Arm, part: str, seed: int) -> Scores:
    """Samples of balanced labels, by guidance, against training pictures."""
    inputs, tokenizer = arm.inputs, arm.tokenizer()
    device, precision = next(tokenizer.parameters()).device, inputs.yardstick.drawn_in
    prior = Prior.from_pretrained(arm.folder / part).to(device)
    keep_weights_in(precision, prior)
    title = "samples" if part == "prior" else f"{part}-samples"
    draw = _Draws(Sampler(prior, tokenizer), arm, title, device)
    guidance, tried = _best_guidance(draw, inputs, seed)
    pixels, labels = draw(inputs.yardstick.samples, seed, guidance)
    order = labels.argsort(stable=True)
    save_png(_sample_sheet(pixels[order], labels[order], inputs),
             arm.sheets / f"{arm.name}-{title}.png")  # fmt: skip
    features = _featurised(pixels, inputs, device)
    distances = score_pictures(features, inputs.train_features, what="gfd", device=device)
    drawn = {"guidance": guidance, "seed": seed, "drawn_in": precision} | (
        {"tried": tried} if tried else {}
    )
    scores = named_scores("g", distances)
    return {key: score | {"receipt": score["receipt"] | drawn} for key, score in scores.items()}


@dataclass(frozen=True)
class _Draws:
    """Draws samples of balanced labels from an arm's prior."""

    sampler: Sampler
    arm: Arm
    title: str
    device: torch.device

    def __call__(self, num: int, seed: int, guidance: float) -> tuple[Pixels, torch.Tensor]:
        """Pictures on the CPU, and their labels."""
        prior = self.sampler.prior
        labels = balanced_labels(num, prior.config.num_classes, prior.unseen)
        batch = _SAMPLED
        if self.device.type == "cuda":
            most = min(_SAMPLED_ON_GPU, max(1, _CACHED_ON_GPU // _cached_by(self.sampler.prior)))
            batch = -(-num // -(-num // most))  # as few as can be, and all about as large
        with self.arm.progress.stage(f"{self.arm.name} {self.title}", num) as tick:
            samples = self.sampler.sample(
                labels.to(self.device), seed, guidance, batch=batch,
                progress=lambda done: tick(done, ""),
            )  # fmt: skip
        return pixels_of(samples).cpu(), labels


def _cached_by(prior: Prior) -> int:
    """Bytes of keys and values of one guided sample."""
    net, size = prior.config.transformer, prior.head.weight.element_size()
    return 2 * net.depth * 2 * net.width * prior.config.num_tokens * size


def _best_guidance(draw: _Draws, inputs: ArmInputs, seed: int) -> tuple[float, dict[str, float]]:
    """The guidance whose samples come nearest, and how near each came; drawn with another seed."""
    if inputs.scan_features is None:
        return (inputs.yardstick.guidances[0] if inputs.num_classes else 1.0), {}

    def samples_at(guidance: float) -> Featurised:
        pixels, _ = draw(inputs.yardstick.scan_samples, SCAN_SEED + seed, guidance)
        return _featurised(pixels, inputs, draw.device)

    tried = scan(inputs.yardstick.guidances, samples_at, inputs.scan_features, draw.device)
    return nearest(tried), {f"{guidance:g}": score.value for guidance, score in tried.items()}


def _featurised(pixels: Pixels, inputs: ArmInputs, device: torch.device) -> Featurised:
    """At the size at which all are scored, whatever more tokens decode to."""
    side = inputs.held_image.shape[-1]
    if pixels.shape[-1] != side:
        parts = (resized(image_of_pixels(some), side) for some in pixels.split(_AT_ONCE))
        pixels = torch.cat([pixels_of(part) for part in parts])
    return featurise(pixels, size=inputs.yardstick.size, crop=inputs.crop, device=device)


def _sample_sheet(pixels: Pixels, labels: torch.Tensor, inputs: ArmInputs):
    """A row a class, at most ten; six rows when there are no classes."""
    if not inputs.num_classes:
        return grid_of_pictures(pixels[: 6 * inputs.columns], inputs.columns)
    rows = [pixels[labels == label][: inputs.columns] for label in labels.unique()[:10]]
    return grid_of_pictures(torch.cat(rows), min(inputs.columns, len(rows[0])))
