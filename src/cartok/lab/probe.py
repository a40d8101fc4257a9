"""How predictable frozen latents are: fresh causal nets of a fixed budget, the same for any arm.

Two nets predict the next latent: one reads latents, one reads the codes they became. Only the
second sees what the prior will see. Where the first gains and the second does not, the regulariser
was won by hiding the next latent below the quantisation step.
"""

import math
from collections.abc import Iterable
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional as F

from cartok.core.config import config
from cartok.core.optim import OptimConfig, adamw_of, rate_of
from cartok.core.shapes import Codes, Latents, Tokens
from cartok.layers import TransformerConfig
from cartok.tokenizer.causal import CausalConfig, CausalPredictor
from cartok.tokenizer.model import Tokenizer
from cartok.tokenizer.order import in_raster_order

_AT_ONCE = 128


@config
class ProbeConfig:
    """The probe's budget; numbers from different budgets do not compare."""

    steps: int = 150
    batch: int = 64
    transformer: TransformerConfig = TransformerConfig(
        width=64, depth=2, heads=2, hidden_multiple=32
    )
    optim: OptimConfig = OptimConfig(lr=2e-3, warmup_steps=20, schedule="cosine", weight_decay=0.1)
    seed: int = 0

    def __post_init__(self):
        if self.transformer.dropout:
            raise ValueError("the probe draws nothing but batches, so its dropout must be 0")


@dataclass(frozen=True)
class FrozenLatents:
    """What a trained tokenizer makes of some pictures."""

    latents: Latents
    """As they entered the look-up."""
    codes: Codes
    tokens: Tokens

    @property
    def quantisation_mse(self) -> float:
        """Mean squared distance of latents and codes: the size of the quantisation."""
        return F.mse_loss(self.latents, self.codes).item()

    @property
    def variance(self) -> float:
        """Over pictures and cells, mean of channels."""
        return self.latents.movedim(1, -1).flatten(0, 2).var(0, correction=0).mean().item()

    @property
    def code_dimension(self) -> float:
        """Of the space that codes take up, 1 to their channels, 0 if there is one code alone.

        The participation ratio of their covariance, (sum of eigenvalues)² / sum of squares: d if d
        directions vary alike and the others not.
        """
        codes = self.codes.movedim(1, -1).flatten(0, 2).double()
        covariance = torch.cov(codes.T).reshape(codes.shape[1], -1)
        if not covariance.isfinite().all():
            return math.nan
        spread = torch.linalg.eigvalsh(covariance)
        power = spread.square().sum()
        return (spread.sum().square() / power).item() if power > 0 else 0.0


@dataclass(frozen=True)
class ProbeResult:
    """On held-out pictures."""

    next_latent_mse: float
    """Of the net that reads latents."""
    r2_latents: float
    """Share of the next latent's variance that the latents before it predict."""
    r2_codes: float
    """The same from codes."""


@torch.no_grad()
def frozen_latents(
    tokenizer: Tokenizer, batches: Iterable[Float[Tensor, "_ 3 height width"]]
) -> FrozenLatents:
    """What a tokenizer in evaluation mode makes of batches of pictures; on the CPU."""
    device = next(tokenizer.parameters()).device
    found = [tokenizer.encode(batch.to(device)).quantized for batch in batches]
    return FrozenLatents(
        torch.cat([quantized.latents.cpu() for quantized in found]),
        torch.cat([quantized.codes.cpu() for quantized in found]),
        torch.cat([quantized.tokens.cpu() for quantized in found]),
    )


def survival(tokenizer: Tokenizer, tokens: Tokens) -> float:
    """The share of tokens, 0 to 1, that come back from the picture they are decoded to.

    Nothing trains a tokenizer to give 1, and a prior, which never sees pictures, cannot notice.
    """
    device = next(tokenizer.parameters()).device
    parts = [part.to(device) for part in tokens.split(_AT_ONCE)]
    again = [tokenizer.tokens_of(tokenizer.image_of(part)) == part for part in parts]
    return torch.cat(again).float().mean().item()


@torch.enable_grad()
def probe(
    train: FrozenLatents, held: FrozenLatents, config: ProbeConfig, device: torch.device
) -> ProbeResult:
    """Trains both nets on ``train``; scores them on ``held``.

    A function of its arguments: it trains even where gradients are off, and draws from no
    generator but its own.
    """
    target, held_target = (_standardised(side.latents, train) for side in (train, held))
    errors = {}
    for name in ("latents", "codes"):
        net = _trained(_standardised(getattr(train, name), train), target, config, device)
        errors[name] = _errors(net, _standardised(getattr(held, name), train), held_target, device)
    spread = in_raster_order(held_target)[:, 1:].var((0, 1), correction=0)
    power = _moments(train).std.flatten().square()  # back from standardised to latent units
    variance = (spread * power).mean().item()
    found = {name: ((error * power).mean()).item() for name, error in errors.items()}
    r2 = {name: 1 - error / variance if variance else 0.0 for name, error in found.items()}
    return ProbeResult(found["latents"], r2_latents=r2["latents"], r2_codes=r2["codes"])


@dataclass(frozen=True)
class _Moments:
    mean: Tensor
    std: Tensor


def _moments(train: FrozenLatents) -> _Moments:
    std, mean = torch.std_mean(train.latents, dim=(0, 2, 3), keepdim=True)
    return _Moments(mean, std.clamp_min(1e-6))


def _standardised(latents: Latents, train: FrozenLatents) -> Latents:
    moments = _moments(train)
    return (latents - moments.mean) / moments.std


def _trained(
    inputs: Latents, target: Latents, config: ProbeConfig, device: torch.device
) -> CausalPredictor:
    with torch.random.fork_rng([]):
        torch.default_generator.manual_seed(config.seed)  # the CPU's alone, as is forked
        causal = CausalConfig(transformer=config.transformer)
        net = CausalPredictor(causal, inputs.shape[1]).to(device)
    optimizer = adamw_of(config.optim, net.parameters())
    rate = rate_of(config.optim, config.steps)
    generator = torch.Generator().manual_seed(config.seed)
    inputs, wanted = inputs.to(device), in_raster_order(target.to(device))[:, 1:]
    for step in range(config.steps):
        rows = torch.randint(len(inputs), (config.batch,), generator=generator).to(device)
        loss = F.mse_loss(net(inputs[rows]), wanted[rows])
        for group in optimizer.param_groups:
            group["lr"] = rate(step)
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(net.parameters(), config.optim.clip or math.inf)
        optimizer.step()
    return net.eval()


@torch.no_grad()
def _errors(net: CausalPredictor, inputs: Latents, target: Latents, device: torch.device) -> Tensor:
    """Mean squared error of each channel, over pictures and cells."""
    total = torch.zeros(target.shape[1])
    for some, wanted in zip(inputs.split(_AT_ONCE), target.split(_AT_ONCE), strict=True):
        aim = in_raster_order(wanted.to(device))[:, 1:]
        total += (net(some.to(device)) - aim).square().mean(1).sum(0).cpu()
    return total / len(inputs)
