import numpy as np
import pytest
import scipy.signal
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from skimage.metrics import structural_similarity

from cartok.core.errors import UserError
from cartok.core.shapes import image_of_pixels
from cartok.metrics import ssim as module
from cartok.metrics.ssim import SCALE_WEIGHTS, ms_ssim, ms_ssim_of_each, ssim, ssim_of_each

C1 = (0.01 * 255) ** 2
C2 = (0.03 * 255) ** 2


def flat(value, size=16):
    return torch.full((1, 3, size, size), value, dtype=torch.uint8)


def noised(pixels, deviation, seed=0):
    noise = torch.randn(pixels.shape, generator=torch.Generator().manual_seed(seed))
    return (pixels + deviation * noise).clamp(0, 255).byte()


def small(count, seed, height=24, width=31):
    generator = torch.Generator().manual_seed(seed)
    coarse = torch.rand(count, 3, 4, 5, generator=generator) * 255
    return (
        torch.nn.functional.interpolate(coarse, (height, width), mode="bicubic")
        .clamp(0, 255)
        .byte()
    )


def test_ssim_is_that_of_scikit_image(photo_crops):
    targets = photo_crops(6, seed=0, size=40)
    pictures = torch.cat([noised(targets[:3], 12), targets[3:].flip(3)])
    options = {"gaussian_weights": True, "use_sample_covariance": False, "data_range": 255}
    expected = [
        structural_similarity(a.numpy(), b.numpy(), channel_axis=0, sigma=1.5, **options)
        for a, b in zip(pictures, targets, strict=True)
    ]
    assert ssim_of_each(pictures, targets).tolist() == pytest.approx(expected, abs=1e-12)
    assert min(expected) < 0.6 < max(expected)


def from_the_paper(a, b):
    """MS-SSIM of one channel by plain two-dimensional filters; Wang et al. 2003, equation 7."""
    line = np.exp(-((np.arange(11) - 5.0) ** 2) / (2 * 1.5**2))
    window = np.outer(line, line) / line.sum() ** 2
    total = 1.0
    for scale, weight in enumerate(SCALE_WEIGHTS):

        def local(maps):
            return scipy.signal.convolve2d(maps, window, mode="valid")

        mean_a, mean_b = local(a), local(b)
        centred = local(a * a) - mean_a**2, local(b * b) - mean_b**2, local(a * b) - mean_a * mean_b
        likeness = (2 * centred[2] + C2) / (centred[0] + centred[1] + C2)
        if scale == len(SCALE_WEIGHTS) - 1:
            likeness = likeness * (2 * mean_a * mean_b + C1) / (mean_a**2 + mean_b**2 + C1)
        total *= max(likeness.mean(), 0) ** weight
        a, b = (
            sum(np.pad(side, (0, 1), mode="symmetric")[i : i + side.shape[0], j : j + side.shape[1]]
                for i in (0, 1) for j in (0, 1))[::2, ::2] / 4
            for side in (a, b)
        )  # fmt: skip
    return total


def test_ms_ssim_is_that_of_plain_filters(photo_crops):
    targets = photo_crops(1, seed=1, size=163, step=1)[:, :, :, :161]  # odd at every scale
    pictures = noised(targets, 40)
    channels = [
        from_the_paper(a.double().numpy(), b.double().numpy())
        for a, b in zip(pictures[0], targets[0], strict=True)
    ]
    assert ms_ssim(pictures, targets) == pytest.approx(np.mean(channels), abs=1e-12)
    assert 0.5 < np.mean(channels) < 0.99


@settings(deadline=None, max_examples=30)
@given(st.integers(0, 255), st.integers(0, 255))
def test_flat_pictures_differ_in_brightness_alone(a, b):
    brightness = (2 * a * b + C1) / (a * a + b * b + C1)
    assert ssim(flat(a), flat(b)) == pytest.approx(brightness, abs=1e-9)


def test_over_scales_brightness_counts_at_the_coarsest_alone():
    brightness = (2 * 60 * 200 + C1) / (60**2 + 200**2 + C1)
    found = ms_ssim(flat(60, 161), flat(200, 161))
    assert found == pytest.approx(brightness**0.1333, abs=1e-9)


def test_reversed_structure_scores_below_zero_and_over_scales_zero():
    """A fine checkerboard and its negative: windows see means alike and covariance reversed."""
    board = ((torch.arange(161)[:, None] + torch.arange(161)) % 2 * 200 + 20).byte()
    board = board.expand(1, 3, 161, 161)
    negative = 240 - board
    assert ssim(board, negative) == pytest.approx((-2 * 1e4 + C2) / (2 * 1e4 + C2), abs=1e-3)
    assert ms_ssim(board, negative) == 0


@settings(deadline=None, max_examples=10)
@given(st.integers(0, 999), st.integers(0, 999))
def test_similarity_is_symmetric_at_most_one_and_blind_to_mirroring(seed, other):
    a, b = small(2, seed), small(2, other)
    found = ssim_of_each(a, b)
    torch.testing.assert_close(found, ssim_of_each(b, a))
    torch.testing.assert_close(found, ssim_of_each(a.flip(3).mT, b.flip(3).mT))
    assert (found <= 1 + 1e-12).all()
    assert ssim(a, a) == pytest.approx(1, abs=1e-12)


def test_equal_pictures_score_one_over_scales_and_damage_lowers_both(photo_crops):
    targets = photo_crops(2, seed=2, size=176, step=1)
    assert ms_ssim(targets, targets) == pytest.approx(1, abs=1e-12)
    for similarity in (ssim, ms_ssim):
        scores = [similarity(noised(targets, deviation), targets) for deviation in (2, 10, 40)]
        assert 1 > scores[0] > scores[1] > scores[2] > 0


def test_each_picture_is_scored_for_itself_in_parts_of_any_size(monkeypatch):
    a, b = small(5, 0), small(5, 1)
    expected = ssim_of_each(a, b)
    monkeypatch.setattr(module, "AT_ONCE", 2)
    torch.testing.assert_close(ssim_of_each(a, b), expected)
    torch.testing.assert_close(ssim_of_each(a[3:4], b[3:4]), expected[3:4])
    assert ssim(a, b) == pytest.approx(expected.mean().item())


def test_floats_score_as_the_bytes_of_their_file():
    a, b = small(2, 0), small(2, 1)
    assert ssim(image_of_pixels(a) + 0.3 / 127.5, image_of_pixels(b)) == ssim(a, b)


@pytest.mark.parametrize(
    ("similarity", "size"), [(ssim, 11), (ms_ssim, 161), (ssim_of_each, 11), (ms_ssim_of_each, 161)]
)
def test_pictures_smaller_than_the_window_are_refused_by_name_and_number(similarity, size):
    similarity(flat(3, size), flat(9, size))
    smaller = flat(3, size)[:, :, :, 1:]
    message = f"SSIM needs pictures of {size} pixels or more each way, but .* {size} x {size - 1}"
    with pytest.raises(UserError, match=message) as error:
        similarity(smaller, smaller)
    assert "\n" not in str(error.value)
