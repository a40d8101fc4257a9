"""The kernel distance (KID): an unbiased distance between sets of features, for small sets too."""

from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from cartok.core.errors import UserError
from cartok.metrics.features import AnyRows, FirstFeatures, SecondFeatures, checked_rows

KERNEL_BLOCK = 5000
"""Sets up to this size are compared whole, larger ones in blocks."""

ROWS_AT_ONCE = 1024
"""Rows of the kernel matrix held in memory at a time."""


@dataclass(frozen=True)
class KernelDistance:
    """The distance (may be slightly below 0 for like sets) and its standard error."""

    value: float
    standard_error: float


def kernel_distance(
    a: AnyRows, b: AnyRows, block: int = KERNEL_BLOCK, seed: int = 0
) -> KernelDistance:
    """Unbiased squared maximum mean discrepancy under (x · y / d + 1)³.

    Binkowski et al. 2018, eq. 4, in float64. Sets of up to ``block`` rows are used whole, which
    does not depend on their order; larger ones are shuffled by ``seed`` and cut into blocks whose
    distances are averaged, so that cost grows linearly. The standard error is the jackknife's over
    both sets, on average no smaller than the true one.

    Raises:
        UserError: a side has fewer than two rows, or the two are no features that compare.
    """
    checked_rows(a, b)
    if min(len(a), len(b)) < 2:
        raise UserError(
            f"a kernel distance needs two rows or more on each side, but got {len(a)} and {len(b)}"
        )
    num_blocks = -(-max(len(a), len(b)) // block)
    num_blocks = min(num_blocks, len(a) // 2, len(b) // 2)
    if num_blocks > 1:
        generator = np.random.Generator(np.random.PCG64(seed))
        a, b = (rows[torch.from_numpy(generator.permutation(len(rows)))] for rows in (a, b))
    pairs = zip(a.tensor_split(num_blocks), b.tensor_split(num_blocks), strict=True)
    distances = [_whole(x.double(), y.double()) for x, y in pairs]
    return KernelDistance(
        value=sum(part.value for part in distances) / num_blocks,
        standard_error=sum(part.standard_error**2 for part in distances) ** 0.5 / num_blocks,
    )


def _whole(a: FirstFeatures, b: SecondFeatures) -> KernelDistance:
    """The distance of two sets, and the error from leaving out each row in turn.

    With row sums of the three kernel matrices both are closed forms.
    """
    within_a, within_b = _row_sums(a, a, skip_self=True), _row_sums(b, b, skip_self=True)
    a_to_b, b_to_a = _row_sums(a, b), _row_sums(b, a)
    n, m = len(a), len(b)
    mean_a, mean_b = within_a.sum() / (n * (n - 1)), within_b.sum() / (m * (m - 1))
    value = mean_a + mean_b - 2 * a_to_b.sum() / (n * m)
    variance = _jackknife(within_a, a_to_b / m) + _jackknife(within_b, b_to_a / n)
    return KernelDistance(value.item(), variance.sqrt().item())


def _jackknife(within: Float[Tensor, " row"], across: Float[Tensor, " row"]) -> Float[Tensor, ""]:
    """The variance that one set brings, from its rows' kernel sums; 0 for fewer than 3 rows."""
    n = len(within)
    if n < 3:
        return within.new_zeros(())
    without = (within.sum() - 2 * within) / ((n - 1) * (n - 2))
    without = without - 2 * (across.sum() - across) / (n - 1)
    return (n - 1) / n * (without - without.mean()).square().sum()


def _row_sums(
    a: FirstFeatures, b: SecondFeatures, *, skip_self: bool = False
) -> Float[Tensor, " row"]:
    """For each row of ``a`` the sum of its kernel with the rows of ``b``, or with all others."""
    sums = torch.cat([_kernel(rows @ b.T, a.shape[1]).sum(1) for rows in a.split(ROWS_AT_ONCE)])
    return sums - _kernel(a.square().sum(1), a.shape[1]) if skip_self else sums


def _kernel(products: Float[Tensor, "*any"], dim: int) -> Float[Tensor, "*any"]:
    return (products / dim + 1) ** 3
