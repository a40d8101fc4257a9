"""What the runs of one tokenizer of a grid study say of a score: a law, or why there is none."""

import math
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from cartok.core.errors import UserError
from cartok.scaling.frontier import frontier_of
from cartok.scaling.grid import FLOPS_PER_TOKEN, GridArm, Point, grid_of
from cartok.scaling.joint import JointFit, fit_joint
from cartok.scaling.law import LawFit, fit_law
from cartok.scaling.luck import groups_of, moved, seeds_apart, spread_of
from cartok.scaling.numbers import Number

FITTED = {"gfd": "gFD", "prior_bits_per_image": "bits/image"}
"""Scores that laws are fitted to, with their headings. Nats a token are bits an image times
ln 2 / T: the same law with other units."""

_BEST_OF_SIZES = "the frontier of the joint form of all runs"


@dataclass(frozen=True, eq=False)
class ArmFit:
    """What one tokenizer's runs say of one score: a law, or why there is none."""

    arm: GridArm
    key: str
    runs: tuple[str, ...]
    """Digests of those fitted."""
    law: LawFit | None = None
    refused: str = ""
    """Why there is no law."""
    method: str = ""
    """What the law was fitted to."""
    joint: JointFit | None = None
    joint_refused: str = ""
    """Why there is no joint form, where there are priors of two sizes or more."""
    tokenizers_differ: float | None = None
    """By what share tokenizers of one recipe differ, over all recipes; see ``luck.spread_of``."""

    @property
    def points(self) -> list[Point]:
        """Runs with this score, by rising compute: all that may be fitted."""
        return points_with(self.arm, self.key)

    def drawn_scores(self, flops: float) -> np.ndarray:
        """The score at some compute, by draw; there must be a law."""
        assert self.law is not None, self.refused
        return self.law.drawn_scores(np.array([flops]))[:, 0]

    def drawn_scores_of(self, counted: Number, pictures: Number, flops: float) -> np.ndarray:
        """The score of a run, by draw: by the joint form if there is one, which tells sizes."""
        if self.joint is None:
            return self.drawn_scores(flops)
        l_min, log_a, log_b, a, b = self.joint.draws.T
        scores = l_min + np.exp(log_a - a * math.log(counted))
        return scores + np.exp(log_b - b * math.log(pictures))

    @property
    def by_seed(self) -> list[list[float]]:
        """Residuals of log scores, a group for each seed, which is a tokenizer."""
        if self.joint is not None:
            return groups_of(self.points, self.joint.residuals)
        fitted = [point for point in self.points if point.run in self.runs]
        return [] if self.law is None else groups_of(fitted, self.law.residuals)

    @property
    def noise(self) -> float:
        """The variance of a run's log score around what was fitted."""
        assert self.law is not None, self.refused
        residuals, spent = (
            (self.law.residuals, 3) if self.joint is None else (self.joint.residuals, 5)
        )
        return float((residuals**2).sum() / max(1, len(residuals) - spent))


def fits_of(study: dict[str, Any], key: str) -> list[ArmFit]:
    """Every tokenizer's law of a score, or the refusal in its place.

    Draws of different tokenizers are independent of each other. They count with what tokenizers of
    one recipe differ by, which refits to noise that is drawn for each run do not know of.
    """
    fits = [_fit(arm, key, place) for place, arm in enumerate(grid_of(study))]
    share = spread_of([fit.by_seed for fit in fits])
    return [_with_luck(fit, share, place) for place, fit in enumerate(fits)]


def _with_luck(fit: ArmFit, share: float | None, seed: int) -> ArmFit:
    """The fit with draws of log scores that move as a whole, as the mean of its tokenizers may."""
    if fit.law is None or not share:
        return replace(fit, tokenizers_differ=share)
    seeds = len({point.seed for point in fit.points})
    luck = (
        share
        / math.sqrt(seeds)
        * np.random.default_rng((seed, 1)).standard_normal(len(fit.law.draws))
    )
    law, joint = replace(fit.law, draws=moved(fit.law.draws, luck)), fit.joint
    if joint is not None:
        joint = replace(joint, draws=moved(joint.draws, luck))
        law = joint.frontier
    return replace(fit, law=law, joint=joint, tokenizers_differ=share)


def points_with(arm: GridArm, key: str) -> list[Point]:
    """Runs of a tokenizer that have a score above 0, which has a logarithm."""
    return [point for point in arm.points if point.scores.get(key, 0) > 0]


def _fit(arm: GridArm, key: str, seed: int) -> ArmFit:
    points = points_with(arm, key)
    compute = [point.flops for point in points]
    scores = [point.scores[key] for point in points]
    about: dict[str, Any] = {"arm": arm, "key": key}
    if not points:
        return ArmFit(**about, runs=(), refused="no run of it has finished with this score")
    runs, method, joint_refused = tuple(point.run for point in points), "all its runs", ""
    if len(arm.sizes) > 1:
        parameters = [point.counted for point in points]
        pictures = [point.pictures for point in points]
        try:
            joint = fit_joint(
                parameters, pictures, scores, "images", FLOPS_PER_TOKEN * arm.tokens, seed=seed
            )
            doubts = (*joint.warnings, *seeds_apart(groups_of(points, joint.residuals)))
            joint = replace(joint, warnings=doubts)
            return ArmFit(**about, runs=runs, law=joint.frontier, method=_BEST_OF_SIZES,
                          joint=joint)  # fmt: skip
        except UserError as error:
            joint_refused = str(error)
        places = frontier_of(compute, scores)
        runs = tuple(points[place].run for place in places)
        points = [points[place] for place in places]
        compute, scores = ([values[place] for place in places] for values in (compute, scores))
        method = "the runs on the frontier, which noise makes too good"
    try:
        law = fit_law(compute, scores, seed=seed)
    except UserError as error:
        return ArmFit(**about, runs=runs, refused=str(error), joint_refused=joint_refused)
    law = replace(law, warnings=(*law.warnings, *seeds_apart(groups_of(points, law.residuals))))
    return ArmFit(**about, runs=runs, law=law, method=method, joint_refused=joint_refused)
