import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from cartok.core.errors import UserError
from cartok.metrics.frechet import frechet_distance
from cartok.metrics.frechet_estimate import frechet_estimate
from cartok.metrics.gaussian import Gaussian, gaussian_of

DIM = 12
SPREAD = torch.arange(1, DIM + 1).double() ** -0.6


def features(count, seed, scale=1.0, shift=0.0):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(count, DIM, generator=generator).double() * SPREAD * scale + shift


def known():
    """The statistics that ``features`` are drawn from."""
    return Gaussian(torch.zeros(DIM).double(), torch.diag(SPREAD**2), 10**6)


def truth(scale, shift):
    return (scale - 1) ** 2 * SPREAD.square().sum().item() + DIM * shift**2


@pytest.fixture(
    scope="module", params=[(1.0, 0.0), (1.1, 0.05), (1.3, 0.3)], ids=["like", "near", "far"]
)
def repeats(request):
    """What 50 fresh sets of 150 pictures are estimated at, and the true distance."""
    scale, shift = request.param
    estimates = [frechet_estimate(features(150, seed, scale, shift), known()) for seed in range(50)]
    return estimates, truth(scale, shift)


def held(intervals, value):
    return sum(low <= value <= high for low, high in intervals)


def test_the_interval_holds_the_mean_score_of_sets_of_this_size(repeats):
    # 90 % is claimed: fewer than 38 of 50 would hold it once in 1,000.
    estimates, _ = repeats
    mean = np.mean([estimate.value for estimate in estimates])
    assert held([estimate.interval for estimate in estimates], mean) >= 38


def test_the_interval_at_infinity_holds_the_true_distance(repeats):
    estimates, true = repeats
    assert held([estimate.interval_at_infinity for estimate in estimates], true) >= 38


def test_the_standard_error_is_the_spread_over_fresh_sets_or_more(repeats):
    estimates, _ = repeats
    claimed = np.mean([estimate.standard_error for estimate in estimates])
    for values in ([e.value for e in estimates], [e.at_infinity for e in estimates]):
        assert 0.75 < claimed / np.std(values) < 2


def test_the_bias_of_the_value_is_gone_at_infinity(repeats):
    estimates, true = repeats
    value = np.mean([estimate.value for estimate in estimates])
    limit = np.mean([estimate.at_infinity for estimate in estimates])
    chance = np.std([estimate.value for estimate in estimates]) / 50**0.5
    assert value - true > 3 * chance or true > 1  # of sets far apart the bias is lost in chance
    assert abs(limit - true) < 3 * chance + 0.1 * (value - true)


def test_plain_percentiles_of_a_bootstrap_would_miss_the_mean_score_of_like_sets():
    """Why the error is not taken from there: resampling adds the bias a second time."""
    missed = 0
    expected = np.mean(
        [frechet_distance(features(150, s), features(150, 900 + s)) for s in range(40)]
    )
    for seed in range(10):
        a, b = features(150, seed), features(150, 900 + seed)
        generator = torch.Generator().manual_seed(seed)
        draws = [
            frechet_distance(
                *(side[torch.randint(150, (150,), generator=generator)] for side in (a, b))
            )
            for _ in range(30)
        ]
        missed += not np.quantile(draws, 0.05) <= expected <= np.quantile(draws, 0.95)
    assert missed >= 8


def test_the_value_is_the_plain_distance_and_the_limit_lies_below():
    a, b = features(300, 0), features(400, 1)
    found = frechet_estimate(a, b)
    assert found.value == pytest.approx(frechet_distance(a, b), rel=1e-9)
    assert found.at_infinity < found.value
    assert found.interval[0] < found.value < found.interval[1]
    assert sum(found.interval_at_infinity) / 2 == pytest.approx(found.at_infinity)


def test_a_reference_of_pictures_adds_its_own_error_and_one_of_statistics_none():
    a, b = features(2400, 0, 1.3, 0.3), features(240, 1)
    sampled, fixed = frechet_estimate(a, b), frechet_estimate(a, gaussian_of(b))
    assert sampled.value == pytest.approx(fixed.value, rel=1e-9)
    assert sampled.standard_error > 2 * fixed.standard_error


def test_four_times_the_pictures_halve_the_error():
    few, many = (
        np.mean(
            [frechet_estimate(features(n, s, 1.3, 0.3), known()).standard_error for s in range(12)]
        )
        for n in (240, 960)
    )
    assert many / few == pytest.approx(0.5, rel=0.3)


def test_rows_sorted_by_class_have_no_other_error_than_shuffled_ones():
    by_class = torch.cat([features(30, seed) + (seed % 20 - 10) for seed in range(40)])
    shuffled = by_class[torch.randperm(1200, generator=torch.Generator().manual_seed(0))]
    found, expected = (frechet_estimate(rows, known()) for rows in (by_class, shuffled))
    assert found.value == pytest.approx(expected.value, rel=1e-9)
    assert found.standard_error == pytest.approx(expected.standard_error, rel=0.6)
    assert abs(found.at_infinity - expected.at_infinity) < found.standard_error


@settings(deadline=None, max_examples=5)
@given(st.integers(0, 99))
def test_an_estimate_repeats_with_its_seed(seed):
    a, b = features(100, 0), features(90, 1)
    assert frechet_estimate(a, b, seed) == frechet_estimate(a, b, seed)
    assert frechet_estimate(a, b, seed) != frechet_estimate(a, b, seed + 1)


@pytest.mark.parametrize(
    ("generated", "reference", "message"),
    [
        (features(48, 0), features(99, 1), "12 features needs more than 48 pictures, but 48 came"),
        (features(99, 0), features(12, 1), "more than 12 pictures on each side, but one side has"),
        (features(99, 0), features(99, 1)[:, :3], "one width, but these have 12 and 3"),
        (features(99, 0)[:, :3], known(), "one side has 3 and the other 12"),
        (features(99, 0) * torch.nan, known(), "NaN"),
        (features(99, 0).half(), known(), "float32 or float64"),
    ],
)
def test_what_cannot_be_extrapolated_is_refused_in_one_line(generated, reference, message):
    with pytest.raises(UserError, match=message) as error:
        frechet_estimate(generated, reference)
    assert "\n" not in str(error.value)
