import json
import re
from dataclasses import replace

import pytest
import torch

from cartok.core.config import config_of, dict_of, digest_of
from cartok.core.errors import UserError
from cartok.core.parallel import World
from cartok.data.images import open_splits
from cartok.prior.model import PriorConfig, parameter_census
from cartok.recipes import Recipe, recipe_of, table_of
from cartok.recipes.prior import PRIORS
from cartok.recipes.tokenizer import TOKENIZERS, causal_16k, without_causal
from cartok.tokenizer.codec import parameter_count
from cartok.tokenizer.model import Tokenizer
from cartok.tokenizer.train import TokenizerJob

EVERY = [*TOKENIZERS.values(), *PRIORS.values()]
TRAINED = [recipe.build() for recipe in TOKENIZERS.values()]
each = pytest.mark.parametrize("recipe", EVERY, ids=lambda recipe: recipe.name)


def flat(plain, name: str = "") -> dict:
    """Every value of a config by its dotted name."""
    if not isinstance(plain, dict):
        return {name: plain}
    return {
        key: value
        for part, inner in plain.items()
        for key, value in flat(inner, f"{name}.{part}".strip(".")).items()
    }


# ------------------------------------------------------------------ every recipe


@each
def test_a_recipe_comes_back_from_json_as_it_was(recipe):
    built = recipe.build()
    again = config_of(type(built), json.loads(json.dumps(dict_of(built))))
    assert again == built
    assert digest_of(again) == digest_of(built)


@each
def test_a_recipe_is_the_same_every_time(recipe):
    assert recipe.build() == recipe.build()


@each
def test_a_summary_is_one_short_sentence(recipe):
    summary = recipe.summary
    assert "\n" not in summary
    assert 10 < len(summary) <= 100
    assert summary.endswith(".")


@each
def test_a_name_can_be_typed(recipe):
    assert re.fullmatch(r"[a-z0-9]+(-[a-z0-9]+)*", recipe.name)


@pytest.mark.parametrize("table", [TOKENIZERS, PRIORS], ids=["tokenizers", "priors"])
def test_recipes_are_found_by_name_and_no_two_are_equal(table):
    for name, recipe in table.items():
        assert recipe.name == name
        assert recipe_of(table, name) == recipe.build()
    digests = [digest_of(recipe.build()) for recipe in table.values()]
    assert len(set(digests)) == len(digests)


def test_a_wrong_name_is_answered_with_the_nearest():
    with pytest.raises(UserError, match="no recipe 'causal-16'; did you mean 'causal-16k'") as e:
        recipe_of(TOKENIZERS, "causal-16")
    assert "\n" not in str(e.value)
    with pytest.raises(UserError, match="choose one of: demo, toy, small, 31m"):
        recipe_of(PRIORS, "zzzzzz")


def test_names_are_those_of_the_functions_with_dashes():
    def _7b_wide():
        """Wide."""

    assert table_of(_7b_wide) == {"7b-wide": Recipe("7b-wide", _7b_wide)}


@pytest.mark.parametrize("run", TRAINED, ids=list(TOKENIZERS))
def test_a_tokenizer_of_every_recipe_can_be_built_for_its_pictures(run):
    with torch.device("meta"):
        tokenizer = Tokenizer(run.model)
    side = run.view.size // run.model.codec.factor
    assert tokenizer.grid_of(run.view.size, run.view.size) == (side, side)


@pytest.mark.parametrize("name", [name for name in TOKENIZERS if name.startswith("causal")])
def test_a_pair_differs_in_one_number(name):
    causal = flat(dict_of(TOKENIZERS[name].build()))
    baseline = flat(dict_of(TOKENIZERS[name.replace("causal", "baseline")].build()))
    assert causal.keys() == baseline.keys()
    assert {key for key in causal if causal[key] != baseline[key]} == {"causal.weight"}
    assert baseline["causal.weight"] == 0
    assert causal["causal.weight"] > 0


def test_without_the_regulariser_nothing_else_changes():
    run = replace(causal_16k(), seed=3)
    assert without_causal(run) == replace(run, causal=replace(run.causal, weight=0.0))


# What moves the networks, and one recipe of all that have it.
MOVED = {
    (run.optim, run.causal.weight_decay): name
    for name, run in zip(TOKENIZERS, TRAINED, strict=True)
}


@pytest.mark.parametrize(("optim", "decay"), MOVED, ids=MOVED.values())
def test_the_predictor_has_the_codecs_rate_and_betas_at_every_step_and_decays_by_a_tenth(
    optim, decay
):
    toy = TOKENIZERS["causal-toy"].build()
    toy = replace(toy, optim=optim, causal=replace(toy.causal, weight_decay=decay))
    pictures = open_splits("photos", size=toy.view.size)["train"]
    job = TokenizerJob(toy, pictures, World(device=torch.device("meta")))
    movers = {mover.name: mover for mover in job.phases[0].movers}
    codec = movers["tokenizer"]
    assert max(group["weight_decay"] for group in codec.optimizer.param_groups) == 0
    for mover in (movers["causal"], movers["twin"]):
        assert all(mover.rate(step) == codec.rate(step) for step in range(toy.loop.steps))
        groups = mover.optimizer.param_groups
        assert max(group["weight_decay"] for group in groups) == 0.1  # paper, A.1
        for group in groups:
            assert (group["lr"], group["betas"]) == (optim.lr, (0.9, 0.95))


# ------------------------------------------------------------------ the paper's stage 1

# Section 2 of the notes on the paper (A.1) and section 1 on the regulariser; where the paper is
# silent, the default of section 8.
PAPER = {
    "view.size": 256,
    "view.min_scale": 0.8,
    "view.flip": True,
    "model.codec.channels": 128,
    "model.codec.multipliers": [1, 1, 2, 2, 4],
    "model.codec.encoder_blocks": 2,
    "model.codec.decoder_blocks": 3,
    "model.codec.attention": True,
    "model.codec.latent_channels": 256,
    "model.codec.stem": 1,
    "model.quantizer.codebook_size": 16_384,
    "model.quantizer.dim": 8,
    "model.quantizer.normalise": True,
    "model.quantizer.revive_after": 0,
    "losses.pixel_l2": 1.0,
    "losses.pixel_l1": 0.0,
    "losses.perceptual": 1.0,
    "losses.codebook": 1.0,
    "losses.commitment": 0.25,
    "losses.critic.weight": 0.5,
    "losses.critic.start": 20_000,
    "losses.critic.ramp": 2_000,
    "losses.critic.warm": 0,
    "losses.critic.channels": 64,
    "losses.critic.layers": 3,
    "losses.critic.norm": "batch",
    "optim.lr": 1e-4,
    "optim.betas": [0.9, 0.95],
    "optim.weight_decay": 0.0,
    "optim.warmup_steps": 3_000,
    "optim.warmup_from": 1e-5,
    "optim.schedule": "constant",
    "optim.clip": 1.0,
    "loop.steps": 400_000,
    "loop.batch": 128,
    "loop.precision": "bf16",
    "loop.ema": 0.0,
    "causal.weight": 4.0,
    "causal.anneal_steps": 1_000,
    "causal.transformer.width": 1024,
    "causal.transformer.depth": 2,
    "causal.transformer.heads": 16,
    "causal.transformer.dropout": 0.0,
    "causal.transformer.rope_base": 10_000.0,
    "causal.weight_decay": 0.1,
    "causal.space": "lookup",
    "causal.reads": "latents",
    "causal.target": "latents",
    "causal.loss": "l2",
    "causal.reduction": "mean",
    "causal.scale": "auto",
    "causal.start": "skip",
    "causal.order": "raster",
    "causal.scheduled_sampling": 0.0,
    "equal_compute": True,
    "model.quantizer.kind": "vq",
    "model.quantizer.codebook": "gradient",
    "model.quantizer.init": "uniform",
    "model.quantizer.gradient": "straight-through",
    "model.quantizer.temperature": 0.0,
    "losses.perceptual_network": "lpips-vgg",
    "losses.critic.kind": "patch",
    "losses.critic.loss": "hinge",
    "losses.critic.weighting": "constant",
    "losses.critic.lecam": 0.0,
    "losses.alignment.weight": 0.0,
    "loop.on_non_finite": "recover",
}


@pytest.mark.parametrize("name", PAPER)
def test_causal_16k_has_the_papers_numbers(name):
    assert flat(dict_of(causal_16k()))[name] == PAPER[name]


# What each other recipe of the paper changes (sections 2, 5c, 5f of the notes), beside the weight.
CHANGES = {
    "causal-opt": {
        "model.codec.decoder_blocks": 8, "model.quantizer.codebook_size": 131_072,
        "loop.steps": 800_000, "equal_compute": False,
    },
    "baseline-1k": {"model.quantizer.codebook_size": 1_024, "causal.weight": 0},
    "baseline-131k": {"model.quantizer.codebook_size": 131_072, "causal.weight": 0},
    "causal-16k-400": {"view.size": 320},
    "causal-16k-576": {"view.size": 384},
    "causal-lsun": {},
    "dino-critic-16k": {
        "losses.critic.kind": "dino", "losses.critic.lecam": 0.001, "losses.critic.warm": 2_000,
    },
    "aligned-16k": {"losses.alignment.weight": 0.5},
}  # fmt: skip


@pytest.mark.parametrize("name", CHANGES)
def test_a_recipe_of_the_paper_changes_what_it_says_and_nothing_else(name):
    usual, found = (flat(dict_of(run)) for run in (causal_16k(), TOKENIZERS[name].build()))
    evaluated = {"evaluations"}  # what is looked at is no part of the training
    changed = {key for key in usual | found if usual.get(key) != found.get(key)} - evaluated
    assert {key: found[key] for key in changed} == CHANGES[name]


PARAMETERS = {  # millions: encoder, decoder; 29.3M + 42.4M = 72M is the paper's codec
    "causal-16k": (29.3, 42.4),
    "causal-opt": (29.3, 86.1),
    "baseline-131k": (29.3, 42.4),
    "causal-16k-576": (29.3, 42.4),
}


@pytest.mark.parametrize("name", PARAMETERS)
def test_the_codecs_of_the_paper_have_its_parameters(name):
    with torch.device("meta"):
        tokenizer = Tokenizer(TOKENIZERS[name].build().model)
    encoder, decoder = (parameter_count(part) / 1e6 for part in
                        (tokenizer.encoder, tokenizer.decoder))  # fmt: skip
    assert (encoder, decoder) == pytest.approx(PARAMETERS[name], abs=0.05)
    if PARAMETERS[name] == PARAMETERS["causal-16k"]:
        assert encoder + decoder == pytest.approx(72, abs=0.5)
    else:  # CRT-opt: "decoder doubled in size"
        assert decoder == pytest.approx(2 * 42.4, rel=0.05)


@pytest.mark.parametrize(("name", "tokens"), [("causal-16k-400", 400), ("causal-16k-576", 576)])
def test_a_larger_picture_makes_the_tokens_of_its_recipes_name(name, tokens):
    run = TOKENIZERS[name].build()
    assert (run.view.size // run.model.codec.factor) ** 2 == tokens


def test_causal_16k_makes_256_tokens():
    run = causal_16k()
    assert run.model.codec.factor == 16
    assert (run.view.size // run.model.codec.factor) ** 2 == 256


@pytest.mark.parametrize("name", [name for name in TOKENIZERS if name.startswith("causal")])
def test_a_tokenizers_summary_tells_the_truth(name):
    run = TOKENIZERS[name].build()
    side = run.view.size // run.model.codec.factor
    claim = f"{run.view.size} px, f={run.model.codec.factor}, {side**2} tokens of "
    assert claim + f"{run.model.quantizer.codebook_size:,} codes" in TOKENIZERS[name].summary


# ------------------------------------------------------------------ the paper's stage 2

# Table 2, and the heads' width of 64 it states; 31M is of Figure 6, its shape inferred.
SIZES = {
    "31m": (31.4, 576, 3, 9),
    "52m": (52.1, 640, 6, 10),
    "81m": (80.6, 704, 9, 11),
    "111m": (111, 768, 12, 12),
    "212m": (212, 896, 18, 14),
    "343m": (343, 1024, 24, 16),
    "517m": (517, 1152, 30, 18),
    "775m": (775, 1280, 36, 20),
}


# LlamaGen's larger ones: millions of parameters, width, depth, heads, feed-forward width.
BEYOND = {"1400m": (1411, 1536, 48, 24, 4096), "3100m": (3097, 3200, 24, 32, 8704)}


def test_the_priors_are_those_of_the_paper_two_larger_three_small_ones_and_one_by_muon():
    assert set(PRIORS) == {*SIZES, *BEYOND, "demo", "toy", "small", "111m-muon"}


def test_only_muons_recipe_moves_matrices_by_it_and_only_the_largest_divides_them():
    built = {name: recipe.build() for name, recipe in PRIORS.items()}
    assert [name for name, run in built.items() if run.matrices == "muon"] == ["111m-muon"]
    assert replace(built["111m-muon"], matrices="adamw") == built["111m"]
    assert [name for name, run in built.items() if run.weights == "divided"] == ["3100m"]
    assert [name for name, run in built.items() if run.recompute] == ["3100m"]


@pytest.mark.parametrize("name", BEYOND)
def test_a_prior_beyond_the_paper_has_llamagens_shape(name):
    millions, width, depth, heads, hidden = BEYOND[name]
    net = PRIORS[name].build().transformer
    assert (net.width, net.depth, net.heads, net.hidden) == (width, depth, heads, hidden)
    shape = PriorConfig(transformer=net, codebook_size=16_384, grid=(16, 16), num_classes=1000)
    assert round(sum(parameter_census(shape).values()) / 1e6) == millions


@pytest.mark.parametrize("name", SIZES)
def test_a_prior_of_the_paper_has_its_shape_and_the_parameters_of_its_name(name):
    millions, width, depth, heads = SIZES[name]
    run = PRIORS[name].build()
    net = run.transformer
    assert (net.width, net.depth, net.heads, net.head_dim) == (width, depth, heads, 64)
    shape = PriorConfig(transformer=net, codebook_size=16_384, grid=(16, 16), num_classes=1000)
    found = sum(parameter_census(shape).values()) / 1e6
    assert round(found) == int(name.removesuffix("m"))
    assert found == pytest.approx(millions, rel=0.005)
    assert f"{name[:-1]}M parameters, {depth} layers (paper, " in PRIORS[name].summary


@pytest.mark.parametrize("name", [*SIZES, *BEYOND])
def test_a_prior_of_the_paper_is_trained_by_its_numbers(name):
    found = flat(dict_of(PRIORS[name].build()))
    wanted = {
        "optim.lr": 3e-3, "optim.warmup_from": 3e-4, "optim.warmup_steps": 5_000,
        "optim.schedule": "cosine", "optim.betas": [0.9, 0.95],
        "loop.batch": 256, "loop.steps": 375_000, "class_dropout": 0.1,
        # LlamaGen's, where the paper is silent
        "optim.weight_decay": 0.05, "optim.clip": 1.0, "transformer.dropout": 0.1,
        "token_dropout": 0.1, "loop.precision": "bf16", "loop.ema": 0.0,
    }  # fmt: skip
    assert {name: found[name] for name in wanted} == wanted


def test_the_demos_prior_has_the_parameters_it_claims():
    run, tokenizer = PRIORS["demo"].build(), TOKENIZERS["causal-demo"].build()
    side = tokenizer.view.size // tokenizer.model.codec.factor
    shape = PriorConfig(
        transformer=run.transformer,
        codebook_size=tokenizer.model.quantizer.codebook_size,
        grid=(side, side),
        num_classes=10,
    )
    (claim,) = re.findall(r"(\d\.\d)M parameters", PRIORS["demo"].summary)
    assert sum(parameter_census(shape).values()) / 1e6 == pytest.approx(float(claim), abs=0.05)
