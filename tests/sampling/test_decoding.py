"""The sampler's GPU kernels give what the prior gives as it is written."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from cartok.layers import TransformerConfig
from cartok.prior.model import Prior, PriorConfig
from cartok.sampling.decoding import PlainDecoder, decoder_of, why_not_fused

SCRIPT = Path(__file__).with_name("interpreted_decoding.py")


@pytest.fixture(scope="module")
def answers():
    pytest.importorskip("triton")
    done = subprocess.run([sys.executable, SCRIPT], capture_output=True, text=True, check=True)
    return json.loads(done.stdout.splitlines()[-1])


@pytest.mark.parametrize(
    "rows",
    [
        "many rows",
        "few rows",
        "up to 16 rows",
        "heads that fill no power of two",
        "weights of others",
    ],
)
def test_kernels_give_the_priors_logits(answers, rows):
    assert answers[rows]["kernels"] < 3e-6


@pytest.mark.parametrize(
    "rows", ["many rows in float16", "few rows in float16", "up to 16 rows in float16"]
)
def test_kernels_round_no_more_than_the_prior_as_written(answers, rows):
    assert answers[rows]["kernels"] < 2 * answers[rows]["as written"] < 0.02


def test_kernels_draw_the_same_tokens(answers):
    assert len(answers["tokens"]) == 4
    for name, (differ, of) in answers["tokens"].items():
        assert (differ, of) == (0, 8 if name == "after prefixes" else 12), name


def test_a_draw_is_the_code_at_its_noise_whatever_guidance_and_temperature(answers):
    assert len(answers["draws"]["alike"]) == 20
    assert all(answers["draws"]["alike"])


def test_a_code_of_probability_nothing_is_not_drawn_even_at_the_ends(answers):
    assert set(answers["draws"]["possible"]) <= {1, 3, 4, 7}
    assert {1, 7} <= set(answers["draws"]["possible"])  # noise 0, and all but 1


def test_logits_that_are_no_numbers_are_told_with_a_class_or_without(answers):
    assert answers["draws"]["non-finite are told"] == [True] * 6


def test_what_is_kept_is_not_drawn(answers):
    assert answers["draws"]["kept"] == [5] * 6


def test_where_there_is_no_gpu_the_prior_runs_as_it_is_written():
    net = TransformerConfig(width=16, depth=1, heads=2, hidden_multiple=8)
    prior = Prior(PriorConfig(transformer=net, codebook_size=11, grid=(2, 3), num_classes=4)).eval()
    decoder = decoder_of(prior, 2)
    assert isinstance(decoder, PlainDecoder)
    with torch.inference_mode():
        x, at = prior.token_embedding(torch.tensor([1, 2])), torch.tensor([0])
        first, _ = decoder.logits(x, at), decoder.logits(x, at + 1)
        decoder.restart()
        assert torch.equal(decoder.logits(x, at), first)


@pytest.mark.parametrize(
    ("changed", "why"),
    [
        (lambda prior: prior, ""),
        (lambda prior: prior.bfloat16(), ""),
        (lambda prior: prior.half(), "all float32 or all bfloat16"),
        (lambda prior: prior.head.bfloat16(), "all float32 or all bfloat16"),
        (lambda prior: setattr(prior.head.weight, "data", torch.ones(16, 11).T), "row by row"),
    ],
)
def test_what_keeps_a_prior_from_the_kernels_is_said(changed, why):
    net = TransformerConfig(width=16, depth=1, heads=2, hidden_multiple=8)
    prior = Prior(PriorConfig(transformer=net, codebook_size=11, grid=(2, 3), num_classes=4))
    changed(prior)
    assert why in why_not_fused(prior)
    assert bool(why) == bool(why_not_fused(prior))
