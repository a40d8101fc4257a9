from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cartok.tokenizer.doctor import HIDDEN_R2, Measures, collapse_of, gaming_of

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
