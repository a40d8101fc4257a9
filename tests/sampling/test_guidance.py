import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from cartok.sampling.guidance import (
    SCHEDULES,
    guided,
    min_p,
    scales_of,
    tempered,
    top_k,
    top_p,
)


def test_scale_one_is_conditional_and_scale_zero_unconditional():
    conditional, unconditional = torch.randn(2, 3, 7)
    torch.testing.assert_close(guided(conditional, unconditional, 1.0), conditional)
    assert torch.equal(guided(conditional, unconditional, 0.0), unconditional)


def test_guidance_is_the_papers_formula():
    logits = guided(torch.tensor([[3.0, 1.0]]), torch.tensor([[1.0, 2.0]]), 2.0)
    assert torch.equal(logits, torch.tensor([[5.0, 0.0]]))


def test_guidance_sharpens_what_the_class_made_likelier():
    conditional, unconditional = torch.tensor([[1.0, 0.0]]), torch.zeros(1, 2)
    likely = [guided(conditional, unconditional, s).softmax(-1)[0, 0] for s in (1.0, 2.0, 4.0)]
    assert likely == sorted(likely)
    assert likely[0] < likely[2]


@pytest.mark.parametrize("name", SCHEDULES)
@given(scale=st.floats(0, 10), num=st.integers(1, 64), power=st.floats(0.1, 5))
def test_every_schedule_rises_to_the_full_scale(name, scale, num, power):
    found = scales_of(name, scale, num, power)
    assert found[-1] == pytest.approx(scale)
    assert found == sorted(found, reverse=scale < 1)


@pytest.mark.parametrize("name", SCHEDULES)
def test_every_schedule_leaves_scale_one_alone(name):
    assert scales_of(name, 1.0, 5) == [1.0] * 5


def test_schedules_in_closed_form():
    assert scales_of("constant", 3.0, 4) == [3, 3, 3, 3]
    assert scales_of("linear", 3.0, 4) == [1.5, 2.0, 2.5, 3.0]
    assert scales_of("linear", 3.0, 2, power=2.0) == [1.5, 3.0]
    half = 1 - 0.5**0.5 / 2 - 0.5
    assert scales_of("cosine", 3.0, 4) == pytest.approx([1 + 2 * half, 2, 3 - 2 * half, 3])


def test_outside_its_interval_there_is_no_guidance():
    assert scales_of("constant", 3.0, 4, interval=(0.25, 0.75)) == [1, 3, 3, 1]
    assert scales_of("constant", 3.0, 4, interval=(0.0, 1.0)) == [3, 3, 3, 3]


@given(p=st.floats(0, 1), seed=st.integers(0, 100))
def test_min_p_bars_what_is_less_likely_than_a_share_of_the_likeliest(p, seed):
    logits = torch.randn(3, 9, generator=torch.Generator().manual_seed(seed)).double()
    chance = logits.softmax(-1)
    kept = min_p(logits, p).isfinite()
    ratio = chance / chance.amax(-1, keepdim=True)
    assert kept[ratio > p * (1 + 1e-9)].all()
    assert not kept[ratio < p * (1 - 1e-9)].any()
    assert kept.any(-1).all()


def test_temperature_divides_logits_and_zero_is_greedy():
    logits = torch.tensor([[2.0, 1.0, -1.0]])
    assert torch.equal(tempered(logits, 2.0), logits / 2)
    assert torch.equal(tempered(logits, 0.0).softmax(-1), torch.tensor([[1.0, 0.0, 0.0]]))


@given(k=st.integers(0, 12))
def test_top_k_leaves_the_k_likeliest_untouched(k):
    logits = torch.stack([torch.randperm(9) for _ in range(4)]).double()
    left = top_k(logits, k)
    kept = left.isfinite()
    assert torch.equal(left[kept], logits[kept])
    assert torch.equal(kept, logits >= 9 - (k or 9))


@given(p=st.floats(0.01, 1.0), seed=st.integers(0, 100))
def test_top_p_leaves_the_fewest_codes_that_reach_p(p, seed):
    logits = torch.randn(3, 9, generator=torch.Generator().manual_seed(seed)).double()
    chance = logits.softmax(-1)
    kept = top_p(logits, p).isfinite()
    for row, is_kept in zip(chance, kept, strict=True):
        assert row[is_kept].sum() >= p - 1e-9
        least = row[is_kept].min()
        assert is_kept.all() or least >= row[~is_kept].max()
        assert p == 1 or row[is_kept].sum() - least < p


def test_top_p_in_closed_form():
    logits = torch.tensor([[0.1, 0.6, 0.3]]).log()
    assert top_p(logits, 0.5).isfinite().tolist() == [[False, True, False]]
    assert top_p(logits, 0.7).isfinite().tolist() == [[False, True, True]]
    assert torch.equal(top_p(logits, 1.0), logits)
