"""Which tokens of a picture stay when the rest is drawn anew.

A prior draws in raster order and sees what lies before: above, and to the left in the same row. So
completing a picture downwards is what it learned. A hole in the middle is filled without a look at
what is kept below it, and may not meet it; that is a limit of the order, not of the tokenizer.
"""

from collections.abc import Callable

import torch
from jaxtyping import Bool
from torch import Tensor

from cartok.core.config import nearest
from cartok.core.errors import UserError
from cartok.core.shapes import Tokens, TokenSequence

Mask = Bool[Tensor, "row col"]

REGIONS: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "top": lambda down, across: down,
    "bottom": lambda down, across: 1 - down,
    "left": lambda down, across: across,
    "right": lambda down, across: 1 - across,
    "centre": lambda down, across: torch.maximum((2 * down - 1).abs(), (2 * across - 1).abs()),
    "border": lambda down, across: 1 - torch.maximum((2 * down - 1).abs(), (2 * across - 1).abs()),
}
"""How far from the part that is kept longest a token lies, from 0 to 1, by the shares of the way
down and across at its middle; a new region is one entry."""


def region(name: str, share: float, rows: int, cols: int) -> Mask:
    """The tokens of a region that covers ``share`` of the way across the grid.

    Half of ``top`` is the upper half; half of ``centre`` a square of half the side; half of
    ``border`` all but that square.

    Raises:
        UserError: there is no such region, or the share is not between 0 and 1.
    """
    if name not in REGIONS:
        raise UserError(f"there is no region '{name}' to keep; {nearest(name, list(REGIONS))}")
    if not 0 <= share <= 1:
        raise UserError(f"the share to keep lies from 0 to 1, but is {share:g}")
    down = (torch.arange(rows) + 0.5) / rows
    across = (torch.arange(cols) + 0.5) / cols
    down, across = torch.meshgrid(down, across, indexing="ij")
    return REGIONS[name](down, across) < share


def kept_of(tokens: Tokens, mask: Mask) -> TokenSequence:
    """What ``Sampler.sample_tokens`` is to keep: a picture's tokens in the mask, -1 elsewhere."""
    return tokens.long().masked_fill(~mask.to(tokens.device), -1).flatten(1)
