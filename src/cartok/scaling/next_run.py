"""Which run to add to a grid study next: the one that would narrow a prediction most."""

import math
from dataclasses import dataclass, replace

import numpy as np

from cartok.scaling.arm_fits import ArmFit
from cartok.scaling.bands import LEVEL
from cartok.scaling.grid import GridArm, Point
from cartok.scaling.numbers import shown

_KNOWN = 1e-3  # of a score, by which it may be off without a run being worth while


@dataclass(frozen=True)
class NextRun:
    """The run that would tell most of the recommended prior's score."""

    arm: str
    size: str
    steps: int
    flops: float
    is_repeat: bool
    narrower: float
    """The interval's width with the run over that without it, as foreseen."""

    @property
    def words(self) -> str:
        """A sentence."""
        what = "another seed of it" if self.is_repeat else "a length beyond the grid"
        if self.narrower > 0.99:
            return "No single run of the grid or beside it would narrow that interval by 1 %."
        return (
            f"The run that would tell most next: {self.arm} with the prior {self.size} for "
            f"{self.steps:,} steps ({what}, {shown(self.flops)} FLOPs); by how the refits vary "
            f"together it would make the interval about {1 - self.narrower:.0%} narrower."
        )


def next_run(fit: ArmFit, flops: float, wanted_by_draw: np.ndarray) -> NextRun | None:
    """Of repeats and of runs one step beyond the grid, the one that narrows the interval most.

    That is of one tokenizer's score, given by draw; only its runs of at most so many FLOPs are
    looked at. None where that is known to a per mille, or no run is cheap enough.

    Refits are taken for Gaussian draws of log scores: a run at z with noise s leaves of the
    variance of the wanted score y the share 1 - cov(y, z)^2 / (var y (var z + s^2)).
    """
    wanted = _within(np.log(wanted_by_draw))
    spread = float(wanted.var())
    if spread < _KNOWN**2:
        return None
    found = []
    for point, is_repeat in _candidates(fit.arm, flops):
        drawn = fit.drawn_scores_of(point.counted, point.pictures, point.flops)
        seen = _within(np.log(drawn))
        shared = float(np.cov(wanted, seen, bias=True)[0, 1])
        noise = fit.noise + (fit.tokenizers_differ or 0.0) ** 2  # a new seed is a new tokenizer
        total = spread * (float(seen.var()) + noise)
        left = 1 - shared**2 / total if total > 0 else 1.0
        narrower = math.sqrt(max(0.0, left))
        found.append(
            NextRun(fit.arm.name, point.size, point.steps, point.flops, is_repeat, narrower)
        )
    return min(found, key=lambda run: run.narrower, default=None)


def _candidates(arm: GridArm, most: float) -> list[tuple[Point, bool]]:
    """Every run of the grid again, and of each size one step shorter and one step longer."""
    found: list[tuple[Point, bool]] = []
    for size in arm.sizes.values():
        by_steps = {point.steps: point for point in arm.points if point.size == size}
        steps = sorted(by_steps)
        found += [(by_steps[number], True) for number in steps]
        if len(steps) > 1:
            longer = round(steps[-1] * steps[-1] / steps[-2])
            shorter = max(1, round(steps[0] * steps[0] / steps[1]))
            found += [
                (_scaled(by_steps[steps[-1]], longer), False),
                (_scaled(by_steps[steps[0]], shorter), False),
            ]
    return [(point, again) for point, again in found if point.flops <= most]


def _scaled(point: Point, steps: int) -> Point:
    """The same training for other steps."""
    times = steps / point.steps
    return replace(
        point, steps=steps, flops=point.flops * times, pictures=round(point.pictures * times)
    )


def _within(draws: np.ndarray) -> np.ndarray:
    """Draws clipped to their interval: the outer ones of few runs would count for all others."""
    low, high = np.quantile(draws, ((1 - LEVEL) / 2, (1 + LEVEL) / 2))
    return np.clip(draws, low, high)
