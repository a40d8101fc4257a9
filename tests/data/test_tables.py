import sys
from types import SimpleNamespace

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from cartok.core.errors import UserError
from cartok.data import tables
from cartok.data.images import open_pictures

ANIMALS = ["ape", "bee", "cat", "dog"]


def test_labels_with_gaps_are_renumbered_to_the_classes_present(parquet):
    pictures = open_pictures(parquet("train.parquet", [3, 1, 3, 1], ANIMALS), "all")
    assert pictures.classes == ("bee", "dog")
    assert pictures.labels.tolist() == [1, 0, 1, 0]


def test_labels_without_names_are_named_by_their_number(parquet):
    pictures = open_pictures(parquet("train.parquet", [10, 2, 10]), "all")
    assert pictures.classes == ("2", "10")
    assert pictures.labels.tolist() == [1, 0, 1]


def test_labels_may_be_words(parquet):
    pictures = open_pictures(parquet("train.parquet", ["dog", "cat"]), "all")
    assert pictures.classes == ("cat", "dog")


def test_a_table_without_labels_has_no_classes(parquet):
    pictures = open_pictures(parquet("train.parquet", [None] * 4), "all")
    assert (pictures.num_classes, pictures.labels.tolist()) == (0, [0] * 4)


@pytest.mark.parametrize("held", ["val-0.parquet", "validation-0.parquet", "test.parquet"])
def test_files_are_sorted_into_splits_by_name(parquet, held):
    parquet("d/train-00000-of-00002.parquet", [0, 1], ANIMALS)
    parquet("d/train-00001-of-00002.parquet", [3], ANIMALS, seed=10)
    folder = parquet(f"d/{held}", [1, 3], ANIMALS, seed=20).parent
    train, val = open_pictures(folder, "train"), open_pictures(folder, "val")
    assert train.classes == val.classes == ("ape", "bee", "dog")
    assert (train.labels.tolist(), val.labels.tolist()) == ([0, 1, 2], [1, 2])
    assert train.name_of(2) == "train-00001-of-00002.parquet:0"
    assert val.name_of(1) == f"{held}:1"


def test_tables_of_two_data_sets_are_not_taken_for_one(parquet):
    """Their class numbers mean different things."""
    parquet("d/one/train.parquet", [0, 1], ANIMALS)
    folder = parquet("d/two/train.parquet", [0, 1], ["ash", "birch"], seed=9).parent.parent
    with pytest.raises(UserError, match=r"4 from 'ape' on and train.parquet 2 from 'ash' on"):
        open_pictures(folder, "train")


def test_validation_is_preferred_to_test(parquet):
    for number, word in enumerate(("train", "test", "validation")):
        folder = parquet(f"d/{word}.parquet", [0, 1], seed=10 * number).parent
    assert open_pictures(folder, "val").name_of(0) == "validation.parquet:0"


def test_a_folder_name_tells_the_split_when_the_file_name_does_not(parquet):
    parquet("d/train/0000.parquet", [0, 1])
    parquet("d/validation/0000.parquet", [1], seed=5)
    folder = parquet("d/train/0001.parquet", [0], seed=9).parent.parent
    assert len(open_pictures(folder, "train")) == 3
    assert len(open_pictures(folder, "val")) == 1


def test_a_tenth_of_a_single_file_is_held_out(parquet):
    path = parquet("all.parquet", [0, 1] * 20)
    assert len(open_pictures(path, "train")) == 36
    assert len(open_pictures(path, "val")) == 4


def test_a_validation_class_that_is_not_trained_is_refused(parquet):
    parquet("d/train.parquet", [0, 1], ANIMALS)
    folder = parquet("d/val.parquet", [2], ANIMALS, seed=5).parent
    with pytest.raises(UserError, match="'cat' is not one of those 2"):
        open_pictures(folder, "val")


def test_rows_without_a_label_are_skipped_as_faulty(parquet):
    pictures = open_pictures(parquet("train.parquet", [0] * 150 + [-1]), "all")
    assert [fault.name for fault in pictures.skipped] == ["train.parquet:150"]


def test_splits_of_other_names_are_left_alone(parquet):
    for number, word in enumerate(("train", "extra", "test")):
        folder = parquet(f"d/{word}.parquet", [0, 1], seed=10 * number).parent
    assert len(open_pictures(folder, "train")) == 2


@pytest.mark.parametrize("labels", [["dog", "cat"], [None, None]])
def test_files_of_different_layouts_are_refused(parquet, labels):
    parquet("d/train-0.parquet", [0, 1])
    folder = parquet("d/train-1.parquet", labels).parent
    with pytest.raises(UserError, match="all tables must have one layout"):
        open_pictures(folder, "train")


def test_damaged_parquet_is_refused(tmp_path):
    (tmp_path / "train.parquet").write_bytes(b"PAR1 no more")
    with pytest.raises(UserError, match="not readable parquet"):
        open_pictures(tmp_path, "train")


def test_a_table_without_pictures_is_refused_with_its_columns(tmp_path):
    pq.write_table(pa.table({"text": ["a"], "id": [1]}), tmp_path / "train.parquet")
    with pytest.raises(UserError, match=r"column 'image' of bytes, but train.parquet has text, id"):
        open_pictures(tmp_path, "train")


def test_too_much_parquet_for_memory_is_refused(parquet, monkeypatch):
    monkeypatch.setattr(tables, "MAX_PARQUET_BYTES", 100)
    with pytest.raises(UserError, match="open the folder as hub:"):
        open_pictures(parquet("train.parquet", [0, 1]), "train")


def test_a_hub_data_set_is_what_its_loader_returns(parquet, monkeypatch):
    splits = {}
    for word, labels in (("train", [3, 1, 3]), ("test", [1])):
        table = pq.read_table(parquet(f"{word}.parquet", labels, ANIMALS, seed=len(labels)))
        features = SimpleNamespace(arrow_schema=table.schema)
        splits[word] = SimpleNamespace(data=SimpleNamespace(table=table), features=features)
    loader = SimpleNamespace(load_dataset=lambda name: splits if name == "some/one" else None)
    monkeypatch.setitem(sys.modules, "datasets", loader)
    train, val = open_pictures("hub:some/one", "train"), open_pictures("hub:some/one", "val")
    assert train.classes == ("bee", "dog")
    assert (train.labels.tolist(), val.labels.tolist()) == ([1, 0, 1], [0])
    assert train.name_of(2) == "train:2"


def test_without_the_package_a_hub_data_set_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(UserError, match=r"needs the package 'datasets'.*: uv sync --extra hub"):
        open_pictures("hub:some/one", "train")


def test_a_hub_data_set_that_cannot_be_reached_is_one_line(monkeypatch):
    def fail(name):
        raise ConnectionError("no route\nto host")

    monkeypatch.setitem(sys.modules, "datasets", SimpleNamespace(load_dataset=fail))
    with pytest.raises(UserError) as caught:
        open_pictures("hub:some/one", "train")
    assert str(caught.value).startswith("the data set 'some/one' could not be loaded: no route;")
    assert "\n" not in str(caught.value)


def test_the_real_loader_opens_a_local_folder(parquet, tmp_path, monkeypatch):
    datasets = pytest.importorskip("datasets")
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    parquet("d/train.parquet", [3, 1, 3], ANIMALS)
    folder = parquet("d/test.parquet", [1], ANIMALS, seed=9).parent
    pictures = open_pictures(f"hub:{folder}", "train")
    assert pictures.classes == ("bee", "dog")
    assert pictures.read(0).size == (32, 32)


@pytest.mark.parametrize("about", ["{", "[]", '{"info": {"features": 3}}'])
def test_damaged_metadata_is_refused_in_one_line(tmp_path, about):
    table = pa.table({"image": [b"x"]}).replace_schema_metadata({"huggingface": about})
    pq.write_table(table, tmp_path / "train.parquet")
    with pytest.raises(UserError, match=r"that of train\.parquet is damaged") as caught:
        open_pictures(tmp_path, "train")
    assert "\n" not in str(caught.value)
