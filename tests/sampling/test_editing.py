"""What is kept stays, what lies before a hole is seen, and what lies after it is not."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from cartok.core.errors import UserError
from cartok.layers import TransformerConfig
from cartok.prior.model import Prior, PriorConfig
from cartok.sampling.editing import REGIONS, kept_of, region
from cartok.sampling.sampler import Sampler

GRID = (4, 6)


class Painter:
    digest = "painter"

    def image_of(self, tokens):
        return tokens[:, None].float()


@pytest.fixture(scope="module")
def sampler():
    torch.manual_seed(0)
    net = TransformerConfig(width=32, depth=2, heads=2, hidden_multiple=16)
    prior = Prior(
        PriorConfig(transformer=net, codebook_size=11, grid=GRID, num_classes=4),
        tokenizer_digest="painter",
    )
    with torch.no_grad():
        for weight in prior.parameters():
            weight.add_(0.3 * torch.randn_like(weight))
    return Sampler(prior, Painter())


def some_tokens(num=3):
    return torch.randint(11, (num, *GRID), generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("name", REGIONS)
def test_what_is_kept_stays_and_the_rest_is_drawn(sampler, name):
    tokens, mask = some_tokens(), region(name, 0.5, *GRID)
    drawn = sampler.sample_tokens([0, 1, 2], 1, 2.0, kept=kept_of(tokens, mask)).view(-1, *GRID)
    assert torch.equal(drawn[:, mask], tokens[:, mask])
    assert not torch.equal(drawn[:, ~mask], tokens[:, ~mask])


def test_nothing_kept_is_plain_sampling_and_everything_kept_is_no_sampling(sampler):
    tokens = some_tokens()
    nothing, everything = (torch.full(GRID, keep) for keep in (False, True))
    plain = sampler.sample_tokens([0, 1, 2], 1, 2.0)
    assert torch.equal(
        sampler.sample_tokens([0, 1, 2], 1, 2.0, kept=kept_of(tokens, nothing)), plain
    )
    kept = sampler.sample_tokens([0, 1, 2], 1, 2.0, kept=kept_of(tokens, everything))
    assert torch.equal(kept, tokens.flatten(1))


@settings(max_examples=10, deadline=None)
@given(first=st.integers(1, 23))
def test_a_draw_sees_what_is_kept_before_it_and_nothing_after(sampler, first):
    tokens, other = some_tokens(), (some_tokens() + 1) % 11
    before = torch.arange(24).view(GRID) < first
    one = sampler.sample_tokens([0, 1, 2], 1, kept=kept_of(tokens, before))
    two = sampler.sample_tokens([0, 1, 2], 1, kept=kept_of(other, before))
    assert not torch.equal(one[:, first:], two[:, first:])
    plain = sampler.sample_tokens([0, 1, 2], 1)
    after = sampler.sample_tokens([0, 1, 2], 1, kept=kept_of(tokens, ~before))
    assert torch.equal(after[:, :first], plain[:, :first])


def test_a_mixture_of_one_class_is_that_class_and_others_lie_between(sampler):
    shares = torch.eye(5)[[0, 1, 2]]
    plain = sampler.sample_tokens([0, 1, 2], 1, 2.0)
    assert torch.equal(sampler.sample_tokens(shares, 1, 2.0), plain)
    half = sampler.sample_tokens((shares + shares.flip(0)) / 2, 1, 2.0)
    assert torch.equal(half[1], plain[1])
    assert not torch.equal(half[0], plain[0])
    swapped = sampler.sample_tokens((shares + shares.flip(0)) / 2, 1, 2.0, first_index=0)
    assert torch.equal(swapped, half)


def test_a_mixture_that_is_none_is_refused(sampler):
    with pytest.raises(UserError, match="a row of 5 shares"):
        sampler.sample_tokens(torch.ones(2, 4) / 4, 1)
    with pytest.raises(UserError, match="sum to 1"):
        sampler.sample_tokens(torch.ones(2, 5), 1)
    with pytest.raises(UserError, match="sum to 1"):
        sampler.sample_tokens(torch.full((1, 5), float("nan")), 1)


def test_regions_in_closed_form():
    assert region("top", 0.5, 4, 2).tolist() == [[True, True]] * 2 + [[False, False]] * 2
    assert torch.equal(region("bottom", 0.5, 4, 2), ~region("top", 0.5, 4, 2))
    assert torch.equal(region("left", 0.25, 4, 4), region("top", 0.25, 4, 4).T)
    centre = region("centre", 0.5, 4, 4)
    assert centre.sum() == 4
    assert centre[1:3, 1:3].all()
    assert torch.equal(region("border", 0.5, 4, 4), ~centre)


@pytest.mark.parametrize("name", REGIONS)
@settings(deadline=None)
@given(rows=st.integers(1, 9), cols=st.integers(1, 9), shares=st.tuples(*[st.floats(0, 1)] * 2))
def test_more_kept_is_never_less(name, rows, cols, shares):
    less, more = (region(name, share, rows, cols) for share in sorted(shares))
    assert (more | ~less).all()
    assert not region(name, 0.0, rows, cols).any()


@pytest.mark.parametrize(
    ("kept", "rule"),
    [
        (torch.zeros(3, 5), "of 24 tokens in raster order"),
        (torch.full((3, 24), 11), "from 0 to 10"),
        (torch.full((3, 24), -2), "-1 where one is drawn"),
    ],
)
def test_what_fits_no_picture_is_refused(sampler, kept, rule):
    with pytest.raises(UserError, match=rule):
        sampler.sample_tokens([0, 1, 2], 1, kept=kept.long())


def test_a_wrong_region_is_told_the_nearest():
    with pytest.raises(UserError, match="did you mean 'bottom'"):
        region("botom", 0.5, 4, 4)
    with pytest.raises(UserError, match="from 0 to 1, but is 2"):
        region("top", 2.0, 4, 4)
