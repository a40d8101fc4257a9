from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cartok.tokenizer.doctor import (
    HIDDEN_R2,
    Measures,
    collapse_of,
    error_below_quantisation,
    gaming_of,
    hidden_prediction,
    latent_collapse,
    latent_shrinkage,
    measures_of,
    regulariser_share,
)
from cartok.tokenizer.findings import LEAST_POINTS, early, late, span_of

TWIN = Measures(latent_variance=0.12, r2_latents=0.29, r2_codes=0.26)
# Codes follow latents: what the paper promises, in the numbers of a trial with noisy input.
HEALTHY = replace(TWIN, r2_latents=0.64, r2_codes=0.47)


def faults(found: list[str]) -> list[str]:
    return [line.split(":")[0] for line in found]


def collapse(**change):
    healthy = {"usage": 1.0, "perplexity": 200.0, "variance": 0.12}
    return collapse_of(**(healthy | change))


def test_healthy_numbers_raise_no_warning():
    assert collapse() == []
    for measures in (HEALTHY, TWIN):
        assert gaming_of(measures, TWIN) == []


def test_what_was_not_measured_raises_no_warning():
    assert collapse_of(None, None, None) == []


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        ({"usage": 0.0999}, ["codebook collapse"]),
        ({"usage": 0.1}, []),
        ({"usage": 0.0}, ["codebook collapse"]),
        ({"perplexity": 3.99}, ["codebook collapse"]),
        ({"perplexity": 4.0}, []),
        # few codes and those unequal: one fault, said once
        ({"usage": 0.05, "perplexity": 2.0}, ["codebook collapse"]),
        ({"variance": 0.99e-4}, ["latent collapse"]),
        ({"variance": 1e-4}, []),
        ({"usage": 0.01, "variance": 0.0}, ["codebook collapse", "latent collapse"]),
    ],
)
def test_each_collapse_is_named_at_its_limit(change, expected):
    assert faults(collapse(**change)) == expected


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        ({"latent_variance": 0.0599}, ["latent shrinkage"]),
        ({"latent_variance": 0.06}, []),  # half of the twin's
        ({"latent_variance": 1.0}, []),
        # z at lambda 4 in a trial: .86 from latents, .44 from codes; a third of the gain comes over
        ({"r2_latents": 0.86, "r2_codes": 0.44}, []),
        ({"r2_latents": 0.95, "r2_codes": 0.26}, ["hidden prediction"]),
        ({"r2_latents": 0.95, "r2_codes": 0.10}, ["hidden prediction"]),  # codes even got worse
        ({"r2_latents": 0.69, "r2_codes": 0.361}, []),  # a quarter of the gain
        ({"r2_latents": 0.69, "r2_codes": 0.359}, ["hidden prediction"]),
        ({"r2_latents": 0.29 + HIDDEN_R2 - 0.001, "r2_codes": 0.26}, []),
        ({"r2_latents": 0.29 + HIDDEN_R2 + 0.001, "r2_codes": 0.26}, ["hidden prediction"]),
        ({"r2_latents": 0.1, "r2_codes": 0.0}, []),  # it lost: nothing was gamed
        (
            {"latent_variance": 0.01, "r2_latents": 0.95, "r2_codes": 0.26},
            ["latent shrinkage", "hidden prediction"],
        ),
    ],
)
def test_each_way_of_gaming_is_named_at_its_limit(change, expected):
    assert faults(gaming_of(replace(HEALTHY, **change), TWIN)) == expected


@given(st.floats(0.01, 1), st.floats(0, 1), st.floats(0, 1))
def test_a_tokenizer_never_games_its_own_numbers(variance, r2_latents, r2_codes):
    measures = replace(HEALTHY, latent_variance=variance, r2_latents=r2_latents, r2_codes=r2_codes)
    assert gaming_of(measures, measures) == []


def test_every_warning_is_one_line_with_the_numbers_and_what_to_do():
    sick = replace(HEALTHY, latent_variance=1e-5, r2_latents=0.95, r2_codes=0.26)
    lines = [*collapse(usage=0.05, variance=1e-5), *collapse(perplexity=2.5)]
    lines += gaming_of(sick, TWIN)
    assert len(lines) == 5
    for line in lines:
        assert "\n" not in line
        assert ";" in line
        assert any(name in line for name in ("causal.", "model.quantizer."))
    text = " ".join(lines)
    for number in ("5.0%", "1.0e-05", "2.5 equal", "against 0.12", "rose by 0.66", "by 0.00"):
        assert number in text, number


def curve(*levels, each=20):
    """Steps of 10; every level for a while."""
    values = [level for level in levels for _ in range(each)]
    return [(10 * (index + 1), value) for index, value in enumerate(values)]


def named(found):
    return [(finding.fault, finding.severity) for finding in found]


@given(st.lists(st.floats(-1e6, 1e6), min_size=LEAST_POINTS, max_size=500), st.floats(-1e30, 1e30))
def test_one_odd_batch_decides_neither_the_beginning_nor_the_end(values, odd):
    for at in (0, len(values) - 1):
        spoilt = values[:]
        spoilt[at] = odd
        points = list(enumerate(spoilt))
        others = [value for index, value in enumerate(values) if index != at]
        assert min(others) <= early(points) <= max(others)
        assert min(others) <= late(points) <= max(others)


def test_the_beginning_is_ten_points_however_long_the_run():
    assert early(curve(1.0, *[0.0] * 100, each=10)) == 1.0
    assert span_of(curve(2.0, 0.5)) == "from 2 (step 10) to 0.5 (step 400)"


def test_latents_that_lost_more_than_half_of_their_variance_have_shrunk():
    assert named(latent_shrinkage(curve(0.1, 0.049))) == [("latent shrinkage", "fault")]
    assert latent_shrinkage(curve(0.1, 0.051)) == []
    assert latent_shrinkage(curve(0.1, 0.5)) == []


@pytest.mark.parametrize(
    ("r2_latents", "r2_codes", "expected"),
    [
        (0.65, 0.45, []),  # noise as large as the quantisation
        (0.62, 0.49, []),  # reads codes
        (0.34, 0.26, []),  # without the regulariser
        (0.86, 0.44, [("hidden prediction", "watch")]),  # reads latents, weight 4
        (0.95, 0.26, [("hidden prediction", "fault")]),
        (0.95, -0.4, [("hidden prediction", "fault")]),
        (0.05, -5.0, []),  # worse than the mean is no more than useless
        (-0.2, -0.3, []),
    ],
)
def test_prediction_that_codes_do_not_share_is_hidden(r2_latents, r2_codes, expected):
    assert named(hidden_prediction(r2_latents, r2_codes)) == expected


@pytest.mark.parametrize(
    ("reads", "advice"),
    [
        ("latents", "set causal.reads to codes or noisy"),
        ("noisy", "set causal.reads to codes, or lower causal.weight"),
        ("codes", "lower causal.weight"),
    ],
)
def test_what_is_hidden_from_what_a_run_reads_already_needs_other_advice(reads, advice):
    (finding,) = hidden_prediction(0.9, 0.1, reads, reads)
    assert finding.change.startswith(advice)
    assert f"0.90 from {reads} but 0.10 from codes" in finding.seen


@pytest.mark.parametrize(
    ("twin", "fault"),
    [
        ({"r2_codes": 1.3, "r2_latents": 0.9}, []),  # the twin's were as good from latents
        ({"r2_codes": -1.5, "r2_latents": 0.29}, ["rose by 0.66 from latents but by 0.00 from"]),
        ({"r2_codes": 0.0, "r2_latents": -9.0}, ["rose by 0.95 from latents but by 0.00 from"]),
    ],
)
def test_what_is_compared_with_the_twin_is_what_is_said(twin, fault):
    lines = gaming_of(replace(TWIN, r2_latents=0.95, r2_codes=-2.0), replace(TWIN, **twin))
    assert len(lines) == len(fault)
    for line, words in zip(lines, fault, strict=True):
        assert words in line


def test_latents_for_which_shrinking_pays_are_told_of_the_scale_that_ends_it():
    (free,), (bound,) = latent_collapse(1e-9, shrinking_pays=True), latent_collapse(1e-9)
    assert "causal.scale to live" in free.change
    assert "causal.scale" not in bound.change


def test_an_error_below_the_quantisation_is_only_a_hint():
    (hint,) = error_below_quantisation(curve(0.1, 0.004), curve(0.03, 0.005))
    assert (hint.fault, hint.severity) == ("hidden prediction", "watch")
    assert error_below_quantisation(curve(0.1, 0.044), curve(0.03, 0.02)) == []


@pytest.mark.parametrize(
    ("share", "expected"),
    [
        (0.91, [("overwhelming regulariser", "fault")]),
        (1.4, [("overwhelming regulariser", "fault")]),
        (0.9, []),
        (0.001, []),
        (0.0009, [("negligible regulariser", "watch")]),
        (0.0, []),  # not seen, in a compiled graph
    ],
)
def test_a_regulariser_that_is_all_or_nothing_is_named(share, expected):
    assert named(regulariser_share(curve(0.5, share))) == expected


def test_measures_are_read_from_the_scores_of_an_arm():
    names = ("latent_variance", "next_latent_r2", "probe_r2_quantised")
    scores = {name: {"value": 0.1 * at, "unit": ""} for at, name in enumerate(names)}
    assert measures_of(scores) == Measures(latent_variance=0.0, r2_latents=0.1, r2_codes=0.2)
