"""What is on a Pareto frontier, and in which order."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from cartok.core.errors import UserError
from cartok.scaling.frontier import frontier_of

# Few values, so that ties are common.
RUNS = st.lists(st.tuples(st.integers(1, 6), st.integers(1, 6)), min_size=1, max_size=25)


def split(runs):
    return [c for c, _ in runs], [s for _, s in runs]


def is_beaten(run, by):
    return by[0] <= run[0] and by[1] <= run[1] and by != run


@given(RUNS)
def test_a_run_is_on_it_unless_another_is_better_or_ties_and_came_first(runs):
    wanted = {
        place
        for place, run in enumerate(runs)
        if not any(is_beaten(run, by) for by in runs) and run not in runs[:place]
    }
    assert set(frontier_of(*split(runs))) == wanted


@given(RUNS)
def test_along_it_compute_rises_and_scores_fall(runs):
    compute, scores = (np.array(values)[frontier_of(*split(runs))] for values in split(runs))
    assert (np.diff(compute) > 0).all()
    assert (np.diff(scores) < 0).all()


@given(RUNS, st.randoms(use_true_random=False))
def test_the_order_of_runs_does_not_matter(runs, random):
    shuffled = random.sample(runs, len(runs))
    assert [runs[place] for place in frontier_of(*split(runs))] == [
        shuffled[place] for place in frontier_of(*split(shuffled))
    ]


@given(RUNS)
def test_the_frontier_of_a_frontier_is_all_of_it(runs):
    compute, scores = (np.array(values)[frontier_of(*split(runs))] for values in split(runs))
    assert frontier_of(compute, scores) == list(range(len(compute)))


@pytest.mark.parametrize("score", [0.0, -1.0, float("nan"), float("inf")])
def test_a_score_that_is_no_positive_number_is_refused(score):
    with pytest.raises(UserError, match="above 0"):
        frontier_of([1.0, 2.0], [3.0, score])


def test_a_run_without_a_score_is_refused():
    with pytest.raises(UserError, match="1 for 2 points"):
        frontier_of([1.0, 2.0], [3.0])
