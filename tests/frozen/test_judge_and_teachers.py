import json
import subprocess
import sys

import pytest
import torch

from cartok import frozen
from cartok.core.errors import UserError
from cartok.frozen import TEACHERS, judge, lpips_of, teacher
from cartok.frozen.dino import NETWORKS


def test_the_judge_is_no_teacher_and_no_features_to_learn_from():
    judging = judge(32).weights
    learned = [*TEACHERS.values(), *(weights for weights, _ in NETWORKS.values())]
    assert judging.sha256 not in {weights.sha256 for weights in learned}
    assert judging.name not in {weights.name for weights in learned}


def test_each_teacher_reads_the_weights_that_the_table_says(monkeypatch):
    read = []

    def stop(weights, path=""):
        read.append(weights)
        raise UserError("enough")

    monkeypatch.setattr("cartok.frozen.efficientnet.read_weights", stop)
    with pytest.raises(UserError, match="enough"):
        teacher("effnet-lite2")
    heads_first = frozen.read_weights
    monkeypatch.setattr(
        "cartok.frozen.lpips.read_weights",
        lambda w, path="": heads_first(w) if "heads" in w.name else stop(w),
    )
    with pytest.raises(UserError, match="enough"):
        teacher("lpips-vgg")
    assert read == list(TEACHERS.values())


def test_the_default_teacher_needs_no_download():
    assert teacher().weights is TEACHERS["effnet-lite2"]


def test_a_mistyped_teacher_is_refused_with_the_nearest():
    with pytest.raises(UserError, match="did you mean 'lpips-vgg'") as error:
        teacher("lpips_vgg")
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    "build",
    [
        lambda: judge(32),
        teacher,
        lambda: lpips_of(random_weights=True),
        lambda: frozen.inception(random_weights=True),
    ],
)
def test_frozen_networks_show_nothing_to_optimizers_and_checkpoints(build):
    before = torch.get_rng_state()
    network = build()
    assert torch.equal(before, torch.get_rng_state())  # building never shifts a training run
    assert not list(network.parameters())
    assert not network.state_dict()
    assert not any(module.training for module in network.train().modules())


def answer_of(program):
    """What a program prints as JSON, in a process of its own."""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def test_optional_packages_are_not_imported_until_asked_for():
    program = "import json, sys, cartok.frozen; print(json.dumps([*sys.modules]))"
    assert not {"timm", "lpips", "torchvision", "torch_fidelity"} & set(answer_of(program))


# Where no shapes are checked: the checks themselves cannot be traced.
TRACE = """
import json
import torch
from cartok.frozen import lpips_of, teacher
image, target = torch.rand(2, 1, 3, 32, 32, generator=torch.Generator().manual_seed(0)) * 2 - 1
apart = []
for network in (teacher(), lpips_of(random_weights=True)):
    traced = torch.compile(network, backend="eager", fullgraph=True)
    image = image.detach().requires_grad_()
    distance = traced(image, target)
    distance.sum().backward()
    assert image.grad.abs().max() > 0
    apart.append((distance - network(image, target)).abs().max().item())
print(json.dumps(apart))
"""


@pytest.mark.slow
def test_teachers_are_traced_whole_for_compiling():
    assert max(answer_of(TRACE)) < 1e-6
