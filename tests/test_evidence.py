"""What is committed as evidence: studies go on from it, pages are drawn from it."""

import json
import shlex
from pathlib import Path

import pytest

from cartok.lab.records import records_of, runs_of
from cartok.recipes import recipe_of
from cartok.recipes.arms import adapted
from cartok.recipes.study import STUDIES
from cartok.scaling.report import write_report
from cartok.scaling.study_file import packed, read_study, unpacked

EVIDENCE = Path(__file__).parent.parent / "docs" / "evidence"
FOLDERS = [path.parent for path in sorted(EVIDENCE.glob("*/study.json"))]
OPEN = [folder for folder in FOLDERS if folder.name in STUDIES]


def study_in(folder):
    return read_study(folder / "study.json")


def test_there_is_evidence():
    assert len(OPEN) >= 2


@pytest.mark.parametrize("folder", OPEN, ids=lambda path: path.name)
def test_a_study_goes_on_from_what_is_recorded(folder):
    """A default that changes what a recipe means would have every run made again."""
    recorded = study_in(folder)
    data = "tiny" if folder.name.startswith("tiny") else "cifar10"
    study = adapted(recipe_of(STUDIES, folder.name), data=f"anywhere/{data}")
    found = records_of(runs_of(study), folder)
    assert recorded["name"] == study.name
    for mine, stored in zip(found, recorded["runs"], strict=True):
        assert (mine["arm"], mine["seed"], mine["status"]) == (
            stored["arm"], stored["seed"], stored["status"],
        )  # fmt: skip
        assert mine.get("scores") == stored.get("scores")


@pytest.mark.parametrize("folder", FOLDERS, ids=lambda path: path.name)
def test_what_several_runs_have_alike_is_stored_once(folder):
    stored = json.loads((folder / "study.json").read_text(encoding="utf-8"))
    assert list(packed(unpacked(stored)).items()) == list(stored.items())


@pytest.mark.parametrize("folder", FOLDERS, ids=lambda path: path.name)
def test_its_page_can_be_drawn(folder, tmp_path):
    (tmp_path / "study.json").write_bytes((folder / "study.json").read_bytes())
    page = write_report(tmp_path).read_text(encoding="utf-8")
    names = [arm["name"] for arm in study_in(folder)["arms"] if arm["finished"]]
    assert all(f">{name.partition('@')[0]}<" in page for name in names)


def test_what_is_left_to_do_names_studies_arms_and_folders_that_exist():
    for entry in json.loads((EVIDENCE / "todo.json").read_text(encoding="utf-8")):
        program, verb, action, name, *rest = shlex.split(entry["command"])
        assert (program, verb, action) == ("cartok", "study", "run")
        assert rest[-2:] == ["--out", f"docs/evidence/{name}"]
        given = rest[rest.index("--arms") + 1 : rest.index("--data")] if "--arms" in rest else []
        assert runs_of(recipe_of(STUDIES, name), tuple(given))
