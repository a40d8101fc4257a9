"""A table of gFD by prior tells which means lack seeds."""

import statistics

import pytest

from cartok.scaling.grid import grid_of
from cartok.scaling.law import Law
from cartok.scaling.lengths import lengths_of
from cartok.scaling.numbers import shown

LAW = Law(5.0, -0.9, 32.5)


@pytest.fixture
def study(grid_study):
    def gfd(flops, parameters, pictures):
        return LAW.score_at(flops)

    arms = {"small": (64, 64, 3.5, gfd), "large": (4096, 64, 1.2, gfd)}
    return grid_study(arms, lengths=(500, 8000), seeds=3, noise=0.1)


def table_of(study):
    return lengths_of(grid_of(study), {"small": 0, "large": 1}, 3)


def drop(study, arm, seeds):
    for run in study["runs"]:
        if run["arm"].startswith(arm) and run["seed"] in seeds:
            run |= {"status": "waiting", "scores": {}}


def test_a_table_holds_arms_by_lengths_with_the_floor_of_each(study):
    found = table_of(study)
    assert found.priors == ["6x256-500", "6x256-8000"]
    small = found.rows[0]
    assert (small.codes, small.tokens, small.rfd) == (64, 64, "3.500")
    values = [run["scores"]["gfd"]["value"] for run in study["runs"]
              if run["arm"] == "small@6x256-8000"]  # fmt: skip
    assert len(values) == 3
    assert small.cells[1] == shown(statistics.fmean(values))
    assert (found.trainings, found.fewer) == ("6", "")


def test_a_mean_of_fewer_seeds_than_the_study_has_is_marked_and_the_mark_explained(study):
    drop(study, "large@6x256-500", (1, 2))
    found = table_of(study)
    small, large = found.rows
    assert [cell.endswith(" *") for cell in (*small.cells, *large.cells)] == [0, 0, 1, 0]
    first = next(run for run in study["runs"] if run["arm"] == "large@6x256-500")
    assert large.cells[0] == shown(first["scores"]["gfd"]["value"]) + " *"
    assert large.rfd == "1.200"
    assert (found.trainings, found.fewer) == ("4 to 6", "* of 1 of 3 seeds")


def test_a_seed_of_which_nothing_has_finished_is_missing_from_the_floor_too(study):
    drop(study, "small", (2,))
    drop(study, "large@6x256-500", (0, 1, 2))
    drop(study, "large@6x256-8000", (0, 2))
    small, large = table_of(study).rows
    assert small.rfd == "3.500 *"
    assert large.cells[0] == "–"
    assert table_of(study).fewer == "* of 1 to 2 of 3 seeds"
