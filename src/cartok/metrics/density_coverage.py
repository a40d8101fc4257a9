"""Density and coverage: precision and recall that one outlier among the real rows does not move."""

from dataclasses import dataclass

import torch

from cartok.metrics.features import AnyRows
from cartok.metrics.neighbours import blocks_of, centred, reach_of


@dataclass(frozen=True)
class DensityCoverage:
    """Higher is better; two sets of n rows of one distribution have a known expectation."""

    density: float
    """Over generated rows the mean number of real balls around it, over k; expected 1, may exceed
    it."""
    coverage: float
    """Of real rows, those in whose ball a generated one lies; expected, for endless rows,
    1 - 2^-k."""


def density_coverage(generated: AnyRows, real: AnyRows, k: int = 5) -> DensityCoverage:
    """Density and coverage (Naeem et al. 2020): both count in the real rows' balls alone.

    A ball reaches to its row's k-th neighbour among the real rows, itself not counted, and holds
    what lies on its edge. For distinct rows that is the authors' count; of repeated ones their
    program says that nothing lies in a ball of radius 0, not even its own picture.

    Raises:
        UserError: a set has k rows or fewer, or the two are no features that compare.
    """
    drawn, true = centred(generated, real, k)
    reach = reach_of(true, k)
    covered = torch.zeros_like(reach, dtype=torch.bool)
    inside = 0
    for block in blocks_of(drawn, true):
        hits = block.squared <= reach[block.second]
        covered[block.second] |= hits.any(0)
        inside += int(hits.sum())
    return DensityCoverage(inside / (k * len(generated)), covered.double().mean().item())
