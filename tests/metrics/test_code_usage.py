import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from cartok.core.errors import UserError
from cartok.metrics.codes import (
    code_perplexity,
    code_usage,
    per_position_entropy,
    skew,
    unigram_bits,
)


def random_tokens(size, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(size, (50, 2, 3), generator=generator)


def test_uniform_codes_are_all_used_and_as_diverse_as_the_codebook():
    tokens = torch.arange(16).reshape(4, 2, 2)
    assert code_usage(tokens, 16) == 1
    assert unigram_bits(tokens, 16) == pytest.approx(4)
    assert code_perplexity(tokens, 16) == pytest.approx(16)


def test_a_collapsed_codebook_uses_one_code():
    tokens = torch.full((4, 2, 2), 3)
    assert code_usage(tokens, 8) == 1 / 8
    assert unigram_bits(tokens, 8) == 0
    assert code_perplexity(tokens, 8) == 1


def test_three_to_one_has_the_entropy_of_a_biased_coin():
    bits = -(0.75 * math.log2(0.75) + 0.25 * math.log2(0.25))
    assert unigram_bits(torch.tensor([[0, 0], [0, 5]]), 6) == pytest.approx(bits)


def test_entropy_per_position_is_measured_over_pictures_and_shaped_as_the_grid():
    tokens = torch.tensor([[[0, 1], [4, 5]], [[0, 2], [4, 6]], [[0, 3], [4, 5]], [[0, 4], [4, 6]]])
    entropies = per_position_entropy(tokens, 7)
    torch.testing.assert_close(entropies, torch.tensor([[0, 2], [0, 1]]).double())


def test_codes_bound_to_their_position_are_skewed_fully():
    tokens = torch.arange(4).expand(10, 4)  # each position has its own code
    assert skew(tokens, 4) == pytest.approx(1 - 1 / 4)


@given(st.integers(2, 9), st.integers(0, 99))
def test_positions_that_use_codes_alike_have_no_skew(size, seed):
    one = torch.randint(size, (20, 1), generator=torch.Generator().manual_seed(seed))
    assert skew(one.expand(20, 5), size) == pytest.approx(0, abs=1e-9)


@given(st.integers(2, 9), st.integers(0, 99))
def test_statistics_ignore_the_order_of_pictures_and_the_names_of_codes(size, seed):
    tokens = random_tokens(size, seed)
    generator = torch.Generator().manual_seed(seed)
    shuffled = tokens[torch.randperm(len(tokens), generator=generator)]
    renamed = torch.randperm(size, generator=generator)[tokens]
    for measure in (code_usage, code_perplexity, unigram_bits, skew):
        expected = pytest.approx(measure(tokens, size))
        assert measure(shuffled, size) == expected
        assert measure(renamed, size) == expected


def test_entropy_never_exceeds_the_unigram_bits_on_average():
    tokens = random_tokens(9)
    assert per_position_entropy(tokens, 9).mean() <= unigram_bits(tokens, 9)
    assert 0 <= skew(tokens, 9) < 1


@pytest.mark.parametrize("tokens", [torch.tensor([[0, 8]]), torch.tensor([[-1, 3]])])
def test_tokens_of_another_codebook_are_refused(tokens):
    with pytest.raises(UserError, match="0 to codebook size - 1 = 7"):
        code_usage(tokens, 8)


def test_no_tokens_are_refused():
    with pytest.raises(UserError, match="none came"):
        code_usage(torch.zeros(0, 4, dtype=torch.long), 8)
