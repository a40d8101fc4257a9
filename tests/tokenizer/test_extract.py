import json
import os
import signal
import warnings
from contextlib import contextmanager
from itertools import count
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image

from cartok.core import files
from cartok.core.errors import UserError
from cartok.core.precision import computing_in
from cartok.core.progress import Progress
from cartok.core.shapes import image_of_pixels
from cartok.data.batches import all_images
from cartok.data.images import open_pictures
from cartok.data.tokens import open_tokens, read_manifest
from cartok.data.views import View, center_view
from cartok.recipes.tokenizer import causal_toy
from cartok.tokenizer import extract as extraction
from cartok.tokenizer.extract import extract
from cartok.tokenizer.model import Tokenizer

VIEW = View(size=16)


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    torch.manual_seed(0)
    return Tokenizer(causal_toy().model).eval()


@pytest.fixture(scope="module")
def splits(picture_folder):
    return {split: open_pictures(picture_folder, split, size=16) for split in ("train", "val")}


def sequences(tokenizer, images) -> torch.Tensor:
    return tokenizer.tokens_of(images).flatten(1)


def test_the_first_view_is_the_central_one_in_raster_order(tokenizer, splits, tmp_path):
    extract(tokenizer, splits, tmp_path, source="here", view=VIEW, kind="center")
    for split, pictures in splits.items():
        shards = open_tokens(tmp_path, split)
        (everything,) = all_images(pictures, VIEW, batch=100)
        found = torch.stack([shards[index] for index in range(len(shards))])
        assert found.shape == (len(pictures), 1, 16)
        assert torch.equal(found[:, 0], sequences(tokenizer, everything.image))
        assert torch.equal(shards.labels, everything.labels)
    assert shards.labels.unique().tolist() == [0, 1]


def test_the_second_view_of_a_flip_is_the_mirrored_picture(tokenizer, splits, tmp_path):
    extract(tokenizer, splits, tmp_path, source="here", view=VIEW, kind="flip", batch=5)
    shards = open_tokens(tmp_path, "train")
    (everything,) = all_images(splits["train"], VIEW, batch=100)
    found = torch.stack([shards[index] for index in range(len(shards))])
    assert torch.equal(found[:, 0], sequences(tokenizer, everything.image))
    assert torch.equal(found[:, 1], sequences(tokenizer, everything.image.flip(-1)))
    assert not torch.equal(found[:, 0], found[:, 1])


def test_ten_crops_are_ten_views_with_the_central_one_first(tokenizer, splits, tmp_path):
    held = {"train": splits["val"], "val": splits["val"]}
    extract(tokenizer, held, tmp_path, source="here", view=VIEW, kind="ten-crop")
    shards = open_tokens(tmp_path, "val")
    assert shards[0].shape == (10, 16)
    large = center_view(splits["val"].read(0), View(size=18))  # 1.1 times, rounded
    middle = image_of_pixels(large[None, :, 1:17, 1:17])
    assert torch.equal(shards[0][:1], sequences(tokenizer, middle))
    assert torch.equal(shards[0][5:6], sequences(tokenizer, middle.flip(-1)))


def test_the_manifest_says_where_the_tokens_come_from(tokenizer, splits, tmp_path):
    made = extract(tokenizer, splits, tmp_path, source="here", view=VIEW, kind="flip")
    found = read_manifest(tmp_path)
    assert found == made
    assert found.tokenizer_digest == tokenizer.digest
    assert found.codebook_size == tokenizer.codebook_size
    assert found.grid == (4, 4)
    assert found.classes == ("even", "odd")
    assert (found.source, found.kind, found.view) == ("here", "flip", VIEW)
    assert found.picture_digests == {name: part.digest for name, part in splits.items()}
    assert {split: found.num(split) for split in splits} == {
        split: len(pictures) for split, pictures in splits.items()
    }


@pytest.mark.parametrize("batch", [1, 7])
def test_the_shards_do_not_depend_on_the_batch_size(tokenizer, splits, tmp_path, batch):
    whole = extract(tokenizer, splits, tmp_path / "a", source="", view=VIEW, kind="flip")
    parts = extract(
        tokenizer, splits, tmp_path / "b", source="", view=VIEW, kind="flip", batch=batch
    )
    assert parts == whole  # with the hashes of all files


def test_tokens_are_those_of_float32_unless_bf16_is_asked_for(tokenizer, splits, tmp_path):
    found = {}
    (everything,) = all_images(splits["train"], VIEW, batch=100)
    for precision in ("fp32", "bf16"):
        folder = tmp_path / precision
        made = extract(
            tokenizer, splits, folder, source="", view=VIEW, kind="center", precision=precision
        )
        assert made.precision == precision
        shards = open_tokens(folder, "train")
        found[precision] = torch.cat([shards[index] for index in range(len(shards))])
        with computing_in(precision, torch.device("cpu")):
            wanted = sequences(tokenizer, everything.image)
        assert torch.equal(found[precision], wanted)
    assert not torch.equal(found["fp32"], found["bf16"])


@pytest.fixture
def two_splits(tmp_path):
    """120 training pictures of two shades, opened, and a way to spoil the pixels of one."""
    folder = tmp_path / "pictures"
    for name, shade in (("dark", 40), ("light", 200)):
        for split, num in (("train", 60), ("val", 1)):
            (folder / split / name).mkdir(parents=True)
            for number in range(num):
                picture = Image.new("RGB", (16, 16), (shade, number, 2 * number))
                picture.save(folder / split / name / f"{number:02d}.png")

    def spoil(number):
        path = folder / "train" / "dark" / f"{number:02d}.png"
        data = path.read_bytes()
        at = data.index(b"IDAT")
        path.write_bytes(data[: at + 6] + b"\0" * (len(data) - at - 6))

    opened = {split: open_pictures(folder, split) for split in ("train", "val")}
    return SimpleNamespace(opened=opened, spoil=spoil)


def test_a_picture_that_cannot_be_decoded_has_no_row_of_tokens(tokenizer, two_splits, tmp_path):
    two_splits.spoil(59)  # the last dark one; the next is light
    splits = two_splits.opened
    extract(tokenizer, splits, tmp_path / "tokens", source="", view=VIEW, kind="center")
    shards = open_tokens(tmp_path / "tokens", "train")
    assert len(splits["train"].broken) == 1
    assert shards.labels.tolist() == [0] * 59 + [1] * 60


def extracted(tokenizer, splits, folder, **options):
    options = {"source": "", "view": VIEW, "kind": "flip", "shard_size": 16, "batch": 8} | options
    return extract(tokenizer, splits, folder, **options)


def bytes_of(folder):
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def killed_at(place, when, action):
    """Does an action in a process that a signal kills when a file is put in its place."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # forks although there may be threads
        child = os.fork()
    if child == 0:
        put, counted = files._put, count(1)

        def put_or_die(temporary, path):
            last = next(counted) == place
            if last and when == "before":
                os.kill(os.getpid(), signal.SIGKILL)
            put(temporary, path)
            if last:
                os.kill(os.getpid(), signal.SIGKILL)

        try:
            files._put = put_or_die
            action()
        finally:
            os._exit(0)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == -signal.SIGKILL


@pytest.mark.skipif(not hasattr(os, "fork"), reason="a process is killed that is forked")
def test_killed_at_any_file_and_resumed_it_ends_in_the_same_bytes(tokenizer, splits, tmp_path):
    extracted(tokenizer, splits, tmp_path / "whole")
    whole = bytes_of(tmp_path / "whole")
    assert len(whole) == 5  # three shards of 43 pictures, one of 5, and the manifest
    for place in range(1, len(whole) + 1):
        for when in ("before", "after"):
            folder = tmp_path / f"{place}-{when}"
            assert killed_at(place, when, lambda: extracted(tokenizer, splits, folder))  # noqa: B023
            left = bytes_of(folder)
            assert len(left) == place
            assert all(left[name] == whole[name] for name in left if not name.startswith("."))
            extracted(tokenizer, splits, folder, resume=True)
            assert bytes_of(folder) == whole


def test_what_is_there_is_not_encoded_again(tokenizer, splits, tmp_path, monkeypatch):
    whole = extracted(tokenizer, splits, tmp_path)
    (tmp_path / "manifest.json").unlink()
    (tmp_path / "train-00001.safetensors").unlink()
    encoded, tokens_of = [], Tokenizer.tokens_of
    monkeypatch.setattr(
        Tokenizer, "tokens_of", lambda self, x: encoded.append(len(x)) or tokens_of(self, x)
    )
    assert extracted(tokenizer, splits, tmp_path, resume=True) == whole
    assert sum(encoded) == 2 * 16
    assert extracted(tokenizer, splits, tmp_path, resume=True) == whole  # it is finished
    assert sum(encoded) == 2 * 16


def test_finished_tokens_of_another_kind_are_not_taken_for_these(tokenizer, splits, tmp_path):
    extracted(tokenizer, splits, tmp_path)
    with pytest.raises(UserError, match="kind was 'flip' there and is 'center' now") as caught:
        extracted(tokenizer, splits, tmp_path, resume=True, kind="center")
    assert "\n" not in str(caught.value)


def test_finished_tokens_whose_manifest_says_no_transform_yet_are_taken_for_these(
    tokenizer, splits, tmp_path
):
    extracted(tokenizer, splits, tmp_path)
    manifest = json.loads((tmp_path / "manifest.json").read_text())
    del manifest["transform"]
    (tmp_path / "manifest.json").write_text(json.dumps(manifest))
    assert extracted(tokenizer, splits, tmp_path, resume=True).transform == ""
    with pytest.raises(UserError, match=r"grid was \[4, 4\] there and is \[3, 3\] now"):
        extracted(tokenizer, splits, tmp_path, resume=True, view=View(size=12))


def test_pictures_may_be_named_by_another_path_on_resuming(tokenizer, splits, tmp_path):
    whole = extracted(tokenizer, splits, tmp_path, source="pictures")
    assert extracted(tokenizer, splits, tmp_path, source="./pictures", resume=True) == whole
    (tmp_path / "manifest.json").unlink()
    (tmp_path / "train-00001.safetensors").unlink()
    extracted(tokenizer, splits, tmp_path, source="./pictures", resume=True)
    assert len(open_tokens(tmp_path, "train")) == len(splits["train"])


@pytest.mark.parametrize("workers", [1, 2])
def test_the_shards_do_not_depend_on_the_workers(tokenizer, splits, tmp_path, workers):
    extracted(tokenizer, splits, tmp_path / "none", kind="ten-crop", batch=30)
    extracted(tokenizer, splits, tmp_path / "some", kind="ten-crop", batch=30, workers=workers)
    assert bytes_of(tmp_path / "none") == bytes_of(tmp_path / "some")


def test_the_device_is_asked_for_the_next_batches_before_one_is_waited_for(
    tokenizer, splits, tmp_path, monkeypatch
):
    order, tokens_of = [], Tokenizer.tokens_of

    def asked(self, image):
        order.append("asked")
        return tokens_of(self, image)

    def arriving(tokens):
        return lambda: order.append("waited") or tokens

    monkeypatch.setattr(Tokenizer, "tokens_of", asked)
    monkeypatch.setattr(extraction, "arriving", arriving)
    extracted(tokenizer, splits, tmp_path, batch=32, shard_size=16)
    (num_train, num_val) = (3, 1)  # batches, each a shard
    assert order[:num_train] == ["asked"] * num_train  # beyond the end of the first shard
    assert order.count("waited") == num_train + num_val


@pytest.mark.parametrize("workers", [0, 1])
def test_more_than_one_percent_of_broken_pictures_stop_it(tokenizer, two_splits, tmp_path, workers):
    for number in (3, 5):
        two_splits.spoil(number)
    with pytest.raises(UserError, match="at most 1 %") as caught:
        extracted(tokenizer, two_splits.opened, tmp_path / "tokens", workers=workers)
    assert "\n" not in str(caught.value)


def test_broken_pictures_that_workers_find_are_named_and_left_out(tokenizer, two_splits, tmp_path):
    two_splits.spoil(59)
    for workers in (1, 0):
        splits = {
            name: part.subset(np.arange(len(part))) for name, part in two_splits.opened.items()
        }
        splits["train"]._keeps = False  # as larger pictures are not: workers decode them
        extracted(tokenizer, splits, tmp_path / str(workers), workers=workers)
        assert [fault.name for fault in splits["train"].broken] == ["train/dark/59.png"]
        shards = open_tokens(tmp_path / str(workers), "train")
        assert shards.pictures == [index for index in range(120) if index != 59]
    assert bytes_of(tmp_path / "0") == bytes_of(tmp_path / "1")


def reopened(splits):
    """The same pictures, as another process finds them."""
    return {name: part.subset(np.arange(len(part))) for name, part in splits.items()}


def test_what_an_earlier_try_could_not_read_counts_and_is_named_on_resuming(
    tokenizer, two_splits, tmp_path
):
    two_splits.spoil(5)
    extracted(tokenizer, reopened(two_splits.opened), tmp_path)
    (tmp_path / "manifest.json").unlink()
    (tmp_path / "train-00002.safetensors").unlink()
    again = reopened(two_splits.opened)
    extracted(tokenizer, again, tmp_path, resume=True)
    assert [fault.name for fault in again["train"].broken] == ["train/dark/05.png"]
    (tmp_path / "manifest.json").unlink()
    (tmp_path / "train-00002.safetensors").unlink()
    two_splits.spoil(40)  # in the third shard: 2 of 120 are more than 1 %
    with pytest.raises(UserError, match="at most 1 %"):
        extracted(tokenizer, reopened(two_splits.opened), tmp_path, resume=True)


def test_a_picture_that_can_be_read_by_now_gets_its_tokens_on_resuming(
    tokenizer, two_splits, tmp_path
):
    path = two_splits.opened["train"].store.root / "train/dark/05.png"
    content = path.read_bytes()
    two_splits.spoil(5)
    extracted(tokenizer, reopened(two_splits.opened), tmp_path)
    (tmp_path / "manifest.json").unlink()
    path.write_bytes(content)
    extracted(tokenizer, reopened(two_splits.opened), tmp_path, resume=True)
    assert open_tokens(tmp_path, "train").num == 120


def test_progress_is_told_of_every_batch(tokenizer, splits, tmp_path):
    told = []

    class Listener(Progress):
        @contextmanager
        def stage(self, name, total):
            told.append((name, total))
            yield lambda done, words: told.append(done)

    held = {"train": splits["val"], "val": splits["val"]}
    num = len(splits["val"])
    extract(
        tokenizer, held, tmp_path, source="", view=VIEW, kind="center", batch=3, progress=Listener()
    )
    steps = [*range(3, num, 3), num]
    assert told == [("tokens, train", num), *steps, ("tokens, val", num), *steps]


@pytest.mark.parametrize("size", [15, 18, 2])
def test_a_size_that_the_factor_does_not_divide_is_refused(tokenizer, splits, tmp_path, size):
    with pytest.raises(UserError, match=f"multiples of 4, but it is {size}x{size}") as caught:
        extract(tokenizer, splits, tmp_path, source="", view=View(size=size), kind="flip")
    assert "\n" not in str(caught.value)
    assert list(tmp_path.iterdir()) == []


def test_finished_tokens_are_not_overwritten(tokenizer, splits, tmp_path):
    extract(tokenizer, splits, tmp_path, source="", view=VIEW, kind="center")
    with pytest.raises(UserError, match="is finished"):
        extract(tokenizer, splits, tmp_path, source="", view=VIEW, kind="center")
