import math
import warnings

import pytest
import scipy.linalg
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from cartok.core.errors import UserError
from cartok.metrics.frechet import (
    extrapolated_frechet,
    fd_effnet64,
    frechet_distance,
    frechet_of_gaussians,
)
from cartok.metrics.gaussian import Gaussian, gaussian_of


def normal(count, dim, seed, scale=1.0, shift=0.0):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(count, dim, generator=generator) * scale + shift


def gaussian(mean, cov):
    return Gaussian(torch.tensor(mean).double(), torch.tensor(cov).double(), 1000)


def test_gaussians_along_one_axis_have_the_closed_form():
    a, b = gaussian([1.0], [[4.0]]), gaussian([-2.0], [[9.0]])
    assert frechet_of_gaussians(a, b) == pytest.approx(3**2 + (2 - 3) ** 2)


def test_commuting_covariances_have_the_closed_form():
    a = gaussian([0.0, 1.0], [[4.0, 0.0], [0.0, 1.0]])
    b = gaussian([2.0, 1.0], [[1.0, 0.0], [0.0, 25.0]])
    assert frechet_of_gaussians(a, b) == pytest.approx(2**2 + (2 - 1) ** 2 + (1 - 5) ** 2)


def test_a_rotated_covariance_has_the_closed_form():
    # tr (A½ B A½)½ of two by two matrices: sqrt(tr AB + 2 sqrt(det AB)).
    a, b = gaussian([0, 0], [[2.0, 1.0], [1.0, 3.0]]), gaussian([0, 0], [[1.0, -0.5], [-0.5, 2.0]])
    product = a.cov @ b.cov
    between = math.sqrt(product.trace() + 2 * math.sqrt(torch.linalg.det(product)))
    expected = (a.cov + b.cov).trace().item() - 2 * between
    assert frechet_of_gaussians(a, b) == pytest.approx(expected)


@settings(deadline=None, max_examples=25)
@given(st.integers(1, 30), st.integers(1, 12), st.integers(0, 999))
def test_the_distance_is_symmetric_never_negative_and_zero_to_itself(more, dim, seed):
    a, b = normal(dim + more, dim, seed), normal(dim + more + 3, dim, seed + 1, scale=1.5)
    assert frechet_distance(a, b) == pytest.approx(frechet_distance(b, a), abs=1e-6)
    assert frechet_distance(a, b) >= 0
    assert frechet_distance(a, a) == pytest.approx(0, abs=1e-6)


def test_a_shift_adds_its_squared_length():
    a = normal(50, 4, 0)
    assert frechet_distance(a, a + 3) == pytest.approx(4 * 3**2, abs=1e-4)


def unlike(dim, per_dim, seed=0):
    """Two sets whose covariances neither commute nor are round; as spread as networks' features."""
    generator = torch.Generator().manual_seed(seed)
    spread = torch.arange(1, dim + 1).double() ** -0.6
    turn = torch.linalg.qr(torch.randn(dim, dim, generator=generator).double()).Q
    a, b = (normal(per_dim * dim, dim, seed + side).double() * spread for side in (1, 2))
    return a, 1.2 * b @ turn + 0.1


@pytest.mark.parametrize("dim", [3, 16, 64, 192])
def test_the_distance_agrees_with_torch_fidelity_and_the_square_root_of_the_product(dim):
    """Asked for: a millionth of the traces, from four pictures per feature."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from torch_fidelity.metric_fid import fid_features_to_statistics, fid_statistics_to_metric
    a, b = unlike(dim, 4)
    first, second = (fid_features_to_statistics(side) for side in (a, b))
    traces = first["sigma"].trace() + second["sigma"].trace()
    (fidelity,) = fid_statistics_to_metric(first, second, verbose=False).values()
    root = scipy.linalg.sqrtm(first["sigma"] @ second["sigma"])
    apart = first["mu"] - second["mu"]
    with_root = apart @ apart + traces - 2 * root.trace().real
    for theirs in (fidelity, with_root):
        assert abs(frechet_distance(a, b) - theirs) < 1e-10 * traces


def test_spatial_features_are_scored_as_the_adm_evaluator_does():
    """sFID: the maps' cells are the features, in any one order."""
    first, second = (
        normal(80, 3 * 5, seed, scale).reshape(-1, 3, 5) for seed, scale in ((0, 1.0), (1, 2.0))
    )
    flat = frechet_distance(first.flatten(1), second.flatten(1))
    channels_last = frechet_distance(first.mT.flatten(1), second.mT.flatten(1))
    assert channels_last == pytest.approx(flat)
    with pytest.raises(UserError, match="flatten all axes but the first"):
        frechet_distance(first, second)


def test_pictures_that_repeat_have_a_distance_and_it_is_the_closed_form():
    """Four points, many times over: a covariance of rank two among five features."""
    corners = torch.tensor(
        [[1.0, 1, 0, 0, 0], [1, -1, 0, 0, 0], [-1, 1, 0, 0, 0], [-1, -1, 0, 0, 0]]
    )
    collapsed, round_ = (
        corners.repeat(250, 1),
        torch.cat([torch.eye(5), -torch.eye(5)]).repeat(100, 1),
    )
    first, second = 1000 / 999, 200 / 999  # variances along two axes, and along all
    expected = 2 * (first**0.5 - second**0.5) ** 2 + 3 * second
    assert frechet_distance(collapsed, round_) == pytest.approx(expected, rel=1e-7)
    assert frechet_distance(round_, collapsed) == pytest.approx(expected, rel=1e-7)
    assert frechet_distance(collapsed, collapsed) == pytest.approx(0, abs=1e-6)


def test_of_few_pictures_the_least_varied_come_nearest_unless_the_bias_is_taken_off():
    """Two sets of one distribution, one scaled: the truth is least at a scale of 1."""
    spread = torch.arange(1, 201).double() ** -0.3
    a, b = (normal(count, 200, seed).double() * spread for count, seed in ((400, 0), (9000, 1)))
    scales = (0.85, 0.9, 0.95, 1.0, 1.05)

    def nearest(distance):
        return min(scales, key=lambda scale: distance(scale * a, b))

    assert nearest(frechet_distance) < 1
    assert nearest(extrapolated_frechet) == 1
    assert abs(extrapolated_frechet(a, b)) < frechet_distance(a, b) / 3


def test_rows_sorted_by_class_have_no_other_distance_than_shuffled_ones():
    """400 of 1,000 classes lie apart, one picture of each class, the reference alike."""
    shift = (torch.arange(1000) < 400)[:, None] * 4.0
    a, b = normal(1000, 32, 0) + shift, normal(9000, 32, 1) + shift.repeat(9, 1)
    found = extrapolated_frechet(a, b)
    assert abs(found) < frechet_distance(a, b)
    shuffled = a[torch.randperm(1000, generator=torch.Generator().manual_seed(5))]
    assert found == pytest.approx(extrapolated_frechet(shuffled, b), abs=0.5)


def test_the_order_of_pictures_does_not_count():
    a, b = normal(600, 80, 0), normal(600, 80, 1)
    shuffled = a[torch.randperm(600, generator=torch.Generator().manual_seed(0))]
    assert frechet_distance(shuffled, b) == pytest.approx(frechet_distance(a, b), rel=1e-9)


def test_features_of_two_networks_are_refused():
    a, b = gaussian_of(normal(9, 3, 0)), gaussian_of(normal(9, 4, 0))
    with pytest.raises(UserError, match="one side has 3 and the other 4"):
        frechet_of_gaussians(a, b)


@pytest.mark.parametrize("fewer", [0, 5])
def test_no_more_pictures_than_features_are_refused(fewer):
    with pytest.raises(
        UserError, match=f"more than 12 pictures .* one side has {12 - fewer}; make"
    ):
        frechet_distance(normal(12 - fewer, 12, 0), normal(13, 12, 1))
    frechet_distance(normal(13, 12, 0), normal(13, 12, 1))


def test_fewer_than_512_pictures_are_refused():
    with pytest.raises(UserError, match="one side has 511"):
        fd_effnet64(normal(600, 80, 0), normal(511, 80, 1))


def test_the_projected_distance_is_that_of_all_dimensions_for_like_variances():
    a, b = normal(4000, 128, 0), normal(4000, 128, 1, shift=1.0)
    assert fd_effnet64(a, b, bootstraps=2).value == pytest.approx(frechet_distance(a, b), rel=0.3)


def test_the_interval_holds_the_value_and_repeats_with_its_seed():
    a, b = normal(600, 80, 0), normal(700, 80, 1)
    estimate = fd_effnet64(a, b, seed=3)
    assert estimate.low < estimate.value < estimate.high
    assert estimate == fd_effnet64(a, b, seed=3)
    assert estimate.low != fd_effnet64(a, b, seed=4).low


@pytest.mark.parametrize("shift", [0.2, 1.0])
def test_the_interval_covers_the_expected_score_of_sets_of_this_size(shift):
    # 90 % is claimed: of 20 intervals fewer than 14 would cover once in 400. At the small shift
    # the plain percentiles, which add the bias twice, would cover almost never.
    estimates = [
        fd_effnet64(normal(512, 64, seed), normal(512, 64, 100 + seed, shift=shift), bootstraps=60)
        for seed in range(20)
    ]
    expected = sum(estimate.value for estimate in estimates) / len(estimates)
    assert sum(e.low <= expected <= e.high for e in estimates) >= 14


def test_more_pictures_make_the_interval_narrower():
    few, many = (
        fd_effnet64(normal(count, 64, 0), normal(count, 64, 1, shift=0.5), bootstraps=50)
        for count in (512, 4096)
    )
    assert many.high - many.low < 0.6 * (few.high - few.low)
