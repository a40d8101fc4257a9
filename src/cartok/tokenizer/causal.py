"""The contribution: a small causal transformer over latents, and its loss.

Causally Regularized Tokenization (arXiv 2412.16326, section 3.6): while the tokenizer trains, a
two-layer causal transformer predicts each latent from those before it, in raster order, and its
squared error flows back into the encoder. Tokens become easier to predict; the predictor is thrown
away afterwards.

    loss = mean over batch, position and channel of |predicted - next latent|^2

The predictor trains on that loss as it is. The encoder feels it times lambda: the gradient is
scaled where it enters the latents, which is what the paper's division of the predictor's loss by
lambda comes to. At lambda 0 the latents are detached, and the predictor is a pure probe.

What the paper leaves open is a field of ``CausalConfig`` (``forms.py``).
"""

from collections.abc import Callable

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F

from cartok.core.errors import UserError
from cartok.core.shapes import Codes, Latents, Logits, Sequence, Tokens, TokenSequence
from cartok.layers import Rotary, Transformer, rotary_table
from cartok.tokenizer.controls import CausalLoss, Scalar, share_of_gradient, variance_of
from cartok.tokenizer.forms import CausalConfig
from cartok.tokenizer.model import Encoded
from cartok.tokenizer.order import Permutation, in_order, in_raster_order, on_grid, order_of

CodesOf = Callable[[Tokens], Codes]
"""A quantizer's codebook, as a function."""


_LOG_RANGE = 12.0  # of a predicted variance: far beyond what noise leaves possible


class CausalPredictor(nn.Module):
    """Predicts each vector of a sequence, or its token, from those before it.

    The stage-2 transformer with its token embedding replaced by one linear layer (paper, A.1) and,
    for want of a classifier, one linear layer back to the latents' channels. With ``loss="ce"``
    that layer is the classifier, over ``codebook_size`` tokens.
    """

    def __init__(self, config: CausalConfig, channels: int, codebook_size: int = 0):
        super().__init__()
        if config.loss == "ce" and not codebook_size:
            raise UserError(
                "loss 'ce' predicts tokens, but codebook_size is 0; pass the codebook's"
            )
        self.config = config
        self.read = nn.Linear(channels, config.transformer.width)
        self.transformer = Transformer(config.transformer)
        outputs = {"ce": codebook_size, "rate": channels + 1}.get(config.loss, channels)
        self.write = nn.Linear(config.transformer.width, outputs)
        self._places: dict[tuple, tuple[Permutation, Rotary]] = {}
        if config.start == "learned":
            self.start = nn.Parameter(torch.zeros(config.transformer.width))

    def forward(self, latents: Latents) -> Sequence | Logits:
        """Predictions of the cells in the config's order.

        With ``start="skip"`` one fewer than cells: entry i predicts cell i + 1 from cells 0 to i.
        With ``start="learned"`` one for every cell, the first from the start vector.
        """
        _, rotary = self._places_of(latents)
        inputs = self.read(self.sequence_of(latents)[:, :-1])
        if self.config.start == "learned":
            start = self.start.to(inputs.dtype).expand(len(inputs), 1, -1)
            inputs = torch.cat([start, inputs], dim=1)
        return self.write(self.transformer(inputs, rotary))

    def sequence_of(self, latents: Latents) -> Sequence:
        """All the grid's vectors in the config's order."""
        if self.config.order == "raster":
            return in_raster_order(latents)
        return in_order(latents, self._places_of(latents)[0])

    def regularise(
        self,
        encoded: Encoded,
        weight: float,
        generator: torch.Generator | None = None,
        codes_of: CodesOf | None = None,
    ) -> CausalLoss:
        """The loss on a batch's latents; the encoder's share of the gradient is ``weight`` times.

        ``generator`` draws the noise of ``reads="noisy"`` and which inputs are sampled. Sampled
        tokens, of loss ``ce``, need ``codes_of``, the quantizer's.

        Raises:
            UserError: loss ``ce`` meets a quantizer that makes several tokens of a latent, or has
                to sample without ``codes_of``.
        """
        cells = encoded.quantized.latents[:, 0].numel()
        refuse_several_tokens(self.config, encoded.quantized.tokens.numel() // cells)
        found = self._latents(encoded)
        latents = scale_gradient(found, weight)
        share = share_of_gradient(found, latents, weight)
        inputs = self._inputs(latents, encoded, generator)
        if self.config.scheduled_sampling and self.training:
            inputs = self._sampled(inputs, generator, codes_of)
        predicted = self(inputs).float()
        num = predicted.shape[1]
        watched = {
            "latent_variance": variance_of(self.sequence_of(latents.detach())[:, -num:].float()),
            "quantisation_mse": encoded.quantized.error,
            "causal_share": share,
        }
        if self.config.loss == "ce":
            tokens = self._tokens(encoded)[:, -num:]
            loss = F.cross_entropy(predicted.flatten(0, 1), tokens.flatten())
            right = (predicted.detach().argmax(-1) == tokens).float().mean()
            return CausalLoss(loss, None, None, next_token_accuracy=right, **watched)
        target = self.sequence_of(self._target(latents, encoded))[:, -num:].float()
        variance = variance_of(target)
        if self.config.loss == "rate":
            predicted, loss = _rate(predicted, self.sequence_of(inputs)[:, -num:].float())
            if self._has_free_scale(encoded):  # else shrunk latents would cost less
                loss = loss - 0.5 * variance.clamp_min(1e-6).log()
        else:
            loss = self._distance(predicted, target)
        if self._divides(encoded):
            loss = loss / self._divisor(variance)
        mse = F.mse_loss(self._sized(predicted, target).detach(), target.detach())
        r2 = 1 - mse / variance.detach().clamp_min(1e-12)
        return CausalLoss(loss, mse, r2, **watched)

    def _places_of(self, latents: Latents) -> tuple[Permutation, Rotary]:
        """A grid's order and rotary angles, made once on each device, since it stalls a GPU."""
        rows, cols = latents.shape[-2:]
        key = (rows, cols, latents.device)
        if key not in self._places:
            shape, prefix = self.config.transformer, int(self.config.start == "learned")
            order = order_of(self.config.order, rows, cols)
            rotary = rotary_table(rows, cols, shape.head_dim, shape.rope_base, prefix)
            rotary = torch.cat([rotary[:prefix], rotary[prefix:][order]])
            self._places[key] = order.to(latents.device), rotary.to(latents.device)
        return self._places[key]

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
            return _straight_through(latents, encoded)
        size = encoded.quantized.error.sqrt()
        noise = torch.randn(latents.shape, generator=generator, device=latents.device)
        return latents + size * noise

    def _sampled(
        self, inputs: Latents, generator: torch.Generator | None, codes_of: CodesOf | None
    ) -> Latents:
        """Inputs, some of which are what a first pass predicts in their place."""
        order, _ = self._places_of(inputs)
        true = self.sequence_of(inputs)
        # Not under no_grad: autocast would keep the weights without gradient (pytorch#65766).
        predicted = self(inputs.detach()).detach().float()
        skipped = true.shape[1] - predicted.shape[1]
        if self.config.loss == "ce":
            own = self._codes(predicted.argmax(-1), codes_of)
        else:
            own = self._sized(predicted, true[:, skipped:].detach())
        own = on_grid(torch.cat([true[:, :skipped], own], dim=1), order, *inputs.shape[-2:])
        draws = torch.rand(inputs[:, :1].shape, generator=generator, device=inputs.device)
        return torch.where(draws < self.config.scheduled_sampling, own.to(inputs.dtype), inputs)

    def _codes(self, tokens: TokenSequence, codes_of: CodesOf | None) -> Sequence:
        if codes_of is None:
            raise UserError("loss 'ce' samples tokens, whose codes it must know; pass codes_of")
        return in_raster_order(codes_of(tokens[:, None]).detach())

    def _tokens(self, encoded: Encoded) -> TokenSequence:
        order, _ = self._places_of(encoded.quantized.latents)
        return encoded.quantized.tokens.flatten(1).index_select(1, order)

    def _target(self, latents: Latents, encoded: Encoded) -> Latents:
        if self.config.target == "codes":
            return _straight_through(latents, encoded)
        return latents.detach() if self.config.target == "detached" else latents

    def _distance(self, predicted: Sequence, target: Sequence) -> Scalar:
        if self.config.loss == "cosine":
            return 1 - F.cosine_similarity(predicted, target, dim=-1).mean()
        if self.config.reduction == "norm":
            return torch.linalg.vector_norm(predicted - target, dim=-1).mean()
        channels = target.shape[-1] if self.config.reduction == "sum" else 1
        return channels * F.mse_loss(predicted, target)

    def _divides(self, encoded: Encoded) -> bool:
        if self.config.loss != "l2" or self.config.scale == "none":
            return False
        return self._has_free_scale(encoded) or self.config.scale != "auto"

    def _has_free_scale(self, encoded: Encoded) -> bool:
        """False on the sphere: a channel's mean square is 1/d whatever the encoder does.

        Its variance is not: latents can huddle round a pole (docs/research-log.md).
        """
        return self.config.space != "lookup" or not encoded.quantized.on_sphere

    def _divisor(self, variance: Scalar) -> Scalar:
        """Of the loss's own power: the variance of squares, the deviation of a norm."""
        variance = variance.detach() if self.config.scale == "variance" else variance
        variance = variance.clamp_min(1e-6)
        return variance.sqrt() if self.config.reduction == "norm" else variance

    def _sized(self, predicted: Sequence, target: Sequence) -> Sequence:
        """Predictions as vectors; the cosine leaves their length open, so it is the target's."""
        if self.config.loss != "cosine":
            return predicted
        return F.normalize(predicted, dim=-1) * target.norm(dim=-1, keepdim=True)


def _straight_through(latents: Latents, encoded: Encoded) -> Codes:
    """The codes, whose gradient goes to these latents."""
    return latents + (encoded.quantized.codes - encoded.quantized.latents).detach()


def refuse_several_tokens(config: CausalConfig, tokens_per_cell: int) -> None:
    """Refuses a form that does not go with a quantizer.

    Raises:
        UserError: loss ``ce`` meets a quantizer that makes several tokens of a latent.
    """
    if config.loss == "ce" and tokens_per_cell > 1:
        raise UserError(
            f"loss 'ce' predicts one token of a latent, but this quantizer makes "
            f"{tokens_per_cell}; set causal.loss to 'l2'"
        )


def _rate(
    predicted: Float[Tensor, "batch position _"], target: Sequence
) -> tuple[Sequence, Scalar]:
    """The predicted means, and nats a channel of the target under Gaussians round them.

    But for half the log of 2 pi. The last of the predicted channels is the log of each cell's
    variance.
    """
    mean, log_variance = predicted[..., :-1], predicted[..., -1:].clamp(-_LOG_RANGE, _LOG_RANGE)
    squares = (target - mean).square() * torch.exp(-log_variance)
    return mean, 0.5 * (squares + log_variance).mean()


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
