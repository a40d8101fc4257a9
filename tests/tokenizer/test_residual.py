import itertools

import pytest
import torch

from cartok.core.config import ConfigError
from cartok.tokenizer.quantize import Statistics, rows
from cartok.tokenizer.quantize.residual import ResidualQuantizer, ResidualVQConfig


def quantizer(levels=2, codebook_size=8, dim=4, seed=0, size=1.0, **changes) -> ResidualQuantizer:
    """With tables of random codes, each level half as large as the one before."""
    torch.manual_seed(seed)
    changes = {"revive_after": 0} | changes
    net = ResidualQuantizer(
        ResidualVQConfig(levels=levels, codebook_size=codebook_size, dim=dim, **changes)
    )
    halves = size * 0.5 ** torch.arange(levels).view(-1, 1, 1)
    with torch.no_grad():
        net.tables.copy_(halves * torch.randn(net.tables.shape))
    return net


def some_latents(dim=4, batch=3, rows=2, cols=5, seed=0) -> torch.Tensor:
    return torch.randn(batch, dim, rows, cols, generator=torch.Generator().manual_seed(seed))


def test_a_cells_tokens_are_neighbours_from_coarse_to_fine():
    net = quantizer(levels=3)
    tokens = net.tokens_of(some_latents())
    assert tokens.shape == (3, 2, 15)
    codes = net.codes_of(tokens)
    for picture, row, col in ((0, 0, 0), (2, 1, 4), (1, 0, 3)):
        ids = tokens[picture, row, 3 * col : 3 * col + 3]
        wanted = sum(net.tables[level, number] for level, number in enumerate(ids))
        torch.testing.assert_close(codes[picture, :, row, col], wanted)


@pytest.mark.parametrize("levels", [1, 2, 3])
def test_a_full_beam_finds_the_nearest_of_all_sums(levels):
    net = quantizer(levels=levels, codebook_size=5, beam=5 ** (levels - 1))
    latents = some_latents()
    books = net.tables.detach().double()
    sums = torch.stack([sum(codes) for codes in itertools.product(*books)])
    least = torch.cdist(latents.double().movedim(1, -1).reshape(-1, 4), sums).min(1).values
    found = (latents - net.codes_of(net.tokens_of(latents))).detach().norm(dim=1).flatten()
    torch.testing.assert_close(found.double(), least, rtol=1e-4, atol=1e-5)


def test_a_wider_beam_never_ends_further_away_here_and_the_default_is_full():
    latents, errors = some_latents(batch=40), []
    for beam in (1, 2, 4, 8, 16):
        errors.append(quantizer(beam=beam)(latents).error.item())
    assert errors == sorted(errors, reverse=True)
    assert errors[0] > 1.05 * errors[3]
    assert errors[3] == errors[4]  # 8 codes of the first level are all there are
    config = ResidualVQConfig()
    assert config.beam >= config.codebook_size ** (config.levels - 1)


def test_a_narrow_beam_gives_some_codes_other_tokens():
    tokens = torch.cartesian_prod(*[torch.arange(8)] * 2).reshape(1, 1, -1)
    full, narrow = quantizer(), quantizer(beam=1)
    assert torch.equal(full.tokens_of(full.codes_of(tokens)), tokens)
    assert not torch.equal(narrow.tokens_of(narrow.codes_of(tokens)), tokens)


def test_tokens_do_not_depend_on_the_rows_searched_at_once(monkeypatch):
    net, latents = quantizer(levels=3, beam=64), some_latents()
    together = net.tokens_of(latents)
    monkeypatch.setattr(rows, "_SCORES_AT_ONCE", 7 * 64 * 8)
    assert torch.equal(net.tokens_of(latents), together)


def test_the_codebook_loss_is_the_mean_over_levels_of_partial_sums():
    net, latents = quantizer(levels=3), some_latents().requires_grad_()
    quantized = net(latents)
    partial, distances = 0.0, []
    for level in range(3):
        ids = quantized.tokens[..., level::3]
        partial = partial + net.tables[level][ids].movedim(-1, 1)
        distances.append((partial - latents).square().mean())
    torch.testing.assert_close(quantized.losses["codebook"], sum(distances) / 3)
    torch.testing.assert_close(quantized.losses["commitment"], distances[-1])
    to_latents = torch.autograd.grad(quantized.losses["codebook"], latents, allow_unused=True)
    assert to_latents == (None,)


def test_descending_the_losses_uses_both_levels():
    net, latents = quantizer(size=0.05, revive_after=5), some_latents(batch=30)
    errors = []
    for step in range(80):
        quantized = net(latents)
        (gradient,) = torch.autograd.grad(quantized.losses["codebook"], net.tables)
        with torch.no_grad():
            net.tables -= 4.0 * gradient
        net.update(quantized.statistics, step)
        errors.append(quantized.error.item())
    assert errors[-1] < 0.3 * errors[0]
    assert (net(latents).statistics.counts > 0).all()


def test_statistics_hold_what_each_level_had_to_explain():
    net, latents = quantizer(), some_latents()
    quantized = net(latents)
    candidates = quantized.statistics.candidates.unflatten(0, (3, 2, 5, 2))
    first = net.tables[0][quantized.tokens[..., 0::2]]
    wanted = latents.movedim(1, -1)
    torch.testing.assert_close(candidates[..., 0, :], wanted)
    torch.testing.assert_close(candidates[..., 1, :], (wanted - first).detach())
    coarse, fine = quantized.statistics.counts.view(2, 8)
    assert torch.equal(coarse.long(), quantized.tokens[..., 0::2].flatten().bincount(minlength=8))
    assert torch.equal(fine.long(), quantized.tokens[..., 1::2].flatten().bincount(minlength=8))


def test_an_unused_code_is_born_on_what_its_own_level_had_to_explain():
    net = quantizer(codebook_size=3, revive_after=1)
    before = net.tables.detach().clone()
    candidates = torch.randn(20, 4, generator=torch.Generator().manual_seed(0))
    net.update(Statistics(torch.tensor([1.0, 1, 0, 0, 1, 1]), candidates), 0)
    assert torch.equal(net.tables[0, :2], before[0, :2])
    assert torch.equal(net.tables[1, 1:], before[1, 1:])
    assert (candidates[0::2] == net.tables[0, 2]).all(1).any()
    assert (candidates[1::2] == net.tables[1, 0]).all(1).any()


@pytest.mark.parametrize(
    "change", [{"levels": 0}, {"codebook_size": 1}, {"beam": 0}, {"dim": 0}, {"revive_after": -1}]
)
def test_impossible_sums_are_refused_in_one_line(change):
    with pytest.raises(ConfigError, match=f"{next(iter(change))}") as caught:
        ResidualVQConfig(**change)
    assert "\n" not in str(caught.value)
