import warnings

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from cartok.core.errors import UserError
from cartok.metrics.kernel import kernel_distance


def normal(count, dim, seed, shift=0.0):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(count, dim, generator=generator).double() + shift


def test_two_pairs_of_numbers_have_the_closed_form():
    a, b = torch.tensor([[0.0], [1.0]]), torch.tensor([[2.0], [3.0]])
    within_a, within_b = (0 + 1) ** 3, (6 + 1) ** 3
    between = (1**3 + 1**3 + 3**3 + 4**3) / 4
    assert kernel_distance(a, b).value == within_a + within_b - 2 * between


def test_the_distance_agrees_with_torch_fidelity():
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from torch_fidelity.metric_kid import kid_features_to_metric
    a, b = normal(40, 8, 0), normal(40, 8, 1, shift=0.3)
    options = {"kid_subsets": 1, "kid_subset_size": 40, "rng_seed": 0, "verbose": False}
    theirs = kid_features_to_metric(a, b, **options)["kernel_inception_distance_mean"]
    assert kernel_distance(a, b).value == pytest.approx(theirs, rel=1e-9)


def test_sets_from_one_distribution_are_at_distance_zero_in_expectation():
    values = np.array(
        [kernel_distance(normal(30, 4, s), normal(30, 4, 99 + s)).value for s in range(60)]
    )
    assert abs(values.mean()) < 3 * values.std() / len(values) ** 0.5
    assert values.min() < 0 < values.max()


def test_the_standard_error_is_the_spread_over_fresh_sets():
    distances = [kernel_distance(normal(60, 4, s), normal(50, 4, 99 + s, 0.7)) for s in range(60)]
    spread = np.std([distance.value for distance in distances])
    claimed = np.mean([distance.standard_error for distance in distances])
    assert claimed == pytest.approx(spread, rel=0.3)


@given(st.integers(3, 12), st.integers(3, 12), st.integers(0, 99))
def test_the_standard_error_is_that_of_leaving_each_row_out(n, m, seed):
    a, b = normal(n, 3, seed), normal(m, 3, seed + 1, shift=0.5)
    variance = 0
    for rows, without in (
        (n, [kernel_distance(torch.cat([a[:i], a[i + 1 :]]), b).value for i in range(n)]),
        (m, [kernel_distance(a, torch.cat([b[:i], b[i + 1 :]])).value for i in range(m)]),
    ):
        variance += (rows - 1) / rows * sum((value - np.mean(without)) ** 2 for value in without)
    assert kernel_distance(a, b).standard_error == pytest.approx(variance**0.5)


def test_the_order_of_pictures_does_not_count():
    a, b = normal(50, 8, 0), normal(40, 8, 1)
    assert kernel_distance(a.flip(0), b).value == pytest.approx(kernel_distance(a, b).value)


def test_blocks_estimate_the_same_distance_from_sorted_sets():
    a, b = normal(1000, 4, 0, shift=0.5), normal(900, 4, 1)
    a, b = (side[side[:, 0].argsort()] for side in (a, b))  # as a folder sorted by class
    whole, blocks = kernel_distance(a, b), kernel_distance(a, b, block=100)
    assert blocks.value == pytest.approx(whole.value, abs=3 * blocks.standard_error)
    assert blocks.standard_error == pytest.approx(whole.standard_error, rel=0.5)


def test_one_row_is_refused():
    with pytest.raises(UserError, match="two rows or more on each side, but got 1 and 9"):
        kernel_distance(normal(1, 4, 0), normal(9, 4, 0))


@pytest.mark.parametrize(
    ("a", "b", "message"),
    [
        (normal(9, 4, 0), normal(9, 5, 0), "one width, but these have 4 and 5"),
        (normal(9, 4, 0) * torch.nan, normal(9, 4, 0), "NaN or infinity"),
        (normal(9, 4, 0).half(), normal(9, 4, 0), "but these are torch.float16"),
        (
            normal(9, 4, 0),
            torch.zeros(9, 4, device="meta"),
            "one device, but these have cpu and meta",
        ),
        (normal(9, 4, 0), normal(9, 4, 0)[0], r"these are \(4,\)"),
    ],
)
def test_what_are_no_two_sets_of_features_is_refused_in_one_line(a, b, message):
    with pytest.raises(UserError, match=message) as error:
        kernel_distance(a, b)
    assert "\n" not in str(error.value)
