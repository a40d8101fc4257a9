"""The table of metrics: features of two sets to numbers, each with what its receipt adds.

A new metric is a file with its pure function, and a line here. Names hold a place ``{}`` for the
network's: ``kd{}`` is ``kd_effnet`` on one, and KID on Inception with its published weights.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Literal

from scipy.stats import t as student

from cartok.metrics.features import FirstFeatures, SecondFeatures, projection
from cartok.metrics.frechet import (
    LEVEL,
    MIN_PICTURES,
    PROJECTED_DIM,
    PROJECTION_SEED,
    fd_effnet64,
    frechet_of_gaussians,
)
from cartok.metrics.frechet_estimate import DIVISORS, GROUPS, frechet_estimate
from cartok.metrics.gaussian import Gaussian, gaussian_of
from cartok.metrics.inception_score import inception_score_of_logits
from cartok.metrics.kernel import KERNEL_BLOCK, kernel_distance
from cartok.metrics.manifolds import Estimate, manifolds
from cartok.metrics.presets import Preset

BOOTSTRAPS = 100

FULL_FROM = 5_000
"""Pictures on each side from which 1280 dimensions are scored without projection, too."""

DISTANCE, DISCREPANCY = "squared feature distance", "squared mean discrepancy"
SHARE = "share of pictures"

SHUFFLED_GAIN = 1.1
"""How much higher a shuffled Inception Score shows that pictures come class by class."""

LEAST_PROJECTED = GROUPS * (PROJECTED_DIM * max(DIVISORS) // GROUPS + 1)
"""Pictures of whose smallest part, a quarter, there are more than projected features."""

Reference = SecondFeatures | Gaussian


@dataclass(frozen=True)
class Number:
    """A value with its name, unit, and what is its own in a receipt.

    ``note`` is for a person; its place ``{}`` is for the name as it is printed.
    """

    name: str
    value: float
    unit: str
    own: dict[str, Any] = field(default_factory=dict)
    note: str = ""


@dataclass(frozen=True)
class Metric:
    """What is measured on which features, against what."""

    measure: Callable[[FirstFeatures, Any, Preset, int], list[Number]]
    reads: Literal["pool", "spatial", "logits"] = "pool"
    against: Literal["statistics", "pictures", "nothing"] = "pictures"
    """``statistics``: stored ones where a preset asks for them, else pictures."""
    needs_more_than_features: bool = False
    """Whether a side needs more pictures than there are features."""
    least: int = 1
    """Pictures on each side below which it cannot be measured, whatever the features."""


def frechet(name: str) -> Callable[[FirstFeatures, Reference, Preset, int], list[Number]]:
    """The Frechet distance, with error and limit where a quarter of the pictures are enough."""

    def measure(ours: FirstFeatures, theirs: Reference, preset: Preset, seed: int) -> list[Number]:
        if _is_enough(ours, theirs):
            return _estimated(name, frechet_estimate(ours, theirs, seed))
        reference = theirs if isinstance(theirs, Gaussian) else gaussian_of(theirs)
        value = frechet_of_gaussians(gaussian_of(ours), reference)
        note = (
            "{} has no error and no limit at infinity: they need "
            f"{max(DIVISORS) * ours.shape[1] + GROUPS:,} generated pictures or more"
        )
        return [Number(name, value, DISTANCE, note=note)]

    return measure


def projected_frechet(
    ours: FirstFeatures, theirs: Reference, preset: Preset, seed: int
) -> list[Number]:
    """The Frechet distance after a fixed projection to 64 dimensions, with error and limit."""
    matrix = projection(ours.shape[1], PROJECTED_DIM, PROJECTION_SEED).to(ours.device)
    if isinstance(theirs, Gaussian):
        cov = matrix.T @ theirs.cov @ matrix
        theirs = Gaussian(theirs.mean @ matrix, cov, theirs.count)
    else:
        theirs = theirs.double() @ matrix
    estimate = frechet_estimate(ours.double() @ matrix, theirs, seed)
    return _estimated("fd{}64", estimate, projection=_PROJECTION)


def bootstrapped_frechet(
    ours: FirstFeatures, theirs: SecondFeatures, preset: Preset, seed: int
) -> list[Number]:
    """``fd_effnet64`` as studies have it, and its limit for endless pictures."""
    first = fd_effnet64_number(ours, theirs, seed)
    _, limit = projected_frechet(ours, theirs, preset, seed)
    return [first, limit]


def fd_effnet64_number(ours: FirstFeatures, theirs: SecondFeatures, seed: int) -> Number:
    """The projected distance with its bootstrap."""
    estimate = fd_effnet64(ours, theirs, BOOTSTRAPS, seed)
    interval = [estimate.low, estimate.high]
    bootstrap = {"count": BOOTSTRAPS, "seed": seed, "level": LEVEL, "interval": interval}
    own = {"projection": _PROJECTION, "bootstrap": bootstrap}
    return Number("fd{}64", estimate.value, DISTANCE, own)


def large_frechet(
    ours: FirstFeatures, theirs: SecondFeatures, preset: Preset, seed: int
) -> list[Number]:
    """The Frechet distance from 5,000 pictures a side on, and nothing below."""
    if min(len(ours), len(theirs)) < FULL_FROM:
        return []
    return frechet("fd{}")(ours, theirs, preset, seed)


def kernel(ours: FirstFeatures, theirs: SecondFeatures, preset: Preset, seed: int) -> list[Number]:
    """The kernel distance; on Inception's features KID."""
    return [kernel_number(ours, theirs)]


def kernel_number(ours: FirstFeatures, theirs: SecondFeatures) -> Number:
    """The kernel distance with its standard error."""
    distance = kernel_distance(ours, theirs)
    own = {
        "kernel": "(x·y/d + 1)³",
        "kernel_block": KERNEL_BLOCK,
        "standard_error": distance.standard_error,
    }
    return Number("kd{}", distance.value, DISCREPANCY, own)


def class_score(
    ours: FirstFeatures, theirs: SecondFeatures, preset: Preset, seed: int
) -> list[Number]:
    """The Inception Score of splits in order; says so if that order is class by class."""
    score = inception_score_of_logits(ours, preset.split)
    shuffled = inception_score_of_logits(ours, preset.split, shuffle_seed=seed)
    note = ""
    if shuffled.value > SHUFFLED_GAIN * score.value:
        note = (
            f"{{}} would be {shuffled.value:.4g} in a random order: pictures come class by "
            "class, and a split sees few classes; give them in the order in which they were drawn"
        )
    own = {"split": preset.split, "splits": score.splits, "spread": score.spread}
    if score.splits > 1:
        error = score.spread / (score.splits - 1) ** 0.5
        reach = float(student.ppf((1 + LEVEL) / 2, score.splits - 1)) * error  # splits are few
        own |= {
            "standard_error": error,
            "interval": [max(1.0, score.value - reach), score.value + reach],
        }
    return [Number("is{}", score.value, "classes", own, note)]


def shares(ours: FirstFeatures, theirs: SecondFeatures, preset: Preset, seed: int) -> list[Number]:
    """Precision and recall, density and coverage, from the same distances, with errors."""
    found = manifolds(ours, theirs, preset.k, preset.coverage_k, seed)
    return [
        _share("precision{}", found.precision, preset.k),
        _share("recall{}", found.recall, preset.k),
        _share("density{}", found.density, preset.coverage_k, "times that of like sets"),
        _share("coverage{}", found.coverage, preset.coverage_k),
    ]


METRICS: dict[str, Metric] = {
    "fd": Metric(frechet("fd{}"), against="statistics", needs_more_than_features=True),
    "sfd": Metric(frechet("sfd{}"), "spatial", "statistics", needs_more_than_features=True),
    "fd64": Metric(projected_frechet, against="statistics", least=LEAST_PROJECTED),
    "fd-effnet64": Metric(bootstrapped_frechet, least=MIN_PICTURES),
    "fd-large": Metric(large_frechet),
    "kd": Metric(kernel),
    "is": Metric(class_score, "logits", "nothing"),
    "prdc": Metric(shares),
}

_PROJECTION = {"dim": PROJECTED_DIM, "seed": PROJECTION_SEED}


def _is_enough(ours: FirstFeatures, theirs: Reference) -> bool:
    """Whether a quarter of a set, and the reference but for a group, exceed the features."""
    dim, fewest = ours.shape[1], len(ours) // GROUPS * (GROUPS // max(DIVISORS))
    if not isinstance(theirs, Gaussian):
        fewest = min(fewest, len(theirs) * (GROUPS - 1) // GROUPS - 1)
    return fewest > dim


def _share(name: str, found: Estimate, k: int, unit: str = SHARE) -> Number:
    own: dict[str, Any] = {"k": k}
    if found.standard_error:  # else the rows are too few to see one, and none is claimed
        own |= {"interval": [*found.interval], "standard_error": found.standard_error}
    return Number(name, found.value, unit, own)


def _estimated(name: str, estimate, **own: Any) -> list[Number]:
    error = {"standard_error": estimate.standard_error, "level": LEVEL}
    return [
        Number(name, estimate.value, DISTANCE, {"interval": [*estimate.interval], **error, **own}),
        Number(
            f"{name}_infinity", estimate.at_infinity, DISTANCE,
            {"interval": [*estimate.interval_at_infinity], **error, **own},
        ),
    ]  # fmt: skip
