"""What a tokenizer's runs are fitted to, and what is to be doubted of the fit."""

import math

import numpy as np
import pytest

from cartok.scaling.arm_fits import fits_of
from cartok.scaling.law import Law

LAW = Law(5.0, -0.5, 18.0)
SIZES = {"2x64": 200_000, "4x128": 1_000_000, "6x256": 6_000_000}


def made_of(grid_study, noise, sizes=None):
    arms = {"one": (64, 64, 3.5, lambda flops, n, d: LAW.score_at(flops) + 40 / n**0.2)}
    return grid_study(arms, sizes, noise=noise)


def warned(study):
    (fit,) = fits_of(study, "gfd")
    return [text for text in fit.law.warnings if "one of its" in text]


@pytest.mark.parametrize("sizes", [None, SIZES])
def test_a_tokenizer_whose_luck_all_its_runs_share_is_warned_of(grid_study, sizes):
    study = made_of(grid_study, 0.01, sizes)
    assert warned(study) == []
    for run in study["runs"]:
        run["scores"]["gfd"]["value"] *= 1.2 if run["seed"] == 1 else 1.0
    (text,) = warned(study)
    assert text.startswith("runs from one of its 2 tokenizers lie ")
    assert 17 <= float(text.partition("lie ")[2].partition("%")[0]) <= 23


def test_intervals_are_as_wide_as_tokenizers_of_one_recipe_differ(grid_study):
    arms = {
        name: (codes, 64, 3.5, lambda flops, n, d: LAW.score_at(flops))
        for name, codes in (("one", 64), ("two", 256), ("three", 1024))
    }
    study = grid_study(arms, noise=0.01)
    before = [fit.law.interval("l_min") for fit in fits_of(study, "gfd")]
    for run in study["runs"]:
        factor = 1.1 if run["arm"].startswith("one") else 1.0
        run["scores"]["gfd"]["value"] *= factor if run["seed"] == 1 else 1 / factor
    fits = fits_of(study, "gfd")
    assert fits[0].tokenizers_differ == pytest.approx(math.log(1.21) / math.sqrt(2 * 3), rel=0.15)
    for fit, interval in zip(fits, before, strict=True):  # also of those that were lucky
        assert fit.tokenizers_differ == fits[0].tokenizers_differ
        drawn = np.log(fit.drawn_scores(1e15))
        assert drawn.std() > 0.8 * fit.tokenizers_differ / math.sqrt(2)
        now = fit.law.interval("l_min")
        assert now.high - now.low > interval.high - interval.low


def test_runs_on_their_law_and_single_seeds_are_not_doubted(grid_study):
    assert warned(made_of(grid_study, 0.0)) == []
    study = made_of(grid_study, 0.05)
    study["runs"] = [run for run in study["runs"] if run["seed"] == 0]
    assert warned(study) == []


def test_noise_alone_is_seldom_taken_for_a_tokenizers_luck(grid_study):
    study, generator = made_of(grid_study, 0.0, SIZES), np.random.default_rng(0)
    exact = [run["scores"]["gfd"]["value"] for run in study["runs"]]
    found = 0
    for _ in range(12):
        for run, value in zip(study["runs"], exact, strict=True):
            run["scores"]["gfd"]["value"] = value * float(np.exp(0.03 * generator.normal()))
        found += bool(warned(study))
    assert found <= 1  # of 12 at 1 %
