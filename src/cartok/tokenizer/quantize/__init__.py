"""Latents to codes and tokens: one interface, one file for each way."""

from abc import ABC, abstractmethod
from dataclasses import dataclass, field

import torch
from jaxtyping import Float
from torch import Tensor, nn

from cartok.core.shapes import Codes, Latents, Tokens

Scalar = Float[Tensor, ""]


@dataclass(frozen=True)
class Statistics:
    """What a step says of a codebook; reduced over the ranks before ``update`` hears of it."""

    counts: Float[Tensor, " code"]
    """How often each code was taken; of residual codes, those of one level after another."""
    candidates: Float[Tensor, "candidate channel"]
    """Latents of this step, as they entered the lookup: where an unused code may be born again.
    Picture after picture, in raster order; of residual codes, what each level had to explain."""
    sums: Float[Tensor, "mean width"] = field(default_factory=lambda: torch.zeros(0, 0))
    """For every code the sum of the latents that took it; empty where no code follows a mean."""


@dataclass(frozen=True)
class Quantized:
    """What a quantizer answers."""

    latents: Latents
    """As they entered the lookup: on the unit sphere if the quantizer normalises."""
    codes: Codes
    """Codebook vectors; the gradient passes to the latents."""
    tokens: Tokens
    losses: dict[str, Scalar]
    """What the quantizer itself asks to be minimised, any of: ``codebook``, the mean squared
    distance that moves codes towards latents; ``commitment``, the same distance, moving latents
    towards codes; ``entropy``, which spreads latents over the codes. ``LossConfig`` weighs them."""
    error: Scalar
    """Mean squared distance of latents and codes, without gradient: the size of quantisation."""
    statistics: Statistics
    on_sphere: bool
    """True if latents and codes have unit length, so that distances have a fixed scale."""


class Quantizer(nn.Module, ABC):
    """Anything that turns latents into tokens and tokens into codes."""

    codebook_size: int
    """Number of different tokens."""
    dim: int
    """Channels of latents and codes."""
    tokens_per_cell: int = 1
    """Tokens that one latent becomes, side by side in its row; more than 1 for residual codes."""

    @property
    def learns_by_update(self) -> bool:
        """True if ``update`` moves codes; else the ranks need not tell each other what they saw."""
        return False

    @abstractmethod
    def forward(self, latents: Latents) -> Quantized:
        """Quantizes, with everything a training needs."""

    @abstractmethod
    def tokens_of(self, latents: Latents) -> Tokens:
        """The nearest code's index for every latent."""

    @abstractmethod
    def codes_of(self, tokens: Tokens) -> Codes:
        """The codebook's vectors for tokens."""

    def update(self, statistics: Statistics, step: int) -> None:
        """Takes note of a step; may move codes that no gradient moves."""
