"""What to train under a budget, by the laws of a grid study; and which run to add to it first.

Reads ``study.json`` alone. The budget is the compute of the prior's training; that of tokenizers is
not in it. A tokenizer's law is asked at most ten times beyond the compute that its runs have seen.
"""

import math
from collections import Counter
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np

from cartok.core.errors import UserError
from cartok.scaling.arm_fits import ArmFit, fits_of
from cartok.scaling.arm_plan import ArmPlan, Terms, arm_plan, flops_asked, most_borne, sizes_asked
from cartok.scaling.bands import REACH
from cartok.scaling.grid import Point, is_grid
from cartok.scaling.luck import words_of
from cartok.scaling.next_run import NextRun, next_run
from cartok.scaling.numbers import Number, shown
from cartok.scaling.units import amount_of

KEY, HEADING = "gfd", "gFD"
"""What is planned for; less is better."""


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
    waiting: int = 0
    """Runs of the study that have not finished."""

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
    """The best tokenizer, prior and steps for ``budget``, as ``units.amount_of`` reads it.

    Hours are counted by what the study's runs did in a second, or by ``device_flops`` if given.

    Raises:
        UserError: the budget is no compute, the study is no grid, or no law bears the budget.
    """
    amount = amount_of(budget)
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
    terms = Terms(amount, device, device_flops)
    found = [arm_plan(fit, terms) for fit in fits]
    borne = [(fit, plan) for fit, plan in zip(fits, found, strict=True) if not plan.refused]
    if all(plan.is_less for _, plan in borne):
        raise UserError(_refusal(found, fits, terms, budget))
    draws = np.stack([plan.drawn_scores(fit) for fit, plan in borne])
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
        next_run=next_run(borne[order[0]][0], plans[order[0]].flops, draws[order[0]]),
        tokenizers_differ=fits[0].tokenizers_differ,
        waiting=sum(run["status"] != "finished" for run in study["runs"]),
    )


def sentences_of(plan: Plan) -> list[str]:
    """The plan in words."""
    best = plan.best
    found = [
        f"Train the prior {best.size}, {_millions(best.parameters)} parameters, on the tokens of "
        f"{best.arm}, {best.tokens} of {best.codes:,} codes a picture, for {best.steps:,} steps of "
        f"{best.batch}: {shown(best.flops)} FLOPs.",
        f"Its gFD is expected to be {shown(best.score)}, 90 % interval {_ends(best)}; that is "
        f"for the mean of many such runs. {best.arm} is the best of all in {best.first:.0%} of "
        "refits.",
    ]
    if plan.has_one_size:
        found.append("The study has one size of prior for each tokenizer: others are not compared.")
    if best.is_less:
        found.append(
            "That is less than the budget, and the most that its law bears; what bears all of the "
            "budget is expected to score worse."
        )
    elif best.extrapolated:
        found.append("This is beyond the compute that the study has seen.")
    if best.seconds is not None:
        memory = best.peak_memory_bytes
        room = "" if memory is None else f" and {memory / 1e9:.3g} GB"
        found.append(
            f"It takes about {_time(best.seconds)}{room}, by the time of a FLOP of {best.like} on "
            f"{plan.device} and the memory of {best.size}; runs of a study share their device, so "
            "alone it may be quicker."
        )
    found += [best.other_size] if best.other_size else []
    found.append(words_of(plan.tokenizers_differ, HEADING))
    if plan.waiting:
        found.append(f"{plan.waiting} runs of the study have not finished; its command goes on.")
    found += [f"{arm.arm} is left out: {arm.refused}." for arm in plan.arms if arm.refused]
    found += [f"Note: {warning}." for warning in best.warnings]
    if plan.next_run is not None:
        found.append(plan.next_run.words)
    return found


def rows_of(plan: Plan) -> list[list[str]]:
    """A table: its headings, then every tokenizer."""
    rows = [["arm", "tokens", "codes", "prior", "steps", "gFD", "best in", "time", ""]]
    for arm in plan.arms:
        if arm.refused:
            rows.append([arm.arm, *["-"] * 7, "left out"])
            continue
        took = "-" if arm.seconds is None else _time(arm.seconds)
        rows.append(
            [arm.arm, str(arm.tokens), f"{arm.codes:,}", arm.size, f"{arm.steps:,}",
             f"{shown(arm.score)} {_ends(arm)}", f"{arm.first:.0%}", took,
             _about(arm)]
        )  # fmt: skip
    return rows


def _device_of(points: list[Point]) -> str:
    """The device that most of the runs were made on; '' if none says so."""
    devices = Counter(point.device for point in points if point.device)
    return devices.most_common(1)[0][0] if devices else ""


def _about(arm: ArmPlan) -> str:
    if arm.is_less:
        return f"with {shown(arm.flops)} FLOPs, the most its law bears"
    return "beyond the runs" if arm.extrapolated else ""


def _refusal(plans: list[ArmPlan], fits: list[ArmFit], terms: Terms, budget: str) -> str:
    """Why no law bears the budget, and the run that would mend that."""
    asked = [(fit, plan) for fit, plan in zip(fits, plans, strict=True) if fit.law is not None]
    if not asked:
        name, why = plans[0].arm, plans[0].refused
        return f"a plan needs a law of {HEADING}, but no tokenizer has one; {name}: {why}"
    fit, plan = max(asked, key=lambda pair: _seen(pair[0])[1])
    low, high = _seen(fit)
    sizes = sizes_asked(fit, terms)
    try:
        most, least = (flops_asked(points, terms)[0] for points in (sizes[-1], sizes[0]))
    except UserError as error:  # no time is known
        return str(error)
    if low / REACH <= least and most <= high * REACH:
        return f"{plan.arm}: {plan.refused}"
    flops, points = (most, sizes[-1]) if most > high * REACH else (least, sizes[0])
    one, speed = points[0], terms.device_flops or flops_asked(points, terms)[2]
    steps = flops / (one.flops / one.steps)  # of a run on the budget
    steps = math.ceil(steps / REACH) if flops > high else math.floor(steps * REACH)
    rule = (
        f"a law is asked at most {REACH:g} times beyond what it has seen, {shown(low)} to "
        f"{shown(high)} FLOPs of {fit.arm.name}, but {budget} is {shown(flops)} FLOPs"
    )
    if steps < 1:
        return f"{rule}, less than a step of its smallest prior; give a larger budget"
    limit = low / REACH if flops < low else most_borne(fit, one)
    hours = "" if speed is None else f" ({limit / speed / 3600:.2g} GPU hours)"
    word = "at least" if flops < low else "at most"
    return (
        f"{rule}; give {word} {shown(limit)} FLOPs{hours}, or add a run of {fit.arm.name} with the "
        f"prior {one.size} for {steps:,} steps to the study"
    )


def _seen(fit: ArmFit) -> tuple[float, float]:
    assert fit.law is not None, "asked of laws alone"
    return fit.law.compute_seen


def _ends(arm: ArmPlan) -> str:
    assert arm.interval is not None, "every prediction has one"
    return f"[{shown(arm.interval.low)}, {shown(arm.interval.high)}]"


def _millions(parameters: int) -> str:
    return f"{parameters / 1e6:.3g}M"


def _time(seconds: float) -> str:
    if seconds < 90:
        return f"{seconds:.2g} s"
    return f"{seconds / 60:.3g} min" if seconds < 5400 else f"{seconds / 3600:.3g} h"
