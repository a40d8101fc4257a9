"""The codec's and the critic's objectives as named, weighted terms.

codec  = pixel + perceptual + codebook + beta * commitment + w(step) * critic + lambda * causal
critic = hinge on photographs and reconstructions
"""

import torch
from torch.nn import functional as F

from cartok.core.config import config
from cartok.core.job import Terms
from cartok.core.shapes import Image
from cartok.tokenizer.causal import CausalLoss
from cartok.tokenizer.critic import Critic, CriticConfig, codec_loss, critic_loss
from cartok.tokenizer.model import Encoded


@config
class LossConfig:
    """Weights of the terms; the defaults are the paper's (A.1)."""

    pixel_l2: float = 1.0
    pixel_l1: float = 0.0
    perceptual: float = 1.0
    """Feature distance of a frozen network; the paper's is LPIPS on VGG16, ours EfficientNet-Lite2
    where nothing may be downloaded."""
    codebook: float = 1.0
    commitment: float = 0.25
    """Beta: how strongly latents are held to their codes."""
    entropy: float = 0.1
    """Of the quantizers that ask for it (LFQ, BSQ): spreads latents over the codes."""
    critic: CriticConfig = CriticConfig()

    def __post_init__(self):
        weights = (
            self.pixel_l2,
            self.pixel_l1,
            self.perceptual,
            self.codebook,
            self.commitment,
            self.entropy,
        )
        if min(weights) < 0:
            raise ValueError(f"loss weights must not be negative: {min(weights)}")
        if self.pixel_l1 + self.pixel_l2 == 0:
            raise ValueError("pixel_l1 or pixel_l2 must be above 0, or nothing ties pictures down")


def codec_terms(
    config: LossConfig,
    image: Image,
    reconstruction: Image,
    encoded: Encoded,
    *,
    perceptual: torch.nn.Module | None,
    critic: Critic | None,
    causal: CausalLoss | None,
    step: int,
) -> Terms:
    """The codec's objective on one batch.

    The causal term carries weight 1 here: lambda is in its gradient (see ``causal.py``).
    """
    losses = {
        "pixel_l2": F.mse_loss(reconstruction, image),
        **encoded.quantized.losses,
    }
    weights = {
        "pixel_l2": config.pixel_l2,
        "codebook": config.codebook,
        "commitment": config.commitment,
        "entropy": config.entropy,
    }
    weights = {name: weights[name] for name in losses}
    if config.pixel_l1:
        losses["pixel_l1"] = F.l1_loss(reconstruction, image)
        weights["pixel_l1"] = config.pixel_l1
    if perceptual is not None:
        losses["perceptual"] = perceptual(reconstruction, image).mean()
        weights["perceptual"] = config.perceptual
    if critic is not None and step >= config.critic.start:
        losses["critic"] = codec_loss(critic(reconstruction))
        weights["critic"] = config.critic.weight_at(step)
    watched = watched_of(encoded)
    if causal is not None:
        losses["causal"], weights["causal"] = causal.loss, 1.0
        watched |= causal.watched
    return Terms(losses, weights, watched)


def critic_terms(critic: Critic, image: Image, reconstruction: Image) -> Terms:
    """The critic's objective on one batch; the codec gets no gradient of it."""
    loss = critic_loss(critic(image), critic(reconstruction.detach()))
    return Terms({"hinge": loss}, {"hinge": 1.0})


def watched_of(encoded: Encoded) -> dict[str, torch.Tensor]:
    """How many codes this batch uses, as a share and as a perplexity."""
    counts = encoded.quantized.statistics.counts
    shares = counts / counts.sum()
    entropy = -torch.xlogy(shares, shares).sum()
    return {"batch_usage": (counts > 0).float().mean(), "batch_perplexity": entropy.exp()}
