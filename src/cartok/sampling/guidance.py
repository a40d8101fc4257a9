"""What happens to logits between the network and the draw, as pure functions.

Guidance first, then temperature, then the two filters; a code that may not be drawn gets -inf.
"""

from collections.abc import Callable

import torch
from jaxtyping import Float
from torch import Tensor

Scores = Float[Tensor, "batch code"]
"""Logits of one position."""


def constant(scale: float, position: int, num_positions: int) -> float:
    """The same scale everywhere (the paper's choice)."""
    return scale


def linear(scale: float, position: int, num_positions: int) -> float:
    """From almost none at the first token to the full scale at the last."""
    return 1 + (scale - 1) * (position + 1) / num_positions


SCHEDULES: dict[str, Callable[[float, int, int], float]] = {"constant": constant, "linear": linear}
"""Scale of guidance by (scale, position, number of positions); a new schedule is one entry."""


def scales_of(schedule: str, scale: float, num_positions: int) -> list[float]:
    """The scale of guidance at each position."""
    at = SCHEDULES[schedule]
    return [at(scale, position, num_positions) for position in range(num_positions)]


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


def top_p(logits: Scores, p: float) -> Scores:
    """Bars all but the fewest codes that together reach probability ``p`` > 0; 1 bars none."""
    if p >= 1:
        return logits
    order = logits.argsort(dim=-1, descending=True, stable=True)
    likely = logits.gather(-1, order).double().softmax(dim=-1)
    reached_before = likely.cumsum(dim=-1) - likely
    barred = torch.zeros_like(order, dtype=torch.bool).scatter(-1, order, reached_before >= p)
    return logits.masked_fill(barred, -float("inf"))
