"""What arms gained over baselines, seed by seed.

Fewer codes make any tokenizer easier to model, and so does whatever else makes reconstruction
worse. So a gain at equal codes alone shows little. The second comparison is with the baseline's
curve over codebook sizes, at the arm's own rFD; the third with the best of all arms without the
regulariser, whatever else they change, that reconstruct at least as well.
"""

import json
import math
from collections.abc import Set
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

from cartok.scaling.numbers import Interval, Number, shown, signed, span, students

LEVEL = 0.95
"""Of the intervals over seeds (Student's)."""

CLAIMED = {"gfd": "gFD", "gkd": "gKD", "prior_bits_per_image": "bits/image", "rfd": "rFD"}
"""Scores that are compared, by heading; where there are several priors, each prior's too."""

_NO_HIGHER = "at an rFD no higher"

_FEW = 6  # arms that are compared with one another, too

_CURVED = ("gfd", "gkd", "prior_bits_per_image")  # what is read off the baseline's curve, too


@dataclass(frozen=True)
class Claim:
    """An arm's differences from a baseline in one score; below 0 is less of it."""

    arm: str
    minus: str
    """The baseline: an arm without the regulariser."""
    key: str
    at: str
    """'at equal codes', 'at equal rFD', 'at an rFD no higher' or 'pair by pair'."""
    differences: dict[int, Number]
    """By seed."""
    missing: dict[int, str]
    """Seeds that cannot be compared, and why."""

    @property
    def name(self) -> str:
        """The score's heading, with the prior's where there are several."""
        key, _, size = self.key.partition("/")
        return f"{CLAIMED[key]} {size}".strip()

    @property
    def mean(self) -> Number | None:
        """Over seeds; none if no seed compares."""
        values = self.differences.values()
        return sum(values) / len(values) if values else None

    @property
    def interval(self) -> Interval | None:
        """Where the mean over all seeds lies, from two seeds on; none if a seed is left out.

        Seeds are left out by how they ended, often by how badly, so those that remain are no
        fair sample.
        """
        values = list(self.differences.values())
        if len(values) < 2 or self.mean is None or self.missing:
            return None
        return Interval(*students(values, LEVEL), f"{LEVEL:.0%} over seeds")

    @property
    def is_clear(self) -> bool:
        """True if the interval leaves out 0."""
        return self.interval is not None and self.interval.low * self.interval.high > 0

    @property
    def text(self) -> str:
        """The mean with its interval, every seed's difference, and which are left out and why."""
        lacks = "; ".join(f"seed {seed}: {reason}" for seed, reason in self.missing.items())
        if self.mean is None:
            return lacks or "–"
        points = ", ".join(signed(value) for value in self.differences.values())
        if self.missing:
            of_all = f"{len(self.differences)} of {len(self.differences) + len(self.missing)} seeds"
            return f"{points} ({of_all}; {lacks})"
        if self.interval is None:
            return f"{points} (one seed)"
        return f"{signed(self.mean)} {span(self.interval)}; {points}"


def claims_of(study: dict[str, Any]) -> list[Claim]:
    """Every arm with a baseline to be held against, in every score of ``CLAIMED``.

    A regularised arm has the arm that differs in nothing else. An arm without, but off the curve of
    the study's first one, has the arm on that curve with as many codes.
    """
    arms = study["config"]["arms"]
    bare = [arm for arm in arms if not _weight(arm)]
    claims = []
    for arm in arms:
        twin = _twin_of(arm, bare) if _weight(arm) else _beside(arm, bare)
        if twin is None:
            continue
        curve = [other["name"] for other in bare if _is_on_curve(other, twin)]
        for key in _keys_of(study, arm["name"]):
            claims.append(_at_equal_codes(study, arm["name"], twin["name"], key))
            if key.partition("/")[0] not in _CURVED:
                continue
            if len(curve) > 1:
                claims.append(_at_equal_rfd(study, arm["name"], twin["name"], key, curve))
            best = _best_of(study, arm["name"], key, [other["name"] for other in bare])
            if _weight(arm) and best is not None:
                differences, missing = _within_seeds(study, arm["name"], best, key)
                claims.append(Claim(arm["name"], best, key, _NO_HIGHER, differences, missing))
    return claims


def pairs_of(study: dict[str, Any]) -> list[Claim]:
    """gFD of each arm minus each before it, where there are few arms, over two seeds or more."""
    names = [arm["name"] for arm in study["config"]["arms"]]
    pairs = [
        Claim(arm, other, "gfd", "pair by pair", *_within_seeds(study, arm, other, "gfd"))
        for place, arm in enumerate(names)
        for other in names[:place]
    ]
    return [pair for pair in pairs if len(pair.differences) > 1] if len(names) <= _FEW else []


def claims_tables(claims: list[Claim]) -> dict[str, list[Claim]]:
    """Claims by what is compared, which is each table's heading."""
    tables: dict[str, list[Claim]] = {}
    for claim in claims:
        tables.setdefault(f"{claim.name} {claim.at}", []).append(claim)
    return tables


def claims_lines(claims: list[Claim]) -> list[list[str]]:
    """The same a comparison a line, for a terminal."""
    lines = [
        [claim.arm, claim.minus, f"{claim.name} {claim.at}", claim.text]
        for table in claims_tables(claims).values()
        for claim in table
    ]
    return [["arm", "minus", "in", f"difference [{LEVEL:.0%} over seeds]; seeds"], *lines]


def at_rfd(curve: list[tuple[Number, Number]], rfd: Number) -> Number | None:
    """A curve's value at an rFD: straight lines over log rFD between its points, none beyond."""
    points = sorted(point for point in curve if point[0] > 0)
    for (x, y), (x_next, y_next) in pairwise(points):
        if x <= rfd <= x_next:
            share = math.log(rfd / x) / math.log(x_next / x) if x_next > x else 0.5
            return y + share * (y_next - y)
    return None


def _at_equal_codes(study: dict[str, Any], arm: str, twin: str, key: str) -> Claim:
    return Claim(arm, twin, key, "at equal codes", *_within_seeds(study, arm, twin, key))


def _within_seeds(
    study: dict[str, Any], arm: str, other: str, key: str
) -> tuple[dict[int, Number], dict[int, str]]:
    """Differences of two arms by seed, and the seeds that lack one."""
    differences, missing = {}, {}
    mine, others = _values(study, arm, key), _values(study, other, key)
    for seed in _seeds(study, arm):
        if seed in mine and seed in others:
            differences[seed] = mine[seed] - others[seed]
        else:
            missing[seed] = _why_missing(study, other if seed in mine else arm, seed)
    return differences, missing


def _why_missing(study: dict[str, Any], arm: str, seed: int) -> str:
    states = {(run["arm"], run["seed"]): run.get("status") for run in study["runs"]}
    waits = states.get((arm, seed)) == "waiting"
    return f"{arm} has not been run" if waits else f"{arm} has no number"


def _at_equal_rfd(study: dict[str, Any], arm: str, twin: str, key: str, curve: list[str]) -> Claim:
    differences, missing = {}, {}
    rfds = {name: _values(study, name, "rfd") for name in (arm, *curve)}
    values = {name: _values(study, name, key) for name in (arm, *curve)}
    for seed in _seeds(study, arm):
        points = [
            (rfds[name][seed], values[name][seed])
            for name in curve
            if seed in rfds[name] and seed in values[name]
        ]
        rfd, value = rfds[arm].get(seed), values[arm].get(seed)
        expected = None if rfd is None else at_rfd(points, rfd)
        if rfd is None or value is None:
            missing[seed] = _why_missing(study, arm, seed)
        elif len(points) < 2:
            missing[seed] = "the baseline has no curve"
        elif expected is None:
            low, high = (shown(end(x for x, _ in points)) for end in (min, max))
            missing[seed] = f"rFD {shown(rfd)} is not in {low} to {high}"
        else:
            differences[seed] = value - expected
    return Claim(arm, twin, key, "at equal rFD", differences, missing)


def _seeds(study: dict[str, Any], arm: str) -> list[int]:
    """All that were asked for, however they ended."""
    return sorted({run["seed"] for run in study["runs"] if run["arm"] == arm})


def _values(study: dict[str, Any], arm: str, key: str) -> dict[int, Number]:
    """An arm's score by seed, where it is a number."""
    found = {}
    for run in study["runs"]:
        value = run.get("scores", {}).get(key, {}).get("value")
        if run["arm"] == arm and value is not None:
            found[run["seed"]] = value
    return found


def _keys_of(study: dict[str, Any], arm: str) -> list[str]:
    """The claimed scores that an arm has; each prior's where there are several."""
    scores = [run.get("scores", {}) for run in study["runs"] if run["arm"] == arm]
    present = {key for found in scores for key in found}
    sizes = {key.partition("/")[2] for key in present if "/" in key}
    return [
        key
        for name in CLAIMED
        for key in (name, *(f"{name}/{size}" for size in sorted(sizes) if len(sizes) > 1))
        if key in present
    ]


def _weight(arm: dict[str, Any]) -> Number:
    return arm["tokenizer"]["causal"]["weight"]


def twins_of_arms(study: dict[str, Any]) -> list[tuple[str, str]]:
    """Every regularised arm with the arm that differs from it in that alone, which comes first."""
    arms = study["config"]["arms"]
    bare = [arm for arm in arms if not _weight(arm)]
    pairs = ((_twin_of(arm, bare), arm) for arm in arms if _weight(arm))
    return [(twin["name"], arm["name"]) for twin, arm in pairs if twin is not None]


def _twin_of(arm: dict[str, Any], bare: list[dict[str, Any]]) -> dict[str, Any] | None:
    """The first arm without the regulariser that differs in nothing else."""
    return next((other for other in bare if _without(other) == _without(arm)), None)


def _beside(arm: dict[str, Any], bare: list[dict[str, Any]]) -> dict[str, Any] | None:
    """On the first baseline's curve the arm with as many codes, for an arm that is not on it."""
    curve = [other for other in bare if _is_on_curve(other, bare[0])]
    if arm in curve or _codes(arm) is None:
        return None
    return next((other for other in curve if _codes(other) == _codes(arm)), None)


def _best_of(study: dict[str, Any], arm: str, key: str, bare: list[str]) -> str | None:
    """Of arms with a mean rFD no higher, the one whose score is lowest on average.

    Over the arm's seeds that have both; one that lacks any of them is not yet to be judged.
    """
    seeds = _values(study, arm, "rfd").keys() & _values(study, arm, key).keys()
    rfd = _mean_over(study, arm, "rfd", seeds)
    found = {}
    for other in bare:
        its, score = (_mean_over(study, other, name, seeds) for name in ("rfd", key))
        if rfd is not None and its is not None and score is not None and its <= rfd:
            found[other] = score
    return min(found, key=lambda name: found[name]) if found else None


def _mean_over(study: dict[str, Any], arm: str, key: str, seeds: Set[int]) -> Number | None:
    """None if a seed lacks it, or there is none."""
    values = _values(study, arm, key)
    if not seeds or not seeds <= values.keys():
        return None
    return sum(values[seed] for seed in seeds) / len(seeds)


def _codes(arm: dict[str, Any]) -> tuple[str, int] | None:
    """The kind and number; none where codes are counted otherwise, which does not compare."""
    quantizer = arm["tokenizer"]["model"]["quantizer"]
    number = quantizer.get("codebook_size")
    return None if number is None else (quantizer.get("kind", ""), number)


def _is_on_curve(arm: dict[str, Any], twin: dict[str, Any]) -> bool:
    """True for baselines that differ from the twin in the number of codes alone."""
    return not _weight(arm) and _without(arm, codes=False) == _without(twin, codes=False)


def _without(arm: dict[str, Any], codes: bool = True) -> dict[str, Any]:
    """An arm's tokenizer and the pixels it is shown, without its regulariser, and perhaps without
    its number of codes."""
    tokenizer = json.loads(json.dumps(arm["tokenizer"])) | {"pixels": arm.get("pixels", 0)}
    del tokenizer["causal"]
    if not codes:
        tokenizer["model"]["quantizer"].pop("codebook_size", None)
    return tokenizer
