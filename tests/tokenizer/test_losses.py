import pytest
import torch
from torch import nn
from torch.nn import functional as F

from cartok.core.config import ConfigError
from cartok.tokenizer.causal import CausalLoss
from cartok.tokenizer.codec import CodecConfig
from cartok.tokenizer.critic import Critic, CriticConfig, codec_loss
from cartok.tokenizer.losses import LossConfig, codec_terms, critic_terms, watched_of
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
