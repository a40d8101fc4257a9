import json

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from cartok.core.errors import UserError
from cartok.metrics import activations as module
from cartok.metrics.activations import default_folder
from cartok.metrics.streaming import activations_of


@pytest.fixture
def folder(tmp_path):
    return tmp_path / "kept"


@pytest.fixture(scope="module")
def pixels(tiny):
    return tiny.pictures(5)


@pytest.fixture
def seen(tiny, folder):
    """A function that featurises with a fresh network: what it gave, how many pictures it saw."""

    def seen(pictures, name="", kinds=("pool", "logits"), **how):
        network = tiny.TinyInception(**how)
        found = activations_of(pictures, network, kinds=kinds, folder=folder, name=name)
        return found, network.pictures_seen

    return seen


@pytest.fixture
def told(caplog):
    """A function: the lines a user has seen since the last call."""

    def told():
        lines = [record.getMessage() for record in caplog.records]
        caplog.clear()
        assert not any("\n" in line for line in lines)
        return lines

    return told


def same(one, other):
    """To the bit, in everything."""
    assert (one.key, one.hash, one.picture_size) == (other.key, other.hash, other.picture_size)
    for a, b in ((one.pool, other.pool), (one.spatial, other.spatial)):
        assert a.count == b.count
        assert torch.equal(a.mean, b.mean)
        assert torch.equal(a.scatter, b.scatter)
    assert one.kept.keys() == other.kept.keys()
    assert all(torch.equal(one.rows(kind), other.rows(kind)) for kind in one.kept)


def test_pictures_seen_before_are_looked_up_to_the_bit_and_a_line_says_so(
    seen, pixels, folder, told
):
    first, count = seen(pixels)
    assert (count, told()) == (5, [])
    again, count = seen(list(pixels.split(2)))
    (file,) = folder.iterdir()
    assert count == 0
    assert told() == [f"inception-tiny saw these 5 pictures before: {file}"]
    same(again, first)


def test_nothing_is_kept_without_a_folder(tiny, pixels, folder):
    kept = activations_of(pixels, tiny.TinyInception(), folder=folder)
    same(activations_of(pixels, tiny.TinyInception()), kept)
    assert len([*folder.iterdir()]) == 1


@pytest.mark.parametrize(
    "how", [{"name": "inception-other"}, {"sha256": "1" * 64}, {"tf32": True}], ids=str
)
def test_another_network_or_precision_looks_for_itself(tiny, pixels, folder, how):
    activations_of(pixels, tiny.TinyInception(), folder=folder)
    other = tiny.TinyInception(**how)
    activations_of(pixels, other, folder=folder)
    assert other.pictures_seen == 5
    assert len([*folder.iterdir()]) == 2


def test_other_pictures_another_order_and_another_size_are_others(seen, tiny, pixels):
    assert seen(pixels)[1] == 5
    changed = pixels.clone()
    changed[4, 2, 7, 7] ^= 1
    wide = pixels.reshape(5, 3, 4, 16)
    assert [seen(p)[1] for p in (changed, pixels.flip(0), wide, pixels[:4])] == [5, 5, 5, 4]


class Counted:
    """Batches of pictures that can be read again; counts those that were."""

    def __init__(self, pixels):
        self.pixels, self.count = pixels, 0

    def __iter__(self):
        for part in self.pixels.split(1):
            self.count += 1
            yield part


def test_pictures_are_read_to_name_them_only_if_some_that_begin_alike_are_kept(seen, pixels):
    reads = []
    for shown in (pixels, pixels, pixels[:4], pixels[1:]):
        counted = Counted(shown)
        seen(counted)
        reads.append(counted.count - 1)  # the first picture is looked up
    assert reads == [5, 5, 4 + 4, 4]


@pytest.mark.parametrize(("first", "second"), [("network", "clean"), ("clean", "network")])
def test_pictures_that_are_resized_before_the_network_share_no_file(
    tiny, pixels, folder, first, second
):
    activations_of(pixels, tiny.TinyInception(), folder=folder, resize=first)
    other = tiny.TinyInception()
    found = activations_of(pixels, other, folder=folder, resize=second)
    assert other.pictures_seen == 5
    same(found, activations_of(pixels, tiny.TinyInception(), resize=second))
    assert len([*folder.iterdir()]) == 2


def test_pictures_that_change_between_two_readings_are_kept_under_what_was_seen(
    seen, pixels, folder
):
    class Changing(Counted):
        def __iter__(self):
            yield from super().__iter__()
            self.pixels = pixels.flip(0)

    seen(pixels[:1])
    assert seen(Changing(pixels))[1] == 5
    assert seen(pixels.flip(0))[1] == 0
    assert seen(pixels)[1] == 5


def test_rows_that_were_not_kept_are_made(seen, pixels):
    assert seen(pixels, kinds=("pool",))[1] == 5
    assert seen(pixels, kinds=())[1] == 0
    found, count = seen(pixels, kinds=("pool", "spatial"))
    assert count == 5
    assert set(found.kept) == {"pool", "spatial"}
    assert seen(pixels, kinds=("spatial",))[1] == 0


def cut_short(path):
    path.write_bytes(path.read_bytes()[:-1])


def one_bit_changed(path):
    content = bytearray(path.read_bytes())
    content[-1000] ^= 1
    path.write_bytes(content)


def empty(path):
    path.write_bytes(b"")


def somebody_elses(path):
    save_file({"weight": torch.ones(2)}, path)


def of_other_pictures(path):
    tensors = load_file(path)
    with safe_open(path, "pt") as file:
        about = json.loads(file.metadata()["cartok"])
    about["key"]["pictures"] = "others"
    save_file(tensors, path, metadata={"cartok": json.dumps(about)})


def pickled(path):
    torch.save({"pool.rows": Trap()}, path)


class Trap:
    """Runs code when it is unpickled."""

    def __reduce__(self):
        return pytest.fail, ("pickled code was run",)


@pytest.mark.parametrize(
    "spoil", [cut_short, one_bit_changed, empty, somebody_elses, of_other_pictures, pickled]
)
def test_a_file_that_is_damaged_or_foreign_is_warned_of_and_written_anew(
    seen, pixels, folder, told, spoil
):
    first, _ = seen(pixels)
    (file,) = folder.iterdir()
    spoil(file)
    again, count = seen(pixels)
    assert count == 5
    same(again, first)
    (line,) = told()
    assert line.startswith(f"{file} is not what cartok keeps there (")
    assert line.endswith("it will be written anew")
    assert seen(pixels)[1] == 0


def test_a_name_spares_the_reading_and_stands_for_the_pictures(seen, pixels):
    reads = []

    def read():
        reads.append(1)
        yield pixels

    assert seen(read(), name="reference of 5, 8 px")[1] == 5
    found, count = seen(read(), name="reference of 5, 8 px")
    assert (found.count, count, len(reads)) == (5, 0, 1)
    assert seen(read(), name="reference of 5, 16 px")[1] == 5


def test_what_can_be_read_only_once_has_to_be_named(seen, pixels, folder):
    with pytest.raises(UserError, match="an iterator can be read only once"):
        seen(iter([pixels]))
    assert not folder.exists()


def test_a_folder_that_cannot_be_written_costs_a_warning_and_no_score(
    seen, pixels, monkeypatch, told
):
    def full(*_, **__):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(module, "save_file", full)
    found, count = seen(pixels)
    assert (found.count, count) == (5, 5)
    (line,) = told()
    assert line.startswith("features of 5 pictures are not kept: ")


def test_features_are_kept_beside_downloaded_weights(monkeypatch, tmp_path):
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path))
    assert default_folder().parent == tmp_path
