"""One tokenizer serves every size that its factor divides, square or not, trained on or not."""

from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from cartok.core.errors import UserError
from cartok.core.loop import fit
from cartok.core.parallel import World
from cartok.core.run import Run, read_log
from cartok.data.views import View
from cartok.recipes.tokenizer import causal_toy
from cartok.tokenizer.causal import CausalPredictor
from cartok.tokenizer.codec import CodecConfig
from cartok.tokenizer.extract import extract
from cartok.tokenizer.model import Tokenizer, TokenizerConfig
from cartok.tokenizer.quantize.fsq import FSQConfig
from cartok.tokenizer.quantize.residual import ResidualVQConfig
from cartok.tokenizer.quantize.vq import VQConfig
from cartok.tokenizer.train import TokenizerJob

QUANTIZERS = {
    "vq": VQConfig(codebook_size=32, dim=4),
    "fsq": FSQConfig(levels=(5, 4, 3)),
    "residual": ResidualVQConfig(codebook_size=8, dim=4),
}


def tokenizer_of(quantizer="vq", stem=2, attention=True) -> Tokenizer:
    torch.manual_seed(0)
    codec = CodecConfig(
        channels=8, multipliers=(1, 2), encoder_blocks=1, decoder_blocks=1, latent_channels=12,
        groups=4, stem=stem, attention=attention,
    )  # fmt: skip
    return Tokenizer(TokenizerConfig(codec=codec, quantizer=QUANTIZERS[quantizer])).eval()


TOKENIZERS = {(name, stem): tokenizer_of(name, stem) for name in QUANTIZERS for stem in (1, 2, 4)}


def pictures_of(num: int, height: int, width: int, seed=1) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.rand(num, 3, height, width, generator=generator) * 2 - 1


@settings(max_examples=30)
@given(st.sampled_from(sorted(TOKENIZERS)), st.integers(1, 9), st.integers(1, 9))
def test_a_picture_of_any_grid_becomes_that_grid_and_a_picture_again(which, rows, cols):
    tokenizer = TOKENIZERS[which]
    images = pictures_of(2, rows * tokenizer.factor, cols * tokenizer.factor)
    tokens = tokenizer.tokens_of(images)
    per_cell = tokenizer.quantizer.tokens_per_cell
    assert tokens.shape == (2, rows, cols * per_cell)
    assert tuple(tokens.shape[1:]) == tokenizer.grid_of(*images.shape[-2:])
    back = tokenizer.image_of(tokens)
    assert back.shape == images.shape
    assert back.isfinite().all()
    assert back.abs().max() <= 1


@settings(max_examples=30)
@given(st.sampled_from(sorted(TOKENIZERS)), st.integers(1, 40), st.integers(1, 40))
def test_every_other_size_is_refused_in_one_line(which, height, width):
    tokenizer = TOKENIZERS[which]
    if height % tokenizer.factor == 0 and width % tokenizer.factor == 0:
        return
    with pytest.raises(UserError, match=f"but it is {width}x{height}; crop or resize") as refused:
        tokenizer.tokens_of(pictures_of(1, height, width))
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize(("height", "width"), [(16, 16), (8, 40), (48, 32)])
@pytest.mark.parametrize("quantizer", QUANTIZERS)
def test_tokens_of_a_picture_do_not_depend_on_its_neighbours(quantizer, height, width):
    tokenizer, images = TOKENIZERS[quantizer, 2], pictures_of(5, height, width)
    whole = tokenizer.tokens_of(images)
    others = pictures_of(5, height, width, seed=2)
    for index in range(5):
        company = others.clone()
        company[2] = images[index]
        assert torch.equal(tokenizer.tokens_of(company)[2], whole[index])
        assert torch.equal(tokenizer.tokens_of(images[index : index + 1])[0], whole[index])


def test_attention_takes_the_fused_path_on_large_grids_with_the_same_answer(monkeypatch):
    """Above 1024 cells torch's own attention runs; the border must not show."""
    from cartok.tokenizer import blocks

    tokenizer = tokenizer_of().double()
    images = pictures_of(1, 32, 40).double()
    plain = tokenizer.encoder(images)
    monkeypatch.setattr(blocks, "_PLAIN_CELLS", 1)
    torch.testing.assert_close(tokenizer.encoder(images), plain, rtol=0, atol=1e-12)


def test_without_attention_a_wider_picture_starts_with_the_tokens_of_a_narrow_one():
    """What the codec makes of a place does not depend on the size, but near the new border.

    Its norms do, so they are taken out.
    """
    tokenizer = tokenizer_of(attention=False)
    for part in tokenizer.modules():
        if type(part).__name__ == "NormSiLU":
            part.forward = lambda x, bias=None: torch.nn.functional.silu(x)
    wide = pictures_of(1, 16, 96)
    narrow = wide[..., :64].contiguous()
    ours, theirs = (tokenizer.project_in(tokenizer.encoder(some)) for some in (wide, narrow))
    torch.testing.assert_close(ours[..., :10], theirs[..., :10], rtol=0, atol=1e-5)
    assert not torch.allclose(ours[..., 15], theirs[..., 15], rtol=0, atol=1e-5)


# ------------------------------------------------------------------ the regulariser


@pytest.mark.parametrize("start", ["skip", "learned"])
@pytest.mark.parametrize("order", ["raster", "spiral"])
def test_one_causal_predictor_follows_any_grid(start, order):
    torch.manual_seed(0)
    config = replace(causal_toy().causal, reads="latents", start=start, order=order)
    predictor = CausalPredictor(config, 4)
    for rows, cols in ((4, 4), (2, 9), (7, 3), (4, 4)):
        latents = torch.randn(2, 4, rows, cols, requires_grad=True)
        predicted = predictor(latents)
        assert predicted.shape == (2, rows * cols - (start == "skip"), 4)
        middle = predicted.shape[1] // 2
        (felt,) = torch.autograd.grad(predicted[:, middle].sum(), latents)
        reads = predictor.sequence_of(felt).abs().sum(-1)[0] > 0  # by place in the order
        last = middle + (start == "skip")  # the cell that is predicted here
        assert reads[:last].all()
        assert not reads[last:].any()


def test_a_predictor_tells_a_wide_grid_from_a_tall_one_of_as_many_cells():
    torch.manual_seed(0)
    predictor = CausalPredictor(replace(causal_toy().causal, reads="latents"), 4)
    with torch.no_grad():
        for weight in predictor.parameters():
            weight.add_(0.2 * torch.randn_like(weight))
    latents = torch.randn(1, 4, 2, 8)
    wide, tall = predictor(latents), predictor(latents.view(1, 4, 4, 4))
    assert not torch.allclose(wide, tall, atol=1e-4)


# ------------------------------------------------------------------ trained larger


def test_the_toy_trains_on_larger_pictures_and_reads_small_and_wide_ones(
    pictures, tmp_path, picture_folder
):
    run = causal_toy()
    run = replace(run, view=View(size=24), loop=replace(run.loop, steps=9), equal_compute=False)
    job = TokenizerJob(run, pictures, World())
    fit(job, run.loop, Run.open(tmp_path / "run", run, kind="tokenizer"))
    assert next(job.batches(0)).image.shape == (8, 3, 24, 24)
    assert read_log(tmp_path / "run")[-1]["codec/critic"] != 0
    assert job.flops.codec > TokenizerJob(causal_toy(), pictures, World()).flops.codec
    tokenizer = job.tokenizer.eval()
    for height, width in ((8, 8), (24, 24), (24, 64), (96, 96)):
        tokens = tokenizer.tokens_of(pictures_of(1, height, width))
        assert tokens.shape == (1, height // 4, width // 4)
    made = extract(
        tokenizer, {"train": pictures, "val": pictures}, tmp_path / "tokens", source="here",
        view=View(size=32), kind="center",
    )  # fmt: skip
    assert made.grid == (8, 8)
    assert made.tokenizer_digest == tokenizer.digest
