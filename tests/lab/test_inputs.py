from dataclasses import replace

import numpy as np
import pytest
import torch

from cartok.core.parallel import World
from cartok.core.shapes import pixels_of
from cartok.data.images import open_splits
from cartok.data.views import View
from cartok.lab import arm_scores
from cartok.lab import guidance as guidance_module
from cartok.lab.guidance import SCAN_SEED
from cartok.lab.inputs import _two_parts, arm_inputs, named_scores
from cartok.metrics.score import Score
from cartok.recipes.yardstick import Yardstick


@pytest.fixture(scope="module")
def pictures(demo_pictures):
    """Training and held-out pictures of three classes."""
    return open_splits(demo_pictures, size=32)


@pytest.mark.parametrize("scan", [512, 1024, 3000])
def test_guidances_are_tried_on_pictures_that_no_sample_is_scored_against(pictures, scan):
    many = pictures["train"].subset(np.tile(np.arange(500), 9))
    yardstick = Yardstick(reference=1500, scan_samples=scan, guidances=(1.0, 2.0))
    first, second = _two_parts(many, yardstick, few=False, scans=True)
    assert len(first) + len(second) == len(many) == 4500
    assert len(first) >= scan - 1 or len(first) == pytest.approx(4500 * scan / (scan + 1500), abs=1)
    assert np.array_equal(np.sort(np.concatenate([first.labels, second.labels])),
                          np.sort(many.labels))  # fmt: skip
    # Both are spread over the set, which comes class by class.
    shares = [np.bincount(part.labels) / len(part) for part in (first, second)]
    assert np.allclose(*shares, atol=0.02)


def test_the_full_distance_is_the_score_where_there_is_one_and_the_other_stands_beside_it():
    few = {"fd_effnet64": Score(1.0, "", {}), "kd_effnet": Score(2.0, "", {})}
    many = few | {"fd_effnet": Score(3.0, "", {})}
    assert {k: v["value"] for k, v in named_scores("g", few).items()} == {"gfd": 1, "gkd": 2}
    assert {k: v["value"] for k, v in named_scores("r", many).items()} == {
        "rfd": 3, "rfd64": 1, "rkd": 2,
    }  # fmt: skip
    assert set(named_scores("floor", many)) == {"floor", "floor64", "floor_kd"}


@pytest.mark.usefixtures("coarse_look")
@pytest.mark.parametrize("num", [575, 576])
def test_few_pictures_are_told_from_many_for_several_crops_of_each_are_scored(pictures, num):
    least = Yardstick(samples=512, reference=512, held=512)
    train, held = (pictures["train"].subset(np.arange(size) % 500) for size in (600, num))
    inputs = arm_inputs(View(size=32), train, held, World(), "cpu", least)
    assert inputs.has_few == (num < 576)
    assert ("several a picture" in inputs.crop) == inputs.has_few


@pytest.mark.usefixtures("coarse_look")
def test_each_prior_takes_the_guidance_whose_samples_come_nearest(pictures, monkeypatch):
    """Drawn with another seed than those that are scored, which it never sees."""
    yardstick = Yardstick(
        samples=512, reference=512, held=512, guidances=(1.0, 2.0, 3.0), scan_samples=512
    )
    view = View(size=32)
    inputs = arm_inputs(view, pictures["train"], pictures["val"], World(), "cpu", yardstick)
    assert inputs.scan_features is not None
    asked = []

    def distance(brightness, reference):
        assert reference is inputs.scan_features.features
        return brightness.item()

    def featurised(pixels, inputs, device):
        return replace(inputs.scan_features, features=pixels.float().mean().view(1, 1))

    monkeypatch.setattr(arm_scores, "_featurised", featurised)
    monkeypatch.setattr(guidance_module, "extrapolated_frechet", distance)

    class Draws(arm_scores._Draws):
        device = torch.device("cpu")

        def __init__(self):
            pass

        def __call__(self, num, seed, guidance):
            asked.append((num, seed, guidance))
            torch.manual_seed(0)
            shown = pixels_of(inputs.held_image[:num]).float()
            noise = (60 if guidance == 2.0 else 200) * torch.rand_like(shown)
            return (shown + noise).clamp(0, 255).byte(), torch.zeros(num)

    draw = Draws()
    guidance, tried = arm_scores._best_guidance(draw, inputs, seed=3)
    assert guidance == 2.0
    assert tried["2"] < min(tried["1"], tried["3"])
    assert asked == [(512, SCAN_SEED + 3, one) for one in yardstick.guidances]
    alone = replace(inputs, scan_features=None, yardstick=replace(yardstick, guidances=(2.5,)))
    assert arm_scores._best_guidance(draw, alone, seed=3) == (2.5, {})
    assert arm_scores._best_guidance(draw, replace(alone, num_classes=0), 3) == (1.0, {})
