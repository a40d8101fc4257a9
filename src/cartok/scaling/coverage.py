"""How often 90 % intervals cover the truth, over studies drawn from a law that is known.

    python -m cartok.scaling.coverage --studies 400 --out coverage.json

Takes minutes on one core. Truths are the paper's printed laws, sizes and iterations its own, and
noise is lognormal: some percent of a score.
"""

import argparse
import json
import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from cartok.scaling.frontier import frontier_of
from cartok.scaling.joint import FLOPS_PER_PARAMETER, JointLaw, fit_joint
from cartok.scaling.law import Law, LawFit, fit_law

GFID = Law(l_min=2.21, alpha=-0.65, intercept=25.91)
"""The paper's baseline (figure 7)."""

LOSS = Law(l_min=7.3, alpha=-0.255, intercept=8.622)
"""Its validation loss; L_min is read from the axis."""

SIZES = np.array([52.1e6, 111e6, 212e6, 343e6, 775e6])
IMAGES = 256 * np.array([15e3, 45e3, 90e3, 187.5e3, 375e3])

Study = Callable[[Law, float, np.random.Generator], LawFit]


@dataclass(frozen=True)
class World:
    """Where studies are drawn from, and how each is fitted."""

    truth: Law
    noise: float
    """Standard deviation of log scores."""
    study: Study


def coverage_of(world: World, studies: int, seed: int = 0) -> dict[str, Any]:
    """By quantity, its truth, the share of studies whose interval covers it, and median widths."""
    found: dict[str, list[tuple[bool, float]]] = {}
    truths: dict[str, float] = {}
    warned = 0
    for number in range(studies):
        fit = world.study(world.truth, world.noise, np.random.default_rng([seed, number]))
        warned += bool(fit.warnings)
        for name, truth, interval in _quantities(world.truth, fit):
            truths[name] = truth
            covers = interval.low <= truth <= interval.high
            found.setdefault(name, []).append((covers, float(interval.high - interval.low)))
    quantities = {
        name: {
            "truth": round(truths[name], 4),
            "covered": round(float(np.mean([covers for covers, _ in rows])), 4),
            "median_width": round(float(np.median([width for _, width in rows])), 4),
        }
        for name, rows in found.items()
    }
    return {"noise": world.noise, "studies": studies, "warned": warned, "of": quantities}


def on_the_law(num_points: int, decades: float) -> Study:
    """Points scattered around the law itself, evenly in log compute up to the paper's largest."""

    def study(truth: Law, noise: float, generator: np.random.Generator) -> LawFit:
        compute = np.geomspace(2.7e18 / 10**decades, 2.7e18, num_points)
        scores = _noisy([truth.score_at(c) for c in compute.tolist()], noise, generator)
        return fit_law(compute, scores, seed=_seed(generator))

    return study


def grid(size_exponent: float, seeds: int = 1) -> Study:
    """Five sizes by five lengths around a joint form whose frontier is the law; all are fitted."""

    def study(truth: Law, noise: float, generator: np.random.Generator) -> LawFit:
        sizes, images, scores = _grid(truth, noise, size_exponent, seeds, generator)
        return fit_joint(sizes, images, scores, seed=_seed(generator)).frontier

    return study


def picked(size_exponent: float, seeds: int = 1) -> Study:
    """The same studies, but a law fitted to those runs that are on the frontier."""

    def study(truth: Law, noise: float, generator: np.random.Generator) -> LawFit:
        sizes, images, scores = _grid(truth, noise, size_exponent, seeds, generator)
        compute = FLOPS_PER_PARAMETER * sizes * images
        places = frontier_of(compute, scores)
        return fit_law(compute[places], scores[places], seed=_seed(generator))

    return study


def another_form(bend: float) -> Study:
    """A grid with the law for a frontier, off it excess grows by exp(bend log^2(N D0 / D N0))."""

    def study(truth: Law, noise: float, generator: np.random.Generator) -> LawFit:
        sizes, images = np.repeat(SIZES, len(IMAGES)), np.tile(IMAGES, len(SIZES))
        compute = FLOPS_PER_PARAMETER * sizes * images
        off = np.log(sizes / SIZES[2]) - np.log(images / IMAGES[2])
        excess = np.array([truth.score_at(c) for c in compute.tolist()]) - truth.l_min
        means = truth.l_min + excess * np.exp(bend * off**2)
        scores = _noisy(means.tolist(), noise, generator)
        return fit_joint(sizes, images, scores, seed=_seed(generator)).frontier

    return study


WORLDS = {
    "points on the law: 12 over 2.5 decades, 2 %": World(GFID, 0.02, on_the_law(12, 2.5)),
    "points on the law: 12 over 2.5 decades, 5 %": World(GFID, 0.05, on_the_law(12, 2.5)),
    "points on the law: 6 over 2.5 decades, 3 %": World(GFID, 0.03, on_the_law(6, 2.5)),
    "points on the law: 8 over 1 decade, 2 %": World(GFID, 0.02, on_the_law(8, 1.0)),
    "loss, points on the law: 12 over 2.5 decades, .1 %": World(LOSS, 0.001, on_the_law(12, 2.5)),
    "grid, all runs: a = b, 2 %": World(GFID, 0.02, grid(1.3)),
    "grid, all runs: a = b, 5 %": World(GFID, 0.05, grid(1.3)),
    "grid, all runs: a = 1, b = 1.86, 2 %": World(GFID, 0.02, grid(1.0)),
    "grid, all runs: a = b, 2 %, three seeds": World(GFID, 0.02, grid(1.3, 3)),
    "loss grid, all runs: a = b, .1 %": World(LOSS, 0.001, grid(0.51)),
    "grid of another form, all runs: 2 %": World(GFID, 0.02, another_form(0.1)),
    "grid, picked runs: a = b, 2 %": World(GFID, 0.02, picked(1.3)),
    "grid, picked runs: a = b, 5 %": World(GFID, 0.05, picked(1.3)),
    "grid, picked runs: a = b, 2 %, three seeds": World(GFID, 0.02, picked(1.3, 3)),
}
"""By what is drawn. The last four stand for comparison: a form that is not the joint one, of which
a fit has to warn, and laws of picked runs."""


def joint_with(truth: Law, size_exponent: float) -> JointLaw:
    """A joint form whose frontier is a law; 212M parameters are best at 90,000 iterations."""
    a, alpha = size_exponent, -truth.alpha
    b = alpha * a / (a - alpha)
    log_size, log_images = math.log(SIZES[2]), math.log(IMAGES[2])
    excess = truth.score_at(FLOPS_PER_PARAMETER * SIZES[2] * IMAGES[2]) - truth.l_min
    log_a = math.log(excess * b / (a + b)) + a * log_size
    log_b = math.log(excess * a / (a + b)) + b * log_images
    return JointLaw(truth.l_min, log_a, log_b, a, b)


def _grid(
    truth: Law, noise: float, size_exponent: float, seeds: int, generator: np.random.Generator
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    law = joint_with(truth, size_exponent)
    sizes = np.tile(np.repeat(SIZES, len(IMAGES)), seeds)
    images = np.tile(IMAGES, seeds * len(SIZES))
    means = [law.score_at(n, d) for n, d in zip(sizes.tolist(), images.tolist(), strict=True)]
    return sizes, images, _noisy(means, noise, generator)


def _noisy(means: list[float], noise: float, generator: np.random.Generator) -> np.ndarray:
    return np.array(means) * np.exp(noise * generator.standard_normal(len(means)))


def _seed(generator: np.random.Generator) -> int:
    return int(generator.integers(2**31))


def _quantities(truth: Law, fit: LawFit):
    yield "alpha", truth.alpha, fit.interval("alpha")
    yield "l_min", truth.l_min, fit.interval("l_min")
    for times in (3, 10):
        compute = fit.compute_seen[1] * times * (1 - 1e-12)
        yield f"score at {times}x", truth.score_at(compute), fit.prediction_at(compute).interval


def main() -> None:
    """Measures every world and writes what it finds."""
    parser = argparse.ArgumentParser(description="how often 90 %% intervals cover the truth")
    parser.add_argument("--studies", type=int, default=400)
    parser.add_argument("--out", type=Path, required=True)
    asked = parser.parse_args()
    found = {name: coverage_of(world, asked.studies) for name, world in WORLDS.items()}
    text = json.dumps(found, indent=1, ensure_ascii=False)
    asked.out.write_text(f"{text}\n", encoding="utf-8")


if __name__ == "__main__":
    main()
