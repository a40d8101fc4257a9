import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from cartok.core.config import ConfigError
from cartok.frozen import Frozen, TokenFeatures
from cartok.tokenizer.critic import (
    LECAM_DECAY,
    Critic,
    CriticConfig,
    DinoCritic,
    RunningVerdicts,
    adaptive_factor,
    codec_loss,
    critic_loss,
    critic_of,
)


def verdicts(*values: float) -> torch.Tensor:
    return torch.tensor(values).float().view(1, 1, 1, -1)


def small_critic(**changes) -> Critic:
    torch.manual_seed(0)
    return Critic(CriticConfig(**({"channels": 8, "layers": 2} | changes)))


class ToyFeatures(Frozen):
    """Two layers of tokens, 5 channels wide, of patches of 4 x 4 pixels."""

    widths = (5, 5)

    def __init__(self):
        super().__init__()
        weight = torch.randn(10, 3, 4, 4, generator=torch.Generator().manual_seed(0))
        self.register_buffer("weight", weight, persistent=False)

    def forward(self, image):
        grid = nn.functional.conv2d(image, self.weight.to(image.dtype), stride=4)
        layers = grid.flatten(2).transpose(1, 2).split(self.widths, dim=2)
        return TokenFeatures(layers, *grid.shape[2:])


def dino_critic(**changes) -> DinoCritic:
    torch.manual_seed(0)
    config = CriticConfig(kind="dino", **changes)
    return DinoCritic(config, ToyFeatures(), ToyFeatures.widths)


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


@pytest.mark.parametrize(
    ("loss", "chance", "told_apart", "taken_in"),
    [("hinge", 1, 0, 5), ("wasserstein", 0, -4, 4),
     ("non-saturating", math.log(2), math.log1p(math.exp(-4)), 4 + math.log1p(math.exp(-4)))],
)  # fmt: skip
def test_every_loss_falls_as_the_critic_tells_pictures_apart(loss, chance, told_apart, taken_in):
    values = [critic_loss(verdicts(v, v), verdicts(-v, -v), loss).item() for v in (0, 4, -4)]
    assert values == pytest.approx([chance, told_apart, taken_in])


def test_a_non_saturating_codec_lets_go_of_a_reconstruction_that_convinces():
    fake = verdicts(0.0, 9.0).requires_grad_()
    loss = codec_loss(fake, "non-saturating")
    assert loss.item() == pytest.approx((math.log(2) + math.log1p(math.exp(-9))) / 2)
    loss.backward()
    assert fake.grad.flatten().tolist() == pytest.approx([-0.25, -0.5 / (1 + math.exp(9))])
    assert codec_loss(verdicts(2.0), "wasserstein") == -2


@pytest.mark.parametrize("loss", ["hinge", "wasserstein", "non-saturating"])
def test_means_of_bf16_verdicts_are_taken_in_float32(loss):
    real, fake = (torch.randn(4, 1, 30, 30, generator=torch.Generator().manual_seed(0)) * size
                  for size in (0.1, 0.2))  # fmt: skip
    real, fake = real.bfloat16(), fake.bfloat16()
    for short, full in (
        (critic_loss(real, fake, loss), critic_loss(real.float(), fake.float(), loss)),
        (codec_loss(fake, loss), codec_loss(fake.float(), loss)),
    ):
        assert short.dtype == torch.float32
        assert short == full


@pytest.mark.parametrize("loss", ["hinge", "non-saturating"])
def test_the_critic_learns_to_tell_bright_pictures_from_dark_ones(loss):
    critic = small_critic()
    generator = torch.Generator().manual_seed(0)
    optimizer = torch.optim.Adam(critic.parameters(), lr=2e-3)
    for _ in range(30):
        real, fake = (torch.randn(8, 3, 16, 16, generator=generator) * size for size in (1.0, 0.1))
        error = critic_loss(critic(real), critic(fake), loss)
        optimizer.zero_grad()
        error.backward()
        optimizer.step()
    assert error < 0.3
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


@pytest.mark.parametrize(
    ("step", "learns", "share"),
    [(0, False, 0), (6, False, 0), (7, True, 0), (9, True, 0), (10, True, 0), (12, True, 0.5),
     (14, True, 1), (99, True, 1)],
)  # fmt: skip
def test_the_critic_learns_first_then_is_heard_then_is_heard_in_full(step, learns, share):
    config = CriticConfig(weight=3.0, start=10, ramp=4, warm=3)
    assert config.learns_at(step) is learns
    assert config.weight_at(step) == pytest.approx(3 * share)


@given(st.integers(0, 100), st.integers(0, 100), st.integers(0, 100), st.integers(0, 400))
def test_the_codec_never_hears_a_critic_that_does_not_learn(start, ramp, warm, step):
    config = CriticConfig(start=start, ramp=ramp, warm=warm)
    assert config.learns_at(step) or config.weight_at(step) == 0


# ------------------------------------------------------------------ how loudly it speaks


def gradients_of(losses, weight) -> list[float]:
    return [torch.autograd.grad(x, weight, retain_graph=True)[0].norm().item() for x in losses]


def two_losses(pictures=1.0, critic=1.0):
    """A last layer, and two losses of what it makes, times two factors."""
    generator = torch.Generator().manual_seed(0)
    weight = torch.randn(3, 5, generator=generator, requires_grad=True)
    made = torch.randn(7, 5, generator=generator) @ weight.T
    return pictures * made.square().mean(), critic * -made.mean(), weight


def test_an_adaptive_factor_is_the_ratio_of_both_gradients_at_the_last_layer():
    pictures, critic, weight = two_losses(critic=0.25)
    wanted, found = gradients_of((pictures, critic), weight)
    factor = adaptive_factor(pictures, critic, weight, 1e4)
    assert factor.item() == pytest.approx(wanted / found)
    assert not factor.requires_grad
    assert factor.dtype == torch.float32
    # so that, multiplied, the critic pulls as hard as the pictures
    assert gradients_of([factor * critic], weight)[0] == pytest.approx(wanted)
    assert weight.grad is None


@given(pictures=st.floats(1e-6, 1e6), critic=st.floats(1e-6, 1e6), most=st.floats(1e-3, 1e3))
def test_an_adaptive_factor_is_scaled_by_the_pictures_and_limited(pictures, critic, most):
    plain = adaptive_factor(*two_losses(), 1e30).item()
    found = adaptive_factor(*two_losses(pictures, critic), most).item()
    assert found == pytest.approx(min(plain * pictures / critic, most), rel=1e-4)


@pytest.mark.parametrize(("pictures", "critic", "factor"), [(1, 0, 50), (0, 1, 0), (0, 0, 0)])
def test_an_adaptive_factor_of_gradients_that_are_0_is_finite(pictures, critic, factor):
    assert adaptive_factor(*two_losses(float(pictures), float(critic)), 50.0) == factor


def test_an_adaptive_factor_under_bf16_is_that_of_a_backward_pass_outside_it():
    generator = torch.Generator().manual_seed(0)
    given_, weight = torch.randn(7, 5, generator=generator), torch.ones(3, 5, requires_grad=True)
    made = given_ @ weight.T  # an island: whatever autocast does, its gradient is float32's
    pictures, critic = made.square().mean(), -made.exp().mean()
    factor = adaptive_factor(pictures, critic, weight, 1e4)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(adaptive_factor(pictures, critic, weight, 1e4), factor)


# ------------------------------------------------------------------ LeCam


def running(real: float, fake: float) -> RunningVerdicts:
    made = RunningVerdicts()
    made.means.copy_(torch.tensor([real, fake]))
    return made


@pytest.mark.parametrize(
    ("real", "fake", "loss"),
    [
        # running means 2 and -1: photographs may go down to -1, reconstructions up to 2, for free
        ((-1, -5), (2, 8), 0),
        ((1, -1), (2, 2), (2**2 + 0) / 2),
        ((-1, -1), (1, 0), (1**2 + 2**2) / 2),
        ((3, 0), (-1, -3), (4**2 + 1**2) / 2 + (3**2 + 5**2) / 2),
    ],
)
def test_lecam_is_the_squared_distance_past_the_other_sides_mean(real, fake, loss):
    assert running(2, -1).regularise(verdicts(*real), verdicts(*fake)) == loss


def test_running_means_move_by_a_thousandth_of_the_way():
    means = running(2, -1)
    means.update(torch.tensor([1.0, 4.0]))
    assert means.means.tolist() == pytest.approx([2 - 0.001, -1 + 5 * 0.001])
    for _ in range(99):
        means.update(torch.tensor([1.0, 4.0]))
    left = LECAM_DECAY**100
    assert means.means.tolist() == pytest.approx([1 + left, 4 - 5 * left], rel=1e-4)


def test_means_over_equal_parts_move_as_those_of_the_whole_do():
    real, fake = torch.randn(2, 8, 1, 3, 3, generator=torch.Generator().manual_seed(0))
    whole, parts = RunningVerdicts(), RunningVerdicts()
    whole.update(torch.stack([real.mean(), fake.mean()]))
    parts.update(torch.stack([real, fake]).unflatten(1, (4, 2)).mean((2, 3, 4, 5)).mean(1))
    torch.testing.assert_close(parts.means, whole.means)


def test_lecam_holds_even_a_wasserstein_critic():
    # Alone it is linear, and has no least value; with the means at rest, a margin of 1 / 4 weight
    # is one.
    weight = 0.05
    means = running(2.5, -2.5)
    real, fake = verdicts(2.5).requires_grad_(), verdicts(-2.5).requires_grad_()
    critic_loss(real, fake, "wasserstein").backward()
    assert (real.grad, fake.grad) == (-0.5, 0.5)
    (weight * means.regularise(real, fake)).backward()
    assert (real.grad.item(), fake.grad.item()) == pytest.approx((0, 0), abs=1e-6)


def test_running_means_are_saved_with_the_critic_and_moved_by_no_gradient():
    critic = small_critic(lecam=0.001)
    assert torch.equal(critic.state_dict()["running.means"], torch.zeros(2))
    assert not any(name.startswith("running") for name, _ in critic.named_parameters())
    assert small_critic().running is None
    assert not any(name.startswith("running") for name in small_critic().state_dict())
    real = verdicts(3.0).requires_grad_()
    running(2, -1).regularise(real, verdicts(0.0)).backward()
    assert real.grad.item() == 2 * (3 + 1)


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


@pytest.mark.parametrize("make", [small_critic, dino_critic])
@pytest.mark.parametrize("norm", ["group", "batch"])
def test_every_parameter_gets_a_gradient(make, norm):
    critic = make(norm=norm)
    critic(torch.randn(4, 3, 16, 16)).square().mean().backward()
    for name, parameter in critic.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.abs().max() > 0, name


# ------------------------------------------------------------------ heads on frozen features


def test_every_head_judges_every_token():
    critic = dino_critic()
    image = torch.randn(2, 3, 16, 24)
    found = critic(image)
    assert found.shape == (2, 1, 2, 24)
    for index, (head, tokens) in enumerate(
        zip(critic.heads, critic.features(image).layers, strict=True)
    ):
        assert torch.equal(found[:, :, index], head(tokens))


def test_heads_learn_to_tell_pictures_with_a_pattern_from_those_without():
    critic = dino_critic()
    generator = torch.Generator().manual_seed(0)
    pattern = torch.randn(3, 16, 16, generator=generator)
    optimizer = torch.optim.Adam(critic.parameters(), lr=0.02)
    for _ in range(40):
        real, fake = torch.randn(2, 8, 3, 16, 16, generator=generator)
        loss = critic_loss(critic(real + 2 * pattern), critic(fake))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert loss < 0.3


def test_frozen_features_pass_the_gradient_on_and_are_not_the_critics_own():
    critic = dino_critic(lecam=0.1)
    image = torch.randn(2, 3, 16, 16, requires_grad=True)
    codec_loss(critic(image)).backward()
    assert image.grad.abs().max() > 0
    assert critic.features.weight.grad is None
    names = {name.split(".")[0] for name in critic.state_dict()}
    assert names == {"heads", "running"}
    assert {name.split(".")[0] for name, _ in critic.named_parameters()} == {"heads"}


def test_features_with_something_to_save_are_refused():
    with pytest.raises(AssertionError, match="nothing that is saved"):
        DinoCritic(CriticConfig(kind="dino"), nn.Linear(2, 2), (2,))


def test_with_group_norm_a_heads_verdict_does_not_depend_on_the_rest_of_the_batch():
    image = torch.randn(4, 3, 16, 16)
    for norm, alike in (("group", True), ("batch", False)):
        critic = dino_critic(norm=norm)
        alone = torch.cat([critic(one[None]) for one in image])
        assert torch.allclose(critic(image), alone, atol=1e-5) is alike


def test_a_config_names_its_critic():
    assert isinstance(critic_of(CriticConfig(channels=8)), Critic)
    features = ToyFeatures()
    critic = critic_of(CriticConfig(kind="dino"), features, features.widths)
    assert isinstance(critic, DinoCritic)
    assert critic.features is features
    with pytest.raises(AssertionError, match="come from outside"):
        critic_of(CriticConfig(kind="dino"))


@pytest.mark.parametrize(
    "change",
    [{"lecam": -0.1}, {"adaptive_max": 0.0}, {"kind": "stylegan"}, {"loss": "lsgan"},
     {"weighting": "vqgan"}, {"weight": -0.1}, {"start": -1}, {"ramp": -1}, {"warm": -1},
     {"channels": 0}, {"layers": 0}, {"norm": "layer"}],
)  # fmt: skip
def test_senseless_critics_are_refused(change):
    with pytest.raises(ConfigError):
        CriticConfig(**change)
