"""What, known before a large prior is trained, puts tokenizers in the order of its samples' scores.

A study whose arms are followed by priors of two sizes or more has both: what the smallest tells,
and the largest prior's gFD.
"""

from dataclasses import dataclass
from itertools import combinations
from typing import Any

import numpy as np

from cartok.scaling.numbers import Number
from cartok.scaling.study import priors_of

_TOLD = {
    "rFD": ("rfd", 1),
    "PSNR": ("psnr_db", -1),
    "bits of the small prior": ("prior_bits_per_image/{small}", 1),
    "gFD of redrawn tokens": ("redrawn_fd/{small}", 1),
    "gFD of the small prior": ("gfd/{small}", 1),
}
"""Scores that are known then, and 1 where less is better, -1 where more is."""


@dataclass(frozen=True)
class Order:
    """How often one number puts two runs of different arms as the largest prior's gFD does."""

    name: str
    alike: int
    """Pairs."""
    of: int
    """Pairs in which neither is equal; by chance half of them are alike."""


def orders_of(study: dict[str, Any]) -> tuple[str, list[Order]]:
    """The largest prior's name, and every number's order against its gFD.

    Of all pairs of finished runs that are of different arms. "rFD and bits together" is the gFD
    that a straight plane over both gives, laid through the runs of the other arms. Empty where a
    study has no two sizes of prior, or fewer than four arms.
    """
    sizes = priors_of(study)
    runs = [run for run in study["runs"] if run.get("status") == "finished"]
    if len(sizes) < 2 or len({run["arm"] for run in runs}) < 4:
        return "", []
    small, large = sizes[0], sizes[-1]
    arms = [run["arm"] for run in runs]
    truth = _numbers(runs, f"gfd/{large}", 1)
    if truth is None:
        return "", []
    told = {
        name: numbers
        for name, (key, sign) in _TOLD.items()
        if (numbers := _numbers(runs, key.format(small=small), sign)) is not None
    }
    if "rFD" in told and "bits of the small prior" in told:
        both = np.stack([told["rFD"], told["bits of the small prior"]], axis=1)
        told["rFD and bits together"] = _foreseen(both, np.array(truth), arms)
    return large, [_order(name, numbers, truth, arms) for name, numbers in told.items()]


def _numbers(runs: list[dict[str, Any]], key: str, sign: int) -> list[Number] | None:
    """Of every run; None if one lacks it."""
    found = [run["scores"].get(key, {}).get("value") for run in runs]
    return None if None in found else [sign * number for number in found]


def _foreseen(told: np.ndarray, truth: np.ndarray, arms: list[str]) -> list[Number]:
    """What the other arms say of each run, by least squares."""
    ones = np.concatenate([np.ones((len(told), 1)), told], axis=1)
    found = []
    for row, arm in zip(ones, arms, strict=True):
        others = np.array([other != arm for other in arms])
        plane, *_ = np.linalg.lstsq(ones[others], truth[others], rcond=None)
        found.append(float(row @ plane))
    return found


def _order(name: str, told: list[Number], truth: list[Number], arms: list[str]) -> Order:
    signs = [
        (told[i] - told[j]) * (truth[i] - truth[j])
        for i, j in combinations(range(len(arms)), 2)
        if arms[i] != arms[j]
    ]
    return Order(name, sum(sign > 0 for sign in signs), sum(sign != 0 for sign in signs))
