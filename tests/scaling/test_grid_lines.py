"""What a terminal shows of a grid: a line a tokenizer, not a line a run."""

import pytest

from cartok.scaling.grid_lines import grid_lines
from cartok.scaling.law import Law

SMALL, LARGE = Law(5.0, -0.9, 32.5), Law(1.5, -0.6, 23.0)


@pytest.fixture
def parts(grid_study):
    def at(law):
        return lambda flops, parameters, pictures: law.score_at(flops)

    arms = {"small": (64, 64, 3.5, at(SMALL)), "large": (4096, 64, 1.2, at(LARGE))}
    study = grid_study(arms | {"flat": (16, 36, 9.0, lambda *_: 9.0)})
    study["runs"][-1] |= {"status": "failed", "reason": "not finite at step 3", "scores": {}}
    return grid_lines(study)


def test_every_tokenizer_has_a_line_with_its_floor_its_best_run_and_its_law(parts):
    small, large, flat = (line.split() for line in parts[0].splitlines()[1:])
    assert small[:5] == ["small", "64", "64", "3.500", "10"]
    best = f"{SMALL.score_at(6.0 * 6_000_000 * 256 * 8000 * 64):.3f}"
    assert small[5:7] == [best, "6x256-8000"]
    assert (small[7], small[10]) == ("5.000", "−0.9000")
    assert large[1] == "4,096"
    assert flat[2] == "36"
    assert flat[4:] == ["9", "9", "6x256-500", "-", "-"]


def test_refusals_crossings_and_failures_follow_in_words(parts):
    luck, refused, crossing, failed = parts[1:]
    assert luck.startswith("Tokenizers of one recipe differ by no more in gFD")
    assert refused.startswith("flat: no law of gFD: scores must fall")
    assert crossing.startswith("small is better below ")
    assert failed == "failed: flat@6x256-8000-s1: not finite at step 3"


def test_a_grid_without_a_finished_run_has_lines_of_dashes(grid_study):
    study = grid_study({"small": (64, 64, 3.5, lambda *_: 9.0)})
    for run in study["runs"]:
        run |= {"status": "waiting", "scores": {}}
    table, refused = grid_lines(study)
    assert table.splitlines()[1].split() == ["small", "-", "-", "-", "0", "-", "-", "-", "-"]
    assert "no run of it has finished" in refused
