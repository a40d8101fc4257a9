"""Residual vector quantization: a cell is a sum of codes, one of each level, coarse to fine.

As in RQ-VAE (Lee et al., arXiv 2203.01941), with a codebook of its own for each level. A cell
becomes as many tokens, side by side in its row; a token's position tells its level.
"""

from typing import Literal

import torch
from jaxtyping import Float, Integer
from torch import Tensor, nn
from torch.nn import functional as F

from cartok.core.config import config
from cartok.core.precision import full_precision
from cartok.core.shapes import Codes, Latents, Tokens
from cartok.tokenizer.quantize import Quantized, Quantizer, Statistics
from cartok.tokenizer.quantize.codebook import revive
from cartok.tokenizer.quantize.rows import (
    Rows,
    counts_of,
    grid_of,
    rows_at_once,
    rows_of,
    straight_through,
)


@config
class ResidualVQConfig:
    """Codebooks that add up; two of 256 codes make 65,536 sums at the cost of as many codes."""

    kind: Literal["residual"] = "residual"
    levels: int = 2
    """Codes that add up to one latent, and tokens that one latent becomes."""
    codebook_size: int = 256
    """Of each level; all levels share the token numbers 0 to this less 1."""
    dim: int = 8
    beam: int = 256
    """Partial sums kept from level to level. With codebook_size**(levels - 1) or more the nearest
    sum is found, and tokens of their own codes come back. With fewer, a better sum may be missed
    and some tokens' codes have other tokens; 1 is the usual greedy choice."""
    revive_after: int = 100
    """Steps without use after which a code is moved onto what its level had to explain of a latent
    of the current batch; 0: never. Off the sphere codes start far from the latents."""

    def __post_init__(self):
        if min(self.levels, self.dim, self.beam) < 1 or self.codebook_size < 2:
            raise ValueError(
                "levels, dim and beam are at least 1 and codebook_size at least 2: "
                f"{self.levels}, {self.dim}, {self.beam}, {self.codebook_size}"
            )
        if self.revive_after < 0:
            raise ValueError(f"revive_after must not be negative: {self.revive_after}")


class ResidualQuantizer(Quantizer):
    """Tables of codes; a latent becomes the nearest sum of one code of each."""

    idle: Tensor

    def __init__(self, config: ResidualVQConfig):
        super().__init__()
        self.codebook_size, self.dim = config.codebook_size, config.dim
        self.tokens_per_cell = config.levels
        self._beam = min(config.beam, config.codebook_size ** (config.levels - 1))
        self._revive_after = config.revive_after
        tables = torch.empty(config.levels, config.codebook_size, config.dim).uniform_(-1, 1)
        self.tables = nn.Parameter(tables / config.codebook_size)
        self.register_buffer("idle", torch.zeros(config.levels, config.codebook_size))

    @property
    def learns_by_update(self) -> bool:
        """True if codes are revived."""
        return self._revive_after > 0

    def forward(self, latents: Latents) -> Quantized:
        """Quantizes latents; the gradient of the codes goes to the latents unchanged.

        The codebook loss is the mean over levels of each partial sum's; commitment is to the whole.
        """
        with full_precision(latents.device):
            entering = latents.float()
            rows = rows_of(entering)
            path = self._search(rows.detach())
            sums = self._sums(path)
            codes = grid_of(sums[:, -1], entering)
            commitment = F.mse_loss(entering, codes.detach())
            wanted = rows.detach()[:, None].expand_as(sums)
            return Quantized(
                latents=entering,
                codes=straight_through(entering, codes),
                tokens=path.view(len(latents), latents.shape[2], -1),
                losses={"codebook": F.mse_loss(sums, wanted), "commitment": commitment},
                error=commitment.detach(),
                statistics=self._statistics(path, wanted, sums.detach()),
                on_sphere=False,
            )

    def tokens_of(self, latents: Latents) -> Tokens:
        """The codes of the nearest sum that the beam finds, in float32."""
        with full_precision(latents.device):
            path = self._search(rows_of(latents.float()))
            return path.view(len(latents), latents.shape[2], -1)

    def codes_of(self, tokens: Tokens) -> Codes:
        """The sums that tokens name; a cell's tokens are neighbours."""
        cells = tokens.unflatten(2, (-1, self.tokens_per_cell))
        sums = self._sums(cells.flatten(0, 2))[:, -1]
        return sums.view(*cells.shape[:3], self.dim).movedim(-1, 1)

    @torch.no_grad()
    def update(self, statistics: Statistics, step: int) -> None:
        """Moves unused codes of each level onto what it had to explain, alike on all ranks."""
        if not self._revive_after:
            return
        counts = statistics.counts.view(self.tokens_per_cell, -1)
        rows = statistics.candidates.unflatten(0, (-1, self.tokens_per_cell))
        generator = torch.Generator(rows.device).manual_seed(step)
        for level, table in enumerate(self.tables):
            revive(table, self.idle[level], counts[level], rows[:, level],
                   self._revive_after, generator)  # fmt: skip

    def _sums(self, path: Integer[Tensor, "cell level"]) -> Float[Tensor, "cell level channel"]:
        """The partial sums of codes after each level."""
        return F.embedding(self._numbers(path), self.tables.float().flatten(0, 1)).cumsum(1)

    def _numbers(self, path: Integer[Tensor, "cell level"]) -> Integer[Tensor, "cell level"]:
        """Places of codes in the tables laid one under the other."""
        return path + self.codebook_size * torch.arange(self.tokens_per_cell, device=path.device)

    @torch.no_grad()
    def _search(self, rows: Rows) -> Integer[Tensor, "cell level"]:
        """A code of each level, by a search that keeps the nearest partial sums."""
        parts = rows.split(rows_at_once(self._beam * self.codebook_size))
        return torch.cat([self._paths(part) for part in parts])

    def _paths(self, rows: Rows) -> Integer[Tensor, "cell level"]:
        size, last = self.codebook_size, self.tokens_per_cell - 1
        rest = rows[:, None]  # what remains to explain, of every kept sum
        paths = torch.empty(len(rows), 1, 0, dtype=torch.long, device=rows.device)
        for level, table in enumerate(self.tables.float()):
            # Minus half the squared distance of what would remain.
            scores = torch.addmm(-0.5 * table.square().sum(1), rest.flatten(0, 1), table.T)
            scores.sub_(0.5 * rest.square().sum(2).view(-1, 1))
            scores = scores.view(len(rows), -1)
            if level == last:
                best = scores.argmax(1, keepdim=True)
            else:
                best = scores.topk(min(self._beam, scores.shape[1])).indices
            kept, code = best // size, best % size
            rest = rest.gather(1, kept[..., None].expand(-1, -1, self.dim)) - table[code]
            paths = paths.gather(1, kept[..., None].expand(-1, -1, level))
            paths = torch.cat([paths, code[..., None]], dim=2)
        return paths[:, 0]

    def _statistics(self, path: Tensor, wanted: Tensor, sums: Tensor) -> Statistics:
        before = torch.cat([torch.zeros_like(sums[:, :1]), sums[:, :-1]], dim=1)
        num_codes = self.tokens_per_cell * self.codebook_size
        counts = counts_of(self._numbers(path), num_codes)
        return Statistics(counts, (wanted - before).flatten(0, 1))
