"""Look-up-free quantization: every channel becomes its sign, free (LFQ) or on the sphere (BSQ).

LFQ is Yu et al., arXiv 2310.05737 (MAGVIT-v2); BSQ is Zhao et al., arXiv 2406.07548. The codebook
is all sign patterns; an entropy loss makes latents decide and spreads them over the codes.
"""

import math
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional as F

from cartok.core.config import config
from cartok.core.precision import full_precision
from cartok.core.shapes import Codes, Latents, Tokens
from cartok.tokenizer.quantize import Quantized, Quantizer, Statistics
from cartok.tokenizer.quantize.rows import Rows, counts_of, rows_of, straight_through, unit

Scalar = Float[Tensor, ""]


@config
class LFQConfig:
    """Signs of free latents, codes of -1 and 1."""

    kind: Literal["lfq"] = "lfq"
    bits: int = 14
    """Channels; 14 are 16,384 codes, 18 the source's 262,144."""
    gamma: float = 1.0
    """Weight of the batch's entropy against the samples', inside the entropy loss."""
    temperature: float = 0.01
    """Of the soft choice of codes that the entropies are taken of."""

    def __post_init__(self):
        _refuse_unfit(self.bits, self.gamma, self.temperature)

    @property
    def codebook_size(self) -> int:
        """Number of codes."""
        return 2**self.bits

    @property
    def dim(self) -> int:
        """Channels of latents and codes."""
        return self.bits


@config
class BSQConfig:
    """Signs of latents on the unit sphere, codes of -1 and 1 over the root of the channels."""

    kind: Literal["bsq"] = "bsq"
    bits: int = 14
    """Channels; the source takes 18 and 36."""
    gamma: float = 1.0
    """Weight of the batch's entropy against the samples', inside the entropy loss."""
    temperature: float = 1.0
    """Of the soft choice of codes that the entropies are taken of."""

    def __post_init__(self):
        _refuse_unfit(self.bits, self.gamma, self.temperature)

    @property
    def codebook_size(self) -> int:
        """Number of codes."""
        return 2**self.bits

    @property
    def dim(self) -> int:
        """Channels of latents and codes."""
        return self.bits


class BinaryQuantizer(Quantizer):
    """A code is a pattern of signs; a token reads it as bits, the first channel the lowest."""

    weights: Tensor

    def __init__(self, config: LFQConfig | BSQConfig):
        super().__init__()
        self.codebook_size, self.dim = config.codebook_size, config.dim
        self.on_sphere = config.kind == "bsq"
        self._size = 1 / math.sqrt(config.dim) if self.on_sphere else 1.0
        self._gamma, self._temperature = config.gamma, config.temperature
        weights = 2 ** torch.arange(config.dim)
        self.register_buffer("weights", weights.view(-1, 1, 1), persistent=False)

    def forward(self, latents: Latents) -> Quantized:
        """Quantizes latents; the gradient of the codes goes to the latents unchanged."""
        with full_precision(latents.device):
            entering = self.entering(latents.float())
            codes = self._codes(entering > 0)
            tokens = self._tokens(entering > 0)
            commitment = F.mse_loss(entering, codes)
            # Log-odds of a bit under softmax(2 <latent, code> / temperature) over all codes.
            odds = 4 * self._size * rows_of(entering) / self._temperature
            return Quantized(
                latents=entering,
                codes=straight_through(entering, codes),
                tokens=tokens,
                losses={
                    "commitment": commitment,
                    "entropy": sample_entropy(odds) - self._gamma * batch_entropy(odds),
                },
                error=commitment.detach(),
                statistics=Statistics(
                    counts_of(tokens, self.codebook_size), rows_of(entering.detach())
                ),
                on_sphere=self.on_sphere,
            )

    def entering(self, latents: Latents) -> Latents:
        """The latents whose signs are taken."""
        return unit(latents, dim=1) if self.on_sphere else latents

    def tokens_of(self, latents: Latents) -> Tokens:
        """The nearest code's index for every latent."""
        return self._tokens(latents > 0)

    def codes_of(self, tokens: Tokens) -> Codes:
        """The codes that tokens name."""
        return self._codes(tokens[:, None] // self.weights % 2 == 1)

    def _tokens(self, positive: Tensor) -> Tokens:
        return (positive * self.weights).sum(1)

    def _codes(self, positive: Tensor) -> Codes:
        return self._size * (2.0 * positive - 1.0)


def sample_entropy(odds: Rows) -> Scalar:
    """Mean entropy, in nats, of each row's distribution over all codes.

    Given a latent its bits are independent, so the entropy is the sum of theirs.
    """
    return (F.softplus(odds) - odds * torch.sigmoid(odds)).sum(1).mean()


def batch_entropy(odds: Rows) -> Scalar:
    """Entropy, in nats, of the mean of all rows' distributions: how evenly codes are used.

    Over a batch bits depend on each other, so it is no sum over bits. It is exact all the same:
    a row's table of probabilities is the outer product of those of its two halves, and the mean
    of outer products is one matrix product. 2^18 codes take two tables of 512 columns. The batch
    is what one process sees at once; neither ranks nor accumulated parts are joined.
    """
    half = odds.shape[1] // 2
    low, high = _patterns(odds[:, :half]), _patterns(odds[:, half:])
    mean = low.T @ high / len(odds)
    return -(mean * mean.clamp_min(1e-12).log()).sum()


def _patterns(odds: Rows) -> Float[Tensor, "cell pattern"]:
    """The probability of every pattern of these bits."""
    table = odds.new_ones(len(odds), 1)
    for bit in torch.sigmoid(odds).unbind(1):
        table = torch.cat([table * (1 - bit)[:, None], table * bit[:, None]], dim=1)
    return table


def _refuse_unfit(bits: int, gamma: float, temperature: float) -> None:
    if not 1 <= bits <= 24 or gamma < 0 or temperature <= 0:
        raise ValueError(
            "bits are 1 to 24, gamma is not negative and temperature is above 0: "
            f"{bits}, {gamma:g}, {temperature:g}"
        )
