import dataclasses
import importlib.util
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.numpy import load_file

from cartok.core.errors import UserError
from cartok.core.files import staged
from cartok.data.token_writer import TokenWriter, is_half_written, is_shard
from cartok.data.tokens import MANIFEST, open_tokens, read_manifest
from cartok.data.views import View

_TOYS = Path(__file__).with_name("token_toys.py")
_SPEC = importlib.util.spec_from_file_location(_TOYS.stem, _TOYS)
toys = importlib.util.module_from_spec(_SPEC)
_SPEC.loader.exec_module(toys)

ABOUT, tokens_of = toys.ABOUT, toys.tokens_of

FIRST = "train-00000.safetensors"


def write_two(folder, about=ABOUT, **options):
    """Two shards of four pictures; the manifest is still to come."""
    writer = TokenWriter(folder, about, **options)
    for number in range(2):
        some = range(4 * number, 4 * number + 4)
        if not writer.has("train", number, some):
            writer.write("train", number, *tokens_of(4, about, seed=number), pictures=some)
    return writer


@pytest.mark.parametrize(
    ("codebook_size", "dtype"),
    [(65_536, np.uint16), (65_537, np.int32), (262_144, np.int32), (2**20, np.int32)],
)
def test_the_stored_type_holds_the_largest_token(tmp_path, codebook_size, dtype):
    about = dataclasses.replace(ABOUT, codebook_size=codebook_size)
    tokens = torch.full((2, 2, 6), codebook_size - 1)
    writer = TokenWriter(tmp_path, about)
    writer.add("train", tokens, torch.zeros(2, dtype=torch.long))
    writer.finish()
    assert load_file(tmp_path / FIRST)["tokens"].dtype == dtype
    assert open_tokens(tmp_path, "train")[1].equal(tokens[1])


def test_tokens_come_back_however_they_lay_in_memory(tmp_path):
    tokens, labels = tokens_of(4)
    writer = TokenWriter(tmp_path, ABOUT)
    writer.add("train", tokens.mT.contiguous().mT, labels)
    writer.add("train", tokens[:1, :1].expand(4, 2, -1), labels[:1].expand(4))
    writer.finish()
    shards = open_tokens(tmp_path, "train")
    assert torch.stack([shards[index] for index in range(4)]).equal(tokens)
    assert all(shards[index].equal(tokens[0, :1].expand(2, -1)) for index in range(4, 8))
    assert shards.labels.tolist() == [*labels.tolist(), *[int(labels[0])] * 4]


def test_equal_tokens_make_equal_bytes(tmp_path):
    for name in ("a", "b"):
        write_two(tmp_path / name).finish()
    for path in (tmp_path / "a").iterdir():
        assert path.read_bytes() == (tmp_path / "b" / path.name).read_bytes()


def test_a_finished_folder_is_not_written_again(tmp_path):
    write_two(tmp_path).finish()
    with pytest.raises(UserError, match="is finished"):
        TokenWriter(tmp_path, ABOUT)


def test_an_interrupted_writing_can_start_again(tmp_path):
    TokenWriter(tmp_path, ABOUT).add("train", *tokens_of(9))
    writer = TokenWriter(tmp_path, ABOUT)
    writer.add("train", *tokens_of(4, seed=5))
    writer.finish()
    assert open_tokens(tmp_path, "train")[3].equal(tokens_of(4, seed=5)[0][3])


def test_a_shard_that_is_there_is_taken_up_only_to_resume(tmp_path):
    write_two(tmp_path)
    assert not TokenWriter(tmp_path, ABOUT).has("train", 0, range(4))
    writer = TokenWriter(tmp_path, ABOUT, resume=True)
    assert writer.has("train", 1, range(4, 8))
    assert not writer.has("train", 2, range(8, 12))
    assert not writer.has("val", 0, range(4))


def test_a_shard_that_was_damaged_since_is_written_again(tmp_path):
    write_two(tmp_path / "whole").finish()
    write_two(tmp_path / "broken")
    path = tmp_path / "broken" / FIRST
    for damage in (lambda content: content[:-1] + bytes([content[-1] ^ 1]), lambda c: c[:100]):
        path.write_bytes(damage(path.read_bytes()))
        assert not TokenWriter(tmp_path / "broken", ABOUT, resume=True).has("train", 0, range(4))
    write_two(tmp_path / "broken", resume=True).finish()
    assert path.read_bytes() == (tmp_path / "whole" / FIRST).read_bytes()


def test_a_shard_that_lost_a_picture_is_made_again(tmp_path):
    writer = TokenWriter(tmp_path, ABOUT)
    writer.write("train", 0, *tokens_of(3), (1,), pictures=range(4))
    writer.write("train", 1, *tokens_of(4), pictures=range(4, 8))
    del writer  # as its process ends
    writer = TokenWriter(tmp_path, ABOUT, resume=True)
    assert not writer.has("train", 0, range(4))
    assert writer.has("train", 1, range(4, 8))


@pytest.mark.parametrize(
    "change",
    [
        {"tokenizer_digest": "another"},
        {"picture_digests": {"train": "cc", "val": "bb"}},
        {"view": View(size=48)},
        {"precision": "bf16"},
        {"classes": ("cat", "dog", "fly")},
    ],
    ids=lambda change: next(iter(change)),
)
def test_shards_of_other_tokens_are_not_gone_on_with(tmp_path, change):
    write_two(tmp_path)
    before = (tmp_path / FIRST).read_bytes()
    with pytest.raises(UserError, match="goes on with equal tokens, but") as caught:
        write_two(tmp_path, dataclasses.replace(ABOUT, **change), resume=True)
    assert "\n" not in str(caught.value)
    assert (tmp_path / FIRST).read_bytes() == before


def test_a_shard_of_other_pictures_of_the_set_is_not_taken_for_this_one(tmp_path):
    write_two(tmp_path)
    with pytest.raises(UserError, match="pictures 0 to 3 of its split instead of 0 to 4"):
        TokenWriter(tmp_path, ABOUT, resume=True).has("train", 0, range(5))


@pytest.mark.parametrize("name", [FIRST, MANIFEST])
def test_the_temporaries_of_shards_and_manifests_are_known_by_their_names(tmp_path, name):
    with staged(tmp_path / name) as temporary:
        temporary.touch()
        assert is_half_written(temporary)


def test_what_a_kill_left_half_written_goes(tmp_path):
    names = (f".{FIRST}.77.part", f".{MANIFEST}.77.part", ".mine.part", "train-1.safetensors")
    for name in names:
        (tmp_path / name).touch()
    write_two(tmp_path).finish()
    left = {path.name for path in tmp_path.iterdir()} - {
        s.name for s in read_manifest(tmp_path).shards
    }
    assert left == {MANIFEST, ".mine.part", "train-1.safetensors"}
    assert not any(is_shard(tmp_path / name) or is_half_written(tmp_path / name) for name in left)


@pytest.mark.parametrize(
    ("tokens", "rule"),
    [
        (torch.zeros(2, 1, 6, dtype=torch.long), r"tokens are \[picture, 2, 6\]"),
        (torch.full((2, 2, 6), 500), "tokens are 0 to 499, but got 500"),
        (torch.zeros(2, 2, 6, dtype=torch.long), "each of its 3 pictures, but got 2"),
    ],
)
def test_tokens_that_contradict_the_manifest_are_not_written(tmp_path, tokens, rule):
    labels = torch.zeros(2, dtype=torch.long)
    with pytest.raises(ValueError, match=rule):
        TokenWriter(tmp_path, ABOUT).write("train", 0, tokens, labels, pictures=range(3))
    assert not list(tmp_path.iterdir())


def test_a_second_writer_is_refused_and_what_the_first_has_begun_is_left_alone(tmp_path):
    writer = write_two(tmp_path)
    half = tmp_path / f".{FIRST}.123.part"
    half.write_bytes(b"half")
    with pytest.raises(UserError, match="another is writing"):
        TokenWriter(tmp_path, ABOUT, resume=True)
    assert half.exists()
    del writer  # as its process ends
    write_two(tmp_path, resume=True).finish()
    assert not half.exists()
