import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from cartok.core.errors import UserError
from cartok.metrics import manifolds as module
from cartok.metrics import neighbours
from cartok.metrics.density_coverage import density_coverage
from cartok.metrics.manifolds import GROUPS, least_rows, manifolds
from cartok.metrics.precision_recall import precision_recall

NAMES = ("precision", "recall", "density", "coverage")


def normal(count, dim, seed, shift=0.0):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(count, dim, generator=generator).double() + shift


def values(found):
    return [getattr(found, name).value for name in NAMES]


def errors(found):
    return [getattr(found, name).standard_error for name in NAMES]


def by_definition(generated, real, k, coverage_k):
    """The four from the functions that measure one pair each."""
    shares = precision_recall(generated, real, k)
    held = density_coverage(generated, real, coverage_k)
    return [shares.precision, shares.recall, held.density, held.coverage]


def halved(rows, generator, side):
    """Those rows that random dealing puts on one side of a split, and the others."""
    order = torch.randperm(len(rows), generator=generator)
    first = side[torch.arange(len(rows)) % GROUPS]
    return rows[order[first]], rows[order[~first]]


sets = given(
    n=st.integers(12, 50), m=st.integers(12, 50), dim=st.integers(1, 5), k=st.integers(1, 5),
    coverage_k=st.integers(1, 5), seed=st.integers(0, 999),
)  # fmt: skip


@settings(deadline=None, max_examples=25)
@sets
def test_values_are_those_of_the_definitions_to_the_last_digit(n, m, dim, k, coverage_k, seed):
    a, b = normal(n, dim, seed), normal(m, dim, seed + 1, 0.5)
    assert values(manifolds(a, b, k, coverage_k)) == by_definition(a, b, k, coverage_k)


@settings(deadline=None, max_examples=10)
@sets
def test_an_error_is_half_of_what_two_halves_differ_by(n, m, dim, k, coverage_k, seed):
    a, b = normal(n, dim, seed), normal(m, dim, seed + 1, 0.5)
    differences = []
    for side in module._sides(torch.device("cpu"))[1:]:
        generator = torch.Generator().manual_seed(seed)
        ours, theirs = halved(a, generator, side), halved(b, generator, side)
        first, second = (
            by_definition(*halves, k, coverage_k) for halves in zip(ours, theirs, strict=True)
        )
        differences.append(np.subtract(first, second))
    expected = np.sqrt(np.square(differences).mean(0)) / 2
    assert errors(manifolds(a, b, k, coverage_k, seed)) == pytest.approx(expected.tolist())


def test_any_two_groups_part_in_six_of_eleven_splits():
    """Then the error of a plain mean is the one that its groups' spread gives."""
    whole, *halves = module._sides(torch.device("cpu")).int().tolist()
    assert whole == [1] * GROUPS
    assert [sum(half) for half in halves] == [GROUPS // 2] * 11
    for one in range(GROUPS):
        for other in range(one):
            assert sum(half[one] != half[other] for half in halves) == 6


@pytest.fixture(scope="module", params=[0.0, 0.4], ids=["like", "apart"])
def repeats(request):
    """The four of 60 pairs of fresh sets."""
    return [
        manifolds(normal(180, 6, seed, request.param), normal(150, 6, 1000 + seed))
        for seed in range(60)
    ]


@pytest.mark.parametrize("name", NAMES)
def test_the_interval_holds_the_mean_of_sets_of_these_sizes(repeats, name):
    # 90 % is claimed: fewer than 45 of 60 would hold it less than once in 1,000.
    found = [getattr(each, name) for each in repeats]
    mean = np.mean([each.value for each in found])
    assert sum(low <= mean <= high for low, high in (each.interval for each in found)) >= 45


@pytest.mark.parametrize("name", NAMES)
def test_the_error_is_the_spread_over_fresh_sets(repeats, name):
    """The jackknife's is from 1.3 times to twice that."""
    found = [getattr(each, name) for each in repeats]
    claimed = np.mean([each.standard_error**2 for each in found]) ** 0.5
    assert 0.75 < claimed / np.std([each.value for each in found]) < 1.3


def test_pictures_of_classes_in_turn_have_no_larger_error():
    """One class is true, the other is not: groups by place would hold one each, and err by .15."""
    true, false = normal(60, 3, 0), normal(60, 3, 1, 100.0)
    in_turn = torch.stack([true, false], 1).flatten(0, 1)
    for drawn in (in_turn, torch.cat([true, false])):
        found = manifolds(drawn, normal(120, 3, 2)).precision
        assert found.value == pytest.approx(0.5, abs=0.05)
        assert found.standard_error == pytest.approx((0.25 / 120) ** 0.5, rel=0.5)


@settings(deadline=None, max_examples=8)
@given(st.integers(0, 99), st.sampled_from([5, 12, 30]), st.sampled_from([1, 7, 1 << 20]))
def test_neither_blocks_nor_what_is_counted_at_once_matters(seed, block, pairs):
    a, b = normal(31, 3, seed), normal(26, 3, seed + 1)
    expected = manifolds(a, b)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(neighbours, "BLOCK", block)
        patch.setattr(module, "_AT_ONCE", pairs)
        assert manifolds(a, b) == expected


def test_where_every_row_lies_in_every_ball_and_where_none_does():
    real = normal(60, 40, 0)
    inside = manifolds(real.mean(0).expand(40, 40), real)
    assert values(inside) == by_definition(real.mean(0).expand(40, 40), real, 3, 5)
    assert inside.density.value > 8
    assert inside.density.interval[1] > 8
    outside = manifolds(real + 1000, real)
    assert values(outside) == [0.0] * 4
    assert outside.precision.interval == (0.0, 0.0)


def test_an_interval_ends_where_values_do():
    for each in (manifolds(normal(30, 2, s), normal(30, 2, s + 50)) for s in range(10)):
        assert all(getattr(each, name).interval[0] >= 0 for name in NAMES)
        assert max(e.interval[1] for e in (each.precision, each.recall, each.coverage)) <= 1


def test_the_fewest_rows_are_those_of_which_half_has_a_neighbour_so_far():
    assert [least_rows(k) for k in (1, 5, 6, 11, 12)] == [12, 12, 24, 24, 36]
    manifolds(normal(24, 2, 0), normal(24, 2, 1), k=6)
    with pytest.raises(UserError, match="needs 24 rows or more of each set, but one has 23") as e:
        manifolds(normal(24, 2, 0), normal(23, 2, 1), k=6)
    assert "\n" not in str(e.value)
