from dataclasses import replace

import pytest
import torch
from torch import nn
from torch.nn import functional as F
from torch.utils.flop_counter import FlopCounterMode

from cartok.core.config import ConfigError
from cartok.tokenizer.alignment import AlignmentConfig
from cartok.tokenizer.codec import CodecConfig
from cartok.tokenizer.controls import CausalLoss
from cartok.tokenizer.critic import Critic, CriticConfig, codec_loss, critic_loss
from cartok.tokenizer.losses import (
    LossConfig,
    codec_terms,
    critic_terms,
    taken_now,
    verdicts_of,
    watched_of,
)
from cartok.tokenizer.model import Tokenizer, TokenizerConfig
from cartok.tokenizer.quantize import Statistics
from cartok.tokenizer.quantize.vq import VQConfig

CRITIC = CriticConfig(channels=8, layers=2, start=10, ramp=4)


class _Distance(nn.Module):
    """Stands for a perceptual network: one distance a picture."""

    def forward(self, image, target):
        return (image - target).abs().mean((1, 2, 3))


@pytest.fixture
def tokenizer() -> Tokenizer:
    torch.manual_seed(0)
    codec = CodecConfig(
        channels=8, multipliers=(1, 2), encoder_blocks=1, decoder_blocks=1, latent_channels=12,
        groups=4, stem=2,
    )  # fmt: skip
    return Tokenizer(TokenizerConfig(codec=codec, quantizer=VQConfig(codebook_size=16, dim=4)))


def some_causal_loss() -> CausalLoss:
    return CausalLoss(*(torch.tensor(value) for value in (0.5, 0.25, 0.75, 2.0)))


def terms_of(tokenizer, config: LossConfig, step=0, **given):
    image = torch.rand(2, 3, 16, 16, generator=torch.Generator().manual_seed(1)) * 2 - 1
    encoded = tokenizer.encode(image)
    reconstruction = tokenizer.decode(encoded.quantized.codes)
    given = {"perceptual": None, "critic": None, "causal": None} | given
    terms = codec_terms(config, image, reconstruction, encoded, step=step, **given)
    return terms, image, reconstruction, encoded


def test_the_objective_is_the_weighted_sum_of_its_terms(tokenizer):
    config = LossConfig(
        pixel_l2=2.0, pixel_l1=0.5, perceptual=3.0, codebook=0.7, commitment=0.25, critic=CRITIC
    )
    critic, causal = Critic(CRITIC), some_causal_loss()
    terms, image, reconstruction, encoded = terms_of(
        tokenizer, config, step=12, perceptual=_Distance(), critic=critic, causal=causal
    )
    total = (
        2.0 * F.mse_loss(reconstruction, image)
        + 0.5 * F.l1_loss(reconstruction, image)
        + 3.0 * _Distance()(reconstruction, image).mean()
        + 0.7 * encoded.quantized.losses["codebook"]
        + 0.25 * encoded.quantized.losses["commitment"]
        + 0.25 * -critic(reconstruction).mean()  # half of 0.5, half-way up the ramp
        + causal.loss
    )
    torch.testing.assert_close(terms.total, total)
    torch.testing.assert_close(terms.losses["critic"], codec_loss(critic(reconstruction)))


def test_terms_that_are_switched_off_are_not_there(tokenizer):
    terms, *_ = terms_of(tokenizer, LossConfig())
    assert terms.losses.keys() == terms.weights.keys() == {"pixel_l2", "codebook", "commitment"}


@pytest.mark.parametrize(("step", "heard"), [(0, False), (9, False), (10, True), (14, True)])
def test_the_codec_hears_the_critic_from_its_start_on(tokenizer, step, heard):
    config = LossConfig(critic=CRITIC)
    terms, *_ = terms_of(tokenizer, config, step=step, critic=Critic(CRITIC))
    assert ("critic" in terms.losses) is heard
    if heard:
        assert terms.weights["critic"] == CRITIC.weight_at(step)


def test_the_causal_term_has_weight_1_since_lambda_is_in_its_gradient(tokenizer):
    causal = some_causal_loss()
    terms, *_ = terms_of(tokenizer, LossConfig(), causal=causal)
    assert terms.weights["causal"] == 1
    assert terms.losses["causal"] is causal.loss
    watched = {name: value.item() for name, value in terms.watched.items()}
    assert watched["next_latent_mse"] == 0.25
    assert watched["next_latent_r2"] == 0.75
    assert watched["latent_variance"] == 2.0


def test_twin_and_alignment_are_terms_of_their_own(tokenizer):
    config = LossConfig(alignment=AlignmentConfig(weight=0.5))
    plain, *_ = terms_of(tokenizer, config)
    terms, *_ = terms_of(
        tokenizer, config, causal=some_causal_loss(), twin=some_causal_loss(),
        alignment=torch.tensor(0.75),
    )  # fmt: skip
    assert terms.weights["twin"] == 1
    torch.testing.assert_close(terms.total, plain.total + 0.5 + 0.5 + 0.5 * 0.75)
    assert terms.watched["twin_r2"] == terms.watched["next_latent_r2"] == 0.75


# ------------------------------------------------------------------ critic and codec


def test_an_adaptive_critic_pulls_at_the_last_layer_as_the_pictures_do(tokenizer):
    config = LossConfig(
        pixel_l1=0.5, perceptual=3.0, critic=CriticConfig(
            channels=8, layers=2, start=10, ramp=4, weighting="adaptive", adaptive_max=1e4
        ),
    )  # fmt: skip
    last_layer = tokenizer.decoder.leave[-1].weight
    critic = Critic(config.critic)
    terms, image, reconstruction, _ = terms_of(
        tokenizer, config, step=12, perceptual=_Distance(), critic=critic, last_layer=last_layer
    )
    pictures = (
        F.mse_loss(reconstruction, image)
        + 0.5 * F.l1_loss(reconstruction, image)
        + 3.0 * _Distance()(reconstruction, image).mean()
    )
    raw = codec_loss(critic(reconstruction))
    wanted, found = (
        torch.autograd.grad(loss, last_layer, retain_graph=True)[0] for loss in (pictures, raw)
    )
    factor = wanted.norm() / found.norm()
    torch.testing.assert_close(terms.watched["critic_factor"], factor)
    torch.testing.assert_close(terms.losses["critic"], raw)  # comparable with a constant weight's
    (heard,) = torch.autograd.grad(terms.losses["critic"], last_layer, retain_graph=True)
    torch.testing.assert_close(heard, factor * found)
    assert terms.weights["critic"] == CRITIC.weight_at(12)  # as a constant one's
    assert last_layer.grad is None


def test_a_constant_critic_needs_no_last_layer_and_an_adaptive_one_does(tokenizer):
    constant, *_ = terms_of(tokenizer, LossConfig(critic=CRITIC), step=12, critic=Critic(CRITIC))
    assert "critic_factor" not in constant.watched
    adaptive = replace(CRITIC, weighting="adaptive")
    with pytest.raises(AssertionError, match="last weight"):
        terms_of(tokenizer, LossConfig(critic=adaptive), step=12, critic=Critic(adaptive))


@pytest.mark.parametrize("weighting", ["constant", "adaptive"])
def test_the_codecs_objective_gives_the_critic_no_gradient(tokenizer, weighting):
    config = replace(CRITIC, weighting=weighting)
    critic = Critic(config)
    terms, *_ = terms_of(
        tokenizer, LossConfig(critic=config), step=12, critic=critic,
        last_layer=tokenizer.decoder.leave[-1].weight,
    )  # fmt: skip
    terms.total.backward()  # without being told whom to move
    assert all(parameter.grad is None for parameter in critic.parameters())
    assert all(parameter.grad is not None for parameter in tokenizer.parameters())


def test_a_loss_taken_now_is_the_loss_and_has_its_gradient():
    weight = torch.randn(3, generator=torch.Generator().manual_seed(0), requires_grad=True)
    image = torch.rand(2, 3, 4, 4, generator=torch.Generator().manual_seed(1))

    def made():
        return image * weight.view(1, 3, 1, 1)

    def loss(x):
        return x.exp().square().mean()

    (wanted,) = torch.autograd.grad(0.7 * loss(made()), weight)
    now = taken_now(loss, made())
    assert now == loss(made())
    torch.testing.assert_close(torch.autograd.grad(0.7 * now, weight)[0], wanted)


def test_a_loss_whose_gradient_is_not_finite_is_not_finite_itself():
    image = torch.zeros(1, 3, 2, 2, requires_grad=True)
    assert image.sqrt().sum() == 0  # with an infinite gradient
    assert not taken_now(lambda x: x.sqrt().sum(), image).isfinite()


def test_the_critics_objective_gives_the_codec_no_gradient(tokenizer):
    critic = Critic(CRITIC)
    image = torch.randn(2, 3, 16, 16)
    reconstruction = tokenizer.decode(tokenizer.encode(image).quantized.codes)
    critic_terms(critic, image, reconstruction).total.backward()
    assert all(parameter.grad is None for parameter in tokenizer.parameters())
    assert all(parameter.grad is not None for parameter in critic.parameters())


def test_the_critics_objective_takes_photographs_for_real():
    critic = Critic(CRITIC)
    image, reconstruction = torch.randn(2, 2, 3, 16, 16)
    terms = critic_terms(critic, image, reconstruction)
    wanted = 0.5 * (F.relu(1 - critic(image)).mean() + F.relu(1 + critic(reconstruction)).mean())
    torch.testing.assert_close(terms.total, wanted)


@pytest.mark.parametrize("loss", ["wasserstein", "non-saturating"])
def test_both_sides_speak_of_the_loss_that_the_config_names(tokenizer, loss):
    config = LossConfig(critic=replace(CRITIC, loss=loss))
    critic = Critic(config.critic)
    terms, image, reconstruction, _ = terms_of(tokenizer, config, step=12, critic=critic)
    fake = critic(reconstruction)
    torch.testing.assert_close(terms.losses["critic"], codec_loss(fake, loss))
    own = critic_terms(critic, image, reconstruction)
    torch.testing.assert_close(own.losses, {loss: critic_loss(critic(image), fake, loss)})


def test_lecam_is_a_term_of_the_critic_that_follows_its_watched_verdicts():
    critic = Critic(replace(CRITIC, lecam=0.25))
    critic.running.means.copy_(torch.tensor([0.5, -0.5]))
    image, reconstruction = torch.randn(2, 2, 3, 16, 16)
    terms = critic_terms(critic, image, reconstruction)
    real, fake = critic(image), critic(reconstruction)
    lecam = critic.running.regularise(real, fake)
    assert lecam > 0
    torch.testing.assert_close(terms.total, critic_loss(real, fake) + 0.25 * lecam)
    assert torch.equal(critic.running.means, torch.tensor([0.5, -0.5]))  # until the step is over
    torch.testing.assert_close(verdicts_of(terms), torch.stack([real.mean(), fake.mean()]))
    assert not verdicts_of(terms).requires_grad


class _Brightness(nn.Module):
    """Verdicts that are the first channel."""

    def forward(self, image):
        return image[:, :1]


def test_the_critics_accuracy_is_the_share_of_verdicts_on_the_right_side():
    image = torch.tensor([3.0, 1.0, 2.0, -2.0]).view(1, 1, 2, 2).expand(1, 3, 2, 2)
    reconstruction = torch.tensor([1.0, -1.0, -4.0, 2.0]).view(1, 1, 2, 2).expand(1, 3, 2, 2)
    critic = Critic(CRITIC)
    critic.layers = _Brightness()
    watched = critic_terms(critic, image, reconstruction).watched
    assert {name: value.item() for name, value in watched.items()} == {
        "verdict_real": 1.0, "verdict_fake": -0.5, "accuracy": (3 / 4 + 2 / 4) / 2
    }  # fmt: skip
    chance = critic_terms(critic, image, image).watched
    assert chance["accuracy"] == 0.5


@pytest.mark.parametrize("weighting", ["constant", "adaptive"])
def test_the_objective_of_shapes_alone_can_be_counted(tokenizer, weighting):
    config = replace(CRITIC, weighting=weighting)
    critic, tokenizer = Critic(config).to("meta"), tokenizer.to("meta")
    image = torch.zeros(2, 3, 16, 16, device="meta")
    with FlopCounterMode(display=False) as counter:
        encoded = tokenizer.encode(image)
        terms = codec_terms(
            LossConfig(critic=config), image, tokenizer.decode(encoded.quantized.codes), encoded,
            perceptual=_Distance(), critic=critic, causal=None, step=12,
            last_layer=tokenizer.decoder.leave[-1].weight,
        )  # fmt: skip
        terms.total.backward(inputs=list(tokenizer.parameters()))
    assert counter.get_flop_counts()["Critic"][torch.ops.aten.convolution_backward] > 0


# ------------------------------------------------------------------ precision


def test_under_bf16_every_term_is_a_float32_close_to_that_of_float32(tokenizer):
    config = LossConfig(
        pixel_l1=0.5, critic=replace(CRITIC, weighting="adaptive", lecam=0.1, ramp=0)
    )
    critic = Critic(config.critic)
    given = {
        "step": 12, "perceptual": _Distance(), "critic": critic,
        "last_layer": tokenizer.decoder.leave[-1].weight,
    }  # fmt: skip

    def all_terms():
        codec, image, reconstruction, _ = terms_of(tokenizer, config, **given)
        return codec, critic_terms(critic, image, reconstruction)

    full = all_terms()
    with torch.autocast("cpu", torch.bfloat16):
        short = all_terms()
    for found, wanted in zip(short, full, strict=True):
        assert found.losses.keys() == wanted.losses.keys()
        for name, value in found.losses.items():
            assert value.dtype == torch.float32, name
            assert value.item() == pytest.approx(wanted.losses[name].item(), rel=0.1, abs=0.02)
        assert all(v.dtype == torch.float32 for v in found.watched.values())
    factors = [terms[0].watched["critic_factor"].item() for terms in (short, full)]
    assert factors[0] == pytest.approx(factors[1], rel=0.2)


def test_pixel_losses_of_bf16_pictures_do_not_round_to_bf16(tokenizer):
    image = torch.zeros(2, 3, 16, 16)
    encoded = tokenizer.encode(image)
    reconstruction = torch.full_like(image, 0.1).bfloat16().requires_grad_()
    terms = codec_terms(
        LossConfig(pixel_l1=1.0), image, reconstruction, encoded,
        perceptual=_Distance(), critic=None, causal=None, step=0,
    )  # fmt: skip
    tenth = reconstruction[0, 0, 0, 0].item()  # as bf16 has it
    assert terms.losses["pixel_l2"].item() == pytest.approx(tenth**2, rel=1e-6)
    assert terms.losses["pixel_l1"].item() == pytest.approx(tenth, rel=1e-6)


def test_every_parameter_of_the_tokenizer_gets_a_gradient(tokenizer):
    terms, *_ = terms_of(tokenizer, LossConfig())
    terms.total.backward()
    for name, parameter in tokenizer.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.abs().max() > 0, name


@pytest.mark.parametrize(
    ("counts", "usage", "perplexity"),
    [([5, 5, 5, 5], 1.0, 4.0), ([7, 7, 0, 0], 0.5, 2.0), ([9, 0, 0, 0], 0.25, 1.0),
     ([3, 1, 0, 0], 0.5, 4 / 27**0.25)],
)  # fmt: skip
def test_usage_and_perplexity_of_known_counts(tokenizer, counts, usage, perplexity):
    encoded = tokenizer.encode(torch.zeros(1, 3, 16, 16))
    statistics = Statistics(torch.tensor(counts).float(), torch.zeros(1, 4))
    object.__setattr__(encoded.quantized, "statistics", statistics)
    watched = watched_of(encoded)
    assert watched["batch_usage"] == usage
    assert watched["batch_perplexity"].item() == pytest.approx(perplexity)


@pytest.mark.parametrize("name", ["pixel_l2", "perceptual", "codebook", "commitment"])
def test_negative_weights_are_refused(name):
    with pytest.raises(ConfigError, match="must not be negative: -1"):
        LossConfig(**{name: -1.0})


def test_an_objective_without_a_pixel_term_is_refused():
    with pytest.raises(ConfigError, match="pixel_l1 or pixel_l2 must be above 0"):
        LossConfig(pixel_l2=0.0)
    assert LossConfig(pixel_l2=0.0, pixel_l1=1.0).pixel_l1 == 1
