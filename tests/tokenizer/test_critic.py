import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from cartok.core.config import ConfigError
from cartok.tokenizer.critic import Critic, CriticConfig, codec_loss, critic_loss


def verdicts(*values: float) -> torch.Tensor:
    return torch.tensor(values).float().view(1, 1, 1, -1)


def small_critic(**changes) -> Critic:
    torch.manual_seed(0)
    return Critic(CriticConfig(**({"channels": 8, "layers": 2} | changes)))


# ------------------------------------------------------------------ losses


def test_at_chance_the_hinge_is_1():
    assert critic_loss(verdicts(0, 0), verdicts(0, 0)) == 1


def test_with_every_verdict_right_by_a_margin_of_1_the_hinge_is_0():
    assert critic_loss(verdicts(1, 3), verdicts(-1, -9)) == 0


def test_the_hinge_is_the_mean_shortfall_of_both_sides():
    # photographs fall short by 0.5 and 3, reconstructions by 1.5 and 0
    assert critic_loss(verdicts(0.5, -2), verdicts(0.5, -4)) == 0.5 * (3.5 / 2 + 1.5 / 2)


def test_the_codec_wants_its_reconstructions_taken_for_photographs():
    fake = verdicts(0.5, -2).requires_grad_()
    loss = codec_loss(fake)
    assert loss == 0.75
    loss.backward()
    assert torch.equal(fake.grad, torch.full_like(fake, -0.5))  # no margin: it always pulls


def test_the_critic_learns_to_tell_bright_pictures_from_dark_ones():
    critic = small_critic()
    generator = torch.Generator().manual_seed(0)
    optimizer = torch.optim.Adam(critic.parameters(), lr=2e-3)
    for _ in range(30):
        real, fake = (torch.randn(8, 3, 16, 16, generator=generator) * size for size in (1.0, 0.1))
        loss = critic_loss(critic(real), critic(fake))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert loss < 0.3
    assert critic(real).mean() > 0 > critic(fake).mean()


# ------------------------------------------------------------------ when it speaks


@pytest.mark.parametrize(
    ("step", "share"),
    [(0, 0), (19_999, 0), (20_000, 0), (20_500, (1 - math.sqrt(0.5)) / 2), (21_000, 0.5),
     (21_500, (1 + math.sqrt(0.5)) / 2), (22_000, 1), (400_000, 1)],
)  # fmt: skip
def test_the_papers_weight_rises_along_a_cosine_from_step_20000_to_22000(step, share):
    assert CriticConfig().weight_at(step) == pytest.approx(0.5 * share)


@given(st.integers(0, 100), st.integers(0, 100), st.integers(0, 300))
def test_the_weight_is_0_before_the_start_full_after_the_ramp_and_never_falls(start, ramp, step):
    config = CriticConfig(weight=2.0, start=start, ramp=ramp)
    weight = config.weight_at(step)
    assert 0 <= weight <= config.weight_at(step + 1) <= 2
    if step < start:
        assert weight == 0
    if step >= start + ramp:
        assert weight == 2


@pytest.mark.parametrize(
    ("warm", "step", "learns"),
    [(0, 9, False), (0, 10, True), (3, 6, False), (3, 7, True), (99, 0, True)],
)
def test_the_critic_learns_from_its_start_on_and_while_it_warms_up(warm, step, learns):
    assert CriticConfig(start=10, warm=warm).learns_at(step) is learns


def test_a_critic_of_weight_0_never_learns():
    assert not any(CriticConfig(weight=0.0, start=0).learns_at(step) for step in range(5))


# ------------------------------------------------------------------ the network


@pytest.mark.parametrize(
    ("size", "layers", "grid"), [(16, 2, 2), (32, 3, 2), (32, 2, 6), (256, 3, 30)]
)
def test_every_patch_gets_a_verdict(size, layers, grid):
    image = torch.randn(2, 3, size, size)
    assert small_critic(layers=layers)(image).shape == (2, 1, grid, grid)


@pytest.mark.parametrize(("layers", "patch"), [(1, 16), (2, 34), (3, 70)])
def test_a_verdict_sees_a_patch_of_the_published_size(layers, patch):
    critic = small_critic(channels=2, layers=layers).double()
    for index, part in enumerate(critic.layers):
        if isinstance(part, nn.GroupNorm):  # which looks at the whole picture
            critic.layers[index] = nn.Identity()
    image = torch.randn(1, 3, 128, 128, dtype=torch.float64, requires_grad=True)
    seen = critic(image)
    middle = seen.shape[-1] // 2
    seen[0, 0, middle, middle].backward()
    rows, cols = image.grad.abs().sum((0, 1)).nonzero().T
    assert rows.max() - rows.min() + 1 == patch
    assert cols.max() - cols.min() + 1 == patch


def test_with_group_norm_a_verdict_does_not_depend_on_the_rest_of_the_batch():
    image = torch.randn(4, 3, 16, 16)
    for norm, alike in (("group", True), ("batch", False)):
        critic = small_critic(norm=norm)
        alone = torch.cat([critic(one[None]) for one in image])
        assert torch.allclose(critic(image), alone, atol=1e-5) is alike


@pytest.mark.parametrize("norm", ["group", "batch"])
def test_every_parameter_gets_a_gradient(norm):
    critic = small_critic(norm=norm)
    critic(torch.randn(4, 3, 16, 16)).square().mean().backward()
    for name, parameter in critic.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.abs().max() > 0, name


@pytest.mark.parametrize(
    "change",
    [{"weight": -0.1}, {"start": -1}, {"ramp": -1}, {"warm": -1}, {"channels": 0}, {"layers": 0},
     {"norm": "layer"}],
)  # fmt: skip
def test_senseless_critics_are_refused(change):
    with pytest.raises(ConfigError):
        CriticConfig(**change)
