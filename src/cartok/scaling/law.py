"""The law of a frontier, L(C) = L_min + C^alpha e^lambda with alpha < 0 (paper, section 3.3).

Points are end points of independent runs; C is training compute in any unit, but in one.
"""

import math
from dataclasses import dataclass
from typing import Literal

import numpy as np

from cartok.core.errors import UserError
from cartok.scaling.bands import (
    Numbers,
    Prediction,
    drawn,
    interval_of,
    is_extrapolated,
    positive,
    spans,
)
from cartok.scaling.numbers import Interval, Number, shown
from cartok.scaling.powers import FLATTEST, STEEPEST, Bounds, fitted

LEAST_POINTS = 4
"""One more than parameters."""

LEAST_SPAN, LEAST_SPAN_HELD = 10.0, 3.0
"""Factors of compute. Over one decade intervals still cover; over half a decade L_min and alpha
cannot be told apart (an interval for alpha is as wide as 2) and no longer do. With L_min given the
law is a straight line of logarithms."""

ADD_RUNS = "add runs with more compute, or less"


@dataclass(frozen=True)
class Law:
    """L(C) = L_min + C^alpha e^lambda, as the paper prints it."""

    l_min: float
    alpha: float
    """Below 0."""
    intercept: float
    """The paper's lambda."""

    def score_at(self, compute: Number) -> float:
        """The score at some compute."""
        return self.l_min + math.exp(self.intercept + self.alpha * math.log(compute))

    def compute_for(self, score: Number) -> float:
        """The compute at which the law reaches a score.

        Raises:
            UserError: the score is not above L_min.
        """
        if score <= self.l_min:
            raise UserError(
                f"a law reaches scores above its L_min, {shown(self.l_min)}, but {shown(score)} "
                "was asked; ask for a higher one"
            )
        return math.exp((math.log(score - self.l_min) - self.intercept) / self.alpha)


@dataclass(frozen=True, eq=False)
class LawFit:
    """A law with what it rests on."""

    law: Law
    r2: float
    """Of log(L - L_min) against log C over the points, as the paper reports it."""
    residuals: np.ndarray
    """log score - log law, by point."""
    compute_seen: tuple[float, float]
    held: str
    """What was given rather than fitted; empty if nothing was."""
    warnings: tuple[str, ...]
    draws: np.ndarray
    """L_min, alpha and lambda (draws, 3) of refits to noise drawn anew; see ``bands``."""

    @property
    def num_points(self) -> int:
        """How many runs were fitted."""
        return len(self.residuals)

    @property
    def laws(self) -> list[Law]:
        """The draws as laws: an interval of anything is the middle 90 % of it over them."""
        return [Law(*row) for row in self.draws.tolist()]

    def interval(self, parameter: Literal["l_min", "alpha", "intercept"]) -> Interval:
        """Where 90 % of studies like this one would find a parameter."""
        return interval_of(self.draws[:, ("l_min", "alpha", "intercept").index(parameter)])

    def drawn_scores(self, compute: np.ndarray) -> np.ndarray:
        """Scores (draws, points) at some computes."""
        l_min, alpha, intercept = (column[:, None] for column in self.draws.T)
        return l_min + np.exp(intercept + alpha * np.log(compute))

    def prediction_at(self, compute: Number) -> Prediction:
        """The score at some compute, with its interval.

        Raises:
            UserError: it is more than ten times beyond the compute seen (``bands.REACH``).
        """
        rule = f"add a run near {shown(compute)} first"
        beyond = is_extrapolated("compute", compute, self.compute_seen, rule)
        scores = self.drawn_scores(np.array([compute], dtype=float))[:, 0]
        return Prediction(self.law.score_at(compute), interval_of(scores), beyond)


def fit_law(
    compute: Numbers,
    scores: Numbers,
    l_min: Number | None = None,
    floor: Number = 0.0,
    draws: int = 400,
    seed: int = 0,
) -> LawFit:
    """The law of points on a frontier, by Huber's loss of log residuals.

    L_min lies in [floor, lowest score), or is held at ``l_min``, as the paper holds CRT's at the
    baseline's. All points are fitted, so take those of ``frontier_of`` first. Runs of a grid have a
    law without choosing: ``fit_joint(...).frontier``, which is what covers if scores are noisy.

    Raises:
        UserError: fewer than 4 points, compute that spans less than 10 times (3 with L_min given),
            scores that do not fall, or an L_min that is not below them.
    """
    costs = positive("compute", compute, len(compute))
    values = positive("score", scores, len(compute))
    if len(np.unique(costs)) < LEAST_POINTS:
        raise UserError(
            f"a law needs points at {LEAST_POINTS} computes or more, but there are "
            f"{len(np.unique(costs))}; {ADD_RUNS}"
        )
    seen = spans("compute", costs, LEAST_SPAN if l_min is None else LEAST_SPAN_HELD, ADD_RUNS)
    bounds = bounds_of(values, l_min, floor)
    logs = np.log(values)
    _check_falls(np.log(costs), logs)
    centre = np.log(costs).mean()
    x = (np.log(costs) - centre)[:, None]
    theta, bend = fitted(x, logs, bounds)
    around = drawn(x, logs, bounds, theta, bend, draws, np.random.default_rng(seed))
    rows = np.concatenate([theta[None], around])
    rows = np.stack([rows[:, 0], rows[:, 2], rows[:, 1] - rows[:, 2] * centre], axis=1)
    law = Law(*rows[0].tolist())
    return LawFit(
        law=law,
        r2=r2_of(law, costs, values),
        residuals=logs - np.log([law.score_at(cost) for cost in costs.tolist()]),
        compute_seen=seen,
        held=held_text(l_min),
        warnings=warnings_of(theta, values, bounds, ("alpha",)),
        draws=rows[1:],
    )


def r2_of(law: Law, compute: np.ndarray, scores: np.ndarray) -> float:
    """The share of the variance of log(L - L_min) that the law explains (paper, section 3.3).

    Of scores above L_min, as others have no logarithm; not a number where all of them are equal.
    """
    above = scores > law.l_min
    excess = np.log(scores[above] - law.l_min)
    if len(np.unique(excess)) < 2:
        return math.nan
    errors = excess - law.intercept - law.alpha * np.log(compute[above])
    return float(1 - (errors**2).sum() / ((excess - excess.mean()) ** 2).sum())


def bounds_of(scores: np.ndarray, l_min: Number | None, floor: Number) -> Bounds:
    """Where L_min may lie: from ``floor`` to below the lowest score, or at what is given.

    Raises:
        UserError: ``floor`` or ``l_min`` is below 0, or not below the lowest score.
    """
    name, bound = ("floor", floor) if l_min is None else ("L_min", l_min)
    if not 0 <= bound < scores.min():
        raise UserError(
            f"{name} lies in [0, {shown(float(scores.min()))}), below the lowest score, but is "
            f"{shown(bound)}; give another, or none"
        )
    return Bounds(float(bound), math.inf if l_min is None else float(bound))


def held_text(l_min: Number | None) -> str:
    """What of a fit was given, in words."""
    return "" if l_min is None else f"L_min at {shown(l_min)}"


def warnings_of(
    theta: np.ndarray, scores: np.ndarray, bounds: Bounds, exponents: tuple[str, ...]
) -> tuple[str, ...]:
    """In words, which of a fit's parameters ran into their bounds."""
    found = []
    if not bounds.held and theta[0] <= bounds.low:
        found.append(
            f"the scores show no floor: L_min is at its lower bound, {shown(bounds.low)}; if there "
            "is one, predictions far beyond are too low"
        )
    if not bounds.held and theta[0] >= scores.min() * (1 - 1e-6):
        found.append(
            f"L_min is at its upper bound, the lowest score, {shown(float(scores.min()))}: look "
            "for a stray run among those of least and most compute"
        )
    for name, exponent in zip(exponents, theta[-len(exponents) :].tolist(), strict=True):
        if exponent in (STEEPEST, FLATTEST):
            bound = shown(abs(exponent))
            found.append(f"{name} is at its bound, {bound}: these points do not bear this form")
    return tuple(found)


def _check_falls(log_compute: np.ndarray, logs: np.ndarray) -> None:
    """By a straight line of logarithms: its slope is below 0 by two standard errors or more."""
    centred = log_compute - log_compute.mean()
    spread = (centred**2).sum()
    slope = float((centred * logs).sum() / spread)
    errors = logs - logs.mean() - slope * centred
    error = math.sqrt((errors**2).sum() / (len(logs) - 2) / spread)
    if slope > -2 * error or slope > -1e-12:
        decade = [100 * math.expm1(part * math.log(10)) for part in (slope, error)]
        raise UserError(
            f"scores must fall with compute, but change by {decade[0]:+.2g} ± {decade[1]:.1g} % "
            f"a decade; {ADD_RUNS}, or look whether these runs have trained to their end"
        )
