"""Intervals cover what they say, as far as a few studies tell; the evidence holds the rest."""

import json
import sys
from pathlib import Path

import pytest

from cartok.scaling.coverage import WORLDS, coverage_of, main

EVIDENCE = Path(__file__).parents[2] / "docs" / "evidence" / "coverage" / "coverage.json"
OF_THE_FORM = [name for name in WORLDS if "picked" not in name and "another" not in name]


def widths_of(name):
    rows = json.loads(EVIDENCE.read_text(encoding="utf-8"))[name]["of"]
    return {quantity: found["median_width"] for quantity, found in rows.items()}


@pytest.mark.parametrize("name", [OF_THE_FORM[0], OF_THE_FORM[5]])
def test_intervals_cover_in_a_few_studies_and_are_as_wide_as_recorded(name):
    """Fewer than 14 of 20 are one in 420 at 90 %."""
    for quantity, found in coverage_of(WORLDS[name], 20, seed=1)["of"].items():
        assert found["covered"] >= 0.7, quantity
        assert found["median_width"] == pytest.approx(widths_of(name)[quantity], rel=0.3)


@pytest.mark.parametrize("name", OF_THE_FORM)
def test_over_400_studies_intervals_covered_86_to_94_percent(name):
    recorded = json.loads(EVIDENCE.read_text(encoding="utf-8"))[name]
    assert recorded["studies"] == 400
    for quantity, found in recorded["of"].items():
        assert 0.86 <= found["covered"] <= 0.94, quantity


def test_a_law_of_picked_runs_is_told_far_less_closely_than_one_of_all_runs():
    all_runs, picked = (widths_of(f"grid, {runs} runs: a = b, 2 %") for runs in ("all", "picked"))
    assert all(picked[quantity] > 3 * all_runs[quantity] for quantity in all_runs)


def test_runs_of_another_form_were_warned_of():
    recorded = json.loads(EVIDENCE.read_text(encoding="utf-8"))
    warned = {name: found["warned"] / found["studies"] for name, found in recorded.items()}
    assert warned.pop("grid of another form, all runs: 2 %") > 0.95
    assert max(warned.values()) < 0.1


def test_the_evidence_is_what_the_program_writes(tmp_path, monkeypatch):
    out = tmp_path / "coverage.json"
    monkeypatch.setattr(sys, "argv", ["coverage", "--studies", "1", "--out", str(out)])
    main()
    made, recorded = (json.loads(p.read_text(encoding="utf-8")) for p in (out, EVIDENCE))
    assert made.keys() == recorded.keys()
    for name, found in made.items():
        assert found["of"].keys() == recorded[name]["of"].keys()
        for quantity, row in found["of"].items():
            assert row["truth"] == recorded[name]["of"][quantity]["truth"]
