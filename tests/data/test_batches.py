import os
import sys
from itertools import islice

import numpy as np
import pytest
import torch
from PIL import Image

from cartok.core.errors import UserError
from cartok.core.shapes import pixels_of
from cartok.data import batches
from cartok.data.batches import all_images, image_batches, view_batches
from cartok.data.images import open_pictures
from cartok.data.stores import FolderStore
from cartok.data.views import View, center_view, views_of

VIEW = View(size=24, min_scale=0.5)


@pytest.fixture
def pictures(two_classes):
    return open_pictures(two_classes, "all")


def some(pictures, num, **options):
    options = {"batch": 6, "seed": 1, "start": 0, "augment": True} | options
    return list(islice(image_batches(pictures, VIEW, **options), num))


def assert_equal(left, right):
    for a, b in zip(left, right, strict=True):
        for field in ("image", "labels", "indices", "positions"):
            assert getattr(a, field).equal(getattr(b, field)), field


def test_resumed_batches_equal_uninterrupted_ones(pictures):
    whole = some(pictures, 16)  # 96 pictures: crosses two epochs of 40
    assert_equal(some(pictures, 9, start=42), whole[7:])


def test_ranks_share_one_global_batch(pictures):
    (whole,) = some(pictures, 1, batch=8)
    parts = [some(pictures, 1, batch=2, rank=rank, world_size=4)[0] for rank in range(4)]
    assert torch.stack([part.image for part in parts], dim=1).flatten(0, 1).equal(whole.image)


def test_batches_are_the_same_for_any_number_of_workers(pictures):
    assert_equal(some(pictures, 10, workers=2, start=6), some(pictures, 10, start=6))


def test_labels_follow_their_pictures(pictures):
    for batch in some(pictures, 8):
        assert (batch.labels.numpy() == pictures.labels[batch.indices]).all()
        assert batch.image.abs().max() <= 1


def test_epochs_show_a_picture_in_different_views(pictures):
    seen = some(pictures, 2, batch=40)
    first, second = (batch.image[batch.indices.argsort()] for batch in seen)
    assert not first.equal(second)


def test_without_augmentation_every_view_is_central(pictures):
    batch = some(pictures, 1, augment=False)[0]
    for image, index in zip(pixels_of(batch.image), batch.indices, strict=True):
        assert image.equal(center_view(pictures.read(int(index)), VIEW))


def test_all_images_come_once_and_in_order(pictures):
    batches = list(all_images(pictures, VIEW, 16))
    assert [len(batch.labels) for batch in batches] == [16, 16, 8]
    assert torch.cat([batch.indices for batch in batches]).tolist() == list(range(40))


def test_making_batches_draws_nothing_from_the_global_generator(pictures):
    before = torch.get_rng_state()
    some(pictures, 2, workers=1)
    assert torch.get_rng_state().equal(before)


def test_a_picture_that_cannot_be_decoded_brings_its_replacements_label(fill):
    root = fill("pets", [f"{name}/{i:02d}.png" for name in ("cat", "dog") for i in range(60)])
    last_cat = root / "cat" / "59.png"
    last_cat.write_bytes(last_cat.read_bytes()[:500])
    batches = list(all_images(open_pictures(root, "all"), VIEW, 120))
    assert batches[0].indices[59] == 60
    assert batches[0].labels[59] == 1


class FatalStore(FolderStore):
    """Kills the process that opens row 20 after the headers were read."""

    armed = False

    def open(self, row):
        if self.armed and row == 20:
            os._exit(9)
        return super().open(row)


def test_a_worker_that_dies_raises(pictures):
    pictures.store = FatalStore(pictures.store.root, pictures.store.names)
    pictures.store.armed = True
    pictures._keeps = False  # as larger pictures are not: workers decode them, not this process
    with pytest.raises(UserError, match="data workers must live, but one died"):
        some(pictures, 40, workers=1)


def test_a_worker_that_dies_is_told_alike_where_a_thread_pins_what_it_sends(pictures, monkeypatch):
    def started(loader):
        raise RuntimeError("Pin memory thread exited unexpectedly")
        yield

    monkeypatch.setattr(batches, "_started", started)
    with pytest.raises(UserError, match="data workers must live, but one died"):
        some(pictures, 1, workers=1)


@pytest.mark.skipif(sys.platform != "linux", reason="workers share memory where they are forked")
def test_small_pictures_are_decoded_before_workers_are_forked(pictures):
    """Or each worker would decode and keep all of them for itself."""
    whole = pictures.subset(np.arange(len(pictures)))
    some(whole, 2)
    assert len(whole._cache) < len(whole)
    some(whole, 2, workers=1)
    assert len(whole._cache) == len(whole)


def test_a_workers_complaint_comes_as_one_line(pictures):
    for number in (3, 5):
        path = pictures.store.root / pictures.store.names[number]
        path.write_bytes(path.read_bytes()[:500])
    with pytest.raises(UserError, match="at most 1 %") as caught:
        some(pictures, 40, workers=1)
    assert "\n" not in str(caught.value)


def test_small_pictures_are_decoded_once(pictures, monkeypatch):
    num_opened = 0
    opened = FolderStore.open

    def count(store, row):
        nonlocal num_opened
        num_opened += 1
        return opened(store, row)

    monkeypatch.setattr(FolderStore, "open", count)
    some(pictures, 3, batch=40)
    assert num_opened == 40


def test_large_pictures_are_not_kept(fill):
    pictures = open_pictures(fill("large", ["a.png", "b.png"], (65, 65)), "all")
    assert np.asarray(pictures.read(0)).shape == (65, 65, 3)
    assert not pictures._cache


def test_an_unreadable_picture_is_left_out_and_not_counted_twice(tmp_path):
    rng = np.random.default_rng(0)
    for index in range(150):
        pixels = rng.integers(0, 256, (16, 16, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(tmp_path / f"{index:03d}.png")
    damaged = (tmp_path / "070.png").read_bytes()
    (tmp_path / "070.png").write_bytes(damaged[: len(damaged) // 2])
    pictures = open_pictures(tmp_path, "all")
    found = list(all_images(pictures, View(size=16), 64))
    indices = torch.cat([batch.indices for batch in found])
    assert indices.tolist() == [index for index in range(150) if index != 70]
    assert [fault.name for fault in pictures.broken] == ["070.png"]


@pytest.mark.parametrize("workers", [0, 2])
def test_fixed_views_come_as_asked_for_with_their_labels(pictures, workers):
    wanted = [range(30, 33), range(2)]
    found = list(view_batches(pictures, VIEW, "flip", wanted, workers=workers))
    assert len(found) == 2
    for some, batch in zip(wanted, found, strict=True):
        assert batch.labels.tolist() == pictures.labels[list(some)].tolist()
        for index, squares in zip(some, batch.pixels, strict=True):
            assert torch.equal(squares, views_of(pictures.read(index), VIEW, "flip"))


def test_a_batch_of_fixed_views_may_have_lost_all_of_its_pictures(fill):
    root = fill("pets", [f"{i:03d}.png" for i in range(120)])
    path = root / "050.png"
    path.write_bytes(path.read_bytes()[:500])
    pictures = open_pictures(root, "all")
    first, lost = view_batches(pictures, VIEW, "ten-crop", [range(49, 51), range(50, 51)])
    assert (first.lost, lost.lost) == ((50,), (50,))
    assert (first.pixels.shape[0], lost.pixels.shape) == (1, (0, 10, 3, 24, 24))
    assert len(lost.labels) == 0
