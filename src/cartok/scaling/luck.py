"""A tokenizer's own luck: what all runs made from it share, and another seed would not have.

log score = log law + luck of the tokenizer + noise of the run. Refits draw the noise alone, so the
luck is estimated from residuals, over all recipes that have two seeds or more, and added to draws.
"""

import math
from collections.abc import Sequence

import numpy as np
from scipy.stats import f_oneway

from cartok.scaling.grid import Point

Groups = list[list[float]]
"""Residuals of log scores, a group for each tokenizer of one recipe."""

_EXACT = 1e-8  # of log scores, below which runs lie on their law


def groups_of(points: Sequence[Point], residuals: np.ndarray) -> Groups:
    """Residuals by seed."""
    by_seed: dict[int, list[float]] = {}
    for point, residual in zip(points, residuals.tolist(), strict=True):
        by_seed.setdefault(point.seed, []).append(residual)
    return [by_seed[seed] for seed in sorted(by_seed)]


def spread_of(recipes: Sequence[Groups]) -> float | None:
    """The standard deviation of tokenizers' luck in log score, pooled over recipes.

    By moments, as an analysis of variance has it: the sum of squares between tokenizers less what
    noise alone would bring, over what one unit of luck would. None where no recipe has two seeds
    of two runs each.
    """
    excess = weight = 0.0
    known = [[np.array(group) for group in groups] for groups in recipes]
    for groups in known:
        if len(groups) < 2 or min(map(len, groups)) < 2:
            continue
        sizes = np.array([len(group) for group in groups])
        total, middle = sizes.sum(), np.concatenate(groups).mean()
        within = sum(((group - group.mean()) ** 2).sum() for group in groups)
        between = sum(len(group) * (group.mean() - middle) ** 2 for group in groups)
        noise = within / (total - len(groups))
        excess += float(between - (len(groups) - 1) * noise)
        weight += float(total - (sizes**2).sum() / total)
    return math.sqrt(max(0.0, excess / weight)) if weight else None


def moved(draws: np.ndarray, luck: np.ndarray) -> np.ndarray:
    """Draws of laws with all scores of each e^luck times as high.

    Rows are L_min, alpha and lambda, or L_min, log A, log B, a and b of a joint law.
    """
    found = draws.copy()
    scales = [2] if draws.shape[1] == 3 else [1, 2]
    found[:, 0] *= np.exp(luck)
    found[:, scales] += luck[:, None]
    return found


def words_of(share: float | None, score: str) -> str:
    """What intervals know of tokenizers' luck."""
    if share is None:
        return (
            "No recipe has runs of two tokenizers: what others of one recipe would differ by is in "
            "no interval."
        )
    if not share:
        return f"Tokenizers of one recipe differ by no more in {score} than runs scatter."
    return (
        f"Tokenizers of one recipe, which differ in the seed, differ by {share:.1%} of {score} (a "
        "standard deviation, over all recipes); intervals count with it."
    )


def seeds_apart(groups: Groups) -> tuple[str, ...]:
    """Words, if tokenizers of one recipe differ beyond noise (an F test of residuals, 1 %)."""
    if len(groups) < 2 or min(map(len, groups)) < 2 or np.ptp(np.concatenate(groups)) < _EXACT:
        return ()
    if f_oneway(*groups).pvalue >= 0.01:
        return ()
    means = [float(np.mean(group)) for group in groups]
    return (
        f"runs from one of its {len(groups)} tokenizers lie "
        f"{math.expm1(max(means) - min(means)):.1%} above those from another, all alike",
    )
