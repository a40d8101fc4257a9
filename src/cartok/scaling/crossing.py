"""Two laws held against each other: where they cross, and what one saves at equal scores."""

import math

import numpy as np
from scipy.optimize import brentq

from cartok.core.errors import UserError
from cartok.scaling.law import Law
from cartok.scaling.numbers import Number, shown

_LOOKS = 400  # in log compute; two laws meet at most twice, so far finer than they can hide


def crossing(law: Law, other: Law, within: tuple[Number, Number]) -> float | None:
    """The compute in a range at which two laws give one score; None if they do not cross there.

    Laws cross twice at most, and then the last place is meant: beyond it their order stays.

    Raises:
        UserError: the range is empty.
    """
    low, high = within
    if not 0 < low < high:
        raise UserError(
            f"a range of compute rises from above 0, but is {shown(low)} to {shown(high)}; turn it"
        )

    def gap(log_compute: np.ndarray | float) -> np.ndarray | np.floating:
        mine, its = (
            each.l_min + np.exp(each.intercept + each.alpha * log_compute) for each in (law, other)
        )
        return mine - its

    places = np.linspace(math.log(low), math.log(high), _LOOKS)
    signs = np.sign(gap(places))
    changes = np.flatnonzero(signs[:-1] * signs[1:] < 0)
    if not len(changes):
        return None
    last = int(changes[-1])
    return math.exp(float(brentq(gap, places[last], places[last + 1], xtol=1e-12)))


def equal_score_compute_ratio(law: Law, other: Law, score: Number) -> float:
    """How many times the other's compute a law needs for the same score; above 1 the other saves.

    With the baseline's law first and CRT's second this is the paper's compute efficiency, "2-3x"
    in its abstract; its printed fits give 1.0 to 1.65.

    Raises:
        UserError: the score is not above both laws' L_min.
    """
    return law.compute_for(score) / other.compute_for(score)
