"""How surprised a prior is at tokens: cross-entropy, without ever holding all logits at once.

Logits are the largest tensor of a training: of 64 pictures of 256 tokens of 16,384 codes they,
their copy in float32 and its gradient take 2.7 GB. Above a limit, and on a GPU always, rows are
dealt with in parts, whose logits are computed again on the way back: the head's forward product
once more.
"""

import functools
from typing import Any, NamedTuple

import torch
from jaxtyping import Float, Integer
from torch import Tensor
from torch.nn import functional as F

from cartok.core.compiled import kernels_work
from cartok.core.shapes import Logits, TokenSequence

LOGITS_AT_ONCE = 2**26
"""Rows times codes: a quarter of a GB in float32."""

Rows = Float[Tensor, "row code"]
Each = Float[Tensor, " row"]


class Surprise(NamedTuple):
    """At each token, in nats and float32."""

    nats: Float[Tensor, "batch position"]
    """-log p(token | class, tokens before)."""
    log_total: Float[Tensor, "batch position"]
    """log of the sum of exp(logits), which drifts where a training is about to diverge."""


def surprise_at(logits: Logits, tokens: TokenSequence) -> Surprise:
    """Of each token under its logits; computed in float32."""
    # Rows of logits, not a channel axis in the middle: a fifth of the time on a GPU.
    wide, true = logits.flatten(0, 1).float(), tokens.flatten().long()
    nats = F.cross_entropy(wide, true, reduction="none")
    total = nats + wide.gather(1, true[:, None])[:, 0]
    return Surprise(nats.view(tokens.shape), total.view(tokens.shape))


def surprise_of_states(
    states: Float[Tensor, "batch position width"],
    head: Float[Tensor, "code width"],
    tokens: TokenSequence,
    at_once: int = LOGITS_AT_ONCE,
) -> Surprise:
    """The same from what the head reads, with at most ``at_once`` logits in memory."""
    rows = max(1, at_once // head.shape[0])
    if tokens.numel() <= rows and not _has_kernels(states):
        return surprise_at(F.linear(states, head), tokens)
    kind = states.device.type
    if torch.is_autocast_enabled(kind):
        precision = torch.get_autocast_dtype(kind)
        states, head = states.to(precision), head.to(precision)
    nats, total = _InParts.apply(states.flatten(0, 1), head, tokens.flatten().long(), rows)
    return Surprise(nats.view(tokens.shape), total.view(tokens.shape))


class _InParts(torch.autograd.Function):
    """Nats and totals of rows, in parts; keeps no logits for the way back."""

    @staticmethod
    def forward(
        ctx: Any, states: Float[Tensor, "row width"], head: Float[Tensor, "code width"],
        tokens: Integer[Tensor, " row"], rows: int,
    ) -> tuple[Each, Each]:  # fmt: skip
        """In float32."""
        parts = zip(states.split(rows), tokens.split(rows), strict=True)
        found = [_totals(F.linear(some, head), true) for some, true in parts]
        nats, total = (torch.cat(part) for part in zip(*found, strict=True))
        ctx.save_for_backward(states, head, tokens, total)
        ctx.rows = rows
        return nats, total

    @staticmethod
    def backward(ctx: Any, of_nats: Each, of_total: Each) -> tuple[Tensor | None, ...]:
        """Gradients of states and head; the head's is added up in float32, then rounded."""
        states, head, *each = ctx.saved_tensors
        to_states = torch.empty_like(states)
        to_head = torch.zeros(head.shape, dtype=torch.float32, device=head.device)
        each = [part.split(ctx.rows) for part in (*each, of_nats, of_total)]
        for some, out, *rest in zip(
            states.split(ctx.rows), to_states.split(ctx.rows), *each, strict=True
        ):
            slope = _slopes(F.linear(some, head), *rest)
            torch.mm(slope, head, out=out)
            to_head += slope.t() @ some
        return to_states, to_head.to(head.dtype), None, None


def _totals(logits: Rows, tokens: Integer[Tensor, " row"]) -> tuple[Each, Each]:
    if not _has_kernels(logits):
        wide = logits.float()
        total = wide.logsumexp(1)
        return total - wide.gather(1, tokens[:, None])[:, 0], total
    from cartok.prior import kernels

    kernel: Any = kernels.total_kernel  # triton's own annotations contradict its calls
    nats, total = logits.new_empty(2, len(logits), dtype=torch.float32)
    with torch.cuda.device_of(logits):
        kernel[(len(logits),)](logits, tokens, nats, total, logits.shape[1], tile=4096, num_warps=8)
    return nats, total


def _slopes(
    logits: Rows, tokens: Integer[Tensor, " row"], total: Each, of_nats: Each, of_total: Each
) -> Rows:
    """Gradients of logits, which may be overwritten."""
    if not _has_kernels(logits):
        slope = (logits.float() - total[:, None]).exp() * (of_nats + of_total)[:, None]
        slope.scatter_add_(1, tokens[:, None], -of_nats[:, None])
        return slope.to(logits.dtype)
    from cartok.prior import kernels

    kernel: Any = kernels.slope_kernel
    codes, tile = logits.shape[1], 2048
    given = (part.contiguous() for part in (total, of_nats, of_total))
    with torch.cuda.device_of(logits):
        kernel[(len(logits), -(-codes // tile))](logits, tokens, *given, codes, tile=tile)
    return logits


def _has_kernels(like: Tensor) -> bool:
    return like.is_cuda and torch.version.hip is None and _kernels_work(like.device)


@functools.cache
def _kernels_work(device: torch.device) -> bool:
    def run_one() -> None:
        from cartok.prior.kernels import slope_kernel

        kernel: Any = slope_kernel
        x, code = torch.zeros(1, 1, device=device), torch.zeros(1, device=device).long()
        kernel[(1, 1)](x, code, x, x, x, 1, tile=1)

    return kernels_work(device, run_one, "prior")
