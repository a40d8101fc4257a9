"""Finite scalar quantization: every channel is rounded to a few values, and nothing is learned.

Mentzer et al., arXiv 2309.15505. There is no codebook to collapse and no loss to weigh, so it is
the choice that needs no tuning; the paper's trained codebook reconstructs better at equal bits.
"""

import math
from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional as F

from cartok.core.config import config
from cartok.core.precision import full_precision
from cartok.core.shapes import Codes, Latents, Tokens
from cartok.tokenizer.quantize import Quantized, Quantizer, Statistics
from cartok.tokenizer.quantize.rows import counts_of, rows_of, straight_through

_ROOM = 1e-3  # the tanh reaches a hair beyond the outermost values, so that latents can, too


@config
class FSQConfig:
    """Values per channel; the codebook is their product."""

    kind: Literal["fsq"] = "fsq"
    levels: tuple[int, ...] = (8, 8, 8, 6, 5)
    """Of each channel: 15,360 codes of 5 channels; the source advises 5 or more each."""

    def __post_init__(self):
        if not self.levels or min(self.levels) < 3 or self.codebook_size > 2**24:
            raise ValueError(
                "levels are one channel or more of 3 values or more, at most 16,777,216 codes "
                f"together, but are {self.levels}; for 2 values take lfq or bsq"
            )

    @property
    def codebook_size(self) -> int:
        """Number of codes."""
        return math.prod(self.levels)

    @property
    def dim(self) -> int:
        """Channels of latents and codes."""
        return len(self.levels)


class ScalarQuantizer(Quantizer):
    """A grid of codes in [-1, 1]; a token counts them with the first channel running fastest."""

    levels: Tensor
    steps: Tensor

    def __init__(self, config: FSQConfig):
        super().__init__()
        self.codebook_size, self.dim = config.codebook_size, config.dim
        levels = torch.tensor(config.levels)
        steps = torch.tensor([math.prod(config.levels[:i]) for i in range(self.dim)])
        self.register_buffer("levels", levels.view(-1, 1, 1), persistent=False)
        self.register_buffer("steps", steps.view(-1, 1, 1), persistent=False)

    def forward(self, latents: Latents) -> Quantized:
        """Quantizes latents; the gradient passes the rounding, and what bounds latents damps it."""
        with full_precision(latents.device):
            entering = self.entering(latents.float())
            digits = self._digits(entering)
            codes = self._codes(digits)
            tokens = (digits * self.steps).sum(1)
            return Quantized(
                latents=entering,
                codes=straight_through(entering, codes),
                tokens=tokens,
                losses={},
                error=F.mse_loss(entering.detach(), codes),
                statistics=Statistics(
                    counts_of(tokens, self.codebook_size), rows_of(entering.detach())
                ),
                on_sphere=False,
            )

    def entering(self, latents: Latents) -> Latents:
        """The latents bounded by a tanh to the codes' range.

        Even numbers of levels lie off centre by half a step; 0 stays 0 all the same.
        """
        reach = (self.levels - 1) * (1 + _ROOM) / 2
        offset = 0.5 * (self.levels % 2 == 0)
        bounded = torch.tanh(latents + torch.atanh(offset / reach)) * reach - offset
        return bounded / (self.levels // 2)

    def tokens_of(self, latents: Latents) -> Tokens:
        """The nearest code's index for every latent, in float32."""
        with full_precision(latents.device):
            return (self._digits(self.entering(latents.float())) * self.steps).sum(1)

    def codes_of(self, tokens: Tokens) -> Codes:
        """The codes that tokens name, in [-1, 1]."""
        return self._codes(tokens[:, None] // self.steps % self.levels)

    def _digits(self, entering: Latents) -> Tensor:
        half = self.levels // 2
        digits = (entering.detach() * half).round().long() + half
        # From 1,001 levels on the room is half a step or more.
        return digits.clamp_min(0).minimum(self.levels - 1)

    def _codes(self, digits: Tensor) -> Codes:
        half = self.levels // 2
        return (digits - half) / half
