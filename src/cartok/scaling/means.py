"""A study's runs as means over seeds, with intervals."""

from dataclasses import dataclass
from typing import Any

from cartok.scaling.numbers import INTERVAL_FIELDS, Number, students

LEVEL = 0.9


@dataclass(frozen=True)
class ArmMeans:
    """One arm over its seeds."""

    name: str
    finished: int
    failures: list[str]
    """Reasons, one for each seed that failed."""
    scores: dict[str, dict[str, Any]]


def arm_means(runs: list[dict[str, Any]]) -> list[ArmMeans]:
    """Every arm's means over the seeds that have finished, in the order in which arms appear.

    A score that a seed lacks, or that was not finite and so is null, is no score of the arm.
    """
    by_name: dict[str, list[dict[str, Any]]] = {}
    for run in runs:
        by_name.setdefault(run["arm"], []).append(run)
    return [_of_one(name, some) for name, some in by_name.items()]


def arms_of_runs(runs: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Every arm's means as ``study.json`` has them: the rest of receipts stands with the runs."""
    return [
        {
            "name": arm.name,
            "finished": arm.finished,
            "failures": arm.failures,
            "scores": {key: _with_interval_alone(score) for key, score in arm.scores.items()},
        }
        for arm in arm_means(runs)
    ]


def mean_of(values: list[Number]) -> float:
    """The arithmetic mean of one or more."""
    return sum(values) / len(values)


def said_by_all(receipts: list[dict[str, Any]]) -> dict[str, Any]:
    """What all receipts say alike."""
    first = receipts[0]
    return {key: first[key] for key in first if all(r.get(key) == first[key] for r in receipts)}


def _of_one(name: str, runs: list[dict[str, Any]]) -> ArmMeans:
    finished = [_known(run["scores"]) for run in runs if run["status"] == "finished"]
    failures = [run["reason"] for run in runs if run["status"] == "failed"]
    keys = [key for key in (finished[0] if finished else {}) if all(key in s for s in finished)]
    scores = {key: _mean_over_seeds([scores[key] for scores in finished]) for key in keys}
    return ArmMeans(name, len(finished), failures, scores)


def _with_interval_alone(score: dict[str, Any]) -> dict[str, Any]:
    receipt = score["receipt"]
    return score | {"receipt": {key: receipt[key] for key in INTERVAL_FIELDS if key in receipt}}


def _known(scores: dict[str, dict[str, Any]]) -> dict[str, dict[str, Any]]:
    return {key: score for key, score in scores.items() if score["value"] is not None}


def _mean_over_seeds(scores: list[dict[str, Any]]) -> dict[str, Any]:
    """One seed's score as it is; of several the mean, with Student's interval for it."""
    if len(scores) == 1:
        return scores[0]
    values = [score["value"] for score in scores]
    over = {"values": values, "level": LEVEL, "interval": list(students(values, LEVEL))}
    receipt = said_by_all([score["receipt"] for score in scores]) | {"over_seeds": over}
    return {"value": mean_of(values), "unit": scores[0]["unit"], "receipt": receipt}
