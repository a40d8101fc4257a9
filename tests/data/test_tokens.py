import dataclasses
import hashlib
import importlib.util
from itertools import islice
from pathlib import Path

import pytest
import torch
from safetensors.numpy import load_file, save_file

from cartok.core.config import ConfigError
from cartok.core.errors import UserError
from cartok.data.token_writer import TokenWriter
from cartok.data.tokens import (
    MANIFEST,
    difference,
    open_tokens,
    read_manifest,
    token_batches,
)

_TOYS = Path(__file__).with_name("token_toys.py")
_SPEC = importlib.util.spec_from_file_location(_TOYS.stem, _TOYS)
toys = importlib.util.module_from_spec(_SPEC)
_SPEC.loader.exec_module(toys)

ABOUT, tokens_of = toys.ABOUT, toys.tokens_of


@pytest.fixture
def folder(tmp_path):
    """Twenty training pictures in three shards, five for validation."""
    writer = TokenWriter(tmp_path / "tokens", ABOUT)
    tokens, labels = tokens_of(20)
    for start in range(0, 20, 8):
        writer.add("train", tokens[start : start + 8], labels[start : start + 8])
    writer.add("val", *tokens_of(5, seed=1))
    writer.finish()
    return tmp_path / "tokens"


def test_tokens_come_back_as_they_were_written(folder):
    shards = open_tokens(folder, "train")
    tokens, labels = tokens_of(20)
    assert torch.stack([shards[index] for index in range(shards.num)]).equal(tokens)
    assert shards.labels.equal(labels)
    assert len(open_tokens(folder, "val")) == 5


def test_the_manifest_says_what_the_folder_holds(folder):
    manifest = read_manifest(folder)
    assert dataclasses.replace(manifest, shards=()) == ABOUT
    assert (manifest.num("train"), manifest.num("val")) == (20, 5)
    assert [shard.num for shard in manifest.shards if shard.split == "train"] == [8, 8, 4]
    assert {path.name for path in folder.iterdir()} == {
        MANIFEST,
        *(shard.name for shard in manifest.shards),
    }


def test_resumed_token_batches_equal_uninterrupted_ones(folder):
    shards = open_tokens(folder, "train")
    whole = list(islice(token_batches(shards, batch=6, seed=3, start=0), 10))
    resumed = list(islice(token_batches(shards, batch=6, seed=3, start=24), 6))
    for a, b in zip(resumed, whole[4:], strict=True):
        assert a.tokens.equal(b.tokens)
        assert a.labels.equal(b.labels)


def test_token_batches_of_ranks_make_up_the_global_batch(folder):
    shards = open_tokens(folder, "train")
    whole = next(token_batches(shards, batch=8, seed=3, start=0))
    parts = [
        next(token_batches(shards, batch=4, seed=3, start=0, rank=rank, world_size=2))
        for rank in range(2)
    ]
    joined = torch.stack([part.tokens for part in parts], dim=1).flatten(0, 1)
    assert joined.equal(whole.tokens)


def test_each_epoch_shows_one_view_of_every_picture_and_later_ones_the_other(folder):
    shards = open_tokens(folder, "train")
    views = set()
    for batch in islice(token_batches(shards, batch=20, seed=0, start=0), 8):
        assert sorted(batch.indices.tolist()) == list(range(20))
        for index, label, shown in zip(batch.indices, batch.labels, batch.tokens, strict=True):
            assert label == shards.labels[index]
            (view,) = (shards[int(index)] == shown).all(dim=1).nonzero()
            views.add((int(index), int(view)))
    # The odds that a view of one of 20 pictures never comes in 8 epochs are 40 / 256.
    assert len(views) >= 38


def damage(folder, change, number=0):
    """Changes a shard and signs the manifest anew, as only a bug could; its stamp is lost."""
    path = folder / f"train-{number:05d}.safetensors"
    arrays = load_file(path)
    change(arrays)
    save_file(arrays, path)
    manifest = (folder / MANIFEST).read_text()
    old = read_manifest(folder).shards[number].sha256
    new = hashlib.sha256(path.read_bytes()).hexdigest()
    (folder / MANIFEST).write_text(manifest.replace(old, new))


def refused(folder, split="train"):
    with pytest.raises(UserError) as caught:
        open_tokens(folder, split)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_a_flipped_bit_is_refused(folder):
    path = folder / "train-00001.safetensors"
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)
    assert "train-00001.safetensors has another checksum" in refused(folder)
    assert len(open_tokens(folder, "val")) == 5


def test_a_shard_of_other_tokens_is_refused_whatever_the_manifest_says(folder, tmp_path):
    """As after a copy from another folder, or a change of the manifest by hand."""
    path = folder / MANIFEST
    path.write_text(path.read_text().replace(ABOUT.tokenizer_digest, "another"))
    assert "was made of other things than the manifest.json beside it says" in refused(folder)


def test_each_row_knows_its_picture(tmp_path):
    writer = TokenWriter(tmp_path, ABOUT)
    writer.write("train", 0, *tokens_of(3), lost=(1,), pictures=range(4))
    writer.write("train", 1, *tokens_of(2), pictures=range(4, 6))
    writer.finish()
    shards = open_tokens(tmp_path, "train")
    assert shards.pictures == [0, 2, 3, 4, 5]
    assert shards.num_pictures == 6


def test_shards_without_a_stamp_are_read_as_before(folder):
    """Those of older versions have none."""
    tokens = torch.stack([open_tokens(folder, "train")[index] for index in range(20)])
    for number in range(3):
        damage(folder, lambda arrays: None, number)
    shards = open_tokens(folder, "train")
    assert torch.stack([shards[index] for index in range(20)]).equal(tokens)
    assert shards.pictures == []


@pytest.mark.parametrize(
    ("began", "now", "said"),
    [
        ({}, {}, ""),
        ({"source": "pics"}, {"source": "./pics"}, ""),
        ({"transform": ""}, {"transform": "cut"}, ""),
        ({"transform": "cut"}, {"transform": ""}, ""),
        ({"transform": "cut"}, {"transform": "fit"}, "transform was 'cut' there and is 'fit' now"),
        ({}, {"precision": "bf16"}, "precision was 'fp32' there and is 'bf16' now"),
        ({"grid": (2, 3)}, {"grid": (3, 3), "transform": "cut"}, "grid was [2, 3] there and is [3"),
    ],
)
def test_what_parts_two_manifests_is_said_in_words(began, now, said):
    one, other = (dataclasses.replace(ABOUT, **changed) for changed in (began, now))
    found = difference(one, other)
    assert found.startswith(said)
    assert bool(found) == bool(said)


def test_a_missing_shard_is_refused(folder):
    (folder / "train-00002.safetensors").unlink()
    assert "train-00002.safetensors is missing" in refused(folder)


def test_tokens_outside_the_codebook_are_refused(folder):
    damage(folder, lambda arrays: arrays["tokens"].__setitem__((0, 0, 0), 500))
    assert "outside a codebook of 500" in refused(folder)


def test_labels_without_a_class_are_refused(folder):
    damage(folder, lambda arrays: arrays["labels"].__setitem__(0, 3))
    assert "labels that are no classes" in refused(folder)


def test_a_lost_row_is_refused(folder):
    damage(folder, lambda arrays: arrays.update(tokens=arrays["tokens"][:-1].copy()))
    assert "instead of 8 pictures" in refused(folder)


def test_a_half_written_folder_is_refused(tmp_path):
    TokenWriter(tmp_path / "t", ABOUT).add("train", *tokens_of(3))
    assert "is half-written" in refused(tmp_path / "t")


def test_a_folder_without_tokens_is_refused(tmp_path):
    assert "is no token folder" in refused(tmp_path)
    assert "is no token folder" in refused(tmp_path / "nowhere")


def test_a_damaged_manifest_is_refused(folder):
    (folder / MANIFEST).write_text((folder / MANIFEST).read_text()[:-20])
    assert "manifest.json is damaged" in refused(folder)


def test_a_split_without_tokens_is_refused(tmp_path):
    writer = TokenWriter(tmp_path, ABOUT)
    writer.add("train", *tokens_of(3))
    writer.finish()
    assert "must hold val tokens" in refused(tmp_path, "val")


def test_an_index_outside_is_an_error(folder):
    shards = open_tokens(folder, "val")
    for index in (5, -1):
        with pytest.raises(IndexError):
            shards[index]


def test_an_impossible_manifest_is_refused():
    with pytest.raises((ConfigError, ValueError), match="at least 1"):
        dataclasses.replace(ABOUT, grid=(0, 3))
