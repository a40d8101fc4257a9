"""A study's page shows what its costliest priors draw, where the pictures lie beside it."""

import base64
import json

import pytest

from cartok.scaling.report import write_report
from cartok.scaling.sheets import study_sheets


@pytest.fixture
def pictures(tmp_path):
    folder = tmp_path / "pictures"
    folder.mkdir()
    for name in ("one@6x256-8000-s0-6x256-samples", "one@6x256-500-s0-6x256-samples",
                 "one@6x256-8000-s1-6x256-samples", "one-48px@6x256-8000-s0-6x256-samples",
                 "one-s0-reconstructions"):  # fmt: skip
        (folder / f"{name}.png").write_bytes(name.encode())
    return folder


def test_each_arm_shows_the_samples_of_its_first_seed_and_of_the_prior_that_is_asked(pictures):
    arms = [{"name": name} for name in ("one", "one-48px", "gone")]
    shown = study_sheets({"config": {"arms": arms}}, pictures, "6x256-8000")
    drawn = {it["caption"]: base64.b64decode(it["source"].partition(",")[2]) for it in shown}
    assert drawn == {
        "one": b"one@6x256-8000-s0-6x256-samples",
        "one-48px": b"one-48px@6x256-8000-s0-6x256-samples",
    }
    (pictures / "one-s0-2x64-samples.png").write_bytes(b"together")
    (only,) = study_sheets({"config": {"arms": arms}}, pictures)
    assert only["source"].endswith(base64.b64encode(b"together").decode())


def test_a_claims_first_seed_is_not_0(pictures):
    (pictures / "one-s5-2x64-samples.png").write_bytes(b"five")
    study = {"config": {"arms": [{"name": "one"}], "first_seed": 5}}
    assert len(study_sheets(study, pictures)) == 1


def test_the_page_holds_them_and_does_without_where_there_are_none(grid_study, tmp_path, pictures):
    study = grid_study({"one": (64, 64, 1.5, lambda flops, n, d: 5 + (flops / 1e12) ** -0.3)})
    (tmp_path / "study.json").write_text(json.dumps(study))
    page = write_report(tmp_path).read_text()
    assert "Samples of the costliest prior, 6x256-8000" in page
    assert '<div class="sheet"><img src="data:image/png;base64,' in page  # else larger ones overlap
    for path in pictures.iterdir():
        path.unlink()
    assert "Samples of the costliest" not in write_report(tmp_path).read_text()
