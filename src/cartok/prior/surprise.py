"""How surprised a prior is at tokens: cross-entropy, without ever holding all logits at once.

Logits are the largest tensor of a training: of 64 pictures of 256 tokens of 16,384 codes they,
their copy in float32 and its gradient take 2.7 GB. Above a limit rows are dealt with in parts,
whose logits are computed again on the way back: the head's forward product once more.
"""

from typing import NamedTuple

import torch
from jaxtyping import Float, Integer
from torch import Tensor
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from cartok.core.shapes import Logits, TokenSequence

LOGITS_AT_ONCE = 2**26
"""Rows times codes: a quarter of a GB in float32."""


class Surprise(NamedTuple):
    """At each token, in nats and float32."""

    nats: Float[Tensor, "batch position"]
    """-log p(token | class, tokens before)."""
    log_total: Float[Tensor, "batch position"]
    """log of the sum of exp(logits), which drifts where a training is about to diverge."""


def surprise_at(logits: Logits, tokens: TokenSequence) -> Surprise:
    """Of each token under its logits; computed in float32."""
    nats, total = _of_rows(logits.flatten(0, 1), tokens.flatten())
    return Surprise(nats.view(tokens.shape), total.view(tokens.shape))


def surprise_of_states(
    states: Float[Tensor, "batch position width"],
    head: Float[Tensor, "code width"],
    tokens: TokenSequence,
    at_once: int = LOGITS_AT_ONCE,
) -> Surprise:
    """The same from what the head reads, with at most ``at_once`` logits in memory."""
    rows = max(1, at_once // head.shape[0])
    if tokens.numel() <= rows:
        return surprise_at(F.linear(states, head), tokens)
    parts = [
        checkpoint(_of_states, some, head, true, use_reentrant=False, preserve_rng_state=False)
        for some, true in zip(
            states.flatten(0, 1).split(rows), tokens.flatten().split(rows), strict=True
        )
    ]
    nats, total = (torch.cat(part).view(tokens.shape) for part in zip(*parts, strict=True))
    return Surprise(nats, total)


def _of_states(
    states: Float[Tensor, "row width"], head: Float[Tensor, "code width"],
    tokens: Integer[Tensor, " row"],
) -> tuple[Tensor, Tensor]:  # fmt: skip
    return _of_rows(F.linear(states, head), tokens)


def _of_rows(
    logits: Float[Tensor, "row code"], tokens: Integer[Tensor, " row"]
) -> tuple[Tensor, Tensor]:
    # Rows of logits, not a channel axis in the middle: a fifth of the time on a GPU.
    wide, true = logits.float(), tokens.long()
    nats = F.cross_entropy(wide, true, reduction="none")
    return nats, nats + wide.gather(1, true[:, None])[:, 0]
