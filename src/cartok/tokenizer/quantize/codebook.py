"""How codes move without a gradient: born on latents, born again, and following means.

All of it is a function of statistics and of a generator that is seeded alike on all ranks, so
that they hold equal codebooks. Nothing here waits for a GPU.
"""

import torch
from jaxtyping import Bool, Float, Integer
from torch import Tensor

from cartok.tokenizer.quantize.rows import Book, Rows, counts_of, nearest, unit

_ROUNDS = 10
_FINENESS = 2.0**32


@torch.no_grad()
def centres_of(rows: Rows, book: Book, on_sphere: bool, generator: torch.Generator) -> Book:
    """Codes at the centres of the rows: ten rounds of k-means from random rows.

    On the sphere a centre is the mean's direction. A centre that no row is nearest to stays where
    it is. With fewer rows than codes every row becomes a code, and the remaining codes stay those
    of ``book``.
    """
    order = torch.randperm(len(rows), generator=generator, device=rows.device)
    centres = rows[order[: len(book)]]
    for _ in range(_ROUNDS):
        index = nearest(rows, centres)
        counts = counts_of(index, len(centres))[:, None]
        means = _exact_sums(rows, index, len(centres)) / counts.clamp_min(1)
        means = unit(means, dim=1) if on_sphere else means
        centres = torch.where(counts > 0, means, centres)
    return torch.cat([centres, book[len(centres) :]])


@torch.no_grad()
def revive(
    book: Book,
    idle: Float[Tensor, " code"],
    counts: Float[Tensor, " code"],
    candidates: Rows,
    patience: int,
    generator: torch.Generator,
) -> Bool[Tensor, " code"]:
    """Moves codes that were not taken for ``patience`` steps onto latents; says which.

    Each is given a latent of its own, since of two codes born on one, one would never be the
    nearest; where latents are too few, the remaining codes wait for those of the next step. Changes
    ``book`` and ``idle`` (steps without use) in place.
    """
    idle.add_(1).masked_fill_(counts > 0, 0)
    dead = idle >= patience
    order = torch.randperm(len(candidates), generator=generator, device=candidates.device)
    turn = dead.long().cumsum(0) - 1
    born = dead & (turn < len(order))
    newborn = candidates[order[turn % len(order)]]
    book.copy_(torch.where(born[:, None], newborn.to(book.dtype), book))
    idle.masked_fill_(born, 0)
    return born


def _exact_sums(rows: Rows, index: Integer[Tensor, " cell"], num_codes: int) -> Book:
    """Each code's sum of rows, in whole numbers: the order of adding, which a GPU leaves open,
    must not show, or ranks would drift apart in the last digit."""
    scale = _FINENESS / rows.abs().amax().double().clamp_min(1e-30)
    whole = (rows.double() * scale).round().long()
    sums = torch.zeros(num_codes, rows.shape[1], dtype=torch.long, device=rows.device)
    return (sums.index_add_(0, index, whole).double() / scale).float()
