"""The kernels of a block, beside the layers as written; ``interpreted_layers`` runs them."""

import json
import subprocess
import sys
from itertools import pairwise
from pathlib import Path

import pytest
import torch

from cartok.layers import trains_fused

SCRIPT = Path(__file__).with_name("interpreted_layers.py")


@pytest.fixture(scope="module")
def answers():
    pytest.importorskip("triton")
    done = subprocess.run(
        [sys.executable, "-W", "error", SCRIPT], capture_output=True, text=True, check=True
    )
    return json.loads(done.stdout.splitlines()[-1])


@pytest.mark.parametrize(
    "network",
    ["heads that fill a power of two", "heads that fill none", "heads without norms"],
)
def test_kernels_give_the_answers_and_gradients_of_the_layers(answers, network):
    assert answers[network]["kernels"] < 3e-6


@pytest.mark.parametrize(("network", "most"), [("autocast", 0.05), ("float16", 0.01)])
def test_kernels_round_no_more_than_the_layers_as_written(answers, network, most):
    # Of what autocast makes bfloat16 the interpreter cuts the rest off, where a GPU rounds it.
    assert answers[network]["kernels"] < 1.5 * answers[network]["as written"] < most


def test_kernels_are_tried_without_a_draw_that_would_shift_a_trainings_noise(answers):
    assert answers["probed"] == {"can run": True, "draws nothing": True}


def test_in_evaluation_nothing_is_dropped(answers):
    assert answers["evaluated"] < 3e-6


def test_what_is_frozen_gets_no_gradient_and_changes_no_other(answers):
    assert answers["partly frozen"] < 3e-6


def test_a_block_computed_twice_meets_the_same_noise(answers):
    assert answers["recomputed"] == 0


def test_a_cache_is_extended_as_it_was(answers):
    assert answers["with a cache"] < 3e-6


def test_sum_and_norm_have_the_right_gradients_whichever_of_them_is_used(answers):
    found = answers["add and norm"]
    assert len(found) == 9
    for case, off in found.items():  # a branch's gradient is rounded to its dtype
        assert off < (5e-4 if "float16" in case else 3e-7), case


def test_dropout_drops_its_share_of_independent_elements_and_scales_the_rest(answers):
    found = answers["dropout"]
    assert found["share"] == pytest.approx(0.1, abs=4 * (0.09 / 2**16) ** 0.5)
    for both in ("pairs", "both rows", "both seeds"):
        assert found[f"share of {both}"] == pytest.approx(0.01, abs=0.0016)  # 4 deviations
    assert found["values"] == [0, 1.111111]


def test_a_mask_is_drawn_again_from_its_seed(answers):
    claims = {name: value for name, value in answers["dropout"].items() if value in (True, False)}
    assert len(claims) == 6
    assert all(claims.values())


def test_noise_differs_from_element_to_element_beyond_what_32_bits_count(answers):
    masks = list(answers["noise"].values())
    assert len(masks) == 5
    for one, other in pairwise(masks):
        alike = sum(a == b for a, b in zip(one, other, strict=True))
        assert 16 < alike < 48  # of 64, half of which are kept


def test_kernels_are_for_training_alone(answers):
    wanted = {"training": True, "on the CPU": False, "in float64": False,
              "without gradients": False, "while compiling": False}  # fmt: skip
    assert answers["where"] == wanted


@pytest.mark.parametrize("device", ["cpu", "meta"])
def test_where_there_is_no_gpu_layers_run_as_they_are_written(device):
    assert not trains_fused(torch.zeros(1, 2, 4, device=device))
