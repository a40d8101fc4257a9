"""What a fit bears: draws around it, intervals from them, and how far from its points it is asked.

Runs of a study are a designed grid, so what a repeat would change is their noise: residuals are
drawn anew around the fit and everything is fitted again. Two corrections make the middle 90 % of
the draws cover the truth 90 % of the time when points are few (``cartok.scaling.coverage`` measures
it): residuals are made up for the parameters that were spent on them, and as their size is itself
known from few runs, every draw scales them by its own ``sqrt(f / chi2_f)``, f being the runs beyond
the parameters. For a straight line with Gaussian noise that is Student's interval.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from cartok.core.errors import UserError
from cartok.scaling.numbers import Interval, Number, shown
from cartok.scaling.powers import Bounds, model_of, num_free, refitted

Numbers = Sequence[Number] | np.ndarray
"""One for each run."""

LEVEL = 0.9
"""Of every interval."""

REACH = 10.0
"""How many times beyond what was seen a fit may be asked: a decade, the least span that a fit of
all parameters needs. So far intervals were found to cover: 88 to 91 % of 400 studies."""


@dataclass(frozen=True)
class Prediction:
    """A score that a fit foresees."""

    score: float
    interval: Interval
    """Of the score that many runs would have on average; one scatters around it besides."""
    extrapolated: bool
    """Beyond what was seen, though within reach."""


def drawn(
    x: np.ndarray,
    logs: np.ndarray,
    bounds: Bounds,
    theta: np.ndarray,
    bend: float,
    count: int,
    generator: np.random.Generator,
) -> np.ndarray:
    """Parameters (count, 1 + 2 powers) of log scores drawn around a fit to ``logs`` (points)."""
    middle = np.log(model_of(theta[None], x))[0]
    free = len(logs) - num_free(x.shape[1], bounds)
    residuals = (logs - middle - (logs - middle).mean()) * np.sqrt(len(logs) / free)
    noise = generator.choice(residuals, size=(count, len(logs)))
    scale = np.sqrt(free / generator.chisquare(free, size=(count, 1)))
    start = np.repeat(theta[None], count, axis=0)
    return refitted(x, middle + noise * scale, bounds, start, bend)


def interval_of(values: np.ndarray) -> Interval:
    """The middle of draws: percentiles."""
    low, high = np.quantile(values, [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    return Interval(float(low), float(high), f"{LEVEL:.0%} of {len(values)} refits")


def is_extrapolated(what: str, value: Number, seen: tuple[float, float], rule: str) -> bool:
    """True beyond what was seen.

    Raises:
        UserError: more than ``REACH`` times beyond; ``rule`` says what run to add.
    """
    low, high = seen
    if not low / REACH <= value <= high * REACH:
        raise UserError(
            f"a fit is asked within {REACH:g} times of what it has seen, which is {what} "
            f"from {shown(low)} to {shown(high)}, but {shown(value)} was asked; {rule}"
        )
    return not low <= value <= high


def positive(what: str, values: Numbers, length: int) -> np.ndarray:
    """The values as an array.

    Raises:
        UserError: there are not as many as points, or one is not a positive number.
    """
    array = np.asarray(values, dtype=float)
    if array.shape != (length,):
        raise UserError(
            f"every point has one {what}, but there are {array.size} for {length} points; "
            "give as many"
        )
    wrong = [value for value in array if not (np.isfinite(value) and value > 0)]
    if wrong:
        raise UserError(
            f"every {what} is a number above 0, but one is {wrong[0]}; leave that run out"
        )
    return array


def spans(what: str, values: np.ndarray, factor: float, advice: str) -> tuple[float, float]:
    """The least and the largest value.

    Raises:
        UserError: they are not ``factor`` apart.
    """
    low, high = float(values.min()), float(values.max())
    if high < low * factor * (1 - 1e-9):
        raise UserError(
            f"{what} must span a factor of {factor:g}, but spans {high / low:.3g} "
            f"({shown(low)} to {shown(high)}); {advice}"
        )
    return low, high
