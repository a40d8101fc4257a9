"""Every quantizer trains, in whole batches and in parts, and comes back from its folder."""

from dataclasses import replace

import pytest
import torch

from cartok.core.config import read_config
from cartok.core.errors import UserError
from cartok.core.parallel import World
from cartok.core.run import Run, read_log
from cartok.recipes.tokenizer import causal_toy
from cartok.tokenizer.model import Tokenizer
from cartok.tokenizer.quantize.binary import BSQConfig, LFQConfig
from cartok.tokenizer.quantize.fsq import FSQConfig
from cartok.tokenizer.quantize.kinds import KINDS, QuantizerConfig
from cartok.tokenizer.quantize.residual import ResidualVQConfig
from cartok.tokenizer.quantize.vq import VQConfig
from cartok.tokenizer.train import TokenizerJob, TokenizerRun, train_tokenizer

SMALL = {
    "vq": VQConfig(codebook_size=32, dim=4),
    "fsq": FSQConfig(levels=(5, 4, 3)),
    "lfq": LFQConfig(bits=5),
    "bsq": BSQConfig(bits=5),
    "residual": ResidualVQConfig(codebook_size=8, dim=4, revive_after=2),
}
EMA = VQConfig(codebook_size=32, dim=4, codebook="ema", decay=0.8, init="kmeans", revive_after=3)
CONFIGS = {kind: SMALL.get(kind, KINDS[kind][0]()) for kind in KINDS} | {
    "ema": EMA,
    "drawn": VQConfig(codebook_size=32, dim=4, temperature=0.1, gradient="rotation"),
}


FREE = {name: CONFIGS[name] for name in KINDS if name != "bsq"}  # which is always on the sphere
FREE["vq"] = VQConfig(codebook_size=32, dim=4, normalise=False, revive_after=5)
"""Quantizers of latents that have a free scale."""


def toy(quantizer: QuantizerConfig, steps=3, accumulate=1, **causal) -> TokenizerRun:
    """causal-toy with another quantizer, without noise and without a critic."""
    run = causal_toy()
    return replace(
        run,
        equal_compute=False,
        evaluations=(),
        causal=replace(run.causal, **({"reads": "latents"} | causal)),
        losses=replace(run.losses, critic=replace(run.losses.critic, weight=0.0)),
        model=replace(run.model, quantizer=quantizer),
        loop=replace(run.loop, steps=steps, accumulate=accumulate),
    )


@pytest.fixture
def train(pictures, tmp_path):
    """A function that trains a config in a folder of its own and returns the job and the folder."""

    def train(config: TokenizerRun, name: str = "run"):
        job = TokenizerJob(config, pictures, World())
        run = Run.open(tmp_path / name, config, kind="tokenizer")
        train_tokenizer(job, run)
        return job, run.folder

    return train


@pytest.mark.parametrize("name", CONFIGS)
def test_it_trains_and_comes_back_from_its_folder(name, train, pictures):
    config = toy(CONFIGS[name])
    job, folder = train(config)
    assert read_config(TokenizerRun, folder / "config.json") == config
    line = read_log(folder)[-1]
    asked = job.prepare(next(job.batches(0)), 0).encoded.quantized.losses
    assert all(f"codec/{loss}" in line for loss in asked)
    again = Tokenizer.from_pretrained(folder)
    assert again.config == config.model
    assert again.digest == job.tokenizer.digest
    image = next(job.batches(0)).image
    tokens = again.tokens_of(image)
    assert torch.equal(tokens, job.tokenizer.tokens_of(image))
    assert tokens.shape[1:] == again.grid_of(16, 16)
    assert again.image_of(tokens).shape == image.shape


@pytest.mark.slow
@pytest.mark.parametrize("name", FREE)
def test_latents_of_a_free_scale_and_their_codes_survive_the_regulariser(name, train):
    job, folder = train(toy(FREE[name], steps=50))
    assert not job.prepare(next(job.batches(0)), 0).encoded.quantized.on_sphere
    last = read_log(folder)[-10:]
    variance, perplexity = (
        sum(line[f"codec/{value}"] for line in last) / len(last)
        for value in ("latent_variance", "batch_perplexity")
    )
    assert variance > 0.02
    assert perplexity > 4


@pytest.mark.parametrize("weight", [0.0, 0.03])
def test_the_cross_entropy_of_several_tokens_is_refused_before_a_training_has_a_folder(
    weight, pictures
):
    config = toy(SMALL["residual"], loss="ce", weight=weight)
    with pytest.raises(UserError, match="one token of a latent") as caught:
        TokenizerJob(config, pictures, World())
    assert "\n" not in str(caught.value)


def test_under_the_cross_entropy_too_an_error_is_logged_beside_the_quantisations(train):
    _, folder = train(toy(SMALL["vq"], steps=1, loss="ce", reads="codes"))
    line = read_log(folder)[-1]
    assert line["codec/twin_mse"] > 0
    assert line["codec/quantisation_mse"] > 0


@pytest.mark.parametrize("name", ["ema", "residual"])
def test_a_batch_in_two_parts_moves_codes_like_a_whole_one(name, train):
    # Watching alone: what l2 is divided by off the sphere is each part's own variance.
    whole, _ = train(toy(CONFIGS[name], steps=4, weight=0.0), "whole")
    parts, _ = train(toy(CONFIGS[name], steps=4, weight=0.0, accumulate=2), "parts")
    found = parts.tokenizer.quantizer.state_dict()
    for key, value in whole.tokenizer.quantizer.state_dict().items():
        assert (found[key] - value).abs().max() <= 3e-5, key


def test_a_training_with_running_means_goes_on_where_it_stopped(pictures, tmp_path):
    config = toy(EMA, steps=6)
    config = replace(config, loop=replace(config.loop, save_every=3))

    def strike(done: int, words: str) -> None:
        if done == 5:
            raise KeyboardInterrupt

    whole = TokenizerJob(config, pictures, World())
    train_tokenizer(whole, Run.open(tmp_path / "whole", config, kind="tokenizer"))
    struck = TokenizerJob(config, pictures, World())
    run = Run.open(tmp_path / "struck", config, kind="tokenizer")
    with pytest.raises(KeyboardInterrupt):
        train_tokenizer(struck, run, tick=strike)
    again = TokenizerJob(config, pictures, World())
    train_tokenizer(again, Run.open(tmp_path / "struck", config, kind="tokenizer", resume=True))
    assert again.tokenizer.digest == whole.tokenizer.digest
    assert again.tokenizer.digest != struck.tokenizer.digest
