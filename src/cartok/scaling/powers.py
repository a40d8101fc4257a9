"""Powers over a floor, fitted to many sets of scores at once.

A score is modelled as ``E + sum_k exp(c_k + p_k x_k)`` with every ``p_k < 0``: one power is the law
of a frontier (paper, section 3.3), two are the joint form in parameters and data (Hoffmann et al.
2022, equation 10). What is minimised is Huber's loss of ``log score - log model``, as in their
approach 3, by Levenberg and Marquardt's method within bounds. Every set of scores is a row of one
array, so hundreds of draws are fitted in the time of a few.

Parameters are rows (sets, 1 + 2 powers): the floor E, then every c, then every p.
"""

from dataclasses import dataclass

import numpy as np

STEEPEST, FLATTEST = -4.0, -0.005
"""Bounds of an exponent; at the flattest a decade of compute lowers the excess by 1 %."""

HUBER = 1.345
"""Residuals beyond so many standard deviations count linearly: 95 % efficient if noise is Gaussian
(Huber 1964), and one stray run does not turn the fit, unless it is the first or last: there it
bends the curve, and the floor that it asks for is warned of."""

_EXPONENTS = (-0.1, -0.25, -0.5, -0.9, -1.6)  # where fits start from
_ROUGH, _STEPS = 12, 100
_SETTLED = 1e-13
_LEAST_NOISE = 1e-9  # so that an exact fit has a scale
_DAMPING = (1e-12, 1e12)


@dataclass(frozen=True)
class Bounds:
    """Where the floor may lie; equal ends hold it there."""

    low: float
    high: float

    @property
    def held(self) -> bool:
        """True if the floor is given."""
        return self.low == self.high


def model_of(theta: np.ndarray, x: np.ndarray) -> np.ndarray:
    """Scores (sets, points) at ``x`` (points, powers), which are logarithms."""
    return theta[:, 0, None] + _terms(theta, x).sum(axis=-1)


def slopes_of(theta: np.ndarray, x: np.ndarray) -> np.ndarray:
    """Derivatives of log model by the parameters (sets, points, 1 + 2 powers)."""
    terms = _terms(theta, x)
    model = (theta[:, :1] + terms.sum(axis=-1))[..., None]
    shares = terms / model
    return np.concatenate([1 / model, shares, x * shares], axis=-1)


def num_free(powers: int, bounds: Bounds) -> int:
    """How many parameters a fit moves."""
    return 2 * powers + (not bounds.held)


def fitted(x: np.ndarray, logs: np.ndarray, bounds: Bounds) -> tuple[np.ndarray, float]:
    """The parameters (1 + 2 powers) of log scores (points), and where their loss bends.

    ``x`` should be centred. Least squares from several exponents; then Huber's loss, twice, with
    the scale that residuals showed.
    """
    starts = _starts(x, logs, bounds)
    theta = refitted(x, _repeated(logs, len(starts)), bounds, starts, np.inf, _ROUGH)
    errors = ((logs - np.log(model_of(theta, x))) ** 2).sum(axis=1)
    best = theta[np.argsort(errors)[:3]]
    theta = refitted(x, _repeated(logs, len(best)), bounds, best, np.inf)
    errors = ((logs - np.log(model_of(theta, x))) ** 2).sum(axis=1)
    theta, bend = theta[np.argmin(errors)][None], np.inf
    for _ in range(2):
        bend = HUBER * _middle_noise(logs - np.log(model_of(theta, x))[0], x.shape[1], bounds)
        theta = refitted(x, logs[None], bounds, theta, bend)
    return theta[0], bend


def refitted(
    x: np.ndarray,
    logs: np.ndarray,
    bounds: Bounds,
    start: np.ndarray,
    bend: float,
    steps: int = _STEPS,
) -> np.ndarray:
    """The parameters of every set of log scores (sets, points), each from where it starts.

    ``bend`` is the residual beyond which loss grows linearly. Settled sets are left alone.
    """
    low, high = _limits(x.shape[1], logs, bounds)
    theta = np.clip(start, low, high)
    residuals = logs - np.log(model_of(theta, x))
    cost = _huber(residuals, bend)
    damping = np.full(len(theta), 1e-3)
    going = np.arange(len(theta))
    for _ in range(steps):
        limits = low[going], high[going]
        step = _step(theta[going], x, residuals[going], bend, damping[going], limits)
        tried = np.clip(theta[going] + step, *limits)
        its_residuals = logs[going] - np.log(model_of(tried, x))
        its_cost = _huber(its_residuals, bend)
        fell = cost[going] - its_cost
        moved = np.abs(tried - theta[going]).max(axis=1)
        better = fell >= 0
        taken = going[better]
        theta[taken], residuals[taken] = tried[better], its_residuals[better]
        settled = (np.abs(fell) <= _SETTLED * cost[going]) & (moved < 1e-9)
        cost[taken] = its_cost[better]
        damping[going] = np.clip(damping[going] * np.where(better, 0.2, 8.0), *_DAMPING)
        going = going[~settled & (damping[going] < _DAMPING[1])]
        if not len(going):
            break
    return theta


def _middle_noise(residuals: np.ndarray, powers: int, bounds: Bounds) -> float:
    """A standard deviation by the median of residuals, made up for the parameters spent."""
    left = max(1, len(residuals) - num_free(powers, bounds))
    middle = float(np.median(np.abs(residuals))) / 0.6745
    return max(_LEAST_NOISE, middle * float(np.sqrt(len(residuals) / left)))


def _terms(theta: np.ndarray, x: np.ndarray) -> np.ndarray:
    """What every power adds: (sets, points, powers)."""
    powers = x.shape[1]
    scales, exponents = theta[:, None, 1 : 1 + powers], theta[:, None, 1 + powers :]
    return np.exp(np.minimum(scales + exponents * x, 300.0))


def _limits(powers: int, logs: np.ndarray, bounds: Bounds) -> tuple[np.ndarray, np.ndarray]:
    """Least and largest parameters of every set; its floor lies below its lowest score."""
    low = np.array([bounds.low, *[-60.0] * powers, *[STEEPEST] * powers])
    high = np.array([bounds.high, *[60.0] * powers, *[FLATTEST] * powers])
    lows, highs = np.tile(low, (len(logs), 1)), np.tile(high, (len(logs), 1))
    if not bounds.held:
        lowest = np.exp(logs.min(axis=1)) * (1 - 1e-9)
        highs[:, 0] = np.maximum(bounds.low, np.minimum(bounds.high, lowest))
    return lows, highs


def _huber(residuals: np.ndarray, bend: float) -> np.ndarray:
    size = np.abs(residuals)
    if not np.isfinite(bend):
        return (size**2).sum(axis=1) / 2
    return np.where(size <= bend, size**2 / 2, bend * (size - bend / 2)).sum(axis=1)


def _step(
    theta: np.ndarray,
    x: np.ndarray,
    residuals: np.ndarray,
    bend: float,
    damping: np.ndarray,
    limits: tuple[np.ndarray, np.ndarray],
) -> np.ndarray:
    """A damped step of Gauss and Newton; what is pushed beyond its limit stays where it is."""
    slopes = slopes_of(theta, x)
    weights = np.minimum(1.0, bend / np.maximum(np.abs(residuals), 1e-300))
    weighted = slopes * weights[..., None]
    pull = (weighted * residuals[..., None]).sum(axis=1)
    stuck = ((theta <= limits[0]) & (pull <= 0)) | ((theta >= limits[1]) & (pull >= 0))
    pull[stuck] = 0.0
    curvature = weighted.transpose(0, 2, 1) @ slopes
    curvature[stuck[:, :, None] | stuck[:, None, :]] = 0.0
    diagonal = np.sqrt(np.maximum(np.einsum("spp->sp", curvature), 1e-30))
    diagonal[stuck] = 1.0
    curvature /= diagonal[:, :, None] * diagonal[:, None, :]
    curvature += np.eye(theta.shape[1]) * (damping[:, None] + stuck)[:, :, None]
    return np.linalg.solve(curvature, (pull / diagonal)[..., None])[..., 0] / diagonal


def _starts(x: np.ndarray, logs: np.ndarray, bounds: Bounds) -> np.ndarray:
    """For several exponents the floor and scales that least squares of relative errors gives."""
    scores, powers = np.exp(logs), x.shape[1]
    grid = np.meshgrid(*[_EXPONENTS] * powers, indexing="ij")
    found = []
    for exponents in np.stack([axis.ravel() for axis in grid], axis=1):
        ones, columns = 1 / scores, np.exp(x * exponents) / scores[:, None]
        floor = bounds.low
        if not bounds.held:
            free, *_ = np.linalg.lstsq(np.column_stack([ones, columns]), ones * scores, rcond=None)
            floor = float(np.clip(free[0], bounds.low, min(bounds.high, 0.98 * scores.min())))
        scales, *_ = np.linalg.lstsq(columns, 1 - floor * ones, rcond=None)
        found.append([floor, *np.log(np.maximum(scales, 1e-3 * scores.min())), *exponents])
    return np.array(found)


def _repeated(logs: np.ndarray, times: int) -> np.ndarray:
    return np.repeat(logs[None], times, axis=0)
