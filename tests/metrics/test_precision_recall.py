import warnings

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from cartok.core.errors import UserError
from cartok.metrics import neighbours
from cartok.metrics.precision_recall import PrecisionRecall, precision_recall


def normal(count, dim, seed, shift=0.0):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(count, dim, generator=generator) + shift


def on_a_line(*places):
    return torch.tensor(places)[:, None].double()


def as_the_adm_evaluator(generated, real, k=3):
    """Its definition from small arrays: the whole matrix, one row at a time."""

    def radii(rows):
        return [np.sort(np.square(rows - row).sum(1))[k] for row in rows]  # place 0 is its own

    def share_inside(points, centres, reaches):
        inside = [
            any(
                np.square(point - centre).sum() <= reach
                for centre, reach in zip(centres, reaches, strict=True)
            )
            for point in points
        ]
        return np.mean(inside)

    generated, real = generated.double().numpy(), real.double().numpy()
    return PrecisionRecall(
        share_inside(generated, real, radii(real)), share_inside(real, generated, radii(generated))
    )


@settings(deadline=None, max_examples=40)
@given(
    n=st.integers(5, 40), m=st.integers(5, 40), dim=st.integers(1, 5), k=st.integers(1, 4),
    seed=st.integers(0, 999), shift=st.sampled_from([0.0, 1.0, 100.0]),
)  # fmt: skip
def test_the_definition_is_that_of_the_adm_evaluator(n, m, dim, k, seed, shift):
    generated, real = normal(n, dim, seed, shift), normal(m, dim, seed + 1, shift + 0.5)
    assert precision_recall(generated, real, k) == as_the_adm_evaluator(generated, real, k)


@settings(deadline=None, max_examples=40)
@given(
    places=st.lists(st.integers(0, 6), min_size=10, max_size=30),
    scale=st.sampled_from([1.0, 0.1, 1 / 3, 1e4]), k=st.integers(1, 3),
)  # fmt: skip
def test_ties_and_repeated_rows_count_as_inside(places, scale, k):
    """On whole places most distances tie; scaled by a third none is exact."""
    generated, real = torch.tensor(places[:5]).double(), torch.tensor(places[5:]).double()
    exact = as_the_adm_evaluator(generated[:, None], real[:, None], k)
    assert precision_recall(generated[:, None] * scale, real[:, None] * scale, k) == exact


@pytest.mark.parametrize("split", [False, True])
def test_precision_and_recall_agree_with_torch_fidelity(split):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from torch_fidelity.metric_prc import prc_features_to_metric
    generated, real = normal(300, 16, 0).double(), normal(250, 16, 1, 0.4).double()
    theirs = prc_features_to_metric(
        generated, real, prc_neighborhood=3, prc_batch_size=70, save_cpu_ram=split, verbose=False
    )
    ours = precision_recall(generated, real)
    assert (ours.precision, ours.recall) == pytest.approx((theirs["precision"], theirs["recall"]))
    assert 0.3 < ours.recall < ours.precision < 0.9 or 0.3 < ours.precision < ours.recall < 0.9


def test_points_on_a_line_have_the_shares_counted_by_hand():
    real = on_a_line(0.0, 1.0, 2.0, 10.0)  # with k = 1 they reach 1, 1, 1 and 8
    generated = on_a_line(-1.5, -1.0, 2.5, 18.0, 18.5)  # .5, .5, 3.5, .5, .5
    found = precision_recall(generated, real, k=1)
    assert found.precision == 3 / 5  # -1 and 18 lie on an edge; -1.5 and 18.5 outside
    assert found.recall == 3 / 4  # 0, 1 and 2 in the ball of 2.5; 10 in none


@given(st.integers(0, 99))
def test_swapping_the_sets_swaps_precision_and_recall(seed):
    a, b = normal(40, 3, seed), normal(30, 3, seed + 1, 0.7)
    one, other = precision_recall(a, b), precision_recall(b, a)
    assert (one.precision, one.recall) == (other.recall, other.precision)


def test_a_collapsed_set_is_precise_and_recalls_nothing():
    real = normal(200, 8, 0)
    collapsed = real[7].expand(100, 8)
    assert precision_recall(collapsed, real) == PrecisionRecall(precision=1.0, recall=1 / 200)
    assert precision_recall(real, collapsed) == PrecisionRecall(precision=1 / 200, recall=1.0)


def test_sets_far_apart_share_nothing_and_a_set_shares_all_with_itself():
    a = normal(50, 4, 0)
    assert precision_recall(a, a + 1000) == PrecisionRecall(0.0, 0.0)
    assert precision_recall(a, a) == PrecisionRecall(1.0, 1.0)


def test_one_outlier_makes_everything_near_it_precise():
    """Why density is there too: among three real rows far out, anything between counts."""
    real = torch.cat([normal(50, 4, 0), torch.full((1, 4), 40.0)])
    assert precision_recall(normal(50, 4, 1, shift=15.0), real).precision == 1


@settings(deadline=None, max_examples=10)
@given(st.integers(0, 99), st.sampled_from([6, 13, 30]))
def test_neither_order_nor_blocks_nor_where_zero_lies_matters(seed, block):
    a, b = normal(31, 3, seed).double(), normal(26, 3, seed + 1).double()
    expected = precision_recall(a, b)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(neighbours, "BLOCK", block)
        order = torch.randperm(31, generator=torch.Generator().manual_seed(seed))
        assert precision_recall(a[order], b.flip(0)) == expected
        assert precision_recall(a + 1e3, b + 1e3) == expected


def test_equal_features_are_found_equal_however_long_they_are():
    """Single precision would make the distance of equal rows this long anything up to 1."""
    a = normal(300, 512, 0) * 1e-3 + 50
    assert precision_recall(a, a[:40].repeat(5, 1)).recall == 1.0


@pytest.mark.parametrize(
    ("generated", "real", "k", "message"),
    [
        (torch.zeros(3, 2), torch.zeros(9, 2), 3, "needs 4 rows or more .* one has 3"),
        (torch.zeros(9, 2), torch.zeros(5, 2), 5, "needs 6 rows or more .* one has 5"),
        (torch.zeros(9, 2), torch.zeros(9, 3), 3, "one width, but these have 2 and 3"),
        (torch.full((9, 2), torch.nan), torch.zeros(9, 2), 3, "NaN"),
        (torch.zeros(9, 2), torch.full((9, 2), torch.inf), 3, "infinity"),
        (torch.zeros(9, 2), torch.zeros(9, 2).long(), 3, "float32 or float64"),
        (torch.zeros(9, 2), torch.zeros(9, 2), 0, "from k = 1, but got 0"),
    ],
)
def test_what_has_no_precision_is_refused_in_one_line(generated, real, k, message):
    with pytest.raises(UserError, match=message) as error:
        precision_recall(generated, real, k)
    assert "\n" not in str(error.value)
