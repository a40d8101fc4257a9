import numpy as np
import pytest

from cartok.core.errors import UserError
from cartok.data import photos
from cartok.data.images import open_pictures
from cartok.data.photos import MIN_DEVIATION, PHOTOS, crops_of, held_mask, read_photo


def test_ten_photographs_give_training_and_validation_crops():
    train, val = open_pictures("photos", "train"), open_pictures("photos", "val")
    assert train.classes == val.classes == tuple(PHOTOS)
    assert np.bincount(train.labels).tolist() == [600] * 10
    assert np.bincount(val.labels).tolist() == [64] * 10
    assert train.read(0).size == (32, 32)


def test_crops_are_the_same_each_time():
    digest = open_pictures("photos", "val").digest
    photos.photo_listing.cache_clear()
    assert open_pictures("photos", "val").digest == digest


def test_training_and_validation_crops_share_no_pixel():
    height, width = 130, 190
    place = np.arange(height * width).reshape(height, width)
    # Every pixel's bytes name its place.
    photo = np.stack([place % 251, place // 251 % 251, place // 251 // 251], -1).astype(np.uint8)
    seen = []
    for held in (False, True):
        crops = crops_of(photo, 16, 400, np.random.default_rng(0), held=held)
        seen.append(set(map(tuple, crops.reshape(-1, 3).tolist())))
    assert len(seen[0] | seen[1]) > 0.8 * height * width
    assert not seen[0] & seen[1]


@pytest.mark.parametrize("name", PHOTOS)
def test_reducing_a_photograph_carries_no_pixel_into_another_tile(name, monkeypatch):
    """Blackens every held out source pixel; what is left for training must not change."""
    photo = read_photo(name, 32)
    mask = held_mask(*photo.shape[:2])
    with photos.Image.open(photos._path_of(name)) as file:
        source = np.array(file.convert("RGB"))
    factor = -(-source.shape[0] // photo.shape[0])
    source_mask = mask.repeat(factor, axis=0).repeat(factor, axis=1)
    source[source_mask[: source.shape[0], : source.shape[1]]] = 0
    blackened = photos.Image.fromarray(source)
    monkeypatch.setattr(photos.Image, "open", lambda path: blackened)
    again = read_photo(name, 32)
    assert (again[mask] == 0).all()
    assert (again[~mask] == photo[~mask]).all()


def test_a_quarter_of_each_photograph_is_held_out():
    mask = held_mask(160, 240)
    assert mask.mean() == 0.25
    assert mask.any(axis=0).all()
    assert mask.any(axis=1).all()


def test_nearly_constant_crops_are_dropped():
    photo = np.zeros((80, 80, 3), dtype=np.uint8)
    photo[:, :, 2] = 90  # blue all over: its channels differ, its pixels do not
    photo[40:, ::2] = 255
    crops = crops_of(photo, 8, 10_000, np.random.default_rng(0), held=False)
    assert 0 < len(crops) < 73 * 73 / 2
    assert crops.std(axis=(1, 2)).max(axis=1).min() >= MIN_DEVIATION


def test_crops_do_not_repeat():
    crops = crops_of(read_photo("cat", 32), 32, 600, np.random.default_rng(0), held=False)
    assert len({crop.tobytes() for crop in crops}) == 600


def test_larger_crops_are_cut_when_asked_for():
    pictures = open_pictures("photos", "val", size=64)
    assert pictures.read(0).size == (64, 64)
    assert np.bincount(pictures.labels).tolist() == [64] * 10


def test_a_crop_larger_than_the_tiles_is_refused():
    with pytest.raises(UserError, match=r"100 px is more than .* use a crop of 64 px or less"):
        open_pictures("photos", "train", size=100)


def test_a_photograph_that_is_not_installed_is_named(monkeypatch):
    monkeypatch.setitem(PHOTOS, "cat", ("no_such_package", "cat.png"))
    photos.photo_listing.cache_clear()
    with pytest.raises(UserError, match="the photograph 'cat' comes with no_such_package"):
        open_pictures("photos", "train", size=8)


def test_a_crop_too_small_to_show_anything_is_refused():
    with pytest.raises(UserError, match="none of 1 px does; use a larger crop"):
        open_pictures("photos", "train", size=1)
