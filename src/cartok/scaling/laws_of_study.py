"""The laws of a grid study: every tokenizer's scores over compute, and where two of them cross.

Everything is found anew from the runs in ``study.json``, always alike; ``laws_of`` is what is kept
in that file. Compute is the prior's training in FLOPs, strictly counted, the tokenizer's not among
them; 256 FLOPs are about the paper's unit.
"""

import math
from dataclasses import asdict, dataclass
from itertools import combinations
from typing import Any

import numpy as np

from cartok.scaling.arm_fits import FITTED, ArmFit, fits_of
from cartok.scaling.bands import REACH
from cartok.scaling.crossing import crossing
from cartok.scaling.grid import grid_of
from cartok.scaling.law import LawFit
from cartok.scaling.numbers import Interval, shown, span
from cartok.scaling.units import FLOPS_PER_PAPER_UNIT

_PLACES = 400  # in log compute, where draws are looked at


@dataclass(frozen=True)
class Crossing:
    """Where the law of one tokenizer meets that of another, in FLOPs; of gFD, less is better."""

    arms: tuple[str, str]
    within: tuple[float, float]
    """The compute that both have seen."""
    flops: float | None
    """Also up to ten times beyond ``within``; none if they do not cross there."""
    interval: Interval | None
    """Over the refits that cross so."""
    share: float
    """Of refits that cross so, ``below`` to ``above``, up to ten times beyond ``within``: a refit
    does that once at most. Without a crossing, of those that cross at all."""
    share_within: float
    """Of refits that cross so within ``within``."""
    share_twice: float
    """Of refits that cross both ways, up to ten times beyond ``within``."""
    below: str
    """Which is better below the crossing; without one, at the low end of ``within``."""
    above: str
    sure_low: float
    """The share of refits that put the same one first at the low end of ``within``."""
    sure_high: float

    @property
    def is_seen(self) -> bool:
        """True if they cross where both have runs."""
        return self.flops is not None and self.within[0] <= self.flops <= self.within[1]

    @property
    def words(self) -> str:
        """A sentence."""
        one, other = self.arms
        low, high = map(shown, self.within)
        if self.flops is None or self.interval is None:
            return (
                f"{self.below} is better than {other if self.below == one else one} from {low} to "
                f"{high} FLOPs, all that both have seen ({self.sure_low:.0%} of refits agree at "
                f"the low end, {self.sure_high:.0%} at the high one)."
            )
        side = "below" if self.flops < self.within[0] else "above"
        where = "" if self.is_seen else f", which is {side} what both have seen"
        twice = (
            f"; {self.share_twice:.0%} of refits cross twice" if self.share_twice >= 0.05 else ""
        )
        return (
            f"{self.below} is better below {shown(self.flops)} FLOPs and {self.above} above"
            f"{where}; {self.share:.0%} of refits cross so ({self.share_within:.0%} within what "
            f"both have seen), 90 % of those in {span(self.interval)}{twice}."
        )


def crossings_of(fits: list[ArmFit]) -> list[Crossing]:
    """Every pair of laws that have seen some compute in common."""
    laws = {fit.arm.name: fit.law for fit in fits if fit.law is not None}
    found = (_crossing(names, laws[names[0]], laws[names[1]]) for names in combinations(laws, 2))
    return [each for each in found if each is not None]


def laws_of(study: dict[str, Any]) -> dict[str, Any]:
    """Laws and crossings of a grid study, as ``study.json`` keeps them.

    A law names the runs behind it, by rising compute; what it was fitted to stands with those. In
    place of a law that the runs do not bear stands ``refused``, why in words. ``luck.spread_of``
    is what ``tokenizers_differ`` by.
    """
    by_key = {key: fits_of(study, key) for key in FITTED}
    arms = {
        arm.name: {
            "tokens_per_picture": arm.tokens,
            "codes": arm.codes,
            "rfd": arm.rfd,
            "laws": {key: _law_json(fits[place]) for key, fits in by_key.items()},
        }
        for place, arm in enumerate(grid_of(study))
    }
    return {
        "compute": "FLOPs of the prior's training, strictly counted",
        "flops_per_paper_unit": FLOPS_PER_PAPER_UNIT,
        "tokenizers_differ": {key: fits[0].tokenizers_differ for key, fits in by_key.items()},
        "arms": arms,
        "crossings": [_crossing_json(found) for found in crossings_of(by_key["gfd"])],
    }


def _crossing(names: tuple[str, str], one: LawFit, other: LawFit) -> Crossing | None:
    seen = (one.compute_seen, other.compute_seen)
    low, high = max(span[0] for span in seen), min(span[1] for span in seen)
    if low >= high:
        return None
    laws = one.law, other.law
    found = crossing(*laws, (low, high)) or crossing(*laws, (low / REACH, high * REACH))

    def first_at(compute: float) -> str:
        return names[laws[0].score_at(compute) > laws[1].score_at(compute)]

    edges = (low, high) if found is None else (found / 1.01, found * 1.01)
    below, above = map(first_at, edges)
    places = np.geomspace(low / REACH, high * REACH, _PLACES)
    places = np.union1d(places, (low, high))
    leads = one.drawn_scores(places) < other.drawn_scores(places)
    falls_back, catches_up = leads[:, :-1] & ~leads[:, 1:], ~leads[:, :-1] & leads[:, 1:]
    so = falls_back if below == names[0] else catches_up
    if found is None:
        so = falls_back | catches_up
    middles = np.sqrt(places[:-1] * places[1:])
    cross, inside = so.any(axis=1), (low <= middles) & (middles <= high)
    at = middles[np.argmax(so[cross], axis=1)]
    ends = np.array([low, high])
    wins = one.drawn_scores(ends) < other.drawn_scores(ends)
    lead = [first_at(end) == names[0] for end in (low, high)]
    sure = [float((wins[:, side] == lead[side]).mean()) for side in (0, 1)]
    return Crossing(
        arms=names, within=(low, high), flops=found,
        interval=_middle(at) if found and len(at) else None,
        share=float(cross.mean()), share_within=float(so[:, inside].any(axis=1).mean()),
        share_twice=float((falls_back.any(axis=1) & catches_up.any(axis=1)).mean()),
        below=below, above=above, sure_low=sure[0], sure_high=sure[1],
    )  # fmt: skip


def _middle(values: np.ndarray) -> Interval:
    low, high = np.quantile(values, (0.05, 0.95))
    return Interval(float(low), float(high), f"90% of {len(values)} refits that cross")


def _law_json(fit: ArmFit) -> dict[str, Any]:
    plain: dict[str, Any] = {"runs": list(fit.runs)}
    if fit.joint is not None:
        law = fit.joint.law
        plain["joint"] = {
            name: {"value": getattr(law, name), "interval": _ends(fit.joint.interval(name))}
            for name in ("l_min", "log_a", "log_b", "a", "b")
        } | {"items": "pictures", "r2": _finite(fit.joint.r2)}
    elif fit.joint_refused:
        plain["joint"] = {"refused": fit.joint_refused}
    if fit.law is None:
        return plain | {"refused": fit.refused}
    return plain | {
        "fitted_to": fit.method,
        **{
            name: {"value": getattr(fit.law.law, name), "interval": _ends(fit.law.interval(name))}
            for name in ("l_min", "alpha", "intercept")
        },
        "r2": _finite(fit.law.r2),
        "compute_seen": list(fit.law.compute_seen),
        "warnings": list(fit.law.warnings),
    }


def _crossing_json(found: Crossing) -> dict[str, Any]:
    plain = asdict(found) | {"words": found.words}
    ends = None if found.interval is None else _ends(found.interval)
    return plain | {"arms": list(found.arms), "within": list(found.within), "interval": ends}


def _ends(interval: Interval) -> list[float]:
    return [float(interval.low), float(interval.high)]


def _finite(value: float) -> float | None:
    return value if math.isfinite(value) else None
