import errno
import json
import math
import os
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cartok.core.errors import UserError
from cartok.core.files import (
    finite,
    read_json,
    refuse_unwritable,
    remove,
    staged,
    write_json,
    write_text,
)


def content(folder):
    return {str(p.relative_to(folder)): p.read_text() for p in folder.rglob("*") if p.is_file()}


def fill(folder, text):
    folder.mkdir()
    (folder / "deep").mkdir()
    (folder / "a.txt").write_text(text)
    (folder / "deep" / "b.txt").write_text(text)


def write_half(path, write, failure):
    with staged(path) as temporary:
        write(temporary)
        raise failure


def test_a_file_appears_whole_and_replaces_the_old_one(tmp_path):
    path = tmp_path / "new" / "file.txt"
    for text in ("one", "two"):
        write_text(path, text)
        assert content(tmp_path) == {"new/file.txt": text}


def test_nothing_is_there_until_the_body_ends(tmp_path):
    path = tmp_path / "file.txt"
    with staged(path) as temporary:
        temporary.write_text("half")
        assert not path.exists()
        assert temporary.parent == path.parent  # a rename must not cross file systems
    assert path.read_text() == "half"


def test_a_folder_replaces_the_old_one_with_all_it_held(tmp_path):
    path = tmp_path / "folder"
    fill(path, "old")
    (path / "only-old.txt").write_text("old")
    with staged(path) as temporary:
        fill(temporary, "new")
        assert content(path)["a.txt"] == "old"
    assert content(tmp_path) == {"folder/a.txt": "new", "folder/deep/b.txt": "new"}


@pytest.mark.parametrize("failure", [RuntimeError, KeyboardInterrupt, SystemExit])
def test_a_failing_body_leaves_the_old_file_and_nothing_else(tmp_path, failure):
    path = tmp_path / "file.txt"
    path.write_text("old")
    with pytest.raises(failure):
        write_half(path, lambda half: half.write_text("half"), failure)
    assert content(tmp_path) == {"file.txt": "old"}


def test_a_failing_body_leaves_the_old_folder_and_nothing_else(tmp_path):
    path = tmp_path / "folder"
    fill(path, "old")
    before = content(tmp_path)
    with pytest.raises(RuntimeError):
        write_half(path, lambda half: fill(half, "half"), RuntimeError)
    assert content(tmp_path) == before


def test_what_a_kill_left_under_a_named_temporary_is_no_obstacle(tmp_path):
    path, named = tmp_path / "folder", tmp_path / ".folder.ranks.part"
    fill(named, "left by a kill")
    (named / "more.txt").write_text("left by a kill")
    with staged(path, named) as temporary:
        fill(temporary, "new")
    assert content(tmp_path) == {"folder/a.txt": "new", "folder/deep/b.txt": "new"}


def test_writers_whose_processes_have_one_number_do_not_meet(tmp_path):
    path = tmp_path / "file.txt"
    with staged(path) as slow:
        slow.write_text("slow")
        write_text(path, "quick")  # as on another machine that shares the disk
        assert content(tmp_path) == {"file.txt": "quick", slow.name: "slow"}
    assert content(tmp_path) == {"file.txt": "slow"}


def test_a_full_disk_is_one_line_and_leaves_the_old_file(tmp_path, monkeypatch):
    path = tmp_path / "file.txt"
    path.write_text("old")

    def full(descriptor):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(UserError, match=r"the disk is full: .*file.txt was not written") as refusal:
        write_text(path, "new")
    assert len(str(refusal.value).splitlines()) == 1
    assert content(tmp_path) == {"file.txt": "old"}


def test_a_device_that_is_truly_full_is_one_line(tmp_path):
    if not os.path.exists("/dev/full"):
        pytest.skip("this system has no /dev/full")
    with pytest.raises(UserError, match="the disk is full"), staged(tmp_path / "file.txt"):
        Path("/dev/full").write_text("too much")
    assert not list(tmp_path.iterdir())


def test_a_full_disk_told_by_text_alone_is_one_line(tmp_path):
    with pytest.raises(UserError, match="the disk is full"), staged(tmp_path / "file.txt"):
        raise RuntimeError("I/O error: No space left on device (os error 28)")


def test_another_failure_of_the_disk_is_told_as_it_is(tmp_path):
    with pytest.raises(PermissionError), staged(tmp_path / "file.txt"):
        raise PermissionError(errno.EACCES, "denied")


def test_removing_a_link_leaves_what_it_leads_to(tmp_path):
    fill(tmp_path / "far", "kept")
    (tmp_path / "link").symlink_to(tmp_path / "far")
    (tmp_path / "dangling").symlink_to(tmp_path / "nowhere")
    for name in ("link", "dangling", "absent"):
        remove(tmp_path / name)
    assert content(tmp_path) == {"far/a.txt": "kept", "far/deep/b.txt": "kept"}
    assert [path.name for path in tmp_path.iterdir()] == ["far"]


def test_a_folder_put_in_the_place_of_a_link_leaves_what_the_link_leads_to(tmp_path):
    fill(tmp_path / "far", "kept")
    (tmp_path / "link").symlink_to(tmp_path / "far")
    with staged(tmp_path / "link") as temporary:
        fill(temporary, "new")
    assert content(tmp_path / "far")["a.txt"] == "kept"
    assert content(tmp_path / "link")["a.txt"] == "new"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["far", "link"]


@pytest.mark.parametrize("write", [write_text, write_json])
def test_a_file_never_takes_the_place_of_a_folder(tmp_path, monkeypatch, write):
    fill(tmp_path / "folder", "kept")
    before = content(tmp_path)
    monkeypatch.chdir(tmp_path / "folder")
    for path in (tmp_path / "folder", Path(".")):
        with pytest.raises(UserError, match=r"is written to a file, but .* is a folder"):
            write(path, "new")
    assert content(tmp_path) == before


def test_a_path_is_tried_before_long_work_and_nothing_stays(tmp_path):
    refuse_unwritable(tmp_path / "new" / "deep" / "answer.json")
    assert not list(tmp_path.iterdir())
    write_text(tmp_path / "answer.json", "old")
    refuse_unwritable(tmp_path / "answer.json")
    assert content(tmp_path) == {"answer.json": "old"}


@pytest.mark.parametrize(
    ("path", "said"),
    [
        ("{tmp}", "is a folder"),
        ("{tmp}/file/answer.json", "none can be made in"),
        ("/proc/answer.json", "none can be made in /proc"),
        ("/dev/null", "is a device"),
    ],
)
def test_a_path_that_takes_no_file_is_refused_in_one_line(tmp_path, path, said):
    (tmp_path / "file").touch()
    path = Path(path.format(tmp=tmp_path))
    if not path.is_relative_to(tmp_path) and not path.parent.exists():
        pytest.skip(f"this system has no {path.parent}")
    with pytest.raises(UserError, match=said) as refusal:
        refuse_unwritable(path)
    assert len(str(refusal.value).splitlines()) == 1


def test_json_goes_to_disk_and_back(tmp_path):
    value = {"a": [1, 2.5, None, "ü"], "b": {"c": True}}
    write_json(tmp_path / "value.json", value)
    assert read_json(tmp_path / "value.json", "a value") == value


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_json_that_is_not_strict_is_refused_and_nothing_is_written(tmp_path, bad):
    with pytest.raises(ValueError, match="JSON"):
        write_json(tmp_path / "value.json", {"a": [bad]})
    assert not list(tmp_path.iterdir())


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner) | st.tuples(inner),
    max_leaves=20,
)


@given(json_values)
def test_what_is_made_finite_is_strict_json_and_else_the_same(value):
    text = json.dumps(finite(value), allow_nan=False)
    loose = json.loads(json.dumps(value), parse_constant=lambda name: None)
    assert json.loads(text) == loose


@pytest.mark.parametrize("content", [b"", b"{", b"\xff", b"\x80\x04K\x01."])
def test_a_file_that_is_no_json_is_refused_in_one_line(tmp_path, content):
    path = tmp_path / "value.json"
    path.write_bytes(content)
    with pytest.raises(UserError, match=r"a record was expected at .*, but it cannot be read"):
        read_json(path, "a record")


def test_a_missing_json_file_is_refused_in_one_line(tmp_path):
    with pytest.raises(UserError, match=r"a record was expected .* there is no such file"):
        read_json(tmp_path / "none.json", "a record")
