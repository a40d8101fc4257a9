"""``cartok score`` under torchrun: what one process says, said once."""

import importlib.util
import io
import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from cartok.__main__ import main
from cartok.core.parallel import World
from cartok.lab import scoring

SCRIPT = Path(__file__).with_name("ranks_of_scores.py")


def drawn(count, seed, size=24):
    generator = np.random.default_rng(seed)
    small = generator.integers(0, 256, (count, 6, 6, 3), dtype=np.uint8)
    return small.repeat(size // 6, 1).repeat(size // 6, 2)


def folder_of(path, rows, broken=(), wide=()):
    """Pictures of several modes; of the broken ones only the header is whole."""
    path.mkdir()
    for index, picture in enumerate(rows):
        image = Image.fromarray(picture).convert(("RGB", "L", "RGBA")[index % 3])
        image = image.resize((30, 24)) if index in wide else image
        buffer = io.BytesIO()
        image.save(buffer, "PNG")
        content = buffer.getvalue()
        (path / f"{index:03d}.png").write_bytes(content[:60] if index in broken else content)
    return str(path)


@pytest.fixture(scope="module")
def calls(tmp_path_factory):
    """The arguments of each call, by its name."""
    folder = tmp_path_factory.mktemp("pictures")
    np.save(folder / "reference.npy", drawn(131, 1))
    np.save(folder / "again.npy", drawn(131, 2))
    reference, again = str(folder / "reference.npy"), str(folder / "again.npy")
    pictures = drawn(207, 0)
    some = folder_of(folder / "some", pictures, broken=(20, 150))
    many = folder_of(folder / "many", pictures, broken=(20, 21, 150))
    uneven = folder_of(folder / "uneven", pictures, wide=(199,))
    few = folder_of(folder / "few", pictures[:5])
    own = ["--preset", "own-data", "--no-cache"]
    return {
        "broken": [some, reference, *own, "--json", "broken.json", "--page", "page"],
        "pairs": [again, reference, *own, "--paired", "--json", "pairs.json", "--npz", "a.npz"],
        "kept": [again, reference, "--preset", "own-data", "--json", "kept.json"],
        "kept again": [again, reference, "--preset", "own-data", "--json", "again.json"],
        "too many": [many, reference, *own],
        "one rank's": [uneven, reference, "--preset", "clean", "--no-cache"],
        "too few": [few, reference, *own],
    }


def in_folder(arguments, folder):
    written = ("--json", "--page", "--npz")
    pairs = zip(["", *arguments], arguments, strict=False)
    return [str(folder / each) if before in written else each for before, each in pairs]


@pytest.fixture(scope="module")
def on_ranks(calls, tmp_path_factory):
    """The folder that two ranks wrote to, and what each of them said in each call."""
    folder = tmp_path_factory.mktemp("ranks")
    told = {name: ["score", *in_folder(call, folder)] for name, call in calls.items()}
    (folder / "calls.json").write_text(json.dumps(told))
    command = [sys.executable, str(SCRIPT), str(folder)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    return folder, [json.loads((folder / f"{rank}.json").read_text()) for rank in range(2)]


@pytest.fixture(scope="module")
def toys():
    """The module of the script, with the small networks that its ranks use."""
    sys.path.insert(0, str(SCRIPT.parent))
    spec = importlib.util.spec_from_file_location(SCRIPT.stem, SCRIPT)
    toys = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(toys)
    sys.path.remove(str(SCRIPT.parent))
    return toys


@pytest.fixture
def alone(monkeypatch, calls, toys, tmp_path, capsys):
    """A function: what one process says in a call, and the folder that it wrote to."""
    monkeypatch.setattr(scoring.frozen, "inception", lambda path=None: toys.SmallInception())
    monkeypatch.setattr(scoring.frozen, "teacher", lambda name, *paths: toys.SmallLpips())
    monkeypatch.setattr(scoring, "default_folder", lambda: tmp_path / "kept")

    def alone(name):
        code = main(["score", *in_folder(calls[name], tmp_path)])
        said = capsys.readouterr()
        return {"code": code, "out": said.out, "err": said.err}, tmp_path

    return alone


def read(path):
    return json.loads(path.read_text())


@pytest.mark.parametrize("name", ["broken", "pairs", "kept"])
def test_two_ranks_say_what_one_process_says(on_ranks, alone, name):
    folder, (main_rank, other) = on_ranks
    one, own = alone(name)
    assert (main_rank[name]["code"], other[name]["code"], one["code"]) == (0, 0, 0)
    assert (other[name]["out"], other[name]["err"]) == ("", "")
    ours, theirs = read(folder / f"{name}.json"), read(own / f"{name}.json")
    assert ours.keys() == theirs.keys()
    for metric, score in theirs.items():
        assert ours[metric]["value"] == pytest.approx(score["value"], rel=1e-6)
        for key in ("generated", "generated_count", "reference", "skipped", "converted"):
            assert ours[metric]["receipt"].get(key) == score["receipt"].get(key)


def test_the_offline_judge_sees_a_share_on_each_rank_which_may_be_none(on_ranks, toys):
    _, said = on_ranks
    for number, count in enumerate((7, 1)):
        one = toys.judged(count, World())
        assert one["count"] == len(one["rows"]) == count
        assert [rank["judged"][number] for rank in said] == 2 * [json.loads(json.dumps(one))]


def test_the_main_rank_writes_the_page_and_the_pictures_of_all(on_ranks, alone):
    folder, _ = on_ranks
    _, own = alone("broken")
    for name in ("pictures/nearest.png", "scores.json"):
        assert (folder / "page" / name).stat().st_size == (own / "page" / name).stat().st_size
    _, own = alone("pairs")
    with np.load(folder / "a.npz") as ours, np.load(own / "a.npz") as theirs:
        np.testing.assert_array_equal(ours["arr_0"], theirs["arr_0"])
        np.testing.assert_allclose(ours["mu"], theirs["mu"], rtol=1e-9)


def test_what_does_not_decode_on_any_rank_is_counted_and_named_once(on_ranks):
    folder, (main_rank, _) = on_ranks
    assert "warning: 2 generated files are no readable pictures" in main_rank["broken"]["out"]
    receipt = read(folder / "broken.json")["fid"]["receipt"]
    assert receipt["skipped"] == {"generated": 2, "reference": 0}
    assert receipt["generated_count"] == 205


def test_pictures_that_ranks_saw_before_are_not_seen_again(on_ranks):
    folder, (main_rank, other) = on_ranks
    assert read(folder / "kept.json") == read(folder / "again.json")
    assert main_rank["kept again"]["err"].count("saw these 131 pictures before") == 2
    assert "naming" in main_rank["kept again"]["err"]
    assert other["kept again"]["err"] == ""


def test_the_hundredth_is_of_all_and_every_rank_says_the_same(on_ranks, alone):
    _, said = on_ranks
    one, _ = alone("too many")
    last = one["err"].splitlines()[-1]
    assert "3 of 207 are: 020.png" in last
    for rank in said:
        assert rank["too many"]["code"] == one["code"] == 2
        assert rank["too many"]["err"].splitlines()[-1] == last


@pytest.mark.parametrize(("name", "at_fault"), [("one rank's", 1), ("too few", 0)])
def test_where_one_rank_fails_every_rank_ends(on_ranks, alone, name, at_fault):
    _, said = on_ranks
    one, _ = alone(name)
    assert [rank[name]["code"] for rank in said] == [2, 2]
    assert said[at_fault][name]["err"].splitlines()[-1] == one["err"].splitlines()[-1]
    assert "another rank failed" in said[1 - at_fault][name]["err"]
