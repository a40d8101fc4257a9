"""What is said of a folder of tokens, and what is shown of it."""

import json
import shutil
from dataclasses import replace
from unittest.mock import Mock

import numpy as np
import pytest
import torch
from PIL import Image

from cartok.__main__ import main
from cartok.core.progress import Progress
from cartok.core.shapes import image_of_pixels, pixels_of
from cartok.data.images import open_splits
from cartok.data.tokens import open_tokens
from cartok.data.views import View, center_view
from cartok.lab import token_survey
from cartok.lab.arm import Arm
from cartok.lab.arm_scores import code_scores
from cartok.lab.evaluations import spread
from cartok.lab.inputs import ArmInputs
from cartok.lab.token_survey import (
    describe_tokens,
    sheet_of_tokens,
    survey_tokens,
    tokenizer_of,
)
from cartok.metrics.codes import context_bits, skew, unigram_bits
from cartok.recipes.tokenizer import causal_toy
from cartok.tokenizer.extract import extract
from cartok.tokenizer.model import Tokenizer

VIEW = View(size=16)


def make_tokenizer(seed=0):
    torch.manual_seed(seed)
    return Tokenizer(causal_toy().model).eval()


def make_tokens(folder, source, tokenizer, most=0, kind="flip"):
    splits = open_splits(source, size=16)
    if most:
        splits = {name: spread(part, most) for name, part in splits.items()}
    extract(tokenizer, splits, folder, source=str(source), view=VIEW, kind=kind, shard_size=40)
    return folder


@pytest.fixture(scope="module")
def made(tmp_path_factory, small_pictures):
    """A copy of three classes of pictures, a tokenizer, and tokens beside it."""
    folder = tmp_path_factory.mktemp("made")
    shutil.copytree(small_pictures, folder / "pictures")
    tokenizer = make_tokenizer()
    tokenizer.save(folder / "tokenizer")
    make_tokens(folder / "tokens", folder / "pictures", tokenizer)
    return folder


@pytest.fixture(scope="module")
def found(made):
    return survey_tokens(made / "tokens")


def stamped(found, **changes):
    """As if the stamp said something else."""
    return replace(found, manifest=replace(found.manifest, **changes))


def line_of(text, name):
    (line,) = (line for line in text.splitlines() if line.split("  ")[0] == name)
    return line[13:].strip()


def test_the_stamp_is_read_out(found):
    said = describe_tokens(found)
    about = found.manifest
    assert line_of(said, "tokenizer").startswith(f"{about.tokenizer_digest}, ")
    assert line_of(said, "tokenizer").endswith("4 x 4 tokens")
    assert line_of(said, "made of") == f"{about.source}, encoded in fp32"
    assert line_of(said, "transform") == about.transform
    train, val = (len(found.splits[split]) for split in ("train", "val"))
    assert line_of(said, "pictures") == (
        f"train {train}, val {val}; 2 views each; 0 could not be decoded"
    )


def test_labels_are_counted(found):
    counts = found.splits["train"].labels.bincount().tolist()
    said = line_of(describe_tokens(found), "classes")
    names = [f"{name} {num}" for name, num in zip(("blue", "green", "red"), counts, strict=True)]
    assert said.endswith(", ".join(names))


def test_the_numbers_are_those_of_the_central_views_of_training_pictures(found):
    train, size = found.splits["train"], found.manifest.codebook_size
    tokens = torch.stack([train[row][0] for row in range(len(train))]).unflatten(1, (4, 4))
    assert found.num_counted == len(train)
    assert found.unigram_bits == unigram_bits(tokens, size)
    assert found.skew == skew(tokens, size)
    assert found.context == context_bits(tokens, size)
    said = describe_tokens(found)
    assert f"{found.unigram_bits:.3f} bits a token" in line_of(said, "entropy")
    assert f"given the one above it {found.context.given_above:.3f}" in said
    assert found.context.given_above <= found.context.alone


def test_scores_of_codes_keep_what_chance_shows_and_bits_at_a_position_corrected(made, found):
    tokenizer = tokenizer_of(made / "tokens", found.manifest)
    arm = Arm("toy", made, made, Mock(spec=ArmInputs), Progress())
    scores = code_scores(arm, tokenizer)
    receipt = scores["position_bits"]["receipt"]
    assert scores["position_bits"]["value"] == found.position_bits
    assert receipt["corrected"] == found.position_bits_corrected > found.position_bits
    assert scores["code_skew"]["receipt"]["by_chance"] == found.skew_by_chance


def test_many_pictures_are_counted_in_part_and_it_is_said(made, monkeypatch):
    monkeypatch.setattr(token_survey, "MOST", 10)
    few = survey_tokens(made / "tokens")
    assert few.num_counted == 10
    said = describe_tokens(few)
    assert line_of(said, "counted").startswith("the central view of 10 training pictures")
    assert "low: 10 pictures show at most 3.322 bits" in said


def test_a_few_tokens_are_shown_beside_what_they_were_made_of(made, found):
    sheet = sheet_of_tokens(found, tokenizer_of(made / "tokens", found.manifest), num=6)
    assert sheet.words.startswith("val pictures, each before its decoded tokens")
    assert sheet.words.endswith("100.00% of their tokens are equal")
    pixels = np.asarray(sheet.picture)
    source = center_view(open_splits(made / "pictures", size=16)["val"].read(0), VIEW)
    zoomed = source.permute(1, 2, 0).numpy().repeat(6, 0).repeat(6, 1)
    assert np.array_equal(pixels[:96, :96], zoomed)
    tokenizer = make_tokenizer()
    again = tokenizer.image_of(tokenizer.tokens_of(image_of_pixels(source[None])))
    decoded = pixels_of(again)[0].permute(1, 2, 0).numpy().repeat(6, 0).repeat(6, 1)
    assert abs(pixels[:96, 108:204].astype(int) - decoded).max() <= 1


def test_sources_are_found_again_of_a_part_of_a_set_and_past_a_broken_picture(
    tmp_path, small_pictures
):
    folder = tmp_path / "pictures"
    shutil.copytree(small_pictures, folder)
    for number in range(150):  # so that one is less than a hundredth
        noise = np.random.default_rng(number).integers(0, 256, (16, 16, 3), dtype=np.uint8)
        Image.fromarray(noise).save(folder / "train" / "red" / f"more-{number}.png")
    tokenizer = make_tokenizer()
    whole = open_splits(folder, size=16)["train"]
    path = folder / whole.name_of(3)
    data = path.read_bytes()
    at = data.index(b"IDAT")
    path.write_bytes(data[: at + 6] + b"\0" * (len(data) - at - 6))
    for name, most in (("whole", 0), ("part", 120)):
        make_tokens(tmp_path / name, folder, tokenizer, most, kind="center")
        found = survey_tokens(tmp_path / name)
        found.splits.pop("val", None)
        sheet = sheet_of_tokens(found, tokenizer, num=100)
        assert sheet.words.endswith("100.00% of their tokens are equal")
    assert "1 could not be decoded" in describe_tokens(survey_tokens(tmp_path / "whole"))


@pytest.mark.parametrize(("change", "why"), [("remove", "there is no"), ("alter", "others now")])
def test_without_their_sources_tokens_are_shown_alone_and_it_is_said_why(
    made, found, tmp_path, change, why
):
    source = tmp_path / "pictures"
    if change == "alter":
        shutil.copytree(made / "pictures", source)
        next(iter((source / "val" / "red").iterdir())).unlink()
    about = stamped(found, source=str(source))
    sheet = sheet_of_tokens(about, make_tokenizer(), num=8)
    assert sheet.words.startswith("decoded val tokens; without their sources")
    assert why in sheet.words
    assert sheet.picture.size == (8 * 18 * 6 - 12, 16 * 6)


def test_the_hub_is_not_asked_for_pictures_for_a_look(found):
    about = stamped(found, source="hub:owner/name")
    assert "is not fetched" in sheet_of_tokens(about, make_tokenizer(), num=8).words


def test_tokens_are_decoded_by_the_tokenizer_that_made_them_alone(made, tmp_path, capsys):
    make_tokenizer(seed=1).save(tmp_path / "other")
    arguments = ["inspect", str(made / "tokens"), "--out", str(tmp_path / "sheet.png")]
    assert main([*arguments, "--tokenizer", str(tmp_path / "other")]) == 2
    assert "decoded by the tokenizer that made them" in capsys.readouterr().err
    assert main([*arguments, "--num", "4"]) == 0  # found beside the tokens
    assert "each before its decoded tokens" in capsys.readouterr().out
    with Image.open(tmp_path / "sheet.png") as sheet:
        assert sheet.mode == "RGB"


@pytest.mark.parametrize("content", ['{"kind": "tokenizer", "config": {}, "digest": "0"}', "{"])
def test_a_run_beside_them_that_is_not_finished_does_not_hide_what_tokens_hold(
    made, tmp_path, monkeypatch, capsys, content
):
    monkeypatch.chdir(tmp_path)
    shutil.copytree(made / "tokens", tmp_path / "tokens")
    shutil.copytree(made / "tokenizer", tmp_path / "tokenizer")
    (tmp_path / "a-run").mkdir()
    (tmp_path / "a-run/config.json").write_text(content)
    assert main(["inspect", "tokens", "--num", "4"]) == 0
    assert "codes used" in capsys.readouterr().out
    assert (tmp_path / "contact-sheet.png").exists()


def test_tokens_without_their_tokenizer_are_described_without_a_sheet(made, tmp_path, capsys):
    shutil.copytree(made / "tokens", tmp_path / "alone" / "tokens")
    make_tokenizer(seed=1).save(tmp_path / "alone" / "other")
    sheet = tmp_path / "sheet.png"
    assert main(["inspect", str(tmp_path / "alone" / "tokens"), "--sheet", str(sheet)]) == 0
    said = capsys.readouterr().out
    assert "no sheet: their tokenizer is not beside the tokens" in said
    assert line_of(said, "shards").endswith("all as they were written")
    assert not sheet.exists()


@pytest.mark.parametrize("damage", ["unfinished", "bit", "stamp"])
def test_tokens_that_cannot_be_trusted_are_not_described(made, tmp_path, capsys, damage):
    folder = tmp_path / "tokens"
    shutil.copytree(made / "tokens", folder)
    shard, manifest = folder / "train-00000.safetensors", folder / "manifest.json"
    if damage == "unfinished":
        manifest.unlink()
    elif damage == "bit":
        content = bytearray(shard.read_bytes())
        content[-1] ^= 1
        shard.write_bytes(content)
    else:
        stored = json.loads(manifest.read_text())
        manifest.write_text(json.dumps(stored | {"tokenizer_digest": "mine"}))
    assert main(["inspect", str(folder), "--sheet", str(tmp_path / "s.png")]) == 2
    printed = capsys.readouterr()
    assert len(printed.err.splitlines()) == 1
    words = {"unfinished": "is half-written", "bit": "has another checksum",
             "stamp": "was made of other things"}  # fmt: skip
    assert words[damage] in printed.err
    assert not printed.out


def test_a_tokenizer_is_no_help_with_pictures(made, capsys):
    arguments = ["inspect", str(made / "pictures"), "--tokenizer", str(made / "tokenizer")]
    assert main(arguments) == 2
    assert "is no folder of them" in capsys.readouterr().err


def test_tokens_of_fewer_than_four_pictures_are_described_without_neighbours(made, tmp_path):
    make_tokens(tmp_path / "few", made / "pictures", make_tokenizer(), most=3)
    found = survey_tokens(tmp_path / "few")
    assert found.context is None
    assert "4 pictures or more are needed" in describe_tokens(found)
    assert len(open_tokens(tmp_path / "few", "train")) == 3
