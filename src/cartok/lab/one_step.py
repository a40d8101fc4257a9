"""What a prior's doubts look like: every code drawn again, given the true ones before it.

Bits say how unsure a prior is of the next code, not what that costs: a wrong code that decodes
almost alike costs bits and hardly a picture. Here nothing builds up, as it does in samples, so what
is left between the two pictures is what one draw a position does.
"""

from dataclasses import dataclass

import torch

from cartok.core.shapes import Image, TokenSequence
from cartok.data.tokens import TokenShards
from cartok.lab.evaluations import BATCH
from cartok.prior.model import Prior
from cartok.prior.train import first_views
from cartok.sampling.sampler import codes_at, uniforms
from cartok.tokenizer.model import Tokenizer


@dataclass(frozen=True)
class Redrawn:
    """Pictures of the same held-out tokens, on the CPU."""

    true: Image
    drawn: Image
    share_kept: float
    """Of tokens that were drawn as they were, 0 to 1."""


@torch.inference_mode()
def redrawn(
    prior: Prior, tokenizer: Tokenizer, shards: TokenShards, num: int, seed: int
) -> Redrawn:
    """``num`` pictures spread evenly over the shards, or all; prior and tokenizer in eval mode.

    Unguided, and picture i takes the draws of sample i of ``seed``.
    """
    device = next(tokenizer.parameters()).device
    rows = torch.linspace(0, len(shards) - 1, min(num, len(shards))).round().long()
    parts: list[tuple[Image, Image, float]] = []
    for start, some in zip(range(0, len(rows), BATCH), rows.split(BATCH), strict=True):
        tokens = first_views(shards, some.tolist()).to(device)
        drawn = _drawn(prior, tokens, shards.labels[some].to(device), seed, start)
        true_image, drawn_image = (
            tokenizer.image_of(grids.unflatten(1, prior.config.grid)).cpu()
            for grids in (tokens, drawn)
        )
        parts.append((true_image, drawn_image, (tokens == drawn).float().sum().item()))
    return Redrawn(
        torch.cat([true for true, _, _ in parts]),
        torch.cat([drawn for _, drawn, _ in parts]),
        sum(kept for _, _, kept in parts) / (len(rows) * prior.config.num_tokens),
    )


def _drawn(
    prior: Prior, tokens: TokenSequence, labels: torch.Tensor, seed: int, first_index: int
) -> TokenSequence:
    logits = prior(tokens, labels)
    uniform = uniforms(seed, first_index, len(tokens), tokens.shape[1]).to(tokens.device)
    return codes_at(logits.flatten(0, 1), uniform.flatten()).view(tokens.shape)
