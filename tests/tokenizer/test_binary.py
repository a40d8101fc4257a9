import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from cartok.core.config import ConfigError
from cartok.tokenizer.quantize.binary import (
    BinaryQuantizer,
    BSQConfig,
    LFQConfig,
    batch_entropy,
    sample_entropy,
)

BOTH = pytest.mark.parametrize("kind", [LFQConfig, BSQConfig])


def some_latents(dim: int, batch=4, size=1.0) -> torch.Tensor:
    return size * torch.randn(batch, dim, 3, 3, generator=torch.Generator().manual_seed(0))


def all_odds(bits: int, cells=40, seed=0, size=1.0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return size * torch.randn(cells, bits, generator=generator)


@pytest.mark.parametrize("bits", [1, 3, 14, 24])
@BOTH
def test_a_code_is_the_signs_and_a_token_their_bits(kind, bits):
    net = BinaryQuantizer(kind(bits=bits))
    latents = some_latents(bits)
    quantized = net(latents)
    length = 1.0 if kind is BSQConfig else math.sqrt(bits)
    torch.testing.assert_close(quantized.codes, latents.sign() * length / math.sqrt(bits))
    weights = torch.tensor([2**bit for bit in range(bits)]).view(-1, 1, 1)
    assert torch.equal(quantized.tokens, ((latents > 0) * weights).sum(1))
    assert net.codebook_size == 2**bits


@BOTH
def test_the_commitment_is_the_distance_to_the_signs(kind):
    net, latents = BinaryQuantizer(kind(bits=6)), some_latents(6).requires_grad_()
    quantized = net(latents)
    gap = quantized.latents - net.codes_of(quantized.tokens)
    torch.testing.assert_close(quantized.losses["commitment"], gap.square().mean())
    (found,) = torch.autograd.grad(quantized.losses["commitment"], quantized.latents)
    torch.testing.assert_close(found, 2 * gap.detach() / gap.numel())


@settings(max_examples=30)
@given(
    bits=st.integers(1, 9),
    cells=st.integers(1, 40),
    size=st.floats(0.01, 30),
    seed=st.integers(0, 99),
)
def test_entropies_are_those_of_the_distributions_over_all_codes(bits, cells, size, seed):
    odds = all_odds(bits, cells, seed, size)
    patterns = torch.cartesian_prod(*[torch.tensor([-1.0, 1.0])] * bits).reshape(-1, bits).double()
    # Log-odds of a bit are twice its weight in the softmax over sign patterns.
    table = (odds.double() / 2 @ patterns.T).softmax(1)

    def entropy(shares):
        return -torch.xlogy(shares, shares).sum(-1).mean().item()

    assert sample_entropy(odds).item() == pytest.approx(entropy(table), rel=1e-4, abs=1e-4)
    assert batch_entropy(odds).item() == pytest.approx(entropy(table.mean(0)), rel=1e-4, abs=1e-4)


@BOTH
def test_the_entropy_loss_weighs_the_softmax_of_similarities(kind):
    net = BinaryQuantizer(kind(bits=4, gamma=0.5, temperature=0.3))
    quantized = net(some_latents(4))
    codes = net.codes_of(torch.arange(16).view(1, 1, -1))[0, :, 0]
    rows = quantized.latents.movedim(1, -1).flatten(0, 2)
    table = (2 * rows @ codes / 0.3).softmax(1).double()
    sample = -torch.xlogy(table, table).sum(1).mean()
    shares = table.mean(0)
    wanted = sample + 0.5 * torch.xlogy(shares, shares).sum()
    assert quantized.losses["entropy"].item() == pytest.approx(wanted.item(), rel=1e-4)


@BOTH
def test_descending_the_entropy_loss_decides_latents_and_spreads_them(kind):
    net = BinaryQuantizer(kind(bits=4, temperature=0.5))
    generator = torch.Generator().manual_seed(0)
    latents = (0.3 + 0.1 * torch.randn(32, 4, 2, 2, generator=generator)).requires_grad_()
    used = [net(latents).tokens.unique().numel()]
    for _ in range(200):
        (gradient,) = torch.autograd.grad(net(latents).losses["entropy"], latents)
        with torch.no_grad():
            latents -= 2.0 * gradient
    used.append(net(latents).tokens.unique().numel())
    assert used[0] < used[1]
    assert used[1] >= 15


@pytest.mark.parametrize("size", [0.0, 1e-3, 1e3])
def test_entropies_have_finite_gradients_for_decided_and_undecided_bits(size):
    odds = all_odds(6, size=size).requires_grad_()
    (sample_entropy(odds) - batch_entropy(odds)).backward()
    assert odds.grad.isfinite().all()


def test_a_quarter_of_a_million_codes_need_no_table_of_latents_by_codes():
    odds = all_odds(18, cells=64).requires_grad_()
    with torch.autograd.graph.saved_tensors_hooks(
        lambda x: seen.append(x.numel()) or x, lambda x: x
    ):
        seen: list[int] = []
        batch_entropy(odds)
    assert max(seen) <= 2**18  # the codes alone; with the latents they would be 64 times as many


@BOTH
def test_it_holds_nothing_to_store(kind):
    net = BinaryQuantizer(kind())
    assert net.codebook_size == 16_384
    assert not net.state_dict()


@pytest.mark.parametrize("change", [{"bits": 0}, {"bits": 25}, {"gamma": -1}, {"temperature": 0}])
@BOTH
def test_impossible_bits_are_refused_in_one_line(kind, change):
    with pytest.raises(ConfigError, match="bits are 1 to 24") as caught:
        kind(**change)
    assert "\n" not in str(caught.value)
