import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from cartok.core.config import ConfigError, config_of
from cartok.core.errors import UserError
from cartok.data.views import View, center_view, num_views, train_view, transform_of, views_of


def ramp(width, height):
    """A picture whose red is the column and whose green is the row."""
    rows, columns = np.mgrid[:height, :width]
    return Image.fromarray(np.stack([columns, rows, 0 * rows], axis=-1).astype(np.uint8))


def bytes_of(picture):
    return torch.from_numpy(np.array(picture)).permute(2, 0, 1)


def test_a_picture_of_the_right_size_is_untouched():
    picture = ramp(32, 32)
    view = View(size=32, flip=False)
    assert train_view(picture, view, np.random.default_rng(0)).equal(bytes_of(picture))
    assert center_view(picture, view).equal(bytes_of(picture))


@given(
    width=st.integers(20, 90),
    height=st.integers(20, 90),
    size=st.integers(4, 40),
    min_scale=st.floats(0.2, 1),
    seed=st.integers(0, 99),
)
def test_a_training_view_is_a_window_of_the_picture(width, height, size, min_scale, seed):
    view = View(size=size, min_scale=min_scale, flip=False)
    crop = train_view(ramp(width, height), view, np.random.default_rng(seed))
    assert crop.shape == (3, size, size)
    # Columns and rows rise evenly over at most the short side, and never leave the picture.
    for axis, side in ((0, width), (1, height)):
        assert int(crop[axis].max()) <= side - 1
        extent = int(crop[axis].max()) - int(crop[axis].min())
        assert min_scale * min(width, height) * (1 - 2 / size) - 3 <= extent <= min(width, height)


def test_training_views_reach_both_ends_of_a_wide_picture():
    view = View(size=8, flip=False)
    lefts = {
        int(train_view(ramp(12, 8), view, np.random.default_rng(seed))[0, 0, 0])
        for seed in range(60)
    }
    assert lefts == {0, 1, 2, 3, 4}


def test_half_of_the_training_views_are_mirrored():
    picture, view = ramp(16, 16), View(size=16)
    views = [train_view(picture, view, np.random.default_rng(seed)) for seed in range(400)]
    mirrored = [crop.equal(bytes_of(picture).flip(-1)) for crop in views]
    upright = [crop.equal(bytes_of(picture)) for crop in views]
    assert all(a != b for a, b in zip(mirrored, upright, strict=True))
    assert 150 < sum(mirrored) < 250  # four standard deviations are 40


def test_a_view_that_does_not_resize_is_cut_at_the_pictures_own_scale():
    view = View(size=10, resize=False, flip=False)
    assert center_view(ramp(50, 30), view)[0, 0].tolist() == list(range(20, 30))
    crop = train_view(ramp(50, 30), view, np.random.default_rng(0))
    assert (crop[0, 0].diff() == 1).all()


def test_a_view_larger_than_the_picture_is_refused_without_resizing():
    with pytest.raises(UserError, match="10 px at the picture's own scale"):
        center_view(ramp(50, 9), View(size=10, resize=False))


def test_shrinking_averages_rather_than_skips():
    stripes = np.zeros((64, 64, 3), dtype=np.uint8)
    stripes[:, ::2] = 255
    small = center_view(Image.fromarray(stripes), View(size=16)).float()
    assert (small[:, :, 2:-2] - 127.5).abs().max() < 8


def test_flip_views_are_the_centre_and_its_mirror_image():
    picture = ramp(20, 16)
    pair = views_of(picture, View(size=16), "flip")
    assert pair[0].equal(center_view(picture, View(size=16)))
    assert pair[1].equal(pair[0].flip(-1))


def test_ten_crops_are_centre_and_corners_then_their_mirror_images():
    crops = views_of(ramp(22, 22), View(size=20), "ten-crop")
    assert crops[:5, 0, 0, 0].tolist() == [1, 0, 2, 0, 2]
    assert crops[:5, 1, 0, 0].tolist() == [1, 0, 0, 2, 2]
    assert crops[5:].equal(crops[:5].flip(-1))


@pytest.mark.parametrize("kind", ["center", "flip", "ten-crop"])
def test_the_number_of_views_is_known_before(kind):
    assert len(views_of(ramp(22, 25), View(size=20), kind)) == num_views(kind)


def test_ten_crops_need_resizing():
    with pytest.raises(UserError, match="set resize to true"):
        views_of(ramp(22, 22), View(size=20, resize=False), "ten-crop")


@pytest.mark.parametrize("broken", [{"size": 0}, {"size": 8, "min_scale": 0.0}])
def test_impossible_views_are_refused(broken):
    with pytest.raises(ConfigError):
        config_of(View, broken)


def test_what_was_done_to_a_picture_is_said_in_words():
    said = {kind: transform_of(View(size=20), kind) for kind in ("center", "flip", "ten-crop")}
    assert said["center"] == "central square of the short side, Lanczos to 20 px"
    assert said["flip"] == said["center"] + ", each also mirrored"
    assert "to 22 px; of it 20 px in the centre and the corners, each also" in said["ten-crop"]
    assert transform_of(View(size=20, resize=False), "center") == (
        "central 20 px at the picture's own scale"
    )
