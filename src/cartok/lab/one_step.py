"""What a prior's doubts look like: every code drawn again, given the true ones before it.

Bits say how unsure a prior is of the next code, not what that costs: a wrong code that decodes
almost alike costs bits and hardly a picture. Here nothing builds up, as it does in samples, so what
is left between the two pictures is what one draw a position does.
"""

from dataclasses import dataclass

import torch

from cartok.core.shapes import Labels, Pixels, TokenSequence, pixels_of
from cartok.data.tokens import TokenShards
from cartok.lab.evaluations import BATCH
from cartok.metrics.reconstruction import psnr_db
from cartok.prior.model import Prior
from cartok.prior.train import first_views, refuse_foreign
from cartok.sampling.drawing import codes_at
from cartok.sampling.sampler import uniforms
from cartok.tokenizer.model import Tokenizer


@dataclass(frozen=True)
class Redrawn:
    """Pictures of the same held-out tokens, on the CPU, and how alike they are."""

    true: Pixels
    drawn: Pixels
    psnr_db: float
    """Mean over pictures, of drawn against true."""
    share_kept: float
    """Of tokens that were drawn as they were, 0 to 1."""


@torch.inference_mode()
def redrawn(
    prior: Prior, tokenizer: Tokenizer, shards: TokenShards, num: int, seed: int
) -> Redrawn:
    """``num`` pictures spread evenly over the shards, or all; prior and tokenizer in eval mode.

    Unguided, and picture i takes the draws of sample i of ``seed``.

    Raises:
        UserError: the tokens are not those this prior predicts.
    """
    refuse_foreign(prior, shards.manifest)
    rows = torch.linspace(0, len(shards) - 1, min(num, len(shards))).round().long()
    parts = [
        _redrawn_part(prior, tokenizer, shards, some, seed, start)
        for start, some in zip(range(0, len(rows), BATCH), rows.split(BATCH), strict=True)
    ]
    shares = torch.tensor([len(part.true) for part in parts]).double() / len(rows)
    psnr, kept = (
        (torch.tensor([getattr(part, name) for part in parts]).double() * shares).sum().item()
        for name in ("psnr_db", "share_kept")
    )
    true, drawn = (torch.cat([getattr(p, name) for p in parts]) for name in ("true", "drawn"))
    return Redrawn(true, drawn, psnr, kept)


def _redrawn_part(
    prior: Prior, tokenizer: Tokenizer, shards: TokenShards, rows: torch.Tensor, seed: int,
    first_index: int,
) -> Redrawn:  # fmt: skip
    device = next(tokenizer.parameters()).device
    tokens = first_views(shards, rows.tolist()).to(device)
    drawn = _drawn(prior, tokens, shards.labels[rows].to(device), seed, first_index)
    true_image, drawn_image = (
        tokenizer.image_of(grids.unflatten(1, prior.config.grid)) for grids in (tokens, drawn)
    )
    return Redrawn(
        pixels_of(true_image).cpu(), pixels_of(drawn_image).cpu(),
        psnr_db(drawn_image, true_image), (tokens == drawn).double().mean().item(),
    )  # fmt: skip


def _drawn(
    prior: Prior, tokens: TokenSequence, labels: Labels, seed: int, first_index: int
) -> TokenSequence:
    logits = prior(tokens, labels)
    uniform = uniforms(seed, first_index, len(tokens), tokens.shape[1]).to(tokens.device)
    # One by one: a batch of 16,384 codes in float64 would be gigabytes, several times.
    return torch.stack([codes_at(*one) for one in zip(logits, uniform, strict=True)])
