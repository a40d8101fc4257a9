import math
import warnings

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from cartok.core.errors import UserError
from cartok.metrics.inception_score import inception_score, inception_score_of_logits


def logits_of(count, classes, seed, scale=2.0):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(count, classes, generator=generator) * scale


def as_the_adm_evaluator(probabilities, split):
    """Its definition from small arrays."""
    scores = []
    for start in range(0, len(probabilities), split):
        part = probabilities[start : start + split]
        divergence = part * (np.log(part) - np.log(part.mean(0, keepdims=True)))
        scores.append(np.exp(divergence.sum(1).mean()))
    return np.mean(scores)


@settings(deadline=None, max_examples=40)
@given(st.integers(1, 60), st.integers(1, 9), st.integers(1, 70), st.integers(0, 999))
def test_the_definition_is_that_of_the_adm_evaluator(count, classes, split, seed):
    logits = logits_of(count, classes, seed)
    expected = as_the_adm_evaluator(logits.double().softmax(1).numpy(), split)
    found = inception_score_of_logits(logits, split)
    assert found.value == pytest.approx(expected, rel=1e-12)
    assert found.splits == math.ceil(count / split)


@pytest.mark.parametrize("splits", [1, 4])
def test_the_score_agrees_with_torch_fidelity_unshuffled(splits):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from torch_fidelity.metric_isc import isc_features_to_metric
    logits = logits_of(200, 30, 0)
    theirs = isc_features_to_metric(logits, splits=splits, shuffle=False)
    found = inception_score_of_logits(logits, 200 // splits)
    assert found.value == pytest.approx(theirs["inception_score_mean"], rel=1e-12)
    assert found.spread == pytest.approx(theirs["inception_score_std"], rel=1e-9, abs=1e-12)


@given(st.integers(1, 12), st.integers(1, 5))
def test_sure_predictions_of_all_classes_alike_score_their_number(classes, repeats):
    sure = torch.eye(classes).repeat(repeats, 1)
    assert inception_score(sure).value == pytest.approx(classes)
    assert inception_score(sure, split=classes).spread == pytest.approx(0)


@given(st.integers(1, 12), st.integers(0, 99))
def test_the_same_prediction_everywhere_scores_one(classes, seed):
    same = logits_of(1, classes, seed).expand(20, classes)
    assert inception_score_of_logits(same).value == pytest.approx(1)


@given(st.integers(2, 40), st.integers(2, 9), st.integers(0, 99))
def test_the_score_lies_between_one_and_the_number_of_classes_and_of_pictures(n, classes, seed):
    value = inception_score_of_logits(logits_of(n, classes, seed, scale=9.0)).value
    assert 1 - 1e-9 <= value <= min(n, classes) + 1e-9


def test_half_sure_of_two_classes_each_has_the_closed_form():
    """Two of four classes at even odds: H(mean) = ln 4, mean H = ln 2."""
    rows = torch.tensor([[0.5, 0.5, 0, 0], [0, 0, 0.5, 0.5]])
    assert inception_score(rows).value == pytest.approx(2)


def test_splits_are_taken_in_order_unless_a_seed_shuffles_them():
    by_class = torch.eye(10).repeat_interleave(20, 0)
    assert inception_score(by_class, split=20).value == pytest.approx(1)
    assert inception_score(by_class, split=40).value == pytest.approx(2)
    shuffled = inception_score(by_class, split=40, shuffle_seed=0)
    assert 7 < shuffled.value < 10
    assert shuffled == inception_score(by_class, split=40, shuffle_seed=0)
    assert shuffled != inception_score(by_class, split=40, shuffle_seed=1)
    assert inception_score(by_class, shuffle_seed=3).value == pytest.approx(10)


def test_what_is_left_over_makes_a_split_that_counts_like_the_others():
    sure = torch.eye(4)[[0, 1, 2, 3, 0]]
    found = inception_score(sure, split=4)
    assert found.value == pytest.approx((4 + 1) / 2)
    assert found.spread == pytest.approx(1.5)
    assert found.splits == 2


def test_probabilities_and_their_logits_score_alike():
    logits = logits_of(50, 7, 0)
    assert inception_score(logits.softmax(1)).value == pytest.approx(
        inception_score_of_logits(logits).value, rel=1e-6
    )


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        (torch.eye(3) * 2, "miss 1 by up to 1; use inception_score_of_logits"),
        (torch.tensor([[1.5, -0.5]]), "lie in -0.5 to 1.5"),
        (torch.full((4, 3), torch.nan), "NaN"),
        (torch.eye(3).half(), "float32 or float64"),
        (torch.ones(3), r"these are \(3,\)"),
        (torch.ones(0, 3), r"these are \(0, 3\)"),
    ],
)
def test_what_is_no_distribution_over_classes_is_refused_in_one_line(rows, message):
    with pytest.raises(UserError, match=message) as error:
        inception_score(rows)
    assert "\n" not in str(error.value)


def test_logits_that_are_not_finite_and_empty_splits_are_refused():
    with pytest.raises(UserError, match="NaN or infinity"):
        inception_score_of_logits(torch.full((4, 3), -torch.inf))
    with pytest.raises(UserError, match="one picture or more, but got 0"):
        inception_score(torch.eye(3), split=0)
