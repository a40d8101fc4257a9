"""What a Frechet distance is worth: its error, and what it would be for endless pictures.

A Frechet distance of n pictures lies above that of endless ones by about 1 / n of something: n
pictures vary less than what they are drawn from, and not in quite the same directions. Resampling
with replacement adds the same again, so the plain percentiles of a bootstrap lie above the value,
and for like sets miss it. Leaving out a group of pictures at a time (the jackknife) tells how the
value spreads, and the spread is about its own mean, which no bias moves.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from scipy.stats import t as student

from cartok.core.errors import UserError
from cartok.metrics.features import AnyRows, checked_rows
from cartok.metrics.frechet import LEVEL, frechet_of_gaussians
from cartok.metrics.gaussian import Gaussian, Moments, joined, moments_of

GROUPS = 12
"""Random groups that the pictures of a side are dealt to."""

DIVISORS = (1, 2, 3, 4)
"""Into how many disjoint parts they are cut for extrapolation."""


@dataclass(frozen=True)
class FrechetEstimate:
    """A Frechet distance with its error; see ``frechet_estimate``."""

    value: float
    """Of the pictures as they are: what is published."""
    at_infinity: float
    """Of endless pictures like the generated ones, against the same reference; may fall below 0."""
    standard_error: float
    """Of either."""

    @property
    def interval(self) -> tuple[float, float]:
        """Where, at 90 %, the mean score of sets of these sizes lies; nothing about its bias."""
        return self._around(self.value)

    @property
    def interval_at_infinity(self) -> tuple[float, float]:
        """Where, at 90 %, the score of endless pictures lies, but for the reference's own bias."""
        return self._around(self.at_infinity)

    def _around(self, centre: float) -> tuple[float, float]:
        reach = float(student.ppf((1 + LEVEL) / 2, GROUPS - 1)) * self.standard_error
        return centre - reach, centre + reach


def frechet_estimate(
    generated: AnyRows, reference: AnyRows | Gaussian, seed: int = 0
) -> FrechetEstimate:
    """The Frechet distance, its standard error, and its limit for endless generated pictures.

    Pictures are dealt at random (by ``seed``) to 12 groups, so that those in the order of their
    classes do no harm. The error is the jackknife's over groups. A reference given as features is
    a sample, too, and adds its own error; one given as statistics is what it is. The limit is where
    the line through the mean distances of the whole, of halves, thirds and quarters, against
    1 / count, meets 0 (Chong and Forsyth 2020, whose parts overlap).

    On normal features (48, their spectrum falling as rank^-1.2; 5 or 21 pictures for each; alike,
    nearly, or not; 400 repeats of each) the interval of 90 % held the mean score in 90 to 98 % of
    repeats, most for like sets, whose error comes out high. That at infinity held its own mean in
    89 to 96 %, and against a reference of known statistics the truth in 88 to 92 %; but in 73 % for
    like sets of 5 pictures a feature, where an eighth too much was taken off.

    Costs 23 distances, with features as a reference 35: 36 s at 2048 features on one core.

    Raises:
        UserError: a quarter of the generated pictures, or the reference, is no more than there are
            features; or the two do not compare.
    """
    sampled = isinstance(reference, torch.Tensor)
    checked_rows(generated, *([reference] if sampled else []))
    generator = torch.Generator().manual_seed(seed)
    parts = _dealt(generated, generator)
    dim, quarter = generated.shape[1], min(part.count for part in parts) * GROUPS // max(DIVISORS)
    if quarter <= dim:
        raise UserError(
            f"extrapolating a Frechet distance of {dim} features needs more than "
            f"{max(DIVISORS) * dim} pictures, but {len(generated)} came; make more, or project the "
            "features to fewer"
        )
    whole, variance = joined(parts).gaussian, 0.0
    if sampled:
        reference_parts = _dealt(reference, generator)
        reference = joined(reference_parts).gaussian
        variance += _variance(reference_parts, whole)
    value = frechet_of_gaussians(whole, reference)
    variance += _variance(parts, reference)
    return FrechetEstimate(value, _limit(parts, reference), variance**0.5)


def _dealt(features: AnyRows, generator: torch.Generator) -> list[Moments]:
    order = torch.randperm(len(features), generator=generator).to(features.device)
    return [moments_of(features[some]) for some in order.tensor_split(GROUPS)]


def _variance(parts: Sequence[Moments], other: Gaussian) -> float:
    """The jackknife's: of one side's distances to the other, each group left out in turn."""
    without = [
        frechet_of_gaussians(joined([*parts[:left], *parts[left + 1 :]]).gaussian, other)
        for left in range(len(parts))
    ]
    return (len(parts) - 1) * float(np.var(without))


def _limit(parts: Sequence[Moments], reference: Gaussian) -> float:
    """Where the line through the mean distances meets 1 / count = 0."""
    means = [
        np.mean([
            frechet_of_gaussians(joined(parts[start::divisor]).gaussian, reference)
            for start in range(divisor)
        ])
        for divisor in DIVISORS
    ]  # fmt: skip
    return float(np.polynomial.polynomial.polyfit(DIVISORS, means, 1)[0])
