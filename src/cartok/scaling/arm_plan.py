"""What one tokenizer's prior would be under a budget: a size that the study has, and its steps.

Only sizes of the study are weighed, since those can be built and timed; what the joint form says of
others is told beside.
"""

import math
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from cartok.core.errors import UserError
from cartok.scaling.arm_fits import ArmFit
from cartok.scaling.bands import REACH, Prediction
from cartok.scaling.grid import FLOPS_PER_TOKEN, Point
from cartok.scaling.numbers import Interval, Number, shown
from cartok.scaling.units import Amount

_FAR = 1.5
"""Factor of size within which a prior is as good as the best: gFD differs by a per cent or two."""


@dataclass(frozen=True)
class ArmPlan:
    """What one tokenizer's prior would be under the budget; or why that cannot be said."""

    arm: str
    codes: int = 0
    tokens: int = 0
    """Of a picture."""
    flops: float = 0.0
    """Of the training; of a budget in hours or the paper's units it differs with the size."""
    size: str = ""
    """The study's prior, layers x width."""
    parameters: int = 0
    counted: float = 0.0
    """Those that FLOPs count; see ``grid.Point``."""
    batch: int = 0
    steps: int = 0
    pictures: float = 0.0
    score: float = math.inf
    """Expected gFD."""
    interval: Interval | None = None
    """Of the mean of many such runs; a single one scatters around it besides."""
    extrapolated: bool = False
    is_less: bool = False
    """Of less than the budget: the most that the law bears. A smaller budget would else get a
    better answer."""
    seconds: float | None = None
    peak_memory_bytes: Number | None = None
    """The least that a run of that size has taken."""
    like: str = ""
    """The run of whose time that of a FLOP was taken."""
    other_size: str = ""
    """In words, what the joint form says of sizes that the study has not."""
    first: float = 0.0
    """The share of refits in which it is the best of all."""
    warnings: tuple[str, ...] = ()
    refused: str = ""
    """Why its law does not bear the budget, or why it has none."""

    def drawn_scores(self, fit: ArmFit) -> np.ndarray:
        """Its score, by draw."""
        return fit.drawn_scores_of(self.counted, self.pictures, self.flops)


@dataclass(frozen=True)
class Terms:
    """What is asked, and of what device."""

    amount: Amount
    device: str
    """Runs of others say nothing of time."""
    device_flops: Number | None
    """FLOPs a second, if given rather than taken from runs."""


def arm_plan(fit: ArmFit, terms: Terms) -> ArmPlan:
    """The size of the study that is expected to score best under the budget, or a refusal."""
    arm = fit.arm
    plan = ArmPlan(arm=arm.name, codes=arm.codes, tokens=arm.tokens)
    if fit.law is None:
        return replace(plan, refused=f"no law: {fit.refused}")
    found, refused = [], ""
    for points in sizes_asked(fit, terms):
        try:
            found.append(_of_size(fit, points, terms))
        except UserError as error:
            refused = str(error)
    if not found:
        return replace(plan, refused=refused)
    best = min(found, key=lambda one: one["score"])
    return replace(
        plan, **best, other_size=_other_size(fit, best), warnings=fit.law.warnings
    )  # fmt: skip


def sizes_asked(fit: ArmFit, terms: Terms) -> list[list[Point]]:
    """Runs by size, smallest first: of all sizes, or of that of the run nearest to the budget where
    the law tells no sizes apart."""
    sizes = [
        [point for point in fit.arm.points if point.size == size] for size in fit.arm.sizes.values()
    ]
    if fit.joint is not None or len(sizes) == 1:
        return sizes
    return [min(sizes, key=lambda points: min(_away(point, terms) for point in points))]


def flops_asked(points: list[Point], terms: Terms) -> tuple[float, Point | None, float | None]:
    """FLOPs that the budget is for one size; the run of it whose time is taken, and its speed.

    Raises:
        UserError: hours are asked, and no run has told its time.
    """
    timed = [point for point in points if point.device == terms.device and point.seconds]
    like = min(timed, key=lambda point: _away(point, terms), default=None)
    speed = None if like is None else _speed(like)
    flops = terms.amount.flops(points[0].flops / points[0].paper_flops, terms.device_flops or speed)
    return flops, like, speed


def most_borne(fit: ArmFit, one: Point) -> float:
    """The most FLOPs of one size that its law is asked for."""
    assert fit.law is not None, "was looked at"
    most = fit.law.compute_seen[1]  # of runs on a frontier, which may end before the costliest
    if fit.joint is not None:
        longest = max(point.pictures for point in fit.points)
        most = min(most, FLOPS_PER_TOKEN * one.tokens * one.counted * longest)
    return most * REACH * (1 - 1e-12)


def _of_size(fit: ArmFit, points: list[Point], terms: Terms) -> dict[str, Any]:
    one = points[0]
    asked, like, speed = flops_asked(points, terms)
    flops = min(asked, most_borne(fit, one))
    pictures = flops / (FLOPS_PER_TOKEN * one.tokens * one.counted)
    batch = round(one.pictures / one.steps)
    steps = int(pictures / batch + 1e-6)
    if steps < 1:
        raise UserError(f"that is less than a step of {batch} pictures for {one.size}; give more")
    speed = terms.device_flops or speed
    # Of the runs of a process all but the first may have been charged with an earlier one's.
    memory = [p.peak_memory_bytes for p in points if p.device == terms.device]
    prediction = _prediction(fit, one.counted, pictures, flops)
    return {
        "flops": flops, "size": one.size, "parameters": one.parameters, "counted": one.counted,
        "batch": batch, "steps": steps, "pictures": pictures,
        "score": prediction.score, "interval": prediction.interval,
        "extrapolated": prediction.extrapolated, "is_less": flops < asked,
        "seconds": flops / speed if speed else None,
        "peak_memory_bytes": min((size for size in memory if size), default=None),
        "like": "" if like is None else f"{fit.arm.name}@{like.prior}",
    }  # fmt: skip


def _prediction(fit: ArmFit, counted: float, pictures: float, flops: float) -> Prediction:
    if fit.joint is not None:
        return fit.joint.prediction_at(counted, pictures)
    assert fit.law is not None, "was looked at"
    return fit.law.prediction_at(flops)


def _other_size(fit: ArmFit, best: dict[str, Any]) -> str:
    if fit.joint is None:
        return ""
    try:
        choice = fit.joint.best_under(best["flops"])
    except UserError as error:
        return f"Of other sizes nothing is said: {error}."
    times = choice.parameters / best["counted"]
    if 1 / _FAR < times < _FAR:
        return ""
    return (
        f"By the joint form a prior of {times:.2g} times that size would do best for the same "
        f"compute, with a gFD of {shown(choice.prediction.score)}; the study has none."
    )


def _away(point: Point, terms: Terms) -> float:
    """How far a run is from the budget, in log compute; hours are held against its own time."""
    speed = terms.device_flops or (_speed(point) if point.seconds else None)
    if terms.amount.unit == "gpuh" and speed is None:
        return math.inf
    wanted = terms.amount.flops(point.flops / point.paper_flops, speed)
    return abs(math.log(wanted / point.flops))


def _speed(point: Point) -> float:
    return point.flops / (point.seconds or math.nan)
