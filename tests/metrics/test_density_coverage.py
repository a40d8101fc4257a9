import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from cartok.core.errors import UserError
from cartok.metrics import neighbours
from cartok.metrics.density_coverage import DensityCoverage, density_coverage


def normal(count, dim, seed, shift=0.0):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(count, dim, generator=generator) + shift


def on_a_line(*places):
    return torch.tensor(places)[:, None].double()


def from_the_paper(generated, real, k):
    """Naeem et al. 2020, equations 6 and 7, from the whole matrix."""
    generated, real = generated.double().numpy(), real.double().numpy()
    within = np.linalg.norm(real[:, None] - real, axis=2)
    np.fill_diagonal(within, np.inf)
    radii = np.sort(within, axis=1)[:, k - 1]
    inside = np.linalg.norm(real[:, None] - generated, axis=2) <= radii[:, None]
    return DensityCoverage(inside.sum() / (k * len(generated)), inside.any(1).mean())


@settings(deadline=None, max_examples=40)
@given(
    n=st.integers(6, 40), m=st.integers(6, 40), dim=st.integers(1, 5), k=st.integers(1, 5),
    seed=st.integers(0, 999),
)  # fmt: skip
def test_the_definition_is_that_of_the_paper(n, m, dim, k, seed):
    generated, real = normal(n, dim, seed), normal(m, dim, seed + 1, 0.5)
    assert density_coverage(generated, real, k) == from_the_paper(generated, real, k)


def test_points_on_a_line_have_the_shares_counted_by_hand():
    real = on_a_line(0.0, 1.0, 2.0, 10.0)  # with k = 1 they reach 1, 1, 1 and 8
    generated = on_a_line(1.0, 2.5, 30.0)
    # 1 lies in the balls of 0, 1 and 2, 2.5 in those of 2 and 10, 30 in none.
    assert density_coverage(generated, real, k=1) == DensityCoverage(5 / 3, 4 / 4)
    # With k = 2 they reach 2, 1, 2 and 9: 1 lies in all four, 2.5 in two.
    assert density_coverage(generated, real, k=2) == DensityCoverage(6 / 6, 4 / 4)
    assert density_coverage(generated[1:], real, k=1) == DensityCoverage(2 / 2, 2 / 4)


@pytest.mark.parametrize("k", [1, 3, 5])
def test_fresh_sets_of_one_distribution_have_the_known_expectations(k):
    """Of 2n - 1 others the k nearest are all real with this chance; each ball has k / n of all."""
    count, repeats = 60, 60
    found = [
        density_coverage(normal(count, 2, seed), normal(count, 2, 1000 + seed), k)
        for seed in range(repeats)
    ]
    all_real = np.prod([(count - 1 - i) / (2 * count - 1 - i) for i in range(k)])
    for values, expected in (
        ([each.coverage for each in found], 1 - all_real),
        ([each.density for each in found], 1.0),
    ):
        assert abs(np.mean(values) - expected) < 4 * np.std(values) / repeats**0.5


def test_one_outlier_moves_density_and_coverage_little():
    real = torch.cat([normal(50, 4, 0), torch.full((1, 4), 40.0)])
    generated = normal(50, 4, 1, shift=15.0)
    found = density_coverage(generated, real)
    assert found.density == pytest.approx(1 / 5)
    assert found.coverage == pytest.approx(1 / 51)


def test_a_collapsed_set_is_dense_and_covers_little():
    real = normal(200, 8, 0)
    heart = real[real.norm(dim=1).argmin()]
    found = density_coverage(heart.expand(100, 8), real)
    assert found.density > 2
    assert found.coverage < 0.2


def test_repeated_pictures_lie_in_their_own_balls():
    """Balls of radius 0 hold their own picture, so a set covers itself."""
    real = normal(10, 4, 0).repeat(6, 1)
    assert density_coverage(real, real).coverage == 1
    assert density_coverage(real, real).density == pytest.approx(6 / 5)
    assert density_coverage(real[:10] + 1e-3, real) == DensityCoverage(0.0, 0.0)


@settings(deadline=None, max_examples=10)
@given(st.integers(0, 99), st.sampled_from([6, 13, 30]))
def test_neither_order_nor_blocks_matter(seed, block):
    a, b = normal(31, 3, seed), normal(26, 3, seed + 1)
    expected = density_coverage(a, b)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(neighbours, "BLOCK", block)
        assert density_coverage(a.flip(0), b.roll(5, 0)) == expected


def test_more_neighbours_never_cover_less():
    a, b = normal(60, 3, 0), normal(50, 3, 1, 0.5)
    coverages = [density_coverage(a, b, k).coverage for k in range(1, 20)]
    assert coverages == sorted(coverages)
    assert coverages[0] < coverages[-1]


def test_too_few_rows_and_unlike_sets_are_refused():
    with pytest.raises(UserError, match=r"needs 6 rows or more .* one has 5"):
        density_coverage(normal(9, 3, 0), normal(5, 3, 0))
    with pytest.raises(UserError, match="one width, but these have 3 and 4"):
        density_coverage(normal(9, 3, 0), normal(9, 4, 0))
