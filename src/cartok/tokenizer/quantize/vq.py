"""Vector quantization with a learned table of codes, on the unit sphere or off it.

The default is the paper's quantizer (section A.1): low-dimensional codes, cosine look-up, van den
Oord's codebook and commitment losses, no entropy term. Distances and normalisation are float32
whatever the network computes in, since bfloat16 has too few digits to tell near codes apart.
"""

from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from cartok.core.config import config
from cartok.core.precision import full_precision
from cartok.core.shapes import Codes, Latents, Tokens
from cartok.tokenizer.quantize import Quantized, Quantizer, Statistics
from cartok.tokenizer.quantize.codebook import centres_of, revive
from cartok.tokenizer.quantize.rows import (
    Book,
    counts_of,
    grid_of,
    nearest,
    rows_of,
    straight_through,
    turned,
    unit,
)

_SMOOTHING = 1e-5  # Laplace's, as a share of an even share


@config
class VQConfig:
    """The codebook; the defaults are the paper's."""

    kind: Literal["vq"] = "vq"
    codebook_size: int = 16384
    dim: int = 8
    normalise: bool = True
    """Latents and codes on the unit sphere, so that the nearest is the most aligned."""
    codebook: Literal["gradient", "ema"] = "gradient"
    """What moves codes: the codebook loss, or running means of the latents that took them, which
    leave no codebook loss (van den Oord et al., arXiv 1711.00937, appendix A.1)."""
    decay: float = 0.99
    """Of the running means, each step; only where codebook is 'ema'."""
    init: Literal["uniform", "kmeans"] = "uniform"
    """Where codes start: at random, or at the first step's centres of latents. Codes beyond the
    number of that step's latents stay at random."""
    gradient: Literal["straight-through", "rotation"] = "straight-through"
    """What latents feel of the codes' gradient: just that, or that turned back from the code to the
    latent (Fifty et al., arXiv 2410.06424)."""
    temperature: float = 0.0
    """Above 0, a training step draws its codes with probability softmax(similarity / temperature)
    as LARP does (arXiv 2410.21264), at about 0.03 on the sphere; tokens are always the nearest."""
    revive_after: int = 0
    """Steps without use after which a code is moved onto a latent of the current batch; 0: never.
    The paper needs none over 400k steps; a run of hundreds does."""

    def __post_init__(self):
        if self.codebook_size < 2 or self.dim < 1 or self.revive_after < 0:
            raise ValueError(
                "a codebook has at least 2 codes of at least 1 channel, and revive_after is not "
                f"negative: {self.codebook_size}, {self.dim}, {self.revive_after}"
            )
        if not 0 <= self.decay < 1 or self.temperature < 0:
            raise ValueError(
                "decay is at least 0 and below 1, and temperature is not negative: "
                f"{self.decay:g}, {self.temperature:g}"
            )


class VectorQuantizer(Quantizer):
    """A table of codes; a latent becomes the nearest one."""

    table: Tensor
    idle: Tensor
    shares: Tensor
    sums: Tensor
    begun: Tensor

    def __init__(self, config: VQConfig):
        super().__init__()
        self.config = config
        self.codebook_size, self.dim = config.codebook_size, config.dim
        self.on_sphere = config.normalise
        self._follows, self._begins = config.codebook == "ema", config.init == "kmeans"
        table = torch.empty(config.codebook_size, config.dim).uniform_(-1, 1)
        # As LlamaGen starts: on the sphere, or in a cube of 1/K.
        start = unit(table, dim=1) if config.normalise else table / config.codebook_size
        if self._follows:
            self.register_buffer("table", start)
            self.register_buffer("shares", torch.full((config.codebook_size,), self._even))
            self.register_buffer("sums", start * self._even)
        else:
            self.table = nn.Parameter(start)
        if self._begins:
            self.register_buffer("begun", torch.zeros(()))
        self.register_buffer("idle", torch.zeros(config.codebook_size))

    def forward(self, latents: Latents) -> Quantized:
        """Quantizes latents; the gradient of the codes goes to the latents, never to the table."""
        with full_precision(latents.device):
            entering = self.entering(latents.float())
            book = self.book()
            temperature = self.config.temperature if self.training else 0.0
            index = nearest(rows_of(entering), book, temperature)
            codes = grid_of(F.embedding(index, book), entering)
            rotates = self.config.gradient == "rotation"
            passed = turned(entering, codes) if rotates else entering
            commitment = F.mse_loss(entering, codes.detach())
            losses = {"commitment": commitment}
            if not self._follows:
                losses["codebook"] = F.mse_loss(codes, entering.detach())
            return Quantized(
                latents=entering,
                codes=straight_through(passed, codes),
                tokens=_places(index, entering),
                losses=losses,
                error=commitment.detach(),
                statistics=self._statistics(entering.detach(), index),
                on_sphere=self.on_sphere,
            )

    def entering(self, latents: Latents) -> Latents:
        """The latents as they enter the look-up."""
        return unit(latents, dim=1) if self.on_sphere else latents

    def book(self) -> Book:
        """All codes."""
        return unit(self.table.float(), dim=1) if self.on_sphere else self.table.float()

    def tokens_of(self, latents: Latents) -> Tokens:
        """The nearest code's index for every latent, in float32."""
        with full_precision(latents.device):
            entering = self.entering(latents.float())
            return _places(nearest(rows_of(entering), self.book()), entering)

    def codes_of(self, tokens: Tokens) -> Codes:
        """The codes that tokens name."""
        return F.embedding(tokens, self.book()).movedim(-1, 1)

    @torch.no_grad()
    def update(self, statistics: Statistics, step: int) -> None:
        """Moves what no gradient moves: codes at their start, running means, and unused codes.

        All are functions of ``step`` and the statistics, so all ranks do the same.
        """
        rows = statistics.candidates
        generator = torch.Generator(rows.device).manual_seed(step)
        if self._begins:
            self._begins = False  # the device is asked once, since it must be waited for
            if not self.begun > 0:
                self._begin(centres_of(rows, self.book(), self.on_sphere, generator))
                return
        if self._follows:
            self._follow(statistics)
        if self.config.revive_after:
            born = revive(self.table, self.idle, statistics.counts, rows,
                          self.config.revive_after, generator)  # fmt: skip
            self._remember(born)

    @property
    def learns_by_update(self) -> bool:
        """True if codes follow means, are revived, or have not begun yet."""
        return self._follows or self._begins or self.config.revive_after > 0

    @property
    def _even(self) -> float:
        return 1.0 / self.codebook_size

    def _begin(self, book: Book) -> None:
        self.begun.fill_(1)
        self.table.copy_(book)
        self._remember(torch.ones_like(self.idle, dtype=torch.bool))

    def _follow(self, statistics: Statistics) -> None:
        # Shares, not counts: the means must not depend on how many ranks the counts were spread.
        total, speed = statistics.counts.sum(), 1 - self.config.decay
        self.shares.lerp_(statistics.counts / total, speed)
        self.sums.lerp_(statistics.sums / total, speed)
        smooth = (self.shares + _SMOOTHING * self._even) / (1 + _SMOOTHING)
        means = self.sums / smooth[:, None]
        if self.on_sphere:
            # A code long unused has forgotten all latents; it has no direction then, and stays.
            length = means.norm(dim=1, keepdim=True)
            means = torch.where(length > 1e-3, means / length, self.table)
        self.table.copy_(means)

    def _remember(self, born: Tensor) -> None:
        """Codes that were put somewhere start as if an even share of latents had been there."""
        if self._follows:
            self.shares.masked_fill_(born, self._even)
            self.sums.copy_(torch.where(born[:, None], self.table * self._even, self.sums))

    def _statistics(self, entering: Latents, index: Tensor) -> Statistics:
        rows = rows_of(entering)
        sums = rows.new_zeros(self.codebook_size if self._follows else 0, self.dim)
        if self._follows:
            sums.index_add_(0, index, rows)
        return Statistics(counts_of(index, self.codebook_size), rows, sums)


def _places(index: Tensor, like: Latents) -> Tokens:
    return index.view(len(like), *like.shape[2:])
