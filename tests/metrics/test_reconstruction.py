import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from cartok.core.errors import UserError
from cartok.core.shapes import image_of_pixels
from cartok.metrics.reconstruction import psnr_db, psnr_db_of_each


def flat(value, count=1):
    return image_of_pixels(torch.full((count, 3, 8, 8), value, dtype=torch.uint8))


@given(st.integers(0, 255), st.integers(0, 255))
def test_flat_pictures_have_the_closed_form(a, b):
    if a != b:
        assert psnr_db(flat(a), flat(b)) == pytest.approx(20 * math.log10(255 / abs(a - b)))


def test_an_exact_copy_counts_as_one_byte_off_by_one():
    copy = flat(9)
    nearly = copy.clone()
    nearly[0, 0, 0, 0] += 1 / 127.5
    assert (
        psnr_db(copy, copy) == psnr_db(nearly, copy) == pytest.approx(10 * math.log10(255**2 * 192))
    )


def test_the_mean_is_over_pictures_in_decibels():
    image, target = torch.cat([flat(10), flat(200)]), torch.cat([flat(11), flat(100)])
    each = psnr_db_of_each(image, target)
    assert each.tolist() == pytest.approx([20 * math.log10(255), 20 * math.log10(2.55)])
    assert psnr_db(image, target) == pytest.approx(each.mean().item())


def test_differences_that_no_byte_shows_do_not_count():
    assert psnr_db(flat(100) + 0.3 / 127.5, flat(100)) == psnr_db(flat(100), flat(100))


def test_values_beyond_the_range_are_clipped_as_in_a_file():
    assert psnr_db(torch.full((1, 3, 8, 8), 1.7), flat(255)) == psnr_db(flat(255), flat(255))


def test_bytes_and_their_floats_score_alike():
    a, b = (torch.full((2, 3, 8, 8), value, dtype=torch.uint8) for value in (7, 90))
    assert psnr_db(a, b) == psnr_db(image_of_pixels(a), b) == psnr_db(flat(7), flat(90))


@pytest.mark.parametrize(
    ("pictures", "message"),
    [
        (torch.full((1, 3, 8, 8), math.nan), "NaN"),
        (torch.full((1, 3, 8, 8), 255.0), "reach 255; pass bytes as uint8"),
        (torch.zeros(1, 1, 8, 8), "convert grey"),
        (torch.zeros(1, 8, 8, 3), "channels first"),
        (torch.zeros(0, 3, 8, 8), "these are"),
        (torch.zeros(1, 3, 8, 9), r"\(1, 3, 8, 9\) and \(1, 3, 8, 8\); pair and crop"),
        (torch.zeros(2, 3, 8, 8), r"\(2, 3, 8, 8\) and \(1, 3, 8, 8\)"),
    ],
)
def test_what_is_no_picture_like_its_target_is_refused_in_one_line(pictures, message):
    with pytest.raises(UserError, match=message) as error:
        psnr_db(pictures, flat(9))
    assert "\n" not in str(error.value)
    with pytest.raises(UserError):
        psnr_db(flat(9), pictures)
