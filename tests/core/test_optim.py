import math
from itertools import pairwise

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from cartok.core.config import ConfigError
from cartok.core.optim import OptimConfig, adamw_of, muon_of, rate_of

configs = st.builds(
    lambda lr, share, warmup, schedule: OptimConfig(
        lr=lr, warmup_from=lr * share, warmup_steps=warmup, schedule=schedule
    ),
    st.floats(1e-6, 1.0),
    st.floats(0, 1),
    st.integers(0, 500),
    st.sampled_from(["constant", "cosine"]),
)


@given(configs, st.integers(1, 1000))
def test_the_rate_is_continuous_and_between_zero_and_its_limit(config, steps):
    rate = rate_of(config, steps)
    rates = [rate(step) for step in range(steps + 2)]
    assert all(0 <= value <= config.lr * (1 + 1e-12) for value in rates)
    # The steepest that either half may be: the warm-up's slope, or the cosine's at its middle.
    rise = (config.lr - config.warmup_from) / max(1, config.warmup_steps)
    fall = config.lr * math.pi / 2 / max(1, steps - config.warmup_steps)
    bound = (max(rise, fall) + 1e-12) * (1 + 1e-9)
    assert all(abs(b - a) <= bound for a, b in pairwise(rates))


def test_the_rate_is_its_closed_form():
    config = OptimConfig(lr=0.5, warmup_from=0.1, warmup_steps=4, schedule="cosine")
    rate = rate_of(config, 12)
    assert [rate(step) for step in (0, 1, 2, 4)] == pytest.approx([0.1, 0.2, 0.3, 0.5])
    assert rate(8) == pytest.approx(0.25)
    assert rate(6) == pytest.approx(0.25 * (1 + math.cos(math.pi / 4)))
    assert rate(12) == pytest.approx(0.0)
    assert rate(13) == pytest.approx(0.0)


def test_a_constant_rate_stays_after_the_warmup():
    rate = rate_of(OptimConfig(lr=0.5, warmup_from=0.0, warmup_steps=2), 10)
    assert [rate(step) for step in range(5)] == [0.0, 0.25, 0.5, 0.5, 0.5]


def test_without_a_warmup_the_first_rate_is_the_full_one():
    for schedule in ("constant", "cosine"):
        assert rate_of(OptimConfig(lr=0.5, warmup_steps=0, schedule=schedule), 10)(0) == 0.5


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"lr": 0.0}, "lr must be above 0, but is 0.0"),
        ({"lr": -1.0}, "lr must be above 0"),
        ({"warmup_from": -1e-5}, "warmup_from must be in"),
        ({"lr": 1e-6}, "warmup_from must be in .* but is 1e-05 with lr 1e-06"),
        ({"betas": (0.9, 1.0)}, "betas must be in"),
        ({"betas": (-0.1, 0.9)}, "betas must be in"),
        ({"warmup_steps": -1}, "must not be negative"),
        ({"clip": -1.0}, "must not be negative"),
        ({"weight_decay": -1.0}, "must not be negative"),
        ({"schedule": "linear"}, "'schedule'"),
    ],
)
def test_a_value_outside_its_range_is_refused(change, said):
    with pytest.raises(ConfigError, match=said):
        OptimConfig(**change)


def test_the_decay_acts_on_matrices_and_kernels_only():
    module = nn.Sequential(nn.Conv2d(3, 4, 2), nn.GroupNorm(2, 4), nn.Linear(4, 4))
    module.register_parameter("scale", nn.Parameter(torch.tensor(1.0)))
    module[2].weight.requires_grad = False
    optimizer = adamw_of(OptimConfig(lr=0.25, weight_decay=0.5), module.parameters())
    decayed = {id(p) for g in optimizer.param_groups if g["weight_decay"] for p in g["params"]}
    plain = {id(p) for g in optimizer.param_groups if not g["weight_decay"] for p in g["params"]}
    assert decayed == {id(module[0].weight)}
    wanted = {id(p) for p in module.parameters() if p.requires_grad}
    assert plain == wanted - decayed
    assert {g["weight_decay"] for g in optimizer.param_groups} == {0.0, 0.5}
    assert {g["lr"] for g in optimizer.param_groups} == {0.25}
    assert optimizer.defaults["betas"] == (0.9, 0.95)


def test_a_module_of_matrices_alone_has_one_group():
    optimizer = adamw_of(OptimConfig(), nn.Linear(2, 2, bias=False).parameters())
    assert len(optimizer.param_groups) == 1


@pytest.mark.parametrize("shape", [(32, 32), (96, 32), (16, 64)])
def test_muons_step_has_adamws_size_for_every_shape(shape):
    """All singular values become 0.7 to 1.2, so that an element moves by 0.2 rates."""
    torch.manual_seed(0)
    matrix = nn.Parameter(torch.zeros(shape))
    matrix.grad = 1e3 * torch.randn(shape)  # whatever the gradient's size
    muon_of(OptimConfig(lr=0.01, weight_decay=0.5), [matrix]).step()
    assert 0.7 <= float(matrix.detach().square().mean().sqrt()) / (0.2 * 0.01) <= 1.2
    turned = torch.sign(matrix.detach()) == -torch.sign(matrix.grad)
    assert turned.float().mean() > 0.6


def test_muon_decays_like_adamw_and_leaves_what_stays():
    matrix, still = nn.Parameter(torch.ones(4, 4)), nn.Parameter(torch.ones(4, 4), False)
    optimizer = muon_of(OptimConfig(lr=0.25, weight_decay=0.5), [matrix, still])
    assert [p for group in optimizer.param_groups for p in group["params"]] == [matrix]
    matrix.grad = torch.zeros(4, 4)
    optimizer.step()
    torch.testing.assert_close(matrix.detach(), torch.full((4, 4), 1 - 0.25 * 0.5))
