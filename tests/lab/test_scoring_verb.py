"""Pairs, refusals, and the command line of ``cartok score``."""

import importlib.util
import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from cartok.__main__ import main
from cartok.core.errors import UserError
from cartok.lab import scoring
from cartok.metrics import protocol
from cartok.metrics.numbers import METRICS
from cartok.metrics.presets import PRESETS

_TOYS = Path(__file__).with_name("scoring_toys.py")
_SPEC = importlib.util.spec_from_file_location(_TOYS.stem, _TOYS)
toys = importlib.util.module_from_spec(_SPEC)
_SPEC.loader.exec_module(toys)

ADM = toys.ADM
png = toys.png
in_zip = toys.in_zip
in_classes = toys.in_classes
inception = toys.inception
kept = toys.kept
lpips = toys.lpips
npz = toys.npz
pictures = toys.pictures
rows = toys.rows
scored = toys.scored
sources = toys.sources
stored = toys.stored
values = toys.values


# ------------------------------------------------------------------ pairs


def test_pairs_are_compared_in_order_and_small_pictures_go_without_what_they_are_too_small_for(
    inception, lpips, tmp_path
):
    rows = pictures(30, 0, 64)
    sources = npz(tmp_path / "g.npz", rows), in_zip(tmp_path / "r.zip", rows)
    found = scored(sources, preset="own-data", paired=True)
    assert found.scores["ssim"].value == pytest.approx(1)
    assert found.scores["lpips"].value == 0
    assert "ms_ssim" not in found.scores
    assert any(note.startswith("ms_ssim is left out: it needs 161") for note in found.notes)
    turned = npz(tmp_path / "g.npz", rows[::-1].copy()), sources[1]
    other = scored(turned, preset="own-data", paired=True).scores
    assert other["ssim"].value < 0.9
    assert other["rfid"].value == pytest.approx(found.scores["rfid"].value, abs=1e-6)


@pytest.mark.parametrize(
    ("option", "words"),
    [("--lpips-vgg", "vgg16-397923af.pth must have"), ("--lpips-heads", "vgg.pth must have")],
)
def test_files_for_lpips_are_held_to_their_hashes(
    inception, sources, tmp_path, capsys, option, words
):
    (tmp_path / "mine.pth").write_bytes(b"another")
    arguments = ["--preset", "own-data", "--paired", option, str(tmp_path / "mine.pth")]
    assert main(["score", sources[0], sources[0], *arguments]) == 2
    error = capsys.readouterr().err
    assert words in error
    assert str(tmp_path / "mine.pth") in error


def test_pairs_of_other_numbers_are_refused(inception, lpips, sources):
    with pytest.raises(UserError, match="there are 36 pictures and 30 references"):
        scored(sources, preset="own-data", paired=True)


def test_pairs_with_a_gap_are_refused(inception, lpips, tmp_path):
    for side in ("a", "b"):
        in_classes(tmp_path / side, pictures(210, 0, 8))
    (tmp_path / "b/0/0003.png").write_bytes(b"broken")
    with pytest.raises(UserError, match=r"pairs need every picture, but 0/0003.png"):
        scored((str(tmp_path / "a"), str(tmp_path / "b")), preset="own-data", paired=True)


# ------------------------------------------------------------------ refusals


def test_pictures_of_another_size_than_the_presets_are_refused(inception, sources, tmp_path):
    path = npz(tmp_path / "small.npz", pictures(4, 0, 64))
    with pytest.raises(UserError, match="at 256 x 256 pixels, but one is 64 x 64"):
        scored((path, sources[1]), preset=ADM)


def test_a_preset_of_stored_statistics_refuses_a_reference_without(inception, tmp_path):
    path = npz(tmp_path / "g.npz", pictures(8, 0))
    with pytest.raises(UserError, match="takes mu and sigma from the reference's npz"):
        scored((path, path), preset=ADM)


def unread(monkeypatch):
    monkeypatch.setattr(scoring, "_side", lambda *_: pytest.fail("pictures were read"))


def test_a_reference_that_a_preset_cannot_use_is_refused_before_any_picture_is_read(
    monkeypatch, sources, stored, tmp_path
):
    unread(monkeypatch)
    with pytest.raises(UserError, match="takes mu and sigma from the reference's npz"):
        scored((sources[0], sources[0]), preset=ADM)
    np.savez(tmp_path / "pool.npz", mu=stored["pool"].mean, sigma=stored["pool"].cov)
    alone = sources[0], str(tmp_path / "pool.npz")
    with pytest.raises(UserError, match="statistics of spatial features from the reference's npz"):
        scored(alone, preset=ADM)
    for preset in ("effnet", "own-data", "clean", "in1k-val-centercrop", "dinov2"):
        with pytest.raises(UserError, match=f"{preset} compares with the reference's pictures"):
            scored(alone, preset=preset)


def test_a_size_is_refused_where_pictures_are_taken_as_they_are(inception, sources):
    with pytest.raises(UserError, match="--size is for presets that cut squares"):
        scored(sources, preset=ADM, size=128)


def test_an_unknown_preset_names_the_nearest(sources):
    with pytest.raises(UserError, match="no preset 'own'; did you mean 'own-data'"):
        scored(sources, preset="own")


def test_other_modes_are_counted_in_a_line_and_in_the_receipt(inception, sources, tmp_path):
    for index, rows in enumerate(pictures(24, 0, 64)):
        mode = ["RGB", "L", "RGBA"][index % 3]
        (tmp_path / "g").mkdir(exist_ok=True)
        Image.fromarray(rows).convert(mode).save(tmp_path / f"g/{index:02d}.png")
    found = scored((str(tmp_path / "g"), sources[1]), preset="own-data")
    counts = {"L": 8, "RGBA": 8}
    assert found.scores["kid"].receipt["converted"] == {"generated": counts, "reference": {}}
    assert any("converted to RGB, alpha on white: 8 of mode L, 8 of mode RGBA" in note
               for note in found.notes)  # fmt: skip


# ------------------------------------------------------------------ the verb


def test_the_offline_preset_scores_without_a_download_and_compares_by_files(tmp_path, capsys):
    rows = pictures(520, 0, 32), pictures(520, 1, 32), pictures(520, 2, 32)
    paths = [npz(tmp_path / f"{index}.npz", side) for index, side in enumerate(rows)]
    size = ["--network-size", "32"]
    assert main(["score", paths[0], paths[2], *size, "--json", str(tmp_path / "a.json")]) == 0
    assert main(["score", paths[1], paths[2], *size, "--json", str(tmp_path / "b.json")]) == 0
    printed = capsys.readouterr().out
    for name in ("fd_effnet64", "fd_effnet64_infinity", "kd_effnet", "precision_effnet",
                 "recall_effnet", "density_effnet", "coverage_effnet"):  # fmt: skip
        assert printed.count(f"{name} ") == 2
    compare = ["score", "--compare", str(tmp_path / "a.json"), str(tmp_path / "b.json")]
    assert main(compare) == 0
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 7
    assert lines[0].startswith("fd_effnet64 ")
    less = json.loads((tmp_path / "b.json").read_text())
    del less["kd_effnet"]
    (tmp_path / "c.json").write_text(json.dumps(less))
    assert main(["score", "--compare", str(tmp_path / "a.json"), str(tmp_path / "c.json")]) == 0
    assert capsys.readouterr().out.endswith(f"in {tmp_path / 'a.json'} alone: kd_effnet\n")
    other = (tmp_path / "b.json").read_text().replace('"what": "gfd"', '"what": "rfd"')
    (tmp_path / "b.json").write_text(other)
    assert main(compare) == 2
    error = capsys.readouterr().err
    assert "fd_effnet64 differs in what (gfd against rfd)" in error
    assert error.count("\n") == 1


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ([], "cartok score GENERATED REFERENCE"),
        (["a"], "cartok score GENERATED REFERENCE"),
        (["--compare", "a.json"], "--compare takes two files"),
        (["a", "b", "--compare", "a.json", "b.json"], "two files of scores and nothing else"),
        (["--compare", "none.json", "b.json"], "there is no such file"),
    ],
)
def test_a_mistyped_score_is_refused(arguments, words, capsys, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    assert main(["score", *arguments]) == 2
    assert words in capsys.readouterr().err


def test_without_the_weights_a_preset_says_so_before_any_picture_is_read(
    monkeypatch, sources, capsys
):
    def missing(path=None):
        raise UserError("inception needs a file; fetch it by hand")

    monkeypatch.setattr(scoring.frozen, "inception", missing)
    unread(monkeypatch)
    assert main(["score", *sources, "--preset", ADM]) == 2
    assert capsys.readouterr().err == "cartok: inception needs a file; fetch it by hand\n"


def test_presets_are_listed_with_the_recipes(capsys):
    assert main(["recipes"]) == 0
    printed = capsys.readouterr().out
    for preset in PRESETS.values():
        assert f"  {preset.name:<19} {preset.summary}" in printed
        assert set(preset.metrics) | set(preset.indicative_metrics) <= set(METRICS)
        assert set(preset.pair_metrics) - {"lpips"} <= set(scoring.PAIR_METRICS)
    assert protocol.FIRM_FROM == 10_000
