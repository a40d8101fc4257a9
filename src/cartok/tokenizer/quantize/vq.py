"""Vector quantization with a gradient-trained codebook, on the unit sphere or off it.

The paper's quantizer (section A.1): low-dimensional codes, cosine look-up, van den Oord's codebook
and commitment losses, no entropy term. Distances and normalisation are float32 whatever the
network computes in, since bfloat16 has too few digits to tell near codes apart.
"""

from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F

from cartok.core.config import config
from cartok.core.precision import full_precision
from cartok.core.shapes import Codes, Latents, Tokens
from cartok.tokenizer.quantize import Quantized, Quantizer, Statistics

_ROWS_AT_ONCE = 8192  # bounds the distance table: 8192 x 131,072 codes are 4.3 GB


@config
class VQConfig:
    """The codebook; the defaults are the paper's."""

    kind: Literal["vq"] = "vq"
    codebook_size: int = 16384
    dim: int = 8
    normalise: bool = True
    """Latents and codes on the unit sphere, so that the nearest is the most aligned."""
    revive_after: int = 0
    """Steps without use after which a code is moved onto a latent of the current batch; 0: never.
    The paper needs none over 400k steps; a run of hundreds does."""

    def __post_init__(self):
        if self.codebook_size < 2 or self.dim < 1 or self.revive_after < 0:
            raise ValueError(
                "a codebook has at least 2 codes of at least 1 channel, and revive_after is not "
                f"negative: {self.codebook_size}, {self.dim}, {self.revive_after}"
            )


class VectorQuantizer(Quantizer):
    """A table of codes; a latent becomes the nearest one."""

    idle: Tensor

    def __init__(self, config: VQConfig):
        super().__init__()
        self.codebook_size, self.dim = config.codebook_size, config.dim
        self.on_sphere, self._revive_after = config.normalise, config.revive_after
        self.learns_by_update = config.revive_after > 0
        table = torch.empty(config.codebook_size, config.dim).uniform_(-1, 1)
        # As LlamaGen starts: on the sphere, or in a cube of 1/K.
        start = unit(table, dim=1) if config.normalise else table / config.codebook_size
        self.table = nn.Parameter(start)
        self.register_buffer("idle", torch.zeros(config.codebook_size))

    def forward(self, latents: Latents) -> Quantized:
        """Quantizes latents; the gradient of the codes goes to the latents unchanged."""
        with full_precision(latents.device):
            entering = self.entering(latents.float())
            book = self.book()
            tokens = self._nearest(entering, book)
            codes = _grid(F.embedding(tokens, book))
            taken = torch.zeros(self.codebook_size, device=latents.device)
            taken.index_add_(0, tokens.flatten(), torch.ones_like(tokens.flatten()).float())
            commitment = F.mse_loss(entering, codes.detach())
            return Quantized(
                latents=entering,
                codes=entering + (codes - entering).detach(),
                tokens=tokens,
                losses={
                    "codebook": F.mse_loss(codes, entering.detach()),
                    "commitment": commitment,
                },
                error=commitment.detach(),
                statistics=Statistics(taken, _flat(entering.detach())),
                on_sphere=self.on_sphere,
            )

    def entering(self, latents: Latents) -> Latents:
        """The latents as they enter the look-up."""
        return unit(latents, dim=1) if self.on_sphere else latents

    def book(self) -> Float[Tensor, "code channel"]:
        """All codes."""
        return unit(self.table.float(), dim=1) if self.on_sphere else self.table.float()

    def tokens_of(self, latents: Latents) -> Tokens:
        """The nearest code's index for every latent, in float32."""
        with full_precision(latents.device):
            return self._nearest(self.entering(latents.float()), self.book())

    def codes_of(self, tokens: Tokens) -> Codes:
        """The codes that tokens name."""
        return _grid(F.embedding(tokens, self.book()))

    @torch.no_grad()
    def update(self, statistics: Statistics, step: int) -> None:
        """Moves codes that nothing has chosen for ``revive_after`` steps onto current latents.

        The choice is a function of ``step`` and the statistics, so all ranks make the same.
        """
        if not self._revive_after:
            return
        self.idle += 1
        self.idle[statistics.counts > 0] = 0
        dead = (self.idle >= self._revive_after).nonzero().flatten()
        if len(dead) == 0:
            return
        generator = torch.Generator().manual_seed(step)
        # Without replacement: of two codes born on one latent, one would never be the nearest.
        order = torch.randperm(len(statistics.candidates), generator=generator)
        pick = order[torch.arange(len(dead)) % len(order)].to(dead.device)
        self.table[dead] = statistics.candidates[pick].to(self.table.dtype)
        self.idle[dead] = 0

    @torch.no_grad()
    def _nearest(self, entering: Latents, book: Float[Tensor, "code channel"]) -> Tokens:
        rows = _flat(entering)
        half_norms = 0.5 * book.square().sum(1)  # nearest = largest inner product less this
        parts = [(part @ book.T - half_norms).argmax(1) for part in rows.split(_ROWS_AT_ONCE)]
        batch, _, height, width = entering.shape
        return torch.cat(parts).view(batch, height, width)


def unit(vectors: Float[Tensor, "..."], dim: int) -> Float[Tensor, "..."]:
    """Vectors of unit length; zero stays zero, with a finite gradient."""
    return vectors * torch.rsqrt(vectors.square().sum(dim, keepdim=True) + 1e-6)


def _flat(latents: Latents) -> Float[Tensor, "cell channel"]:
    return latents.movedim(1, -1).flatten(0, 2)


def _grid(codes: Float[Tensor, "batch row column channel"]) -> Codes:
    return codes.movedim(-1, 1)
