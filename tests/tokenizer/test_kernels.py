"""The GPU kernels give the numbers of plain torch, here in triton's interpreter on the CPU."""

import importlib.util
import json
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch

SCRIPT = Path(__file__).with_name("interpreted_kernels.py")

pytestmark = [
    pytest.mark.slow,  # about 15 seconds in all, the interpreter's
    pytest.mark.skipif(
        importlib.util.find_spec("triton") is None,
        reason="triton, which GPU builds of torch bring along, is not installed here",
    ),
]

SHAPES = {
    "odd sides": {"shape": [2, 24, 7, 9], "groups": 8},
    "96 channels": {"shape": [1, 96, 5, 7], "groups": 32},
    "all powers of two": {"shape": [2, 32, 4, 4], "groups": 8},
    "one group": {"shape": [2, 24, 3, 5], "groups": 1},
    "a group a channel": {"shape": [1, 16, 6, 3], "groups": 16},
    "many parts": {"shape": [2, 24, 11, 13], "groups": 4, "elements": 128, "parts": 5},
    "one cell": {"shape": [3, 16, 1, 1], "groups": 2},
}
STEPS = {
    "norm": {"step": "norm", "beside": False},
    "norm without bias": {"step": "norm", "beside": False, "bias": False},
    "add": {"step": "add"},
    "add without x": {"step": "add", "beside": False},
    "both": {"step": "both"},
    "both without x": {"step": "both", "beside": False},
}
CASES = {f"{step}, {shape}": STEPS[step] | SHAPES[shape] for step in STEPS for shape in SHAPES}
ODD = SHAPES["odd sides"]
USES = {f"{used} of both": STEPS["both"] | ODD | {"used": used} for used in ("first", "second")}
SHORT = {f"bf16 {step}": STEPS[step] | ODD | {"dtype": "bfloat16"} for step in STEPS}
FAR = {f"mean {mean}": STEPS["norm"] | ODD | {"mean": mean} for mean in (3, 30, 300)}


@pytest.fixture(scope="module")
def errors():
    """How far kernels are from plain torch in float64, by case and answer."""
    asked = json.dumps(CASES | USES | SHORT | FAR)
    done = subprocess.run(
        [sys.executable, str(SCRIPT)], input=asked + "\n", capture_output=True, text=True,
        timeout=280, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-2000:]
    return json.loads(done.stdout)


@pytest.mark.parametrize("name", [*CASES, *USES])
def test_answers_and_gradients_are_those_of_plain_torch(errors, name):
    """To a few roundings of float32."""
    assert {k: v for k, v in errors[name].items() if v > 3e-6} == {}


@pytest.mark.parametrize("name", SHORT)
def test_bfloat16_is_how_activations_are_stored_and_not_how_they_are_added_up(errors, name):
    """Answers to one rounding of 8 bits, sums over a picture to less."""
    assert {k: v for k, v in errors[name].items() if v > 2**-7} == {}
    gradients = [v for k, v in errors[name].items() if k in ("gradient 1", "gradient 2")]
    assert all(v < 2**-7 / 1.5 for v in gradients)


@pytest.mark.parametrize(("mean", "most"), [(3, 3e-6), (30, 3e-4), (300, 3e-2)])
def test_the_moments_lose_digits_with_the_square_of_the_mean_over_the_deviation(errors, mean, most):
    assert max(errors[f"mean {mean}"].values()) < most


@pytest.mark.parametrize("levels", [0, 2])
def test_a_codec_whose_every_step_is_fused_is_the_plain_codec(errors, levels):
    """``levels`` of it computed again in the backward pass."""
    assert errors[f"codec {levels}"]["answer"] < 1e-5
    assert errors[f"codec {levels}"]["gradients"] < 5e-5


def test_a_kernel_is_tried_before_it_is_relied_on(errors):
    assert errors["can run"] == {"at all": 0.0}


def test_where_triton_cannot_compile_plain_torch_is_taken_and_said(caplog):
    from cartok.tokenizer import blocks

    assert not blocks._kernels_work.__wrapped__(torch.device("cpu"))
    (message,) = caplog.messages
    assert re.match(r"the codec's GPU kernels cannot run on cpu \(.+\): it takes plain", message)


@pytest.mark.parametrize("side", [(2048, 1024), (1456, 1456), (8192, 8192)])
@pytest.mark.parametrize("most", [0, 64])
def test_a_picture_of_any_size_fits_the_limits_of_a_grid(side, most):
    """CUDA counts to 65,535 along every axis of a grid but the first."""
    from cartok.tokenizer import fused

    (parts, pictures), shape = fused._tiles(torch.empty(3, 128, *side, device="meta"), most)
    assert pictures == 3
    assert parts * fused._steps(side[0] * side[1], parts, shape["tile"]) * shape["tile"] >= (
        side[0] * side[1]
    )
    assert parts < 2**31
