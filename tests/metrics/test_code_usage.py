import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from cartok.core.errors import UserError
from cartok.metrics.codes import (
    code_perplexity,
    code_usage,
    context_bits,
    per_position_entropy,
    skew,
    skew_by_chance,
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


def test_the_correction_of_an_entropy_is_that_of_miller_and_madow():
    tokens = torch.tensor([[0, 3], [0, 3], [1, 3], [1, 3]])
    plain, corrected = (per_position_entropy(tokens, 4, corrected=asked) for asked in (False, True))
    assert plain.tolist() == [1.0, 0.0]
    assert corrected.tolist() == pytest.approx([1 + 1 / (8 * math.log(2)), 0.0])


@given(st.integers(4, 64), st.integers(0, 99))
def test_corrected_entropies_come_nearer_to_that_of_equally_likely_codes(size, seed):
    tokens = torch.randint(size, (4 * size, 8), generator=torch.Generator().manual_seed(seed))
    plain = per_position_entropy(tokens, size).mean()
    corrected = per_position_entropy(tokens, size, corrected=True).mean()
    assert plain < corrected
    assert abs(corrected - math.log2(size)) < abs(plain - math.log2(size))


@settings(max_examples=30)
@given(st.integers(2, 200), st.integers(4, 30), st.integers(0, 99))
def test_skew_by_chance_is_what_tokens_without_places_show(size, num, seed):
    tokens = torch.randint(size, (num, 4, 4), generator=torch.Generator().manual_seed(seed))
    found, chance = skew(tokens, size), skew_by_chance(tokens, size)
    assert chance == pytest.approx(found, abs=0.2)
    bound = torch.arange(16).expand(num, 16)  # each position its own code
    assert skew(bound, 16) == pytest.approx(15 / 16)
    assert skew_by_chance(bound, 16) < skew(bound, 16)


def grids(num, rows, cols, size, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(size, (num, rows, cols), generator=generator)


@given(
    num=st.integers(16, 40), rows=st.integers(2, 6), cols=st.integers(2, 6),
    size=st.sampled_from([1, 2, 7, 300, 262_144]), seed=st.integers(0, 999),
)  # fmt: skip
def test_shuffled_tokens_cost_as_much_with_a_neighbour_as_alone(num, rows, cols, size, seed):
    """Nothing is found where there is nothing, however few the pictures or many the codes."""
    found = context_bits(grids(num, rows, cols, size, seed), size)
    for bits in (found.given_before, found.given_above):
        assert 0 <= bits <= found.alone
        assert (bits > 0) == (size > 1)
        # Under the truth only by chance, which falls with the tokens.
        assert bits > math.log2(size) - 3 / math.sqrt(num * rows * cols) - 1e-9


def test_a_token_that_its_left_neighbour_decides_costs_nothing_but_in_the_first_column():
    first = grids(400, 6, 1, 8)
    found = context_bits((first + torch.arange(5)) % 8, 8)
    assert found.alone == pytest.approx(3, abs=0.01)
    assert found.given_before == pytest.approx(3 / 5, abs=0.02)
    assert found.given_above == pytest.approx(3, abs=0.02)


def test_a_token_that_its_upper_neighbour_decides_costs_nothing_but_in_the_first_row():
    found = context_bits(grids(400, 1, 6, 8).expand(400, 5, 6), 8)
    assert found.given_above == pytest.approx(3 / 5, abs=0.02)
    assert found.given_before == pytest.approx(3, abs=0.02)


@pytest.mark.parametrize("stay", [0.5, 0.9])
def test_a_chain_costs_its_entropy_rate_and_never_much_less(stay):
    """A row is a chain of two codes that stays with a known chance: H(X | before) is known."""
    generator = torch.Generator().manual_seed(1)
    moves = (torch.rand(600, 4, 16, generator=generator) > stay).long()
    tokens = moves.cumsum(2) % 2
    rate = -(stay * math.log2(stay) + (1 - stay) * math.log2(1 - stay))
    first = moves[:, :, 0].double().mean().item()
    border = -(first * math.log2(first) + (1 - first) * math.log2(1 - first))
    truth = (15 * rate + border) / 16
    assert context_bits(tokens, 2).given_before == pytest.approx(truth, abs=0.01)


def test_few_pictures_never_make_a_token_look_more_predictable_than_it_is():
    """Shares of pairs would: most of a few pictures' pairs occur once."""
    stay, size = 0.5, 512
    generator = torch.Generator().manual_seed(2)
    stays = torch.rand(16, 8, 8, generator=generator) < stay
    tokens = grids(16, 8, 8, size, seed=3)
    for column in range(1, 8):
        tokens[:, :, column] = torch.where(
            stays[:, :, column], tokens[:, :, column - 1], tokens[:, :, column]
        )
    other = (1 - stay) * (1 - 1 / size)  # half of the time drawn anew
    keeps = 1 - other
    truth = -keeps * math.log2(keeps) - other * math.log2(other / (size - 1))
    truth = (7 * truth + 9) / 8
    found = context_bits(tokens, size)
    assert truth - 0.3 < found.given_before < found.alone - 0.2


@pytest.mark.parametrize("num", [0, 3])
def test_bits_of_too_few_pictures_are_refused(num):
    with pytest.raises(UserError, match="takes 4 or more"):
        context_bits(grids(num, 2, 2, 5), 5)


def test_bits_of_another_codebook_are_refused():
    with pytest.raises(UserError, match="0 to codebook size - 1 = 4"):
        context_bits(grids(8, 2, 2, 9), 5)
