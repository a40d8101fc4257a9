"""The contribution: a small causal transformer over latents, and its loss.

Causally Regularized Tokenization (arXiv 2412.16326, section 3.6): while the tokenizer trains, a
two-layer causal transformer predicts each latent from those before it, in raster order, and its
squared error flows back into the encoder. Tokens become easier to predict; the predictor is thrown
away afterwards.

    loss = mean over batch, position and channel of |predicted - next latent|^2

The predictor trains on that loss as it is. The encoder feels it times lambda: the gradient is
scaled where it enters the latents, which is what the paper's division of the predictor's loss by
lambda comes to. At lambda 0 the latents are detached, and the predictor is a pure probe.

What the paper leaves open is a field of ``CausalConfig``.
"""

from dataclasses import dataclass
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F

from cartok.core.config import config
from cartok.core.shapes import Latents, Sequence
from cartok.layers import Transformer, TransformerConfig, rotary_table
from cartok.tokenizer.model import Encoded

Scalar = Float[Tensor, ""]


@config
class CausalConfig:
    """The regulariser; defaults are the paper's, or the likeliest reading where it is silent."""

    weight: float = 4.0
    """Lambda. 0 leaves the encoder alone: switching the contribution off is this one number."""
    anneal_steps: int = 1000
    """Steps over which the weight rises from 0, in a straight line."""
    watch: bool = True
    """At weight 0, still train the predictor on detached latents, as the twin to compare with."""
    transformer: TransformerConfig = TransformerConfig(width=1024, depth=2, heads=16)
    """Depth 2 is the paper's; the width is not stated (1024 costs 3.5 % of a step, 1280 5 %)."""
    weight_decay: float = 0.1
    """Of the predictor's own AdamW; its rate and betas are the codec's at every step."""
    space: Literal["lookup", "projected", "encoder"] = "lookup"
    """Which latents: as they enter the look-up, before normalisation, or the encoder's output."""
    reads: Literal["latents", "codes", "noisy"] = "latents"
    """What the predictor sees: the latents, straight-through codes, or latents with noise of the
    quantisation's size. The paper reads latents; the other two leave no room to hide the next
    latent where the codebook drops it."""
    detach_target: bool = False
    loss: Literal["l2", "cosine"] = "l2"
    start: Literal["skip", "learned"] = "skip"
    """Position 0: not predicted, or predicted from a learned start vector."""
    scale: Literal["auto", "none", "variance"] = "auto"
    """Division by the detached batch variance, since the weight means nothing where latents have a
    free scale; auto divides off the unit sphere only."""

    def __post_init__(self):
        if min(self.weight, self.anneal_steps, self.weight_decay) < 0:
            raise ValueError(
                f"weight, anneal_steps and weight_decay must not be negative: {self.weight:g}, "
                f"{self.anneal_steps}, {self.weight_decay:g}"
            )
        if self.space != "lookup" and self.reads != "latents":
            raise ValueError(
                f"reads '{self.reads}' compares codes with the latents that enter the look-up; "
                f"space must then be 'lookup', not '{self.space}'"
            )

    def weight_at(self, step: int) -> float:
        """Lambda at a step, counted from 0."""
        return self.weight * min(1.0, step / self.anneal_steps if self.anneal_steps else 1.0)

    @property
    def is_used(self) -> bool:
        """True if a predictor exists: it regularises, or it watches."""
        return self.weight > 0 or self.watch


@dataclass(frozen=True)
class CausalLoss:
    """The regulariser's loss, and what shows whether it is won without helping."""

    loss: Scalar
    """What is minimised; its gradient reaches the encoder times lambda."""
    next_latent_mse: Scalar
    """Mean squared error of the next latent. Below the commitment error beside it, suspect that
    the next latent is hidden under the quantisation step."""
    next_latent_r2: Scalar
    """Share of the variance that is predicted; unlike the error, shrinking cannot raise it."""
    latent_variance: Scalar
    """Over batch and positions, mean of channels. Falls when latents shrink to be predictable."""

    @property
    def watched(self) -> dict[str, Scalar]:
        """What is logged beside the loss."""
        return {
            "next_latent_mse": self.next_latent_mse,
            "next_latent_r2": self.next_latent_r2,
            "latent_variance": self.latent_variance,
        }


class CausalPredictor(nn.Module):
    """Predicts each vector of a sequence from those before it.

    The stage-2 transformer with its token embedding replaced by one linear layer (paper, A.1) and,
    for want of a classifier, one linear layer back to the latents' channels.
    """

    def __init__(self, config: CausalConfig, channels: int):
        super().__init__()
        self.config = config
        self.read = nn.Linear(channels, config.transformer.width)
        self.transformer = Transformer(config.transformer)
        self.write = nn.Linear(config.transformer.width, channels)
        self._tables: dict[tuple, Tensor] = {}
        if config.start == "learned":
            self.start = nn.Parameter(torch.zeros(config.transformer.width))

    def forward(self, latents: Latents) -> Sequence:
        """Predictions in raster order.

        With ``start="skip"`` one fewer than cells: entry i predicts cell i + 1 from cells 0 to i.
        With ``start="learned"`` one for every cell, the first from the start vector.
        """
        rows, cols = latents.shape[-2:]
        inputs = self.read(in_raster_order(latents)[:, :-1])
        prefix = 0
        if self.config.start == "learned":
            start = self.start.to(inputs.dtype).expand(len(inputs), 1, -1)
            inputs, prefix = torch.cat([start, inputs], dim=1), 1
        return self.write(self.transformer(inputs, self._rotary(rows, cols, prefix, inputs)))

    def regularise(
        self, encoded: Encoded, weight: float, generator: torch.Generator | None = None
    ) -> CausalLoss:
        """The loss on a batch's latents; the encoder's share of the gradient is ``weight`` times.

        ``generator`` draws the noise of ``reads="noisy"``.
        """
        latents = scale_gradient(self._latents(encoded), weight)
        target = in_raster_order(latents).float()
        predicted = self(self._inputs(latents, encoded, generator)).float()
        target = target[:, target.shape[1] - predicted.shape[1] :]
        kept = target.detach()
        variance = kept.var((0, 1), correction=0).mean()
        mse = F.mse_loss(predicted.detach(), kept)
        if self.config.detach_target:
            target = kept
        loss = self._distance(predicted, target)
        if self._divides(encoded):
            loss = loss / variance.clamp_min(1e-6)
        return CausalLoss(loss, mse, 1 - mse / variance.clamp_min(1e-12), variance)

    def _rotary(self, rows: int, cols: int, prefix: int, like: Tensor) -> Tensor:
        """The table of a grid, made once on each device: making it would stall a GPU every step."""
        key = (rows, cols, like.device)
        if key not in self._tables:
            shape = self.config.transformer
            table = rotary_table(rows, cols, shape.head_dim, shape.rope_base, prefix)
            self._tables[key] = table.to(like.device)
        return self._tables[key]

    def _latents(self, encoded: Encoded) -> Latents:
        return {
            "lookup": encoded.quantized.latents,
            "projected": encoded.projected,
            "encoder": encoded.encoder_output,
        }[self.config.space]

    def _inputs(
        self, latents: Latents, encoded: Encoded, generator: torch.Generator | None
    ) -> Latents:
        if self.config.reads == "latents":
            return latents
        if self.config.reads == "codes":
            return latents + (encoded.quantized.codes - encoded.quantized.latents).detach()
        size = encoded.quantized.error.sqrt()
        noise = torch.randn(latents.shape, generator=generator, device=latents.device)
        return latents + size * noise

    def _distance(self, predicted: Sequence, target: Sequence) -> Scalar:
        if self.config.loss == "cosine":
            return 1 - F.cosine_similarity(predicted, target, dim=-1).mean()
        return F.mse_loss(predicted, target)

    def _divides(self, encoded: Encoded) -> bool:
        if self.config.loss == "cosine" or self.config.scale == "none":
            return False
        # On the sphere a channel's mean square is 1/d whatever the encoder does.
        free = self.config.space != "lookup" or not encoded.quantized.on_sphere
        return free or self.config.scale == "variance"


def in_raster_order(latents: Latents) -> Sequence:
    """The grid's vectors left to right, then top to bottom."""
    return latents.flatten(2).transpose(1, 2)


class _ScaleGradient(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x: Tensor, scale: float) -> Tensor:
        ctx.scale = scale
        return x.view_as(x)

    @staticmethod
    def backward(ctx, *gradients: Tensor) -> tuple[Tensor, None]:
        return gradients[0] * ctx.scale, None


def scale_gradient(x: Tensor, scale: float) -> Tensor:
    """``x`` itself, through which gradients pass times ``scale``; at 0 none pass, not even NaN."""
    return _ScaleGradient.apply(x, scale) if scale else x.detach()
