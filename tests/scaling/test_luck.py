"""A tokenizer's luck is told from the noise of its runs, and moves all of a law."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from cartok.scaling.joint import JointLaw
from cartok.scaling.law import Law
from cartok.scaling.luck import moved, seeds_apart, spread_of, words_of


def drawn(generator, luck, noise, seeds=2, runs=12):
    lucks = luck * generator.standard_normal(seeds)
    groups = [own + noise * generator.standard_normal(runs) for own in lucks]
    middle = np.concatenate(groups).mean()  # a fit takes the mean away
    return [(group - middle).tolist() for group in groups]


@pytest.mark.parametrize(("luck", "noise", "seeds"), [(0.06, 0.03, 2), (0.06, 0.1, 3), (0.2, 0, 5)])
def test_what_tokenizers_differ_by_is_found_whatever_runs_scatter(luck, noise, seeds):
    generator = np.random.default_rng(0)
    recipes = [drawn(generator, luck, noise, seeds) for _ in range(400)]
    assert spread_of(recipes) == pytest.approx(luck, rel=0.1)


def test_noise_alone_is_no_luck():
    generator = np.random.default_rng(1)
    recipes = [drawn(generator, 0.0, 0.1) for _ in range(400)]
    assert spread_of(recipes) < 0.01


def test_unequal_numbers_of_runs_have_a_closed_form():
    # sizes 4 and 2, means 1 and -2 around 0, no noise: 12 / (6 - 20 / 6)
    assert spread_of([[[1.0] * 4, [-2.0] * 2]]) == pytest.approx(math.sqrt(12 / (6 - 20 / 6)))


def test_one_seed_or_one_run_of_each_tells_nothing():
    assert spread_of([]) is None
    assert spread_of([[[0.1, 0.2]], [[0.1], [0.3]]]) is None
    assert "in no interval" in words_of(None, "gFD")
    assert "6.4%" in words_of(0.064, "gFD")
    assert "no more" in words_of(0.0, "gFD")


@given(st.floats(-1, 1), st.floats(0.1, 20), st.floats(-2, -0.1), st.floats(1, 9))
def test_a_law_that_moves_has_all_its_scores_as_much_higher(luck, l_min, slope, scale):
    before = Law(l_min, slope, scale)
    (row,) = moved(np.array([[l_min, slope, scale]]), np.array([luck]))
    for compute in (1.0, 1e3):
        wanted = before.score_at(compute) * math.exp(luck)
        assert Law(*row.tolist()).score_at(compute) == pytest.approx(wanted)
    joint = JointLaw(l_min, scale, scale / 2, -slope, -slope / 2)
    (row,) = moved(np.array([[l_min, scale, scale / 2, -slope, -slope / 2]]), np.array([luck]))
    wanted = joint.score_at(50.0, 7.0) * math.exp(luck)
    assert JointLaw(*row.tolist()).score_at(50.0, 7.0) == pytest.approx(wanted)


def test_words_come_only_where_groups_are_further_apart_than_their_noise():
    generator = np.random.default_rng(2)
    near, far = drawn(generator, 0.0, 0.1), drawn(generator, 0.0, 0.1)
    far[1] = [value + 0.3 for value in far[1]]
    assert seeds_apart(near) == ()
    (text,) = seeds_apart(far)
    assert 25 < float(text.partition("lie ")[2].partition("%")[0]) < 45
    assert seeds_apart([[0.0, 0.0], [0.0, 0.0]]) == seeds_apart([[0.1, 0.2]]) == ()
