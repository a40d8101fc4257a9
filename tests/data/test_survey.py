import shutil
import threading

import numpy as np
import pytest
from PIL import Image

from cartok.core.errors import UserError
from cartok.core.progress import Progress
from cartok.data import survey as survey_module
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


def test_a_survey_keeps_what_can_be_decoded_for_the_sheet(messy, tmp_path):
    found = survey(messy)
    assert len(found.pictures) == 10
    assert {fault.name for fault in found.pictures.skipped} == {
        "train/dog/3.png", "train/dog/4.png"
    }  # fmt: skip
    contact_sheet(found.pictures, tmp_path / "sheet.png")
    assert size_of(tmp_path / "sheet.png") == (8 * 96, 2 * 110)


def size_of(path):
    with Image.open(path) as picture:
        return picture.size


class Told:
    """Keeps what progress says."""

    parts_vanish = False

    def __init__(self):
        self.lines = []

    def say(self, text):
        self.lines.append(("say", text))

    def open(self, name, total):
        self.lines.append(("open", name, total))

    def tick(self, name, done, words):
        self.lines.append(("tick", name, done))

    def advance(self, name, by, words):
        self.lines.append(("advance", name, by))

    def close(self, name, is_done):
        self.lines.append(("close", name, is_done))


def test_a_survey_decodes_by_threads_and_says_how_far_it_is(two_classes, monkeypatch):
    seen, told, real = set(), Told(), survey_module.rgb_of

    def watched(picture):
        seen.add(threading.current_thread())
        return real(picture)

    monkeypatch.setattr(survey_module, "rgb_of", watched)
    survey(two_classes, Progress(sink=told))
    assert threading.main_thread() not in seen
    assert told.lines == [
        ("open", "pictures", 40), ("tick", "pictures", 40), ("close", "pictures", True)
    ]  # fmt: skip


@pytest.mark.parametrize("num", [0, -3])
def test_a_sheet_of_no_pictures_is_refused(two_classes, tmp_path, num):
    with pytest.raises(UserError, match="1 picture or more"):
        contact_sheet(open_pictures(two_classes, "all"), tmp_path / "sheet.png", num=num)


def test_a_sheet_of_nothing_readable_is_refused(tmp_path):
    (tmp_path / "a.txt").write_text("no picture")
    with pytest.raises(UserError, match="none can be read"):
        contact_sheet(survey(tmp_path).pictures, tmp_path / "sheet.png")


def test_a_sheet_replaces_a_png_and_nothing_else(two_classes, tmp_path):
    sheet, text = tmp_path / "sheet.png", tmp_path / "notes.txt"
    pictures = open_pictures(two_classes, "all")
    contact_sheet(pictures, sheet, num=1)
    contact_sheet(pictures, sheet, num=9)
    assert size_of(sheet) == (8 * 96, 2 * 110)
    text.write_text("precious")
    for path in (text, tmp_path, text / "below" / "sheet.png"):
        with pytest.raises(UserError, match="name another"):
            contact_sheet(pictures, path, num=1)
    assert text.read_text() == "precious"
