"""What the tests of the regulariser share: small predictors, latents, and an encoder."""

import torch
from torch import nn
from torch.nn import functional as F

from cartok.layers import TransformerConfig
from cartok.tokenizer.causal import CausalPredictor
from cartok.tokenizer.forms import CausalConfig
from cartok.tokenizer.model import Encoded
from cartok.tokenizer.quantize import Quantized, Statistics
from cartok.tokenizer.quantize.kinds import quantizer_of
from cartok.tokenizer.quantize.vq import VQConfig

CHANNELS = 4
CODES = 81


def config_with(**changes) -> CausalConfig:
    net = TransformerConfig(width=16, depth=2, heads=2, hidden_multiple=16)
    return CausalConfig(**({"transformer": net, "twin_transformer": net} | changes))


def fresh_predictor(channels=CHANNELS, **changes) -> CausalPredictor:
    """A predictor as a training starts with it."""
    torch.manual_seed(0)
    return CausalPredictor(config_with(**changes), channels, CODES)


def small_predictor(channels=CHANNELS, **changes) -> CausalPredictor:
    """A predictor far from its small initialisation, so that context matters to it."""
    predictor = fresh_predictor(channels, **changes)
    with torch.no_grad():
        for weight in predictor.parameters():
            weight.add_(0.2 * torch.randn_like(weight))
    return predictor


class _Nothing(nn.Module):
    def forward(self, x, rotary):
        return x


def last_cell_predictor(channels=CHANNELS, **changes) -> CausalPredictor:
    """Predicts that the next latent is the last one it read: every loss has a closed form."""
    predictor = CausalPredictor(config_with(**changes), channels, channels)
    predictor.read = predictor.write = nn.Identity()
    predictor.transformer = _Nothing()
    if predictor.config.start == "learned":
        predictor.start = nn.Parameter(torch.full((channels,), 0.5))
    return predictor


def some_latents(batch=3, rows=2, cols=3, channels=CHANNELS, seed=0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(batch, channels, rows, cols, generator=generator)


def encoded_of(
    latents, codes=None, *, on_sphere=False, projected=None, output=None, tokens=None
) -> Encoded:
    """Latents on their way, with codes that are 0.1 away from them unless given."""
    codes = (latents + 0.1).detach() if codes is None else codes
    quantized = Quantized(
        latents=latents,
        codes=latents + (codes - latents).detach(),
        tokens=torch.zeros(latents[:, 0].shape, dtype=torch.long) if tokens is None else tokens,
        losses={},
        error=F.mse_loss(latents, codes).detach(),
        statistics=Statistics(torch.ones(1), torch.zeros(1, latents.shape[1])),
        on_sphere=on_sphere,
    )
    projected = latents if projected is None else projected
    return Encoded(projected if output is None else output, projected, quantized)


def differences(latents: torch.Tensor) -> torch.Tensor:
    """Each cell less the one after it, in raster order."""
    sequence = latents.flatten(2).transpose(1, 2)
    return sequence[:, :-1] - sequence[:, 1:]


class Stage(nn.Module):
    """An encoder, a projection and a codebook: everything the regulariser may look at."""

    WIDE = 6

    def __init__(self, quantizer=None):
        super().__init__()
        torch.manual_seed(5)
        self.encoder = nn.Conv2d(3, self.WIDE, 2, stride=2)
        self.project = nn.Conv2d(self.WIDE, CHANNELS, 1)
        self.quantizer = quantizer_of(quantizer or VQConfig(codebook_size=CODES, dim=CHANNELS))

    def forward(self, image) -> Encoded:
        output = self.encoder(image)
        projected = self.project(output)
        return Encoded(output, projected, self.quantizer(projected))


def channels_of(form: dict) -> int:
    """Channels of what a form reads of a stage."""
    return Stage.WIDE if form.get("space") == "encoder" else CHANNELS


def some_image(batch=2) -> torch.Tensor:
    return torch.randn(batch, 3, 6, 8, generator=torch.Generator().manual_seed(3))
