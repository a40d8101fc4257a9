import shutil

import numpy as np
import pytest
from PIL import Image

from cartok.core.errors import UserError
from cartok.data.images import open_pictures
from cartok.data.survey import Extent, contact_sheet, describe, survey


@pytest.fixture
def messy(fill, picture):
    """Two classes with splits, copies on both sides, a broken file, and one lonely class."""
    names = [f"train/{name}/{i}.png" for name in ("cat", "dog") for i in range(4)]
    root = fill("messy", [*names, "val/cat/0.png"])
    (root / "train" / "emu").mkdir()
    picture(5, (50, 40)).convert("L").save(root / "train" / "emu" / "0.png")
    shutil.copy(root / "train" / "cat" / "0.png", root / "val" / "cat" / "1.png")
    cut = (root / "train" / "dog" / "3.png").read_bytes()[:500]
    (root / "train" / "dog" / "3.png").write_bytes(cut)
    (root / "train" / "dog" / "4.png").write_text("no picture")
    return root


def test_a_survey_counts_everything_and_stops_at_nothing(messy):
    found = survey(messy)
    assert found.splits == {"train": 8, "val": 2}
    assert found.classes == {"cat": 6, "dog": 3, "emu": 1}
    assert found.modes == {"RGB": 9, "L": 1}
    assert found.width == Extent(32, 32, 50)
    assert found.short_side == Extent(32, 32, 40)
    assert found.duplicates == (("train/cat/0.png", "val/cat/1.png"),)
    assert found.shared == 1
    assert {fault.name for fault in found.broken} == {"train/dog/3.png", "train/dog/4.png"}
    assert found.single == ("emu",)
    assert found.crop == 32


def test_a_description_names_what_is_wrong(messy):
    text = describe(survey(messy))
    for phrase in (
        "train 8, val 2",
        "train/cat/0.png = val/cat/1.png",
        "1 across splits",
        "2 of 12 files",
        "train/dog/4.png: not a picture",
        "one picture   emu",
    ):
        assert phrase in text


def test_a_survey_says_when_a_tenth_will_be_held_out(two_classes):
    found = survey(two_classes)
    assert found.splits == {"all": 40}
    assert "holds a tenth out" in describe(found)


def test_a_survey_of_nothing_readable_still_describes(tmp_path):
    (tmp_path / "a.txt").write_text("no picture")
    found = survey(tmp_path)
    assert (found.splits, found.crop) == ({"all": 0}, 0)
    assert "a.txt: not a picture" in describe(found)


def test_a_survey_of_a_missing_folder_is_refused(tmp_path):
    with pytest.raises(UserError, match="there is no"):
        survey(tmp_path / "nowhere")


def test_a_contact_sheet_shows_every_class(two_classes, tmp_path):
    for path in (two_classes / "dog").iterdir():
        Image.new("RGB", (32, 32), "red").save(path)
    pictures = open_pictures(two_classes, "all")
    contact_sheet(pictures, tmp_path / "sheet.png", num=8)
    sheet = np.asarray(Image.open(tmp_path / "sheet.png"))
    assert sheet.shape == (110, 8 * 96, 3)
    red = (sheet[:96] == (255, 0, 0)).all(axis=(0, 2)).reshape(8, 96).all(axis=1)
    assert red.tolist() == [False] * 4 + [True] * 4
    assert (sheet[96:] < 128).any()  # the names
