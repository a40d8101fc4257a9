"""The same pictures in any container: the same bytes, in the same order."""

import io
import pickle
import tarfile
import tracemalloc
import zipfile

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from cartok.core.errors import UserError
from cartok.data import sources
from cartok.data.arrays import Statistics, picture_array, read_statistics, write_npz
from cartok.data.images import open_pictures
from cartok.data.pictures import Pictures
from cartok.data.sources import open_source


def png(rows) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(rows).save(buffer, format="PNG")
    return buffer.getvalue()


def noise(count, height=9, width=7, seed=0):
    shape = (count, height, width, 3)
    return np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8)


def named(count):
    return [f"{index:04d}.png" for index in range(count)]


def as_folder(path, pictures):
    path.mkdir()
    for name, rows in zip(named(len(pictures)), pictures, strict=True):
        (path / name).write_bytes(png(rows))
    return path


def as_class_folders(path, pictures):
    for index, (name, rows) in enumerate(zip(named(len(pictures)), pictures, strict=True)):
        (path / "ab"[index % 2]).mkdir(parents=True, exist_ok=True)
        (path / "ab"[index % 2] / name).write_bytes(png(rows))
    return path


def as_zip(path, pictures, compression=zipfile.ZIP_DEFLATED):
    with zipfile.ZipFile(path.with_suffix(".zip"), "w", compression) as archive:
        archive.writestr("__MACOSX/._0000.png", b"not a picture")
        for name, rows in zip(named(len(pictures)), pictures, strict=True):
            archive.writestr(f"{'ab'[int(name[:4]) % 2]}/{name}", png(rows))
    return path.with_suffix(".zip")


def add(archive, name, content):
    info = tarfile.TarInfo(name)
    info.size = len(content)
    archive.addfile(info, io.BytesIO(content))


def as_shards(path, pictures):
    """Two shards that name their samples alike."""
    path.mkdir()
    half = -(-len(pictures) // 2)
    for number, part in enumerate((pictures[:half], pictures[half:])):
        with tarfile.open(path / f"{number:05d}.tar", "w") as archive:
            for name, rows in zip(named(len(part)), part, strict=True):
                add(archive, f"./{name[:4]}.cls", b"%d" % (10 * number))
                add(archive, f"./{name}", png(rows))
    return path


def as_parquet(path, pictures):
    table = pa.table({"image": [{"bytes": png(rows), "path": None} for rows in pictures]})
    pq.write_table(table, path.with_suffix(".parquet"))
    return path.with_suffix(".parquet")


def as_npy(path, pictures):
    np.save(path.with_suffix(".npy"), pictures)
    return path.with_suffix(".npy")


def as_npy_of_floats(path, pictures):
    image = pictures.transpose(0, 3, 1, 2).astype(np.float32) / 127.5 - 1
    np.save(path.with_suffix(".npy"), image)
    return path.with_suffix(".npy")


def as_npz(path, pictures):
    np.savez(path.with_suffix(".npz"), pictures, np.arange(len(pictures)))
    return path.with_suffix(".npz")


def as_compressed_npz(path, pictures):
    np.savez_compressed(path.with_suffix(".npz"), pictures)
    return path.with_suffix(".npz")


def as_written_npz(path, pictures):
    batches = torch.from_numpy(pictures).permute(0, 3, 1, 2).split(5)
    write_npz(path.with_suffix(".npz"), batches, len(pictures))
    return path.with_suffix(".npz")


def as_mixed_modes(path, pictures):
    path.mkdir()
    for index, rows in enumerate(pictures):
        mode = ("RGB", "L", "RGBA")[index % 3]
        Image.fromarray(rows).convert(mode).save(path / f"{index:04d}.png")
    return path


def spoil(monkeypatch, *names):
    """Makes pictures whose names end so fail when they are decoded, long after their headers."""
    plain = Pictures._decode

    def decode(self, index):
        name = self.name_of(index)
        if name.endswith(names) and not name.startswith("00001.tar"):
            raise OSError("spoilt")
        return plain(self, index)

    monkeypatch.setattr(Pictures, "_decode", decode)


CONTAINERS = [as_folder, as_class_folders, as_zip, as_shards, as_parquet, as_npy, as_npy_of_floats,
              as_npz, as_compressed_npz, as_written_npz]  # fmt: skip


def read(source):
    return torch.cat(list(source.pixels("as-given", 0, batch=8))).permute(0, 2, 3, 1).numpy()


@settings(max_examples=4)
@given(st.integers(2, 70), st.integers(1, 9), st.integers(4, 9), st.integers(0, 9))
@pytest.mark.parametrize("held_in", CONTAINERS, ids=lambda kind: kind.__name__)
def test_every_container_gives_back_its_pictures_in_order(
    held_in, tmp_path_factory, count, height, width, seed
):
    pictures = noise(count, height, width, seed)
    source = open_source(held_in(tmp_path_factory.mktemp("container") / "pictures", pictures))
    assert len(source) == count
    assert source.short_side == min(height, width)
    assert source.converted == {}
    np.testing.assert_array_equal(read(source), pictures)
    np.testing.assert_array_equal(read(source), pictures)  # and a second time


@pytest.mark.parametrize("write", [as_npz, as_compressed_npz, as_npy])
def test_no_more_than_some_pictures_of_an_array_are_in_memory(write, tmp_path):
    path = write(tmp_path / "a", np.zeros((600, 64, 64, 3), np.uint8))
    tracemalloc.start()
    parts = [len(part) for part in picture_array(path).rows()]
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert parts == [64] * 9 + [24]
    assert peak < 600 * 64 * 64 * 3 / 2


@pytest.mark.parametrize("held_in", [as_folder, as_parquet], ids=lambda kind: kind.__name__)
def test_pictures_that_were_read_are_not_kept_however_small(held_in, tmp_path):
    source = open_source(held_in(tmp_path / "pictures", noise(300, 48, 48)))  # 2 MB
    list(source.pixels("as-given", 0, rows=range(8)))
    tracemalloc.start()
    for _ in source.pixels("as-given", 0, batch=8):
        pass
    kept, _ = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert kept < 300 * 48 * 48 * 3 / 4


def test_a_thread_cuts_a_picture_before_it_decodes_the_next(monkeypatch, tmp_path):
    """A photograph of a phone has 36 MB, and sixteen threads would hold eight each."""
    said = []
    attempt, cropped = Pictures.attempt, sources.cropped
    monkeypatch.setattr(Pictures, "attempt", lambda *a: (said.append("decoded"), attempt(*a))[1])
    monkeypatch.setattr(sources, "cropped", lambda *a: (said.append("cut"), cropped(*a))[1])
    list(open_source(as_folder(tmp_path / "a", noise(20))).pixels("square", 5))
    assert said == ["decoded", "cut"] * 20


def test_what_write_npz_writes_is_what_numpy_reads(tmp_path):
    mean, cov = np.arange(3.0), np.eye(3)
    batches = torch.from_numpy(noise(5)).permute(0, 3, 1, 2).split(2)
    write_npz(tmp_path / "a.npz", batches, 5, {"spatial": Statistics(mean, cov)})
    with np.load(tmp_path / "a.npz", allow_pickle=False) as archive:
        assert sorted(archive.files) == ["arr_0", "mu_s", "sigma_s"]
        np.testing.assert_array_equal(archive["arr_0"], noise(5))
    found = read_statistics(tmp_path / "a.npz")
    assert list(found) == ["spatial"]
    np.testing.assert_array_equal(found["spatial"].mean, mean)
    np.testing.assert_array_equal(found["spatial"].cov, cov)


def test_an_npz_of_statistics_alone_is_a_source_without_pictures(tmp_path):
    np.savez(tmp_path / "a.npz", mu=np.zeros(4, np.float32), sigma=np.eye(4))
    source = open_source(tmp_path / "a.npz")
    assert len(source) == 0
    assert not list(source.pixels("as-given", 0))
    assert source.statistics["pool"].mean.dtype == np.float64


def test_other_numbers_of_pictures_than_begun_leave_no_file(tmp_path):
    batches = torch.from_numpy(noise(5)).permute(0, 3, 1, 2).split(2)
    with pytest.raises(UserError, match="begun for 6 pictures, but 5 could be read"):
        write_npz(tmp_path / "a.npz", batches, 6)
    assert not list(tmp_path.iterdir())


def saved(path, *arrays, **members):
    np.savez(path, *arrays, **members)
    return path


def saved_npy(path, array):
    np.save(path, array, allow_pickle=True)
    return path


def cut(path):
    path.write_bytes(path.read_bytes()[:-100])
    return path


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda p: saved(p / "a.npz", images=noise(2)), "pictures in arr_0, but .* has images"),
        (lambda p: saved(p / "a.npz", noise(2)[..., 0]), r"is \(2, 9, 7\); repeat a single"),
        (lambda p: saved(p / "a.npz", noise(2)[..., :1]), "repeat a single channel three times"),
        (lambda p: saved(p / "a.npz", noise(0)), r"is \(0, 9, 7, 3\)"),
        (lambda p: saved(p / "a.npz", noise(2).astype(int)), "uint8 or float, .* are int64"),
        (lambda p: saved_npy(p / "a.npy", np.array([{}])), "pickled objects, which are never"),
        (lambda p: saved_npy(p / "a.npy", np.asfortranarray(noise(2))), "in Fortran's order"),
        (lambda p: saved(p / "a.npz", mu=np.zeros(3)), "mu and sigma, but .* has one alone"),
        (lambda p: saved(p / "a.npz", mu=np.zeros(3), sigma=np.eye(2)), "covariance of n x n"),
        (lambda p: saved(p / "a.npz", mu=np.zeros(2), sigma=np.eye(2) * np.nan), "finite, but"),
        (lambda p: saved(p / "a.npz", mu=np.zeros(2), sigma=np.ones((2, 2)).cumsum(1)), "symmetr"),
        (lambda p: cut(saved(p / "a.npz", noise(2))), "cannot be read as an array"),
        (lambda p: p / "none.npz", "there is no such file"),
    ],
)
def test_an_array_that_is_no_pictures_is_refused_when_opened(tmp_path, make, words):
    with pytest.raises(UserError, match=words):
        open_source(make(tmp_path))


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda image: image * np.nan, "finite, but those of .* hold NaN"),
        (lambda image: image * 255, "reach 255; write bytes"),
        (lambda image: abs(image), "none of .* falls below 0"),
    ],
)
def test_floats_out_of_their_range_are_refused_when_read(tmp_path, make, words):
    image = noise(64).astype(np.float32) / 127.5 - 1
    image[0, 0, 0, 0] = -1
    with pytest.raises(UserError, match=words):
        read(open_source(saved_npy(tmp_path / "a.npy", make(image))))


def test_floats_from_0_to_1_are_refused_by_every_share_before_a_picture_comes(tmp_path):
    unit = noise(70).astype(np.float32) / 255
    source = open_source(saved_npy(tmp_path / "a.npy", unit))
    for rows in (range(35), range(35, 70), None):
        with pytest.raises(UserError, match=r"none of .* falls below 0"):
            next(source.pixels("as-given", 0, batch=4, rows=rows))


def test_an_npy_that_was_cut_short_is_refused(tmp_path):
    with pytest.raises(UserError, match="cannot be read as an array"):
        read(open_source(cut(as_npy(tmp_path / "a", noise(9)))))


def test_pictures_of_other_modes_are_counted(tmp_path):
    for index, mode in enumerate(["RGB", "L", "P", "CMYK", "RGBA", "L"]):
        kind = "tiff" if mode == "CMYK" else "png"
        Image.fromarray(noise(1)[0]).convert(mode).save(tmp_path / f"{index}.{kind}")
    source = open_source(tmp_path)
    assert source.converted == {"L": 2, "P": 1, "CMYK": 1, "RGBA": 1}
    assert read(source).shape == (6, 9, 7, 3)


def test_pictures_of_several_sizes_do_not_make_a_batch(tmp_path):
    for index in range(3):
        Image.fromarray(noise(1, height=9 + index // 2)[0]).save(tmp_path / f"{index}.png")
    with pytest.raises(UserError, match="one size, but these have 7 x 9 and 7 x 10"):
        list(open_source(tmp_path).pixels("as-given", 0))


@pytest.mark.parametrize("held_in", [*CONTAINERS, as_mixed_modes], ids=lambda kind: kind.__name__)
def test_threads_change_neither_pictures_nor_batches_nor_what_is_left_out(
    held_in, monkeypatch, tmp_path
):
    path = held_in(tmp_path / "pictures", noise(120, 9, 9))
    spoil(monkeypatch, "0013.png", ":13")
    said = []
    for threads in (0, 1, 3):
        source = open_source(path)
        batches = list(source.pixels("square", 9, batch=50, threads=threads))
        said.append(([len(batch) for batch in batches], source.skipped, source.converted))
        assert torch.equal(torch.cat(batches), torch.cat(list(source.pixels("square", 9))))
        share = list(source.pixels("square", 9, rows=range(3, 60), threads=threads))
        assert torch.equal(torch.cat(share), torch.cat(batches)[3 : 3 + sum(map(len, share))])
    assert said[0] == said[1] == said[2]
    assert sum(said[0][0]) + len(said[0][1]) == 120


def test_a_share_of_an_array_is_read_from_its_place(tmp_path):
    for held_in in (as_npy, as_npy_of_floats, as_npz, as_compressed_npz):
        source = open_source(held_in(tmp_path / held_in.__name__, noise(30)))
        for rows in (range(0), range(11, 29), range(29, 30), range(30, 30)):
            found = list(source.pixels("as-given", 0, rows=rows))
            wanted = noise(30)[rows.start : rows.stop]
            assert sum(map(len, found)) == len(wanted)
            if found:
                np.testing.assert_array_equal(torch.cat(found).permute(0, 2, 3, 1), wanted)


@pytest.mark.parametrize("threads", [0, 3])
def test_more_than_a_hundredth_that_do_not_decode_stop_alike_with_any_threads(
    monkeypatch, tmp_path, threads
):
    spoil(monkeypatch, "0007.png", "0050.png", "0090.png")
    source = open_source(as_folder(tmp_path / "a", noise(120)))
    words = r"2 of 120 are: 0007.png \(spoilt\), 0050.png \(spoilt\); repair"
    with pytest.raises(UserError, match=words):
        list(source.pixels("as-given", 0, threads=threads))


def test_shards_train_too_with_the_classes_that_they_name(tmp_path):
    pictures = open_pictures(as_shards(tmp_path / "shards", noise(8)), "all")
    assert pictures.classes == ("0", "10")
    assert pictures.labels.tolist() == [0] * 4 + [1] * 4
    assert pictures.name_of(4) == "00001.tar:0000.png"


def test_shards_that_are_called_val_are_held_out(tmp_path):
    folder = as_shards(tmp_path / "shards", noise(8))
    for number, word in enumerate(("train", "val")):
        (folder / f"0000{number}.tar").rename(folder / f"{word}-0.tar")
        with tarfile.open(folder / f"{word}-0.tar", "w") as archive:
            for index in range(3):
                add(
                    archive, f"{'ab'[index % 2]}/{index}.png", png(noise(1, seed=index + number)[0])
                )
    assert len(open_pictures(folder, "val")) == len(open_pictures(folder, "train")) == 3
    assert open_pictures(folder, "val").classes == ("a", "b")


def test_a_labelled_sample_with_two_pictures_is_refused(tmp_path):
    with tarfile.open(tmp_path / "a.tar", "w") as archive:
        add(archive, "0.cls", b"1")
        for name in ("0.png", "0.seg.png"):
            add(archive, name, png(noise(1)[0]))
    with pytest.raises(UserError, match=r"'0' of a.tar holds 0.png, 0.seg.png"):
        open_pictures(tmp_path / "a.tar", "all")


@pytest.mark.parametrize("name", ["a.tar", "a.zip"])
def test_a_damaged_archive_is_refused(tmp_path, name):
    (tmp_path / name).write_bytes(b"nothing of the kind" * 100)
    with pytest.raises(UserError, match="is no readable"):
        open_pictures(tmp_path / name, "all")


def test_a_zip_is_laid_out_like_a_folder_and_follows_workers(tmp_path):
    pictures = open_pictures(as_zip(tmp_path / "a", noise(40)), "all")
    assert pictures.classes == ("a", "b")
    assert len(pictures.store.content_of(0, 10)) == 10
    copy = pickle.loads(pickle.dumps(pictures))
    assert copy.read(3).tobytes() == pictures.read(3).tobytes()
