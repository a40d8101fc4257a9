"""Codes drawn again, given the true ones before them: against closed forms."""

import pytest
import torch

from cartok.core.shapes import pixels_of
from cartok.data.token_writer import TokenWriter
from cartok.data.tokens import TokenManifest, open_tokens
from cartok.data.views import View
from cartok.lab import one_step
from cartok.lab.one_step import redrawn
from cartok.layers import TransformerConfig
from cartok.prior.model import Prior, PriorConfig
from cartok.recipes.tokenizer import causal_toy
from cartok.tokenizer.model import Tokenizer

CODES, GRID = 32, (4, 4)


@pytest.fixture
def tokenizer():
    torch.manual_seed(0)
    return Tokenizer(causal_toy().model).eval()


@pytest.fixture
def prior():
    torch.manual_seed(1)
    net = TransformerConfig(width=16, depth=1, heads=2, hidden_multiple=16)
    return Prior(PriorConfig(transformer=net, codebook_size=CODES, grid=GRID, num_classes=2)).eval()


@pytest.fixture
def shards(tmp_path):
    manifest = TokenManifest(
        tokenizer_digest="t", codebook_size=CODES, grid=GRID, classes=("a", "b"), source="none",
        picture_digests={"val": "d"}, view=View(size=16), kind="center",
    )  # fmt: skip
    writer = TokenWriter(tmp_path / "tokens", manifest)
    tokens = torch.randint(CODES, (300, 1, 16), generator=torch.Generator().manual_seed(0))
    writer.add("val", tokens, torch.arange(300) % 2)
    writer.finish()
    return open_tokens(tmp_path / "tokens", "val")


def test_a_prior_that_knows_keeps_every_code(prior, tokenizer, shards, monkeypatch):
    def certain(self, tokens, labels):
        return 100.0 * torch.nn.functional.one_hot(tokens, CODES)

    monkeypatch.setattr(Prior, "forward", certain)
    found = redrawn(prior, tokenizer, shards, 80, seed=0)
    assert found.share_kept == pytest.approx(1)
    assert torch.equal(found.drawn, found.true)


def test_a_prior_that_knows_nothing_keeps_one_code_in_as_many_as_there_are(
    prior, tokenizer, shards
):
    torch.nn.init.zeros_(prior.head.weight)
    found = redrawn(prior, tokenizer, shards, 300, seed=0)
    assert found.share_kept == pytest.approx(1 / CODES, abs=0.01)
    assert (found.drawn != found.true).flatten(1).any(1).all()
    error = (found.drawn.double() - found.true.double()).square().flatten(1).mean(1)
    assert found.psnr_db == pytest.approx((10 * (255**2 / error).log10()).mean().item())


def test_true_pictures_are_those_of_the_tokens_spread_over_the_set(prior, tokenizer, shards):
    found = redrawn(prior, tokenizer, shards, 4, seed=0)
    tokens = torch.stack([shards[row][0] for row in (0, 100, 199, 299)]).unflatten(1, GRID)
    with torch.inference_mode():
        assert torch.equal(found.true, pixels_of(tokenizer.image_of(tokens)))


def test_draws_follow_from_the_seed_and_not_from_the_batch(prior, tokenizer, shards, monkeypatch):
    whole = redrawn(prior, tokenizer, shards, 20, seed=5)
    monkeypatch.setattr(one_step, "BATCH", 7)
    parts = redrawn(prior, tokenizer, shards, 20, seed=5)
    assert (parts.drawn.int() - whole.drawn.int()).abs().max() <= 1  # a rounding border
    assert parts.share_kept == pytest.approx(whole.share_kept)
    assert parts.psnr_db == pytest.approx(whole.psnr_db, rel=1e-3)
    assert not torch.equal(redrawn(prior, tokenizer, shards, 20, seed=6).drawn, whole.drawn)
