import math
from dataclasses import replace

import pytest
import torch

from cartok.core.errors import UserError
from cartok.core.job import EvaluationConfig
from cartok.core.loop import fit
from cartok.core.parallel import World
from cartok.core.run import Run, read_log
from cartok.data.images import open_splits
from cartok.lab import evaluations
from cartok.lab.evaluations import code_use, tokenizer_evaluations
from cartok.lab.probe import FrozenLatents, ProbeConfig, frozen_latents, probe, survival
from cartok.layers import TransformerConfig
from cartok.recipes.tokenizer import causal_toy
from cartok.tokenizer.losses import watched_of
from cartok.tokenizer.model import Tokenizer
from cartok.tokenizer.quantize.binary import BSQConfig, LFQConfig
from cartok.tokenizer.quantize.fsq import FSQConfig
from cartok.tokenizer.quantize.residual import ResidualVQConfig
from cartok.tokenizer.quantize.vq import VQConfig
from cartok.tokenizer.train import TokenizerJob

CPU = torch.device("cpu")
SMALL = TransformerConfig(width=32, depth=1, heads=2, hidden_multiple=32)
BUDGET = replace(ProbeConfig(), steps=150, batch=32, transformer=SMALL)


def walk(num, correlation, seed):
    """Latents whose every cell is ``correlation`` times the one before, plus noise; variance 1."""
    generator = torch.Generator().manual_seed(seed)
    noise = torch.randn(num, 16, 2, generator=generator)
    cells = [noise[:, 0]]
    for step in range(1, 16):
        fresh = (1 - correlation**2) ** 0.5 * noise[:, step]
        cells.append(correlation * cells[-1] + fresh)
    return torch.stack(cells, dim=2).view(num, 2, 4, 4)


def frozen(latents, codes=None):
    tokens = torch.zeros(len(latents), *latents.shape[2:], dtype=torch.long)
    return FrozenLatents(latents, latents if codes is None else codes, tokens)


# ------------------------------------------------------------------ the space of the codes


@pytest.mark.parametrize("dimension", [1, 3, 5])
def test_codes_that_vary_alike_in_some_directions_have_so_many_dimensions(dimension):
    generator = torch.Generator().manual_seed(0)
    plane, _ = torch.linalg.qr(torch.randn(6, 6, generator=generator))
    plane = plane[:, :dimension]
    codes = torch.randn(64, 8, 8, dimension, generator=generator) @ plane.T + 3.0
    found = frozen(torch.zeros(64, 6, 8, 8), codes.movedim(-1, 1)).code_dimension
    assert found == pytest.approx(dimension, rel=0.01)


def test_a_direction_that_varies_little_counts_little():
    generator = torch.Generator().manual_seed(0)
    codes = torch.randn(64, 2, 8, 8, generator=generator) * torch.tensor([1.0, 0.1])[:, None, None]
    found = frozen(torch.zeros(64, 2, 8, 8), codes).code_dimension
    assert found == pytest.approx((1 + 0.01) ** 2 / (1 + 0.01**2), rel=0.01)


def test_codes_that_are_not_finite_have_none_that_could_be_told():
    codes = torch.full((2, 3, 2, 2), float("nan"))
    assert math.isnan(frozen(torch.zeros(2, 3, 2, 2), codes).code_dimension)


def test_one_code_has_no_dimension():
    assert frozen(torch.zeros(2, 3, 2, 2), torch.ones(2, 3, 2, 2)).code_dimension == 0


# ------------------------------------------------------------------ the two nets


@pytest.mark.parametrize("correlation", [0.0, 0.9])
def test_r2_is_the_squared_correlation_of_neighbours(correlation):
    train, held = walk(256, correlation, 0), walk(128, correlation, 1)
    result = probe(frozen(train), frozen(held), BUDGET, CPU)
    assert result.r2_latents == pytest.approx(correlation**2, abs=0.1)


def test_codes_that_say_nothing_predict_nothing_whatever_the_latents_say():
    train, held = walk(256, 0.9, 0), walk(128, 0.9, 1)
    blank = [frozen(latents, torch.zeros_like(latents)) for latents in (train, held)]
    result = probe(*blank, BUDGET, CPU)
    assert result.r2_latents > 0.6
    assert abs(result.r2_codes) < 0.05


def test_shrinking_latents_lowers_the_error_but_not_r2():
    train, held = walk(256, 0.9, 0), walk(128, 0.9, 1)
    short = replace(BUDGET, steps=40)
    plain = probe(frozen(train), frozen(held), short, CPU)
    small = probe(frozen(0.1 * train), frozen(0.1 * held), short, CPU)
    assert small.r2_latents == pytest.approx(plain.r2_latents, abs=1e-3)
    assert small.next_latent_mse == pytest.approx(0.01 * plain.next_latent_mse, rel=1e-2)


def test_latents_that_are_all_alike_have_no_variance_to_predict():
    same = frozen(torch.ones(64, 2, 4, 4))
    result = probe(same, same, replace(BUDGET, steps=2), CPU)
    assert (result.r2_latents, result.r2_codes) == (0.0, 0.0)


def test_the_probe_is_a_function_of_its_seed_and_leaves_the_global_generator_alone():
    train, held = walk(128, 0.9, 0), walk(64, 0.9, 1)
    short = replace(BUDGET, steps=5)
    before = torch.get_rng_state()
    first, second = (probe(frozen(train), frozen(held), short, CPU) for _ in range(2))
    assert first == second
    assert torch.equal(before, torch.get_rng_state())


def test_a_clip_of_zero_clips_nothing():
    train, held = walk(128, 0.9, 0), walk(64, 0.9, 1)
    found = [
        probe(frozen(train), frozen(held),
              replace(BUDGET, steps=5, optim=replace(BUDGET.optim, clip=clip)), CPU)
        for clip in (0.0, 1e9)
    ]  # fmt: skip
    assert found[0] == found[1]


def test_a_probe_that_would_draw_from_the_global_generator_is_refused():
    with pytest.raises(ValueError, match="dropout must be 0"):
        replace(BUDGET, transformer=replace(SMALL, dropout=0.1))


def test_the_probe_learns_where_gradients_are_off():
    train, held = walk(128, 0.9, 0), walk(64, 0.9, 1)
    short = replace(BUDGET, steps=30)
    with torch.no_grad():
        off = probe(frozen(train), frozen(held), short, CPU)
    assert off == probe(frozen(train), frozen(held), short, CPU)
    assert off.r2_latents > 0.1


# ------------------------------------------------------------------ what is frozen

QUANTIZERS = {
    "vq": VQConfig(codebook_size=16, dim=4),
    "vq-free": VQConfig(codebook_size=16, dim=4, normalise=False),
    "fsq": FSQConfig(levels=(4, 4)),
    "lfq": LFQConfig(bits=4),
    "bsq": BSQConfig(bits=4),
    "residual": ResidualVQConfig(levels=2, codebook_size=4, dim=4),
}


def tokenizer_with(quantizer):
    return Tokenizer(replace(causal_toy().model, quantizer=quantizer)).eval()


@pytest.mark.parametrize("quantizer", QUANTIZERS.values(), ids=list(QUANTIZERS))
def test_any_quantizer_can_be_probed(quantizer):
    tokenizer, image = tokenizer_with(quantizer), torch.rand(8, 3, 16, 16) * 2 - 1
    found = frozen_latents(tokenizer, image.split(3))
    size = tokenizer.encode(image).quantized.error.item()
    assert found.quantisation_mse == pytest.approx(size, rel=1e-4)
    assert torch.equal(found.tokens, tokenizer.tokens_of(image))
    assert 0 <= survival(tokenizer, found.tokens) <= 1
    result = probe(found, found, replace(BUDGET, steps=2, batch=4), CPU)
    assert result.next_latent_mse > 0


@pytest.mark.parametrize("quantizer", QUANTIZERS.values(), ids=list(QUANTIZERS))
def test_codes_are_counted_as_the_training_counts_them(quantizer):
    tokenizer, image = tokenizer_with(quantizer), torch.rand(8, 3, 16, 16) * 2 - 1
    encoded = tokenizer.encode(image)
    batch, found = watched_of(encoded), code_use(encoded.quantized.tokens, tokenizer)
    assert found["code_usage"] == pytest.approx(batch["batch_usage"].item())
    assert found["code_perplexity"] == pytest.approx(batch["batch_perplexity"].item(), rel=1e-5)
    assert found == code_use(encoded.quantized.tokens.flatten(1), tokenizer)  # in raster order


def test_a_level_of_residual_codes_that_has_collapsed_shows():
    tokenizer = tokenizer_with(QUANTIZERS["residual"])
    tokens = torch.arange(4).repeat(2, 4, 2)
    assert code_use(tokens, tokenizer)["code_usage"] == 0.5  # each level sees but two of its four
    tokens[..., 0::2] = torch.arange(4)
    tokens[..., 1::2] = 3
    found = code_use(tokens, tokenizer)
    assert found["code_usage"] == 5 / 8
    assert found["code_perplexity"] == pytest.approx(4)  # half the tokens are one code


class Painter(Tokenizer):
    """Paints each token as one grey level, and reads them back; ``blind`` sees black."""

    blind = False

    def image_of(self, tokens):
        grey = tokens / 31 * 2 - 1
        return grey[:, None].repeat_interleave(4, 2).repeat_interleave(4, 3).expand(-1, 3, -1, -1)

    def tokens_of(self, images):
        tokens = ((images[:, 0, ::4, ::4] + 1) / 2 * 31).round().long()
        return torch.zeros_like(tokens) if self.blind else tokens


def test_survival_is_the_share_of_tokens_that_a_picture_keeps():
    painter = Painter(causal_toy().model)
    tokens = torch.arange(32).view(2, 4, 4)
    assert survival(painter, tokens) == 1
    painter.blind = True
    assert survival(painter, tokens) == pytest.approx(1 / 32)


# ------------------------------------------------------------------ as an evaluation

KEYS = {"r2_latents", "r2_codes", "next_latent_mse", "quantisation_mse", "latent_variance",
        "survival"}  # fmt: skip


@pytest.fixture(autouse=True)
def _short(monkeypatch):
    monkeypatch.setattr(evaluations, "ProbeConfig", lambda: replace(BUDGET, steps=3))


@pytest.fixture
def job_and_held(small_pictures):
    """A function that makes a job, with the held-out pictures of its evaluations."""
    splits = open_splits(small_pictures, size=16)

    def make(*names):
        wanted = tuple(EvaluationConfig(name=name, every=4, num=40) for name in names)
        config = replace(causal_toy(), data=str(small_pictures), evaluations=wanted)
        return TokenizerJob(config, splits["train"], World()), splits["val"]

    return make


def trained(job, held, folder):
    run = Run.open(folder, job.config, kind="tokenizer")
    loop = replace(job.config.loop, steps=8)
    outcome = fit(job, loop, run, evaluations=tokenizer_evaluations(job, held, run))
    logged = [line for line in read_log(folder) if "codec/pixel_l2" in line]
    curves = [{k: v for k, v in line.items() if not k.startswith("speed")} for line in logged]
    return curves, job.tokenizer.digest, outcome.values


def test_a_training_with_the_probe_is_the_training_without_it(job_and_held, tmp_path):
    with_probe = trained(*job_and_held("probe"), tmp_path / "with")
    without = trained(*job_and_held(), tmp_path / "without")
    assert with_probe[:2] == without[:2]
    assert set(with_probe[2]) == {f"probe/{key}" for key in KEYS}
    assert without[2] == {}


def test_the_probe_touches_neither_gradients_nor_modes_nor_generators(job_and_held, tmp_path):
    job, held = job_and_held("probe")
    run = Run.open(tmp_path / "run", job.config, kind="tokenizer")
    (evaluation,) = tokenizer_evaluations(job, held, run)
    parameters = [p for module in job.modules.values() for p in module.parameters()]
    parts = [part for module in job.modules.values() for part in module.modules()]
    for parameter in parameters:
        parameter.grad = torch.ones_like(parameter)
    modes = [part.training for part in parts], [p.requires_grad for p in parameters]
    before, digest = torch.get_rng_state(), job.tokenizer.digest
    with torch.no_grad():
        first, second = evaluation.measure(1), evaluation.measure(2)
    assert first == second
    assert set(first) == KEYS
    assert job.tokenizer.digest == digest
    assert torch.equal(before, torch.get_rng_state())
    assert modes == ([part.training for part in parts], [p.requires_grad for p in parameters])
    assert all(bool((p.grad == 1).all()) for p in parameters)


def test_the_reconstruction_tells_how_many_pictures_there_were(job_and_held, tmp_path):
    job, held = job_and_held("reconstruction")
    run = Run.open(tmp_path / "run", job.config, kind="tokenizer")
    (evaluation,) = tokenizer_evaluations(job, held, run)
    assert job.config.evaluations[0].num == 40
    assert evaluation.measure(1)["num_pictures"] == len(held) == 30


def test_a_value_that_should_be_high_keeps_no_best_checkpoint(job_and_held, tmp_path):
    job, held = job_and_held("reconstruction", "probe")
    run = Run.open(tmp_path / "run", job.config, kind="tokenizer")

    def keep_by(best):
        job.config = replace(job.config, loop=replace(job.config.loop, best=best))
        return tokenizer_evaluations(job, held, run)

    for best in ("reconstruction/psnr_db", "probe/r2_codes"):
        with pytest.raises(UserError, match=f"'{best}' should be high; take"):
            keep_by(best)
    assert len(keep_by("probe/next_latent_mse")) == 2


def test_the_probe_learns_from_more_pictures_than_it_is_scored_on(job_and_held, tmp_path):
    job, held = job_and_held("probe")
    run = Run.open(tmp_path / "run", job.config, kind="tokenizer")
    (evaluation,) = tokenizer_evaluations(job, held, run)
    seen = []
    with pytest.MonkeyPatch.context() as patch:
        kept = evaluations.all_images
        patch.setattr(evaluations, "all_images", lambda p, *a: seen.append(p) or kept(p, *a))
        evaluation.measure(1)
    assert job.config.evaluations[0].num == 40
    assert [len(pictures) for pictures in seen] == [30, 60]
    sides = [evaluations.spread(side, 60).digest for side in (held, job.pictures)]
    assert [pictures.digest for pictures in seen] == sides
