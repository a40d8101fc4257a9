import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from cartok.core.errors import UserError
from cartok.core.parallel import World
from cartok.metrics import gaussian
from cartok.metrics.gaussian import (
    gaussian_of,
    joined,
    joined_over_ranks,
    moments_of,
    moments_of_batches,
)


def rows_of(count, dim, seed, mean=0.0):
    return torch.randn(count, dim, generator=torch.Generator().manual_seed(seed)).double() + mean


def assert_same(found, expected):
    assert found.count == expected.count
    variance = expected.cov.diagonal().max()
    size = expected.mean.abs().max() + variance.sqrt()
    assert (found.mean - expected.mean).abs().max() <= 1e-12 * size
    assert (found.cov - expected.cov).abs().max() <= 1e-12 * variance


@settings(deadline=None, max_examples=60)
@given(
    dim=st.integers(1, 9), sizes=st.lists(st.integers(0, 40), min_size=1, max_size=9),
    mean=st.sampled_from([0.0, 3.0, -50.0]), seed=st.integers(0, 999), data=st.data(),
)  # fmt: skip
def test_however_rows_are_cut_ordered_and_joined_they_have_one_gaussian(
    dim, sizes, mean, seed, data
):
    rows = rows_of(sum(sizes) + 2, dim, seed, mean)
    whole = gaussian_of(rows)
    order = torch.tensor(data.draw(st.permutations(range(len(rows)))))
    batches = list(rows[order].split([*sizes, 2]))
    assert_same(moments_of_batches(batches).gaussian, whole)
    parts = [moments_of(batch) for batch in batches]
    while len(parts) > 1:  # joined in pairs, in any tree
        first, second = (parts.pop(data.draw(st.integers(0, len(parts) - 1))) for _ in range(2))
        parts.append(joined([first, second]))
    assert_same(parts[0].gaussian, whole)


@given(st.integers(2, 50), st.integers(1, 8), st.integers(0, 999))
def test_the_covariance_is_numpys_unbiased_one(count, dim, seed):
    rows = rows_of(count, dim, seed, 2.0)
    found = gaussian_of(rows)
    np.testing.assert_allclose(found.mean, rows.numpy().mean(0), atol=1e-12)
    np.testing.assert_allclose(
        found.cov, np.cov(rows.numpy(), rowvar=False, ddof=1).reshape(dim, dim), atol=1e-12
    )


def test_many_rows_pass_in_blocks_and_give_the_same(monkeypatch):
    rows = rows_of(100, 5, 0, 7.0)
    whole = gaussian_of(rows)
    monkeypatch.setattr(gaussian, "ROWS_AT_ONCE", 7)
    assert_same(gaussian_of(rows), whole)


def test_float32_features_far_from_zero_keep_their_covariance():
    """Their squares have more digits than float32 holds; the differences are exact."""
    rows = (1000 + torch.arange(64)[:, None] / 64 * torch.ones(3)).float()
    found = moments_of_batches(rows.split(8)).gaussian
    expected = torch.arange(64).double().var() / 64**2
    torch.testing.assert_close(found.cov, expected.expand(3, 3), rtol=1e-13, atol=0)


class Ranks(World):
    """Gathers as ranks would that had each its share of rows."""

    def gather(self, value):
        shares = [moments_of(part) for part in self.shares]
        own = {
            1: lambda m: torch.tensor([m.count]),
            2: lambda m: m.mean[None],
            3: lambda m: m.scatter[None],
        }
        return torch.cat([own[value.ndim](share) for share in shares])


@pytest.mark.parametrize("sizes", [[30, 30], [60, 0], [1, 20, 39]])
def test_ranks_with_any_share_of_the_rows_have_the_gaussian_of_all(sizes):
    rows = rows_of(60, 4, 0, 5.0)
    world = Ranks(size=len(sizes))
    object.__setattr__(world, "shares", rows.split(sizes))
    for share in world.shares:
        assert_same(joined_over_ranks(moments_of(share), world).gaussian, gaussian_of(rows))


def test_one_rank_alone_keeps_its_own():
    moments = moments_of(rows_of(9, 3, 0))
    assert_same(joined_over_ranks(moments, World()).gaussian, moments.gaussian)


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        (torch.zeros(1, 3), "two rows or more, but 1 came"),
        (torch.zeros(0, 3), "two rows or more, but 0 came"),
        (torch.full((9, 3), torch.nan), "NaN or infinity"),
        (torch.full((9, 3), torch.inf), "NaN or infinity"),
        (torch.zeros(9, 3, dtype=torch.int64), "float32 or float64, but these are torch.int64"),
        (torch.zeros(9, 3, dtype=torch.bfloat16), "but these are torch.bfloat16"),
        (torch.zeros(9), r"but these are \(9,\)"),
        (torch.zeros(9, 3, 4), r"but these are \(9, 3, 4\)"),
        (torch.zeros(9, 0), r"but these are \(9, 0\)"),
    ],
)
def test_what_is_no_set_of_features_is_refused_in_one_line(rows, message):
    with pytest.raises(UserError, match=message) as error:
        gaussian_of(rows)
    assert "\n" not in str(error.value)


def test_batches_of_several_widths_and_no_batches_are_refused():
    with pytest.raises(UserError, match="these have 3 and 4"):
        moments_of_batches([torch.zeros(9, 3), torch.zeros(9, 4)])
    with pytest.raises(UserError, match="none came"):
        moments_of_batches([])
