"""What happens to logits between the network and the draw, as pure functions.

Guidance first, then temperature, then the filters; a code that may not be drawn gets -inf.
"""

import math
from collections.abc import Callable

import torch
from jaxtyping import Float
from torch import Tensor

Scores = Float[Tensor, "batch code"]
"""Logits of one position."""


def constant(share: float) -> float:
    """All of the guidance at every token (the paper's choice)."""
    return 1.0


def linear(share: float) -> float:
    """From almost none at the first token to all at the last."""
    return share


def cosine(share: float) -> float:
    """Slower at both ends; with a power above 1 this is RAR's power-cosine."""
    return (1 - math.cos(math.pi * share)) / 2


SCHEDULES: dict[str, Callable[[float], float]] = {
    "constant": constant, "linear": linear, "cosine": cosine,
}  # fmt: skip
"""How much of the guidance acts, by the share in (0, 1] of tokens drawn once this one is; a new
schedule is one entry."""


def scales_of(
    schedule: str, scale: float, num_positions: int, power: float = 1.0,
    interval: tuple[float, float] = (0.0, 1.0),
) -> list[float]:  # fmt: skip
    """The scale of guidance at each position: 1, none, outside the interval of shares.

    The share of tokens is raised to ``power`` before the schedule sees it: above 1, guidance
    comes late.
    """
    shares = [(position + 1) / num_positions for position in range(num_positions)]
    first, last = interval
    return [
        1 + (scale - 1) * SCHEDULES[schedule](share**power) if first < share <= last else 1.0
        for share in shares
    ]


def guided(conditional: Scores, unconditional: Scores, scale: float | Tensor) -> Scores:
    """Logits pushed away from the unconditional ones: u + (c - u) * scale; 1 changes nothing."""
    return unconditional + (conditional - unconditional) * scale


def tempered(logits: Scores, temperature: float) -> Scores:
    """Logits over temperature; 0 leaves the likeliest code alone."""
    return top_k(logits, 1) if temperature == 0 else logits / temperature


def top_k(logits: Scores, k: int) -> Scores:
    """Bars all codes less likely than the ``k``-th; its equals stay. 0 bars none."""
    if not 0 < k < logits.shape[-1]:
        return logits
    threshold = logits.topk(k, dim=-1).values[:, -1:]
    return logits.masked_fill(logits < threshold, -float("inf"))


def min_p(logits: Scores, p: float) -> Scores:
    """Bars all codes less likely than ``p`` times the likeliest; 0 bars none."""
    if p == 0:
        return logits
    return logits.masked_fill(logits < logits.amax(-1, keepdim=True) + math.log(p), -float("inf"))


def top_p(logits: Scores, p: float) -> Scores:
    """Bars all but the fewest codes that together reach probability ``p`` > 0; 1 bars none."""
    if p >= 1:
        return logits
    order = logits.argsort(dim=-1, descending=True, stable=True)
    likely = logits.gather(-1, order).double().softmax(dim=-1)
    reached_before = likely.cumsum(dim=-1) - likely
    barred = torch.zeros_like(order, dtype=torch.bool).scatter(-1, order, reached_before >= p)
    return logits.masked_fill(barred, -float("inf"))
