"""Balls around the rows of a set, each reaching to its row's k-th neighbour: a set's manifold.

Distances are exact over all pairs, block by block, in float64 from products: 50,000 rows of 2048
against 10,000 take 1.2 GB, and on one core some 200 s. With less precision it is chance which of
equal pictures are at distance 0, and on which side a tie falls. In float64 such chances are about
1e-14 of the rows' squared lengths, so balls are closed, and reach ``TIE`` further: what is equal
counts as inside. So do features of a repeated picture that differ in float32's last digit, if its
ball has no other radius; of two at the edge of a larger one, that digit decides.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import combinations_with_replacement

import torch
from jaxtyping import Float
from torch import Tensor

from cartok.core.errors import UserError
from cartok.metrics.features import AnyRows, FirstFeatures, SecondFeatures, checked_rows

BLOCK = 4096
"""Rows and columns of the matrix of distances that are in memory at a time."""

TIE = 1e-12
"""By what share of a row's squared length and squared radius its ball reaches further."""


@dataclass(frozen=True)
class Block:
    """Squared distances between some rows of a set and some of another."""

    first: slice
    second: slice
    squared: Float[Tensor, "first second"]


def centred(first: AnyRows, second: AnyRows, k: int) -> tuple[FirstFeatures, SecondFeatures]:
    """Two sets in float64 about a common centre, which distances forget, but rounding does not.

    Raises:
        UserError: the two are no features that compare, or a set has no k-th neighbour.
    """
    if k < 1:
        raise UserError(f"neighbours are counted from k = 1, but got {k}; 3 and 5 are usual")
    checked_rows(first, second, at_least=k + 1)
    first, second = first.double(), second.double()
    centre = (first.mean(0) + second.mean(0)) / 2
    return first - centre, second - centre


def reach_of(rows: FirstFeatures, k: int) -> Float[Tensor, " first"]:
    """For each centred row the squared distance up to which others lie in its ball.

    A row is no neighbour of its own; one that repeats it is. Each pair is taken once, for both.
    """
    return widened(nearest_in_groups(rows, k, 1).amax((1, 2)), rows)


def nearest_in_groups(
    rows: FirstFeatures, k: int, num_groups: int
) -> Float[Tensor, "first group k"]:
    """For each centred row the squared distances to the k nearest others of every group.

    Rows are dealt to groups in turn. A group with too few others has infinity for the rest.
    """
    blocks = rows.split(BLOCK)
    nearest = [rows.new_full((len(block), num_groups, k), torch.inf) for block in blocks]
    for i, j in combinations_with_replacement(range(len(blocks)), 2):
        squared = _squared_distances(blocks[i], blocks[j])
        if i == j:
            squared.fill_diagonal_(torch.inf)
        else:
            _take_nearest(nearest[j], squared.T, i * BLOCK)
        _take_nearest(nearest[i], squared, j * BLOCK)
    return torch.cat(nearest)


def widened(squared: Float[Tensor, "*_ first"], rows: FirstFeatures) -> Float[Tensor, "*_ first"]:
    """Squared radii of centred rows' balls, up to which what ties with them lies inside."""
    return squared + TIE * (squared + rows.square().sum(1))


def blocks_of(first: FirstFeatures, second: SecondFeatures) -> Iterator[Block]:
    """The squared distances of all rows to all others."""
    for top in range(0, len(first), BLOCK):
        rows = slice(top, top + BLOCK)
        for left in range(0, len(second), BLOCK):
            columns = slice(left, left + BLOCK)
            yield Block(rows, columns, _squared_distances(first[rows], second[columns]))


def _take_nearest(
    known: Float[Tensor, "row group k"], others: Float[Tensor, "row other"], start: int
) -> None:
    """Puts nearer ones in, from columns of which the first is the set's row ``start``."""
    num_groups, k = known.shape[1:]
    for group in range(num_groups):
        some = others[:, (group - start) % num_groups :: num_groups]
        known[:, group] = torch.cat([known[:, group], some], 1).topk(k, largest=False).values


def _squared_distances(a: FirstFeatures, b: SecondFeatures) -> Float[Tensor, "first second"]:
    squares = a.square().sum(1)[:, None] + b.square().sum(1)
    return squares.addmm_(a, b.T, alpha=-2).clamp_(min=0)
