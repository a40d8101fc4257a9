from dataclasses import replace

import pytest
import torch

from cartok.lab.probe import FrozenLatents, ProbeConfig, probe
from cartok.layers import TransformerConfig

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


def both(latents):
    return FrozenLatents(latents=latents, codes=latents)


@pytest.mark.parametrize("correlation", [0.0, 0.9])
def test_r2_is_the_squared_correlation_of_neighbours(correlation):
    train, held = walk(256, correlation, 0), walk(128, correlation, 1)
    result = probe(both(train), both(held), BUDGET, CPU)
    assert result.r2_latents == pytest.approx(correlation**2, abs=0.1)


def test_codes_that_say_nothing_predict_nothing_whatever_the_latents_say():
    train, held = walk(256, 0.9, 0), walk(128, 0.9, 1)
    blank = FrozenLatents(train, torch.zeros_like(train))
    result = probe(blank, FrozenLatents(held, torch.zeros_like(held)), BUDGET, CPU)
    assert result.r2_latents > 0.6
    assert abs(result.r2_codes) < 0.05


def test_shrinking_latents_lowers_the_error_but_not_r2():
    train, held = walk(256, 0.9, 0), walk(128, 0.9, 1)
    plain = probe(both(train), both(held), BUDGET, CPU)
    small = probe(both(0.1 * train), both(0.1 * held), BUDGET, CPU)
    assert small.r2_latents == pytest.approx(plain.r2_latents, abs=1e-3)
    assert small.next_latent_mse == pytest.approx(0.01 * plain.next_latent_mse, rel=1e-2)


def test_the_probe_is_a_function_of_its_seed_and_leaves_the_global_generator_alone():
    train, held = walk(128, 0.9, 0), walk(64, 0.9, 1)
    short = replace(BUDGET, steps=5)
    before = torch.get_rng_state()
    first, second = (probe(both(train), both(held), short, CPU) for _ in range(2))
    assert first == second
    assert torch.equal(before, torch.get_rng_state())


def test_the_size_of_the_quantisation_is_the_mean_squared_distance():
    latents = torch.zeros(2, 3, 4, 4)
    assert FrozenLatents(latents, latents + 0.5).commitment_mse == pytest.approx(0.25)
