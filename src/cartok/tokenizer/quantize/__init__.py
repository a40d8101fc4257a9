"""Latents to codes and tokens: one interface, one file for each way."""

from dataclasses import dataclass
from typing import Protocol

from jaxtyping import Float
from torch import Tensor

from cartok.core.shapes import Codes, Latents, Tokens


@dataclass(frozen=True)
class Statistics:
    """What a step says of a codebook; reduced over the ranks before ``update`` hears of it."""

    counts: Float[Tensor, " code"]
    """How often each code was taken."""
    candidates: Float[Tensor, "candidate channel"]
    """Latents of this step, as they entered the lookup: where an unused code may be born again."""


@dataclass(frozen=True)
class Quantized:
    """What a quantizer answers."""

    latents: Latents
    """As they entered the lookup: on the unit sphere if the quantizer normalises."""
    codes: Codes
    """Codebook vectors; the gradient passes straight through to the latents."""
    tokens: Tokens
    codebook_loss: Float[Tensor, ""]
    """Mean squared distance that moves the codes towards the latents."""
    commitment_loss: Float[Tensor, ""]
    """The same distance, moving the latents towards the codes."""
    statistics: Statistics
    on_sphere: bool
    """True if latents and codes have unit length, so that distances have a fixed scale."""


class Quantizer(Protocol):
    """Anything that turns latents into tokens and tokens into codes."""

    codebook_size: int
    dim: int
    """Channels of latents and codes."""

    def __call__(self, latents: Latents) -> Quantized:
        """Quantizes, with everything a training needs."""
        ...

    def tokens_of(self, latents: Latents) -> Tokens:
        """The nearest code's index for every latent."""
        ...

    def codes_of(self, tokens: Tokens) -> Codes:
        """The codebook's vectors for tokens."""
        ...

    def update(self, statistics: Statistics, step: int) -> None:
        """Takes note of a step; may move codes that no gradient moves."""
        ...
