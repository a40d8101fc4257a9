"""What a code tells of its place: known of codes that live in one place, and of dealt tokens."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from cartok.core.errors import UserError
from cartok.metrics.code_maps import most_and_spread, placement_of
from cartok.metrics.codes import per_position_entropy, unigram_bits


def tokens_of(seed, pictures=40, rows=2, columns=3, size=5):
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(size, (pictures, rows, columns), generator=generator)


def test_a_code_that_lives_in_one_corner_tells_all_of_its_place():
    tokens = torch.zeros(10, 2, 3, dtype=torch.long)
    tokens[:, 1, 0] = 7  # the lower left
    found = placement_of(tokens, 9)
    assert found.codes.tolist() == [0, 7]
    assert found.uses.tolist() == [50, 10]
    assert found.counts[1].tolist() == [[0, 0, 0], [10, 0, 0]]
    assert found.shares[1].tolist() == [[0, 0, 0], [1, 0, 0]]
    assert found.bits()[1].item() == pytest.approx(math.log2(6))
    assert found.bits(corrected=True)[1].item() == pytest.approx(math.log2(6))
    assert found.bits()[0].item() == pytest.approx(math.log2(6 / 5))


def test_codes_used_everywhere_alike_tell_nothing():
    tokens = torch.arange(4)[:, None, None].expand(4, 3, 2)
    assert placement_of(tokens, 4).bits().tolist() == pytest.approx([0.0] * 4)


def test_tokens_dealt_out_at_random_tell_nothing_once_corrected():
    """A code of about 240 uses seems to tell 0.2 bits of 64 places, and does not."""
    found = placement_of(tokens_of(0, pictures=120, rows=4, columns=16, size=32), 32)
    assert found.bits().mean() > 0.15
    assert found.bits(corrected=True).mean() < 0.05


@given(st.integers(0, 999), st.integers(1, 4), st.integers(1, 5))
def test_the_mean_by_use_is_what_code_and_place_tell_of_each_other(seed, rows, columns):
    """Mutual information, computed from the other side: H(code) - H(code | place)."""
    tokens = tokens_of(seed, 12, rows, columns)
    found = placement_of(tokens, 5)
    mean = (found.bits() * found.uses).sum() / tokens.numel()
    told = unigram_bits(tokens, 5) - per_position_entropy(tokens, 5).mean()
    assert mean.item() == pytest.approx(told.item(), abs=1e-9)


@given(st.integers(0, 999), st.integers(0, 30))
def test_codes_count_from_so_many_uses_on(seed, least):
    tokens = tokens_of(seed, 10)
    some, everything = placement_of(tokens, 5, least), placement_of(tokens, 5)
    kept = everything.uses >= least
    assert torch.equal(some.codes, everything.codes[kept])
    assert torch.equal(some.counts, everything.counts[kept])
    assert everything.uses.sum() == tokens.numel()


def test_turning_the_grid_turns_the_maps():
    tokens = tokens_of(3)
    here, turned = (placement_of(grid, 5).counts for grid in (tokens, tokens.mT))
    assert here.shape[1:] == (2, 3)
    assert torch.equal(here, turned.mT)


def test_tokens_of_another_codebook_are_refused():
    with pytest.raises(UserError, match="codebook size"):
        placement_of(tokens_of(0), 3)


def test_the_most_bound_come_first_and_then_some_evenly_over_the_rest():
    bits = torch.tensor([0.0, 9.0, 1.0, 8.0, 2.0, 7.0, 3.0, 6.0, 4.0, 5.0])
    assert bits[most_and_spread(bits, 6)].tolist() == [9, 8, 7, 6, 3, 0]
    assert bits[most_and_spread(bits, 5)].tolist() == [9, 8, 7, 6, 0]


@given(st.integers(1, 30), st.integers(1, 12))
def test_no_code_is_chosen_twice(codes, most):
    chosen = most_and_spread(torch.rand(codes, generator=torch.Generator().manual_seed(0)), most)
    assert len(chosen) == len(set(chosen.tolist())) == min(codes, most)
