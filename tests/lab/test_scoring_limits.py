"""What the offline preset takes and refuses, and what it leaves out, by the command line."""

import json

import numpy as np
import pytest
import torch

from cartok.__main__ import main
from cartok.data import sources as sources_module
from cartok.data.arrays import read_statistics
from cartok.metrics.frechet import MIN_PICTURES
from cartok.metrics.numbers import LEAST_PROJECTED, METRICS
from cartok.metrics.presets import preset_of

OFFLINE = ["--network-size", "32"]


def side(path, count, seed):
    rng = np.random.default_rng(seed)
    coarse = rng.integers(0, 256, (count, 4, 4, 3), dtype=np.uint8)
    np.savez(path, arr_0=coarse.repeat(8, 1).repeat(8, 2))
    return str(path)


def test_few_pictures_are_refused_before_any_is_read(tmp_path, capsys, monkeypatch):
    few, many = side(tmp_path / "few.npz", 30, 0), side(tmp_path / "many.npz", 40, 1)
    monkeypatch.setattr(sources_module.ArraySource, "cuts", lambda *_: pytest.fail("it was read"))
    assert main(["score", few, many]) == 2
    said = capsys.readouterr().err
    assert f"effnet needs {MIN_PICTURES} pictures or more on each side, but one has 30" in said
    assert "give --indicative" in said
    assert main(["score", few, many, "--preset", "own-data", "--indicative"]) == 2
    said = capsys.readouterr().err
    assert f"own-data with --indicative needs {LEAST_PROJECTED} pictures" in said
    assert "give --indicative" not in said


def test_few_pictures_have_the_scores_that_few_can_have(tmp_path, capsys):
    paths = [side(tmp_path / f"{seed}.npz", 30, seed) for seed in (0, 1)]
    file = tmp_path / "a.json"
    assert main(["score", *paths, *OFFLINE, "--indicative", "--json", str(file)]) == 0
    scores = json.loads(file.read_text())
    assert scores.keys() == {"kd_effnet", *(f"{n}_effnet" for n in (
        "precision", "recall", "density", "coverage"))}  # fmt: skip
    assert all(score["receipt"]["indicative"] for score in scores.values())


def test_a_projection_is_measured_from_as_few_as_are_promised(tmp_path):
    rng, measured = np.random.default_rng(0), METRICS["fd64"].measure
    rows = [torch.from_numpy(rng.normal(size=(LEAST_PROJECTED, 128))) for _ in range(2)]
    first, limit = measured(*rows, preset_of("own-data"), 0)
    assert first.name == "fd{}64"
    assert np.isfinite([first.value, limit.value]).all()


def test_another_networks_statistics_are_no_mu_and_sigma_of_adms_evaluator(tmp_path):
    paths = [side(tmp_path / f"{seed}.npz", 30, seed) for seed in (0, 1)]
    file = tmp_path / "written.npz"
    assert main(["score", *paths, *OFFLINE, "--indicative", "--npz", str(file)]) == 0
    assert read_statistics(file) == {}
    assert np.load(file)["arr_0"].shape == (30, 32, 32, 3)


def test_reconstructions_are_not_taken_for_copies(tmp_path):
    paths = [side(tmp_path / f"{name}.npz", 30, 0) for name in ("again", "inputs")]
    page = tmp_path / "page"
    given = [*OFFLINE, "--indicative", "--paired", "--page", str(page)]
    assert main(["score", *paths, *given]) == 0
    assert "closer_than_reference" not in json.loads((page / "scores.json").read_text())
    assert sorted(sheet.name for sheet in (page / "pictures").iterdir()) == ["worst.png"]


@pytest.mark.parametrize("option", ["--weights", "--lpips-vgg"])
def test_a_file_of_weights_that_nobody_would_read_is_refused(option, tmp_path, capsys):
    paths = [side(tmp_path / f"{seed}.npz", 30, seed) for seed in (0, 1)]
    assert main(["score", *paths, "--indicative", option, "file.pth"]) == 2
    assert "leave" in capsys.readouterr().err
