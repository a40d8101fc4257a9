"""What a grid's laws would have foretold: its costliest prior, from all runs but those of it.

A law is worth what it says of runs that it has not seen. So the runs of the costliest prior are
left out, laws are fitted to the others, and what they predict stands beside what was measured.
"""

from dataclasses import dataclass
from typing import Any

from cartok.core.errors import UserError
from cartok.scaling.arm_fits import ArmFit, fits_of
from cartok.scaling.bands import Prediction
from cartok.scaling.grid import Point, grid_of
from cartok.scaling.numbers import Number


@dataclass(frozen=True)
class Foretold:
    """One tokenizer's mean score with the prior that was left out, and what was predicted of it."""

    arm: str
    prior: str
    beyond: float
    """Its compute over the most that the law had seen."""
    measured: Number
    """The mean over seeds."""
    prediction: Prediction | None
    refused: str = ""
    """Why there is none."""

    @property
    def is_within(self) -> bool:
        """True if what was measured lies in the interval."""
        if self.prediction is None:
            return False
        interval = self.prediction.interval
        return interval.low <= self.measured <= interval.high


def foretold(study: dict[str, Any], key: str = "gfd") -> list[Foretold]:
    """Every tokenizer that has runs of its costliest prior and of others; a score by its key."""
    left_out = {}
    for arm in grid_of(study):
        points = [point for point in arm.points if point.scores.get(key, 0) > 0]
        if len({point.prior for point in points}) > 1:
            costliest = max(points, key=lambda point: point.flops).prior
            left_out[arm.name] = [point for point in points if point.prior == costliest]
    digests = {point.run for points in left_out.values() for point in points}
    others = study | {"runs": [run for run in study["runs"] if run["digest"] not in digests]}
    return [
        _foretold(fit, left_out[fit.arm.name])
        for fit in fits_of(others, key)
        if fit.arm.name in left_out
    ]


def _foretold(fit: ArmFit, points: list[Point]) -> Foretold:
    costliest = points[0]
    scores = [point.scores[fit.key] for point in points]
    beyond = costliest.flops / max(point.flops for point in fit.arm.points)
    prediction, refused = None, fit.refused
    try:
        if fit.joint is not None:
            prediction = fit.joint.prediction_at(costliest.counted, costliest.pictures)
        elif fit.law is not None:
            prediction = fit.law.prediction_at(costliest.flops)
    except UserError as error:
        refused = str(error)
    return Foretold(
        fit.arm.name, costliest.prior, beyond, sum(scores) / len(scores), prediction, refused
    )
