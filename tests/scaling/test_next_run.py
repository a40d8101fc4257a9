"""The run that is said to tell most narrows a prediction by about what is said."""

import math

import numpy as np

from cartok.scaling.arm_fits import ArmFit
from cartok.scaling.grid import GridArm, Point
from cartok.scaling.law import Law, fit_law
from cartok.scaling.next_run import next_run

LAW = Law(4.0, -0.6, 22.5)
LENGTHS = (500, 1000, 2000, 4000, 8000)
BUDGET = 2e16  # four times the longest run
NOISE = 0.02


def flops_of(steps):
    return 5.9e11 * steps


def noisy(generator, flops):
    return LAW.score_at(flops) * math.exp(NOISE * float(generator.standard_normal()))


def width(law):
    interval = law.prediction_at(BUDGET).interval
    return math.log(interval.high / interval.low)


def study_of(seed):
    """A tokenizer with two runs of every length, and its fit."""
    generator = np.random.default_rng(seed)
    points = tuple(
        Point(f"{steps}-{one}", one, f"6x256-{steps}", steps, 256 * steps, 6_000_000, 64,
              flops_of(steps), flops_of(steps) / 256, {"gfd": noisy(generator, flops_of(steps))})
        for steps in LENGTHS for one in (0, 1)
    )  # fmt: skip
    arm = GridArm("one", 64, 64, 3.0, points)
    compute = [point.flops for point in points]
    scores = [point.scores["gfd"] for point in points]
    fit = ArmFit(arm, "gfd", (), law=fit_law(compute, scores, seed=seed))
    return fit, compute, scores, generator


def test_an_added_run_narrows_the_interval_by_about_what_was_foreseen():
    foreseen, found, middle = [], [], []
    for seed in range(16):
        fit, compute, scores, generator = study_of(seed)
        run = next_run(fit, BUDGET, fit.drawn_scores(BUDGET))
        assert run is not None
        assert (run.steps, run.is_repeat) == (16_000, False)
        foreseen.append(run.narrower)
        for flops, widths in ((run.flops, found), (flops_of(2000), middle)):
            added = fit_law([*compute, flops], [*scores, noisy(generator, flops)], seed=seed)
            widths.append(width(added) / width(fit.law))
    assert abs(np.median(foreseen) - np.median(found)) < 0.15
    assert np.median(found) < np.median(middle) - 0.15


def test_nothing_is_proposed_where_every_run_costs_more_than_the_budget():
    fit, *_ = study_of(0)
    assert next_run(fit, flops_of(200), fit.drawn_scores(flops_of(200))) is None
