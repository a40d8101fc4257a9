"""Scores from any container, and features that are kept."""

import importlib.util
from pathlib import Path

import pytest

from cartok.__main__ import main
from cartok.data.arrays import read_statistics
from cartok.lab.scoring import ScoreConfig, run_score

_TOYS = Path(__file__).with_name("scoring_toys.py")
_SPEC = importlib.util.spec_from_file_location(_TOYS.stem, _TOYS)
toys = importlib.util.module_from_spec(_SPEC)
_SPEC.loader.exec_module(toys)

ADM = toys.ADM
in_zip = toys.in_zip
in_tar = toys.in_tar
in_classes = toys.in_classes
inception = toys.inception
install = toys.install
kept = toys.kept
npz = toys.npz
pictures = toys.pictures
QUIET = toys.QUIET
rows = toys.rows
scored = toys.scored
sources = toys.sources
stored = toys.stored


# ------------------------------------------------------------------ containers


def test_the_same_pictures_in_any_container_give_the_same_scores(inception, tmp_path):
    ours, theirs = pictures(40, 0, 64), pictures(40, 1, 64)
    reference = npz(tmp_path / "r.npz", theirs)
    wanted = scored((npz(tmp_path / "g.npz", ours), reference), preset="own-data").scores
    for held in (
        in_zip(tmp_path / "g.zip", ours),
        in_tar(tmp_path / "g.tar", ours),
        in_classes(tmp_path / "g", ours),
    ):
        assert scored((held, reference), preset="own-data").scores == wanted


def test_what_is_written_as_npz_scores_as_what_it_was_written_from(inception, sources, tmp_path):
    run_score(*sources, ScoreConfig(preset=ADM), "cpu", QUIET, npz=tmp_path / "again.npz")
    assert set(read_statistics(tmp_path / "again.npz")) == {"pool", "spatial"}
    again = (sources[1], str(tmp_path / "again.npz"))
    stored, computed = (
        scored(again, preset=preset).scores["fid"].value for preset in (ADM, "own-data")
    )
    assert stored == pytest.approx(computed, rel=1e-6)


# ------------------------------------------------------------------ kept features


def test_a_second_scoring_asks_the_network_nothing_and_gives_the_same_scores(
    inception, sources, caplog
):
    first = scored(sources, cache=True, preset=ADM)
    assert sum(map(len, inception.seen)) == 36 + 30
    inception.seen.clear()
    assert not caplog.messages
    again = scored(sources, cache=True, preset=ADM)
    assert not inception.seen
    assert again == first == scored(sources, preset=ADM)
    assert [message.split(":")[0] for message in caplog.messages] == [
        "inception saw these 36 pictures before", "inception saw these 30 pictures before"
    ]  # fmt: skip


def test_pictures_that_are_resized_before_the_network_share_nothing_with_others(
    inception, sources, kept
):
    plain, clean = (scored(sources, cache=True, preset=name) for name in ("own-data", "clean"))
    assert sum(map(len, inception.seen)) == 2 * (36 + 30)
    assert len([*kept.iterdir()]) == 4
    assert plain.scores["kid"].value != clean.scores["kid"].value
    assert plain.scores["kid"].receipt["generated"] == clean.scores["kid"].receipt["generated"]
    inception.seen.clear()
    assert scored(sources, cache=True, preset="clean") == clean
    assert not inception.seen


def test_presets_that_show_the_network_the_same_pictures_share_them(inception, sources):
    scored(sources, cache=True, preset=ADM)
    inception.seen.clear()
    assert scored(sources, cache=True, preset="own-data") == scored(sources, preset="own-data")
    assert sum(map(len, inception.seen)) == 36 + 30  # of the second alone


@pytest.mark.parametrize("arguments", [[], ["--no-cache"]])
def test_features_are_kept_unless_the_verb_is_told_not_to(
    monkeypatch, sources, kept, capsys, arguments
):
    install(monkeypatch)
    assert main(["score", *sources, "--preset", ADM, *arguments]) == 0
    assert capsys.readouterr().out.startswith("warning: 30 pictures on one side")
    assert (len([*kept.iterdir()]) if kept.exists() else 0) == (0 if arguments else 2)


def test_a_damaged_file_is_told_and_its_pictures_seen_anew(inception, sources, kept, caplog):
    first = scored(sources, cache=True, preset=ADM)
    for path in kept.iterdir():
        content = bytearray(path.read_bytes())
        content[-9] ^= 1
        path.write_bytes(content)
    inception.seen.clear()
    assert scored(sources, cache=True, preset=ADM) == first
    assert sum(map(len, inception.seen)) == 36 + 30
    assert sum("(damaged); it will be written anew" in line for line in caplog.messages) == 2
