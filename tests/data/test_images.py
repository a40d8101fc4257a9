import shutil
import threading

import numpy as np
import pytest
from PIL import Image

from cartok.core.errors import UserError
from cartok.data import images
from cartok.data.images import open_pictures, open_splits
from cartok.data.pictures import largest_crop


def refused(source, split="train", **options):
    """The one line with which a source is refused."""
    with pytest.raises(UserError) as caught:
        open_pictures(source, split, **options)
    line = str(caught.value)
    assert "\n" not in line
    return line


def pixels(pictures):
    return {pictures.read(index).tobytes() for index in range(len(pictures))}


def test_classes_are_the_sorted_folders_that_hold_pictures(fill):
    root = fill("zoo", [f"{name}/deep/{i}.png" for name in ("zebra", "ape") for i in range(150)])
    (root / "notes").mkdir()
    (root / "notes" / "readme.txt").write_text("no picture")
    pictures = open_pictures(root, "all")
    assert pictures.classes == ("ape", "zebra")
    assert pictures.num_classes == 2
    assert pictures.labels.tolist() == [0] * 150 + [1] * 150
    assert [fault.name for fault in pictures.skipped] == ["notes/readme.txt"]


def test_a_flat_folder_has_no_classes(fill):
    pictures = open_pictures(fill("flat", [f"{i}.png" for i in range(30)]), "train")
    assert pictures.classes == ()
    assert pictures.num_classes == 0
    assert not pictures.labels.any()


@pytest.mark.parametrize("word", ["val", "valid", "validation", "test"])
def test_split_folders_are_taken_as_they_are(fill, word):
    names = [
        f"{part}/{name}/{i}.png" for part in ("train", word) for name in "ab" for i in range(3)
    ]
    root = fill("split", names)
    train, val = open_pictures(root, "train"), open_pictures(root, "val")
    assert [train.name_of(i) for i in range(6)] == [n for n in names if n.startswith("train/")]
    assert [val.name_of(i) for i in range(6)] == [n for n in names if n.startswith(f"{word}/")]
    assert len(open_pictures(root, "all")) == 12


def test_a_single_split_folder_counts_as_no_split(fill):
    root = fill("split", [f"train/{name}/{i}.png" for name in "ab" for i in range(20)])
    assert len(open_pictures(root, "train")) == 36
    assert len(open_pictures(root, "val")) == 4
    assert open_pictures(root, "val").classes == ("a", "b")


def test_a_tenth_is_held_out_when_there_is_no_validation_split(two_classes):
    train, val = open_pictures(two_classes, "train"), open_pictures(two_classes, "val")
    assert (len(train), len(val)) == (36, 4)
    assert not pixels(train) & pixels(val)
    assert train.digest != val.digest


def test_copies_fall_on_one_side_of_the_held_out_split(two_classes):
    for path in list(two_classes.rglob("*.png")):
        shutil.copy(path, path.with_name(f"copy-{path.name}"))
    train, val = open_pictures(two_classes, "train"), open_pictures(two_classes, "val")
    assert len(val) == 8
    assert not pixels(train) & pixels(val)


def test_holding_out_leaves_every_class_something_to_train_on(fill):
    root = fill("many", [f"{name}/{i}.png" for name in range(30) for i in range(2)])
    assert set(open_pictures(root, "train").labels) == set(range(30))


def test_holding_out_does_not_depend_on_file_names(two_classes):
    before = pixels(open_pictures(two_classes, "val"))
    for path in list(two_classes.rglob("*.png")):
        path.rename(path.with_name(f"z{99 - int(path.stem)}.png"))
    assert pixels(open_pictures(two_classes, "val")) == before


def test_every_mode_becomes_rgb_and_is_counted(tmp_path):
    grey = np.arange(256, dtype=np.uint8).reshape(16, 16)
    clear = Image.new("RGBA", (16, 16), (255, 0, 0, 0))
    palette = Image.fromarray(grey).convert("P")
    pictures = {
        "l.png": Image.fromarray(grey),
        "p.png": palette,
        "cmyk.tif": Image.new("CMYK", (16, 16), (0, 255, 255, 0)),
        "rgba.png": clear,
        "wide.png": Image.fromarray(grey.astype(np.uint16) * 257),
        "bit.png": Image.new("1", (16, 16), 1),
    }
    for name, picture in pictures.items():
        picture.save(tmp_path / name)
    opened = open_pictures(tmp_path, "all")
    assert opened.modes == {"1": 1, "CMYK": 1, "L": 1, "P": 1, "RGBA": 1, "I;16": 1}
    read = {opened.name_of(i): opened.read(i) for i in range(6)}
    assert all(picture.mode == "RGB" for picture in read.values())
    assert (np.asarray(read["l.png"])[..., 0] == grey).all()
    assert (np.asarray(read["wide.png"])[..., 1] == grey).all()
    assert (np.asarray(read["p.png"])[..., 2] == grey).all()
    assert (np.asarray(read["rgba.png"]) == 255).all()
    assert (np.asarray(read["cmyk.tif"]) == (255, 0, 0)).all()
    assert (np.asarray(read["bit.png"]) == 255).all()


def test_a_transparent_palette_is_laid_on_white(tmp_path):
    picture = Image.new("P", (8, 8), 0)
    picture.putpalette([10, 20, 30])
    picture.save(tmp_path / "a.gif", transparency=0)
    assert (np.asarray(open_pictures(tmp_path, "all").read(0)) == 255).all()


def test_a_photograph_taken_sideways_is_turned(tmp_path):
    picture = Image.new("RGB", (20, 10), "black")
    picture.putpixel((0, 0), (255, 255, 255))
    exif = Image.Exif()
    exif[0x0112] = 6  # turn a quarter clockwise to show
    picture.save(tmp_path / "a.png", exif=exif)
    read = open_pictures(tmp_path, "all").read(0)
    assert read.size == (10, 20)
    assert read.getpixel((9, 0)) == (255, 255, 255)


def test_one_broken_file_in_a_hundred_is_skipped_and_named(fill):
    root = fill("flat", [f"{i:02d}.png" for i in range(99)])
    (root / "broken.png").write_bytes(b"no picture")
    pictures = open_pictures(root, "all")
    assert len(pictures) == 99
    assert [(fault.name, fault.reason) for fault in pictures.skipped] == [
        ("broken.png", "not a picture")
    ]


def test_more_than_one_broken_file_in_a_hundred_stops_with_their_names(fill):
    root = fill("flat", [f"{i:02d}.png" for i in range(88)])
    for number in range(12):
        (root / f"x{number:02d}.png").write_bytes(b"")
    line = refused(root)
    assert "12 of 100" in line
    assert "x00.png" in line
    assert "x09.png" in line
    assert "x10.png" not in line
    assert "and 2 more" in line


def test_loose_files_beside_classes_have_no_class(fill):
    root = fill("pets", [f"{name}/{i:02d}.png" for name in ("cat", "dog") for i in range(60)])
    shutil.copy(root / "cat" / "00.png", root / "loose.png")
    assert [fault.name for fault in open_pictures(root, "all").skipped] == ["loose.png"]


def test_a_picture_that_breaks_while_decoding_gives_way_to_the_next(fill):
    root = fill("flat", [f"{i:03d}.png" for i in range(100)])
    cut = root / "007.png"
    cut.write_bytes(cut.read_bytes()[:500])  # the header is whole
    pictures = open_pictures(root, "all")
    loaded = pictures.load(7)
    assert loaded.index == 8
    assert loaded.picture.tobytes() == pictures.read(8).tobytes()
    assert [fault.name for fault in pictures.broken] == ["007.png"]


def test_many_pictures_that_break_while_decoding_stop(fill):
    root = fill("flat", [f"{i:03d}.png" for i in range(100)])
    for name in ("007.png", "050.png"):
        (root / name).write_bytes((root / name).read_bytes()[:500])
    pictures = open_pictures(root, "all")
    pictures.read(7)
    with pytest.raises(UserError, match=r"2 of 100 are: 007\.png .*050\.png"):
        pictures.read(50)


def test_small_pictures_are_skipped_up_to_one_in_a_hundred(fill, picture):
    root = fill("flat", [f"{i:02d}.png" for i in range(99)], size=(40, 36))
    picture(0, (40, 20)).save(root / "small.png")
    pictures = open_pictures(root, "all", size=32)
    assert [fault.name for fault in pictures.skipped] == ["small.png"]
    assert pictures.short_sides.min() == 36


def test_too_many_small_pictures_are_refused_with_a_crop_that_fits(fill):
    root = fill("flat", [f"{i:02d}.png" for i in range(63)], size=(70, 70))
    fill("flat", [f"s{i:02d}.png" for i in range(37)], size=(70, 40))
    line = refused(root, "all", size=64)
    assert "99 % of the short sides must hold the crop of 64 px" in line
    assert "37 of 100 do not; use a crop of 32 px or less" in line


@pytest.mark.parametrize(("side", "crop"), [(32, 32), (47, 32), (48, 48), (200, 64)])
def test_the_largest_crop_is_one_that_nearly_all_pictures_hold(fill, side, crop):
    assert largest_crop(open_pictures(fill("one", ["a.png"], (side, 300)), "all")) == crop


def test_no_crop_fits_tiny_pictures(fill):
    tiny = open_pictures(fill("tiny", ["a.png"], (31, 31)), "all")
    with pytest.raises(UserError, match="crop of 32 px"):
        largest_crop(tiny)


def test_a_missing_path_is_refused(tmp_path):
    assert "there is no" in refused(tmp_path / "nowhere")


def test_an_empty_folder_is_refused(tmp_path):
    assert "is empty" in refused(tmp_path)


def test_a_file_that_is_neither_table_nor_archive_is_refused(tmp_path):
    (tmp_path / "a.rar").write_bytes(b"PK")
    assert "is parquet, zip or tar" in refused(tmp_path / "a.rar")


def test_a_class_with_a_single_picture_is_refused_where_a_tenth_is_held_out(two_classes, picture):
    (two_classes / "emu").mkdir()
    picture(9).save(two_classes / "emu" / "0.png")
    assert "class 'emu' has one" in refused(two_classes)
    assert len(open_pictures(two_classes, "all")) == 41


def test_classes_of_one_picture_each_are_no_classes_where_a_tenth_is_held_out(fill):
    folder = fill("lone", [f"{number:02}/0.png" for number in range(20)])
    splits = open_splits(folder)
    assert (len(splits["train"]), len(splits["val"])) == (18, 2)
    for pictures in (*splits.values(), open_pictures(folder, "train")):
        assert pictures.classes == ()
        assert not pictures.labels.any()
    assert len(open_pictures(folder, "all").classes) == 20


@pytest.mark.parametrize("held", ["val/images", "val"])
def test_a_validation_folder_with_other_classes_is_refused(fill, held):
    names = [f"train/{name}/{i}.png" for name in "ab" for i in range(3)]
    line = refused(fill("split", [*names, f"{held}/0.png"]), "val")
    assert "must have the classes of the training pictures" in line


def test_the_digest_follows_the_content(two_classes, picture):
    before = open_pictures(two_classes, "all").digest
    assert open_pictures(two_classes, "all").digest == before
    picture(77, (33, 32)).save(two_classes / "cat" / "00.png")
    assert open_pictures(two_classes, "all").digest != before


def test_a_subset_keeps_labels_and_pictures_together(two_classes):
    pictures = open_pictures(two_classes, "all")
    some = pictures.subset(np.array([25, 3]))
    assert some.labels.tolist() == [1, 0]
    assert some.read(0).tobytes() == pictures.read(25).tobytes()
    assert some.digest != pictures.digest


def test_both_splits_opened_together_are_those_opened_one_by_one(two_classes, fill):
    names = [f"{part}/{name}/{i}.png" for part in ("train", "val") for name in "ab" for i in (0, 1)]
    for source, size in ((two_classes, 32), (two_classes, None), (fill("split", names), 32)):
        both = open_splits(source, size=size)
        assert list(both) == ["train", "val"]
        for split, pictures in both.items():
            alone = open_pictures(source, split, size=size)
            assert pictures.digest == alone.digest
            assert pictures.labels.tolist() == alone.labels.tolist()
            assert pixels(pictures) == pixels(alone)


def test_both_splits_opened_together_list_and_hash_once(two_classes, monkeypatch):
    calls = []
    for name in ("listing_of", "headers_of", "content_key"):
        real = getattr(images, name)

        def counted(*arguments, name=name, real=real):
            calls.append(name)
            return real(*arguments)

        monkeypatch.setattr(images, name, counted)
    open_splits(two_classes)
    assert [calls.count(name) for name in ("listing_of", "headers_of", "content_key")] == [1, 1, 40]


def test_a_split_with_too_many_broken_files_is_refused_when_both_are_opened(fill):
    root = fill("split", [f"{part}/a/{i}.png" for part in ("train", "val") for i in (0, 1)])
    (root / "val" / "a" / "2.png").write_bytes(b"no picture")
    with pytest.raises(UserError, match=r"1 of 3 are: val/a/2\.png"):
        open_splits(root)


def test_contents_are_hashed_by_threads(two_classes, monkeypatch):
    seen, real = set(), images.content_key

    def watched(store, row):
        seen.add(threading.current_thread())
        return real(store, row)

    monkeypatch.setattr(images, "content_key", watched)
    open_pictures(two_classes, "train")
    assert threading.main_thread() not in seen


@pytest.mark.parametrize("num", [0, 1, 64, 200])
def test_rows_taken_by_threads_keep_their_order(num):
    told = []
    found = images.each_row(
        lambda row: row * row, np.arange(num), lambda done, words: told.append(done)
    )
    assert found == [row * row for row in range(num)]
    assert told == sorted(told)
    assert told[-1:] == ([num] if num else [])
