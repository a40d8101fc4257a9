"""A set of features as a Gaussian, from rows, from batches of rows, or from several ranks.

What adds up is a count, a mean and a sum of squared deviations (``Moments``), in float64. The parts
are joined by the update of Chan, Golub and LeVeque 1979, which subtracts no large numbers, so that
however rows are cut, ordered and joined the result is the same to about 1e-12 of its size.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from functools import reduce

import torch
from jaxtyping import Float
from torch import Tensor

from cartok.core.errors import UserError
from cartok.core.parallel import World
from cartok.metrics.features import AnyRows, checked_rows

ROWS_AT_ONCE = 4096
"""Rows held in float64 at a time."""


@dataclass(frozen=True)
class Gaussian:
    """A set of features reduced to its mean and unbiased covariance, float64.

    Leading axes, if there are any, hold several Gaussians side by side.
    """

    mean: Float[Tensor, "*many feature"]
    cov: Float[Tensor, "*many feature feature"]
    count: int


@dataclass(frozen=True)
class Moments:
    """What adds up over parts of a set: float64, zeros for no rows."""

    count: int
    mean: Float[Tensor, " feature"]
    scatter: Float[Tensor, "feature feature"]
    """The sum over rows of (row - mean)(row - mean)ᵀ."""

    @property
    def gaussian(self) -> Gaussian:
        """Mean and unbiased covariance.

        Raises:
            UserError: there are fewer than two rows.
        """
        if self.count < 2:
            raise UserError(
                f"a covariance needs two rows or more, but {self.count} came; add pictures"
            )
        return Gaussian(self.mean, self.scatter / (self.count - 1), self.count)

    def to(self, device: torch.device | str) -> "Moments":
        """The same on another device."""
        return Moments(self.count, self.mean.to(device), self.scatter.to(device))


def gaussian_of(features: AnyRows) -> Gaussian:
    """The statistics that a Frechet distance needs.

    Raises:
        UserError: there are fewer than two rows, or one is not finite.
    """
    return moments_of(features).gaussian


def moments_of(features: AnyRows) -> Moments:
    """The moments of rows, of none too; where the features are.

    Raises:
        UserError: these are no rows of floats, or one is not finite.
    """
    checked_rows(features)
    return reduce(_joined, map(_moments, features.split(ROWS_AT_ONCE)))


def moments_of_batches(batches: Iterable[AnyRows]) -> Moments:
    """The moments of rows that come in batches, one of them in memory at a time.

    Raises:
        UserError: there is no batch, their widths differ, or a row is not finite.
    """
    return joined(map(moments_of, batches))


def joined(parts: Iterable[Moments]) -> Moments:
    """The moments of all rows of several parts, in whatever order they come.

    Raises:
        UserError: there is no part, or their widths differ.
    """
    parts = iter(parts)
    first = next(parts, None)
    if first is None:
        raise UserError("statistics need at least one batch of features, but none came")
    return reduce(_joined, parts, first)


def joined_over_ranks(moments: Moments, world: World) -> Moments:
    """The moments of the rows of all ranks, on every rank; one that had none may take part."""
    counts = world.gather(torch.tensor([moments.count], device=moments.mean.device))
    means, scatters = world.gather(moments.mean[None]), world.gather(moments.scatter[None])
    return joined(map(Moments, counts.tolist(), means, scatters))


def _moments(rows: Float[Tensor, "row feature"]) -> Moments:
    rows = rows.double()
    mean = rows.sum(0) / max(len(rows), 1)
    centred = rows - mean
    return Moments(len(rows), mean, centred.T @ centred)


def _joined(a: Moments, b: Moments) -> Moments:
    if len(a.mean) != len(b.mean):
        raise UserError(
            f"rows of one set have one width, but these have {len(a.mean)} and {len(b.mean)}; "
            "take the features of one network"
        )
    count = a.count + b.count
    share = b.count / max(count, 1)
    apart = b.mean - a.mean
    return Moments(
        count,
        a.mean + share * apart,
        torch.addr(a.scatter + b.scatter, apart, apart, alpha=a.count * share),
    )
