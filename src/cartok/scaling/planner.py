"""What to train under a budget, by the laws of a grid study; and which run to add to it first.

Reads ``study.json`` alone. The budget is the compute of the prior's training; that of tokenizers is
not in it. A tokenizer's law is asked at most ten times beyond the compute that its runs have seen.
"""

import math
from collections import Counter
from dataclasses import asdict, dataclass, replace
from statistics import median
from typing import Any

import numpy as np

from cartok.core.errors import UserError
from cartok.scaling.arm_fits import ArmFit, fits_of
from cartok.scaling.bands import REACH, Prediction
from cartok.scaling.grid import Point, is_grid
from cartok.scaling.law import LawFit
from cartok.scaling.luck import words_of
from cartok.scaling.next_run import NextRun, next_run
from cartok.scaling.numbers import Interval, Number, shown
from cartok.scaling.units import budget_of

KEY, HEADING = "gfd", "gFD"
"""What is planned for; less is better."""


@dataclass(frozen=True)
class ArmPlan:
    """What one tokenizer's prior would be under the budget; or why that cannot be said."""

    arm: str
    codes: int = 0
    tokens: int = 0
    """Of a picture."""
    flops: float = 0.0
    """The budget; as hours it differs with the tokenizer."""
    parameters: float = 0.0
    size: str = ""
    """The study's prior that is nearest in parameters."""
    batch: int = 0
    steps: int = 0
    score: float = math.inf
    """Expected gFD."""
    interval: Interval | None = None
    """Of the mean of many such runs; a single one scatters around it besides."""
    extrapolated: bool = False
    seconds: float | None = None
    peak_memory_bytes: Number | None = None
    """The least that a run of that size has taken."""
    like: str = ""
    """The run of whose time that of a FLOP was taken."""
    first: float = 0.0
    """The share of refits in which it is the best of all."""
    warnings: tuple[str, ...] = ()
    refused: str = ""
    """Why its law does not bear the budget, or why it has none."""


@dataclass(frozen=True)
class Plan:
    """What to train under a budget."""

    budget: str
    device: str
    """That of the study's runs, by whose time hours are counted; or the FLOPs a second given."""
    arms: tuple[ArmPlan, ...]
    """By expected score; those that were refused come last."""
    has_one_size: bool
    """All of its priors are of one size, so nothing is said of others."""
    next_run: NextRun | None
    tokenizers_differ: float | None = None
    """See ``luck.spread_of``."""

    @property
    def best(self) -> ArmPlan:
        """What is recommended."""
        return self.arms[0]

    def to_json(self) -> dict[str, Any]:
        """Everything, as JSON takes it."""
        plain = asdict(self)
        for arm in plain["arms"]:
            arm["score"] = None if arm["refused"] else arm["score"]
        return plain | {"score": HEADING, "sentences": sentences_of(self)}


def plan_under(study: dict[str, Any], budget: str, device_flops: Number | None = None) -> Plan:
    """The best tokenizer, prior and steps for ``budget``, as ``units.budget_of`` reads it.

    Hours are counted by what the study's runs did in a second, or by ``device_flops`` if given.

    Raises:
        UserError: the budget is no compute, the study is no grid, or no law bears the budget.
    """
    budget_of(budget, 1.0)  # refuses what is no budget
    if device_flops is not None and not 0 < device_flops < math.inf:
        raise UserError(
            f"a device does more than 0 FLOPs in a second, but {device_flops:g} came; measure it, "
            "or leave it away"
        )
    if not is_grid(study):
        raise UserError(
            f"a plan needs a grid of lengths or sizes, each a run of its own, but "
            f"'{study['name']}' is none; run one of those studies, such as cartok study run "
            "cifar-tradeoff"
        )
    fits = fits_of(study, KEY)
    device = _device_of([point for fit in fits for point in fit.arm.points])
    found = [_arm_plan(fit, budget, device, device_flops) for fit in fits]
    borne = [(fit, plan) for fit, plan in zip(fits, found, strict=True) if not plan.refused]
    if not borne:
        raise UserError(_refusal(found, fits, budget))
    draws = np.stack([fit.drawn_scores(plan.flops) for fit, plan in borne])
    firsts = Counter(np.argmin(draws, axis=0).tolist())
    plans = [
        replace(plan, first=firsts[place] / draws.shape[1]) for place, (_, plan) in enumerate(borne)
    ]
    order = sorted(range(len(plans)), key=lambda place: plans[place].score)
    refused = [plan for plan in found if plan.refused]
    by_hand = f"{shown(device_flops)} FLOPs a second, as given" if device_flops else ""
    return Plan(
        budget=budget,
        device=by_hand or device,
        arms=(*(plans[place] for place in order), *refused),
        has_one_size=all(len(fit.arm.sizes) == 1 for fit, _ in borne),
        next_run=next_run(borne[order[0]][0], plans[order[0]].flops),
        tokenizers_differ=fits[0].tokenizers_differ,
    )


def sentences_of(plan: Plan) -> list[str]:
    """The plan in words."""
    best = plan.best
    found = [
        f"Train a prior of {_millions(best.parameters)} parameters (nearest in the study: "
        f"{best.size}) on the tokens of {best.arm}, {best.tokens} of {best.codes:,} codes a "
        f"picture, for {best.steps:,} steps of {best.batch}: {shown(best.flops)} FLOPs.",
        f"Its gFD is expected to be {shown(best.score)}, 90 % interval {_ends(best)}; that is "
        f"for the mean of many such runs. {best.arm} is the best of all in {best.first:.0%} of "
        "refits.",
    ]
    if plan.has_one_size:
        found.append("The study has one size of prior for each tokenizer: others are not compared.")
    if best.extrapolated:
        found.append("This is beyond the compute that the study has seen.")
    if best.seconds is not None:
        memory = best.peak_memory_bytes
        room = "" if memory is None else f" and {memory / 1e9:.3g} GB"
        found.append(
            f"It takes about {_time(best.seconds)}{room}, by the time of a FLOP of {best.like} on "
            f"{plan.device} and the memory of {best.size}; runs of a study share their device, so "
            "alone it may be quicker."
        )
    found.append(words_of(plan.tokenizers_differ, HEADING))
    found += [f"{arm.arm} is left out: {arm.refused}." for arm in plan.arms if arm.refused]
    found += [f"Note: {warning}." for warning in best.warnings]
    if plan.next_run is not None:
        found.append(plan.next_run.words)
    return found


def rows_of(plan: Plan) -> list[list[str]]:
    """A table: its headings, then every tokenizer, with the prior's parameters."""
    rows = [["arm", "tokens", "codes", "prior", "steps", "gFD", "best in", "time", ""]]
    for arm in plan.arms:
        if arm.refused:
            rows.append([arm.arm, *["-"] * 7, "left out"])
            continue
        took = "-" if arm.seconds is None else _time(arm.seconds)
        rows.append(
            [arm.arm, str(arm.tokens), f"{arm.codes:,}", _millions(arm.parameters),
             f"{arm.steps:,}",
             f"{shown(arm.score)} {_ends(arm)}", f"{arm.first:.0%}", took,
             "beyond the runs" if arm.extrapolated else ""]
        )  # fmt: skip
    return rows


def _arm_plan(fit: ArmFit, budget: str, device: str, device_flops: Number | None) -> ArmPlan:
    arm = fit.arm
    plan = ArmPlan(arm=arm.name, codes=arm.codes, tokens=arm.tokens)
    if fit.law is None:
        return replace(plan, refused=f"no law: {fit.refused}")
    runs = [point for point in arm.points if point.device == device and point.seconds]
    like, speed = _nearest(runs, budget)
    try:
        flops = budget_of(budget, device_flops or speed).flops
        parameters, prediction = _best(fit, fit.law, flops)
    except UserError as error:
        return replace(plan, flops=_flops(budget, device_flops or speed), refused=str(error))
    of_size = min(arm.points, key=lambda point: abs(math.log(point.parameters / parameters)))
    cost = median(p.flops / p.pictures / p.parameters for p in arm.points)  # of one, for one
    batch = round(of_size.pictures / of_size.steps)
    speed = device_flops or speed
    # Of the runs of a process all but the first may have been charged with an earlier one's.
    memory = [p.peak_memory_bytes for p in runs if p.size == of_size.size and p.peak_memory_bytes]
    return replace(
        plan, flops=flops, parameters=parameters, size=of_size.size, batch=batch,
        steps=max(1, round(flops / (cost * parameters * batch))),
        score=prediction.score, interval=prediction.interval,
        extrapolated=prediction.extrapolated,
        seconds=flops / speed if speed else None,
        peak_memory_bytes=min(memory, default=None),
        like="" if like is None else f"{arm.name}@{like.prior}", warnings=fit.law.warnings,
    )  # fmt: skip


def _best(fit: ArmFit, law: LawFit, flops: float) -> tuple[float, Prediction]:
    """The parameters to take for so many FLOPs, and the score to expect."""
    if fit.joint is not None:
        choice = fit.joint.best_under(flops)
        return choice.parameters, choice.prediction
    prediction = law.prediction_at(flops)
    nearest = min(fit.arm.points, key=lambda point: abs(math.log(point.flops / flops)))
    return float(nearest.parameters), prediction


def _nearest(runs: list[Point], budget: str) -> tuple[Point | None, float | None]:
    """The run nearest to the budget, and its FLOPs a second; hours are held against its time."""
    if not runs:
        return None, None

    def away(point: Point) -> float:
        speed = point.flops / (point.seconds or math.nan)
        return abs(math.log(budget_of(budget, speed).flops / point.flops))

    like = min(runs, key=away)
    return like, like.flops / (like.seconds or math.nan)


def _device_of(points: list[Point]) -> str:
    """The device that most of the runs were made on; '' if none says so."""
    devices = Counter(point.device for point in points if point.device)
    return devices.most_common(1)[0][0] if devices else ""


def _flops(budget: str, speed: Number | None) -> float:
    """0 where hours cannot be counted."""
    try:
        return budget_of(budget, speed).flops
    except UserError:
        return 0.0


def _refusal(plans: list[ArmPlan], fits: list[ArmFit], budget: str) -> str:
    """Why no law bears the budget, and the run that would mend that."""
    laws = [(fit.law, plan) for fit, plan in zip(fits, plans, strict=True) if fit.law is not None]
    if not laws:
        name, why = plans[0].arm, plans[0].refused
        return f"a plan needs a law of {HEADING}, but no tokenizer has one; {name}: {why}"
    if not any(plan.flops for _, plan in laws):
        return laws[0][1].refused
    law, plan = max(laws, key=lambda pair: pair[0].compute_seen[1])
    low, high = law.compute_seen
    if low / REACH <= plan.flops <= high * REACH:  # it was the size or the length that is too far
        return f"{plan.arm}: {plan.refused}"
    arm = next(fit.arm for fit in fits if fit.law is law)
    longest = max(arm.points, key=lambda point: point.flops)
    wanted = plan.flops / REACH if plan.flops > high else plan.flops * REACH
    steps = math.ceil(longest.steps * wanted / longest.flops)
    return (
        f"a law is asked at most {REACH:g} times beyond what it has seen, {shown(low)} to "
        f"{shown(high)} FLOPs of {arm.name}, but {budget} is {shown(plan.flops)} FLOPs; add a "
        f"run of {arm.name} with the prior {longest.size} for about {steps:,} steps to the "
        "study, or give another budget"
    )


def _ends(arm: ArmPlan) -> str:
    assert arm.interval is not None, "every prediction has one"
    return f"[{shown(arm.interval.low)}, {shown(arm.interval.high)}]"


def _millions(parameters: float) -> str:
    return f"{parameters / 1e6:.3g}M"


def _time(seconds: float) -> str:
    if seconds < 90:
        return f"{seconds:.2g} s"
    return f"{seconds / 60:.3g} min" if seconds < 5400 else f"{seconds / 3600:.3g} h"
