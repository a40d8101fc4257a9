import hashlib

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from cartok.core.errors import UserError
from cartok.core.shapes import image_of_pixels
from cartok.frozen import judge
from cartok.metrics.features import (
    content_hash,
    features_of,
    picture_hashes,
    pixel_batches,
    projection,
)


@pytest.fixture(scope="module")
def network():
    return judge(32)


@pytest.mark.parametrize("batch", [1, 5, 16])
def test_features_do_not_depend_on_the_batch_size(network, photo_crops, batch):
    pixels = photo_crops(11, seed=0)
    together = features_of(pixels, network)
    assert together.shape == (11, 1280)
    torch.testing.assert_close(features_of(pixels, network, batch), together, atol=1e-5, rtol=1e-4)


def test_float_batches_and_their_bytes_have_the_same_features(network, photo_crops):
    pixels = photo_crops(6, seed=0)
    nearly = image_of_pixels(pixels) + 0.3 / 127.5  # the same bytes when rounded
    torch.testing.assert_close(
        features_of([nearly[:4], nearly[4:]], network), features_of(pixels, network)
    )


@pytest.mark.parametrize(
    ("pictures", "message"),
    [
        (torch.zeros(3, 32, 32), r"these are \(3, 32, 32\)"),
        (torch.zeros(2, 1, 32, 32), "convert grey"),
        (torch.zeros(2, 32, 32, 3, dtype=torch.uint8), "channels first"),
        (torch.zeros(0, 3, 32, 32), "these are"),
        (torch.zeros(2, 3, 32, 32, dtype=torch.int64), "use uint8"),
        (torch.full((2, 3, 32, 32), 255.0), "reach 255"),
        (torch.full((2, 3, 32, 32), float("nan")), "NaN"),
    ],
)
def test_what_is_no_batch_of_pictures_is_refused_in_one_line(pictures, message):
    with pytest.raises(UserError, match=message) as error:
        list(pixel_batches(pictures))
    assert "\n" not in str(error.value)


def test_no_pictures_at_all_are_refused(network):
    with pytest.raises(UserError, match="none came"):
        features_of([], network)


def test_the_hash_names_the_set_and_not_its_order(photo_crops):
    pixels = photo_crops(5, seed=0)
    changed = pixels.clone()
    changed[0, 0, 0, 0] ^= 1
    assert len(content_hash(pixels)) == 16
    assert content_hash(pixels.flip(0)) == content_hash(pixels)
    assert content_hash(changed) != content_hash(pixels)
    assert content_hash(pixels.reshape(5, 3, 16, 64)) != content_hash(pixels)
    assert content_hash(pixels.repeat(2, 1, 1, 1)) != content_hash(pixels)


def test_each_picture_is_hashed_for_itself_whoever_hashes_it():
    pixels = torch.arange(40 * 3 * 160 * 160).reshape(40, 3, 160, 160).to(torch.uint8)
    for shown in (pixels, pixels.flip(0), pixels[:1], pixels.permute(0, 1, 3, 2)):
        assert picture_hashes(shown) == [
            hashlib.sha256(picture.numpy().tobytes()).digest() for picture in shown
        ]


def test_the_projection_is_the_same_on_every_version():
    stored = [[0.1648, -0.2868, -1.2033], [-1.0023, 0.0307, -0.1894]]  # torch 2.15, numpy 2.4
    np.testing.assert_allclose(projection(6, 3)[:2], stored, atol=1e-4)


@given(st.integers(8, 40), st.integers(1, 8), st.integers(0, 99))
def test_projected_axes_are_orthogonal_and_keep_lengths_on_average(dim_in, dim_out, seed):
    matrix = projection(dim_in, dim_out, seed)
    expected = torch.eye(dim_out, dtype=torch.float64) * dim_in / dim_out
    torch.testing.assert_close(matrix.T @ matrix, expected)
    assert not torch.equal(matrix, projection(dim_in, dim_out, seed + 1))
