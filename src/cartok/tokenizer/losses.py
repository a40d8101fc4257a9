"""The codec's and the critic's objectives as named, weighted terms, each a float32 mean.

codec  = pixel + perceptual + codebook + beta * commitment + w(step) * critic + lambda * causal
         [+ twin + alignment]
critic = hinge on photographs and reconstructions [+ LeCam]
"""

from collections.abc import Callable

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F

from cartok.core.config import config
from cartok.core.job import Terms
from cartok.core.precision import full_precision
from cartok.core.shapes import Image
from cartok.frozen import Teacher
from cartok.tokenizer.alignment import AlignmentConfig
from cartok.tokenizer.controls import CausalLoss
from cartok.tokenizer.critic import (
    AnyCritic,
    CriticConfig,
    adaptive_factor,
    codec_loss,
    critic_loss,
)
from cartok.tokenizer.model import Encoded

Scalar = Float[Tensor, ""]


@config
class LossConfig:
    """Weights of the terms; the defaults are the paper's (A.1)."""

    pixel_l2: float = 1.0
    pixel_l1: float = 0.0
    perceptual: float = 1.0
    """Feature distance of a frozen network."""
    perceptual_network: Teacher = "effnet-lite2"
    """The paper's is LPIPS on VGG16; EfficientNet-Lite2 needs no download."""
    perceptual_weights: str = ""
    """Path of that network's published file; '': where its package or the cache has it."""
    codebook: float = 1.0
    commitment: float = 0.25
    """Beta: how strongly latents are held to their codes."""
    entropy: float = 0.1
    """Of the quantizers that ask for it (LFQ, BSQ): spreads latents over the codes."""
    critic: CriticConfig = CriticConfig()
    alignment: AlignmentConfig = AlignmentConfig()
    dino_weights: str = ""
    """Path of DINOv2's published file, for a DINO critic or the alignment; '': the cache's."""

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
    perceptual: nn.Module | None,
    critic: AnyCritic | None,
    causal: CausalLoss | None,
    step: int,
    twin: CausalLoss | None = None,
    alignment: Scalar | None = None,
    last_layer: Tensor | None = None,
) -> Terms:
    """The codec's objective on one batch.

    ``twin`` is the loss of the causal predictor's control, ``alignment`` that of an
    ``AlignmentHead``. ``last_layer``, the decoder's last weight, is needed where the critic's
    weight is adaptive.

    The causal term carries weight 1 here: lambda is in its gradient (see ``causal.py``). So is the
    factor of an adaptive critic, whose term stays comparable between the two weightings; it is
    watched as ``critic_factor``. The critic itself gets no gradient of this objective.
    """
    losses = _picture_losses(config, image, reconstruction, perceptual)
    weights = {
        "pixel_l2": config.pixel_l2,
        "pixel_l1": config.pixel_l1,
        "perceptual": config.perceptual,
        "critic": config.critic.weight_at(step),
        "codebook": config.codebook,
        "commitment": config.commitment,
        "entropy": config.entropy,
        "causal": 1.0,
        "twin": 1.0,
        "alignment": config.alignment.weight,
    }
    watched = watched_of(encoded)
    if critic is not None and step >= config.critic.start:
        pictures = Terms(losses, weights).total
        losses["critic"], found = _heard(
            config.critic, critic, reconstruction, pictures, last_layer
        )
        watched |= found
    losses |= encoded.quantized.losses
    if causal is not None:
        losses["causal"] = causal.loss
        watched |= causal.watched
    if twin is not None:
        losses["twin"] = twin.loss
        watched |= {f"twin_{name}": twin.watched[f"next_latent_{name}"] for name in ("r2", "mse")}
    if alignment is not None:
        losses["alignment"] = alignment
    return Terms(losses, {name: weights[name] for name in losses}, watched)


def critic_terms(critic: AnyCritic, image: Image, reconstruction: Image) -> Terms:
    """The critic's objective on one batch; the codec gets no gradient of it.

    Watched are the mean verdicts, which LeCam's running means follow (see ``verdicts_of``), and the
    share of verdicts on the right side of 0: near 1 the critic has won and teaches little.
    """
    real, fake = critic(image).float(), critic(reconstruction.detach()).float()
    name = critic.config.loss
    losses: dict[str, Tensor] = {name: critic_loss(real, fake, name)}
    weights: dict[str, float] = {name: 1.0}
    if critic.running is not None:
        losses["lecam"] = critic.running.regularise(real, fake)
        weights["lecam"] = critic.config.lecam
    right = 0.5 * ((real > 0).float().mean() + (fake < 0).float().mean())
    watched = {
        "verdict_real": real.detach().mean(),
        "verdict_fake": fake.detach().mean(),
        "accuracy": right,
    }
    return Terms(losses, weights, watched)


def verdicts_of(terms: Terms) -> Float[Tensor, "2"]:
    """The mean verdicts on photographs and on reconstructions, of the critic's terms.

    What ``RunningVerdicts.update`` hears, once it is the mean over all parts and ranks.
    """
    return torch.stack([terms.watched["verdict_real"], terms.watched["verdict_fake"]])


def watched_of(encoded: Encoded) -> dict[str, Tensor]:
    """How many codes this batch uses, as a share and as a perplexity."""
    counts = encoded.quantized.statistics.counts
    shares = counts / counts.sum()
    entropy = -torch.xlogy(shares, shares).sum()
    return {"batch_usage": (counts > 0).float().mean(), "batch_perplexity": entropy.exp()}


def _heard(
    config: CriticConfig,
    critic: AnyCritic,
    reconstruction: Image,
    pictures: Scalar,
    last_layer: Tensor | None,
) -> tuple[Scalar, dict[str, Tensor]]:
    """The critic's term, and what is watched of it: a factor that is adaptive, in its gradient."""
    loss = taken_now(lambda x: codec_loss(critic(x), config.loss), reconstruction)
    if config.weighting == "constant":
        return loss, {}
    assert last_layer is not None, "an adaptive critic needs the decoder's last weight"
    factor = adaptive_factor(pictures, loss, last_layer, config.adaptive_max)
    return loss.detach() + factor * (loss - loss.detach()), {"critic_factor": factor}


def taken_now(loss: Callable[[Image], Tensor], image: Image) -> Scalar:
    """A loss of pictures whose backward pass down to them has already run; float32.

    What a network between loss and pictures keeps for that pass is freed here, before the next
    network is asked; and an adaptive weight sees the gradient without a second pass. A gradient
    that is not finite makes the loss itself so, and the loop names the term.
    """
    leaf = image.detach().requires_grad_()
    value = loss(leaf).float()
    with full_precision(image.device):  # as in any backward pass: autocast would reach into it
        value.backward(inputs=[leaf])  # autograd.grad would not be counted by FlopCounterMode
        assert leaf.grad is not None
        return value.detach() + ((image - leaf.detach()).float() * leaf.grad.float()).sum()


def _picture_losses(
    config: LossConfig, image: Image, reconstruction: Image, perceptual: nn.Module | None
) -> dict[str, Tensor]:
    """What ties pictures down, without the critic."""
    seen, wanted = reconstruction.float(), image.float()
    losses = {"pixel_l2": F.mse_loss(seen, wanted)}
    if config.pixel_l1:
        losses["pixel_l1"] = F.l1_loss(seen, wanted)
    if perceptual is not None:
        losses["perceptual"] = taken_now(lambda x: perceptual(x, image).mean(), reconstruction)
    return losses
