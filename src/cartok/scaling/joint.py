"""The joint form L(N, D) = L_min + A / N^a + B / D^b, fitted to all runs of a grid.

Hoffmann et al. 2022, equation 10 and approach 3. N are the prior's parameters, D the items seen in
training, repeats included: images or tokens, one of them throughout. Its frontier under C = k N D
is exactly a law of the paper's form, with alpha = -a b / (a + b); as every run speaks and none is
picked for a lucky score, intervals of that law cover where those of picked points do not.
"""

import math
from dataclasses import dataclass
from typing import Literal

import numpy as np
from scipy.stats import f as fisher

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
from cartok.scaling.frontier import frontier_of
from cartok.scaling.law import (
    LEAST_SPAN,
    Law,
    LawFit,
    bounds_of,
    held_text,
    r2_of,
    warnings_of,
)
from cartok.scaling.numbers import Interval, Number, shown
from cartok.scaling.powers import fitted, model_of, slopes_of

LEAST_RUNS = 7
"""Two more than parameters."""

LEAST_RATIO = 3.0
"""Factor that N and D each span at least: what lies closer together tells no exponent."""

FLOPS_PER_PARAMETER = 6.0
"""For each item seen, forward and backward (Kaplan et al. 2020). With images for D, compute is in
the paper's unit; multiply by tokens an image for FLOPs."""


@dataclass(frozen=True)
class JointLaw:
    """L(N, D) = L_min + e^log_a / N^a + e^log_b / D^b."""

    l_min: float
    log_a: float
    log_b: float
    a: float
    """Exponent of parameters, above 0."""
    b: float
    """Exponent of data, above 0."""

    def score_at(self, parameters: Number, seen: Number) -> float:
        """The score of a prior of so many parameters after so many items."""
        lacks = self.log_a - self.a * math.log(parameters), self.log_b - self.b * math.log(seen)
        return self.l_min + sum(map(math.exp, lacks))


@dataclass(frozen=True)
class Choice:
    """What to train under a budget, with intervals."""

    parameters: float
    parameters_interval: Interval
    seen: float
    seen_interval: Interval
    prediction: Prediction


@dataclass(frozen=True, eq=False)
class JointFit:
    """A joint law with what it rests on."""

    law: JointLaw
    item: str
    """What D counts: "images" or "tokens"."""
    flops_per_item: float
    """k of C = k N D."""
    r2: float
    """Of log score."""
    residuals: np.ndarray
    """log score - log law, by run."""
    parameters_seen: tuple[float, float]
    items_seen: tuple[float, float]
    compute_seen: tuple[float, float]
    held: str
    """What was given rather than fitted; empty if nothing was."""
    warnings: tuple[str, ...]
    draws: np.ndarray
    """L_min, log A, log B, a and b (draws, 5) of refits to noise drawn anew; see ``bands``."""
    points: tuple[np.ndarray, np.ndarray]
    """Compute and score of every run."""

    def interval(self, parameter: Literal["l_min", "log_a", "log_b", "a", "b"]) -> Interval:
        """Where 90 % of studies like this one would find a parameter."""
        place = ("l_min", "log_a", "log_b", "a", "b").index(parameter)
        return interval_of(self.draws[:, place])

    def prediction_at(self, parameters: Number, seen: Number) -> Prediction:
        """The score of a prior of so many parameters after so many items, with its interval.

        Raises:
            UserError: parameters, items or compute are more than ten times beyond those seen.
        """
        beyond = self._is_beyond(parameters, seen)
        l_min, log_a, log_b, a, b = self.draws.T
        scores = l_min + np.exp(log_a - a * math.log(parameters))
        scores += np.exp(log_b - b * math.log(seen))
        return Prediction(self.law.score_at(parameters, seen), interval_of(scores), beyond)

    def best_under(self, compute: Number) -> Choice:
        """Parameters and items that score best for C = k N D, in closed form.

            N = G (C/k)^(b/(a+b)),  D = (C/k)^(a/(a+b)) / G,  G = (a A / (b B))^(1/(a+b))

        (Hoffmann et al. 2022, equation 4.)

        Raises:
            UserError: that is more than ten times beyond what was seen.
        """
        rule = f"add a run near {shown(compute)} first"
        is_extrapolated("compute", compute, self.compute_seen, rule)
        product = math.log(compute / self.flops_per_item)
        logs = np.clip(_log_best_size(self._rows(), product), -_LARGEST, _LARGEST)
        sizes, seen = np.exp(logs), np.exp(np.clip(product - logs, -_LARGEST, _LARGEST))
        beyond = self._is_beyond(float(sizes[0]), float(seen[0]))
        l_min, alpha, intercept = _frontier(self._rows(), self.flops_per_item).T
        scores = l_min + np.exp(intercept + alpha * math.log(compute))
        return Choice(
            parameters=float(sizes[0]),
            parameters_interval=interval_of(sizes[1:]),
            seen=float(seen[0]),
            seen_interval=interval_of(seen[1:]),
            prediction=Prediction(float(scores[0]), interval_of(scores[1:]), beyond),
        )

    @property
    def frontier(self) -> LawFit:
        """The law of the best runs, L_min + C^alpha e^lambda, that this form implies.

        Its residuals and R2 are of the runs on the frontier of points; where none has just the best
        size for its compute, they lie above it.
        """
        rows = _frontier(self._rows(), self.flops_per_item)
        law = Law(*rows[0].tolist())
        compute, scores = self.points
        places = frontier_of(compute, scores)
        compute, scores = compute[places], scores[places]
        return LawFit(
            law=law,
            r2=r2_of(law, compute, scores),
            residuals=np.log(scores) - np.log([law.score_at(c) for c in compute.tolist()]),
            compute_seen=self.compute_seen,
            held=self.held,
            warnings=self.warnings,
            draws=rows[1:],
        )

    def _rows(self) -> np.ndarray:
        law = self.law
        return np.vstack([[law.l_min, law.log_a, law.log_b, law.a, law.b], self.draws])

    def _is_beyond(self, parameters: Number, seen: Number) -> bool:
        compute = self.flops_per_item * parameters * seen
        asked = (
            ("parameters", parameters, self.parameters_seen, "size"),
            (self.item, seen, self.items_seen, "length"),
            ("compute", compute, self.compute_seen, "compute"),
        )
        beyond = [
            is_extrapolated(what, value, span, f"add a run near that {name} first")
            for what, value, span, name in asked
        ]
        return any(beyond)


def fit_joint(
    parameters: Numbers,
    seen: Numbers,
    scores: Numbers,
    item: Literal["images", "tokens"] = "images",
    flops_per_item: float = FLOPS_PER_PARAMETER,
    l_min: Number | None = None,
    draws: int = 400,
    seed: int = 0,
) -> JointFit:
    """The joint law of all runs: Huber's loss of log residuals from several starts.

    Repeats of a setting are runs like others. ``flops_per_item`` is what one parameter costs for
    one item: 6 with tokens is FLOPs, 6 with images is the paper's unit. ``l_min`` is held if given.

    Raises:
        UserError: fewer than 7 runs, all of one N or one D or nearly so, compute that spans less
            than ten times, or scores that do not fall with N and with D.
    """
    count = len(parameters)
    sizes, items = positive("size", parameters, count), positive(item, seen, count)
    values = positive("score", scores, count)
    if count < LEAST_RUNS:
        raise UserError(
            f"the joint form needs {LEAST_RUNS} runs or more, but there are {count}; add runs, or "
            "fit a law to the frontier"
        )
    spans_seen = [
        spans(name, array, LEAST_RATIO, f"the runs are {kind}: add {advice}")
        for name, array, kind, advice in (
            ("parameters", sizes, "about of one size", "priors of another"),
            (item, items, "about of one length", "shorter or longer trainings"),
        )
    ]
    compute = flops_per_item * sizes * items
    compute_seen = spans("compute", compute, LEAST_SPAN, "add runs with more compute, or less")
    logs, raw = np.log(values), np.log(np.stack([sizes, items], axis=1))
    _check_falls(raw, logs)
    centre = raw.mean(axis=0)
    x, bounds = raw - centre, bounds_of(values, l_min, 0.0)
    theta, bend = fitted(x, logs, bounds)
    around = drawn(x, logs, bounds, theta, bend, draws, np.random.default_rng(seed))
    rows = np.concatenate([theta[None], around])
    scales = rows[:, 1:3] - rows[:, 3:5] * centre
    rows = np.concatenate([rows[:, :1], scales, -rows[:, 3:5]], axis=1)
    residuals = logs - np.log(model_of(theta[None], x))[0]
    return JointFit(
        law=JointLaw(*rows[0].tolist()),
        item=item,
        flops_per_item=flops_per_item,
        r2=float(1 - (residuals**2).sum() / ((logs - logs.mean()) ** 2).sum()),
        residuals=residuals,
        parameters_seen=spans_seen[0],
        items_seen=spans_seen[1],
        compute_seen=compute_seen,
        held=held_text(l_min),
        warnings=(*warnings_of(theta, values, bounds, ("a", "b")), *_misfit(theta, x, residuals)),
        draws=rows[1:],
        points=(compute, values),
    )


def _log_best_size(rows: np.ndarray, log_product: float) -> np.ndarray:
    """log N at the best split of C/k = N D, by row of (L_min, log A, log B, a, b)."""
    _, log_a, log_b, a, b = rows.T
    return (np.log(a) + log_a - np.log(b) - log_b + b * log_product) / (a + b)


def _frontier(rows: np.ndarray, flops_per_item: float) -> np.ndarray:
    """L_min, alpha and lambda of the best splits, by row."""
    l_min, log_a, log_b, a, b = rows.T
    log_g = _log_best_size(rows, 0.0)
    alpha = -a * b / (a + b)
    excess = np.logaddexp(log_a - a * log_g, log_b + b * log_g)
    return np.stack([l_min, alpha, excess - alpha * math.log(flops_per_item)], axis=1)


def _check_falls(x: np.ndarray, logs: np.ndarray) -> None:
    """By a plane of logarithms: it falls with parameters and with data."""
    design = np.column_stack([np.ones(len(x)), x])
    plane, _, rank, _ = np.linalg.lstsq(design, logs, rcond=None)
    if rank < 3:
        raise UserError(
            "parameters and data must not rise together in all runs, but they do, and neither's "
            "part can be told; add a run of another length at one of the sizes"
        )
    if max(plane[1:]) > -_EXACT:  # of scores that are all alike, rounding decides the sign
        raise UserError(
            "scores must fall with parameters and with data, but by a plane of logarithms their "
            f"slopes are {plane[1]:+.2g} and {plane[2]:+.2g}; add larger priors or longer "
            "trainings, or look whether runs have trained to their end"
        )


def _misfit(theta: np.ndarray, x: np.ndarray, residuals: np.ndarray) -> tuple[str, ...]:
    """Words, if residuals bend with log N and log D (an F test of squares and product, 1 %)."""
    slopes = slopes_of(theta[None], x)[0]
    bends = np.column_stack([x**2, x[:, 0] * x[:, 1]])
    free = len(x) - slopes.shape[1] - bends.shape[1]
    if free < 1:
        return ()
    left = [
        ((residuals - design @ np.linalg.lstsq(design, residuals, rcond=None)[0]) ** 2).sum()
        for design in (slopes, np.column_stack([slopes, bends]))
    ]
    if left[1] <= len(x) * _EXACT**2:
        return ()
    ratio = (left[0] - left[1]) / bends.shape[1] / (left[1] / free)
    if fisher.sf(ratio, bends.shape[1], free) >= 0.01:
        return ()
    return (
        "residuals bend with size and length, so the joint form does not describe these runs; its "
        "intervals do not cover, hold its frontier against a law of the frontier's points",
    )


_LARGEST = 300.0  # of a log: draws whose exponents vanish have a best size beyond all bounds
_EXACT = 1e-8  # a log residual below which a fit is exact
