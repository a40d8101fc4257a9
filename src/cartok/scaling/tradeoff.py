"""The trade-off of a grid study as a page shows it: laws over compute, their parameters, crossings.

Reads ``study.json`` alone and fits anew, so a page needs neither a GPU nor what was written before.
"""

import math
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from markupsafe import Markup

from cartok.scaling import paper
from cartok.scaling.arm_fits import FITTED, ArmFit, fits_of
from cartok.scaling.backtest import Foretold, foretold
from cartok.scaling.figures import Figure, csv_of
from cartok.scaling.frontier import frontier_of
from cartok.scaling.grid import GridArm, grid_of
from cartok.scaling.joint_rows import JointRow, joint_rows
from cartok.scaling.law import Law, LawFit
from cartok.scaling.law_charts import LawLine, law_chart, residual_chart
from cartok.scaling.laws_of_study import Crossing, crossings_of
from cartok.scaling.lengths import LengthTable, lengths_of
from cartok.scaling.luck import words_of
from cartok.scaling.numbers import Interval, Number, shown, span
from cartok.scaling.study import families_of, num_seeds
from cartok.scaling.units import FLOPS_PER_PAPER_UNIT

_PLACES = 60  # of a curve
_UNLIKE = "in several things"
_SURE = 0.9  # the share of refits that agree on who is better at an end, to say it flatly


@dataclass(frozen=True)
class LawRow:
    """One tokenizer's law of one score."""

    arm: str
    tone: int
    cells: tuple[str, ...]
    """L_min, alpha, lambda, R2 and the number of runs; empty if there is no law."""
    note: str
    """What it was fitted to and what is to be doubted, or why there is none."""


@dataclass(frozen=True)
class ScoreLaws:
    """What is shown of one score."""

    name: str
    figures: list[Figure]
    rows: list[LawRow]
    joint: list[JointRow]
    """Of tokenizers whose priors have several sizes."""
    luck: str
    """What intervals know of how tokenizers of one recipe differ."""


@dataclass(frozen=True)
class TradeOff:
    """All of the section."""

    legend: list[tuple[int, str]]
    first: str
    """Which tokenizer is best at the least and at the most compute that all have seen."""
    scores: list[ScoreLaws]
    lengths: LengthTable
    foretold: list[Foretold]
    crossings: dict[str, list[str]]
    """Sentences by what the two tokenizers differ in."""
    unlike: str
    """The key of those that differ in more than one thing."""
    paper: Figure


def tradeoff_of(study: dict[str, Any]) -> TradeOff:
    """The section of a grid study."""
    arms = grid_of(study)
    tones = {arm.name: place for place, arm in enumerate(arms)}
    by_key = {key: fits_of(study, key) for key in FITTED}
    return TradeOff(
        legend=[(tone, name) for name, tone in tones.items()],
        first=_first(by_key["gfd"]),
        scores=[_score_laws(FITTED[key], fits, tones) for key, fits in by_key.items()],
        lengths=lengths_of(arms, tones, num_seeds(study)),
        foretold=foretold(study),
        crossings=_by_difference(study, crossings_of(by_key["gfd"]), arms),
        unlike=_UNLIKE,
        paper=paper_figure("gFID"),
    )


def paper_figure(metric: Literal["gFID", "validation loss"]) -> Figure:
    """The fits that the paper prints; other pictures and another judge than any study's here."""
    fits = {name: fit for name, fit in paper.FITS.items() if fit.metric == metric}
    low, high = paper.COMPUTE_RANGE
    flops = low * FLOPS_PER_PAPER_UNIT, high * FLOPS_PER_PAPER_UNIT
    lines = [
        LawLine(name, tone, curve=_curve(_in_flops(fit.law), flops))
        for tone, (name, fit) in enumerate(fits.items())
    ]
    ends = ((line.name, line.tone, line.curve[-1][1]) for line in lines)
    rows = [(line.name, *point) for line in lines for point in line.curve]
    told = ", ".join(f"{name}: {shown(fit.law.score_at(high))}" for name, fit in fits.items())
    return Figure(
        f"{metric} as the paper prints it",
        "its fits, over the compute of its runs; the last values are at "
        f"{shown(high)} of its units",
        Markup(law_chart(lines, (), metric, f"The paper's printed fits of {metric}; {told}.")),
        tuple(ends),
        csv_of(("line", "FLOPs", metric), rows),
    )


def _in_flops(law: Law) -> Law:
    """A law over the paper's unit as one over FLOPs."""
    return Law(law.l_min, law.alpha, law.intercept - law.alpha * math.log(FLOPS_PER_PAPER_UNIT))


def _score_laws(name: str, fits: list[ArmFit], tones: dict[str, int]) -> ScoreLaws:
    rows = [_law_row(fit, tones[fit.arm.name]) for fit in fits]
    figures = [_law_figure(name, fits, tones)] if any(fit.runs for fit in fits) else []
    borne = [(fit, fit.law) for fit in fits if fit.law is not None]
    if borne:
        figures.append(_residuals(name, borne, tones))
    luck = words_of(fits[0].tokenizers_differ, name) if borne else ""
    return ScoreLaws(name, figures, rows, joint_rows(fits, tones), luck)


def _points(fit: ArmFit) -> list[tuple[float, Number]]:
    """All runs of a tokenizer, fitted or not."""
    return [(point.flops, point.scores[fit.key]) for point in fit.points]


def _law_figure(name: str, fits: list[ArmFit], tones: dict[str, int]) -> Figure:
    lines = [
        LawLine(
            fit.arm.name,
            tones[fit.arm.name],
            _points(fit),
            _curve(fit.law.law, fit.law.compute_seen) if fit.law else (),
            _band(fit.law) if fit.law else (),
        )
        for fit in fits
    ]
    every = [point for line in lines for point in line.points]
    # Bits of other codes are no scores to be compared, so they have no frontier.
    best = frontier_of(*zip(*every, strict=True)) if fits[0].key == "gfd" else []
    told = ", ".join(
        f"{line.name} from {shown(line.points[0][1])} to {shown(line.points[-1][1])}"
        for line in lines
        if line.points
    )
    rows = [
        (fit.arm.name, point.prior, point.seed, point.run, point.flops, point.paper_flops,
         point.scores.get(fit.key, ""), fit.law.law.score_at(point.flops) if fit.law else "")
        for fit in fits for point in fit.arm.points
    ]  # fmt: skip
    headings = (
        "arm",
        "prior",
        "seed",
        "run",
        "FLOPs, counted",
        "6 N pictures T / 256",
        name,
        "law",
    )
    return Figure(
        f"{name} over the compute of the prior's training",
        "a mark is a run, a line a law, a shade its 90 % band"
        + (", that of the best size: other sizes lie above" if any(f.joint for f in fits) else "")
        + ("; the broad grey line is the best of all runs so far" if best else ""),
        Markup(
            law_chart(
                lines, [every[place] for place in best], name, f"{name} over compute: {told}."
            )
        ),
        csv=csv_of(headings, rows),
    )


def _residuals(name: str, borne: list[tuple[ArmFit, LawFit]], tones: dict[str, int]) -> Figure:
    lines = [LawLine(fit.arm.name, tones[fit.arm.name], _left(fit, law)) for fit, law in borne]
    rows = [(line.name, *point) for line in lines for point in line.points]
    most = max(abs(y) for line in lines for _, y in line.points)
    chart = residual_chart(
        lines, f"{name} of runs against their laws: at most {shown(most)} % off."
    )
    note = "a bend shared by the runs of one tokenizer would mean that the law has the wrong form"
    if any(fit.joint for fit, _ in borne):
        note += "; of several sizes of prior, what the joint form leaves"
    table = csv_of(("arm", "FLOPs", "% off the law"), rows)
    return Figure(f"{name}: what the laws leave", note, Markup(chart), csv=table)


def _left(fit: ArmFit, law: LawFit) -> list[tuple[float, float]]:
    """% of each run's score off what was fitted: the joint form, of whose runs few are best."""
    if fit.joint is None:
        return [(x, 100 * (y / law.law.score_at(x) - 1)) for x, y in _points(fit)]
    costs = [point.flops for point in fit.points]
    return list(zip(costs, (100 * np.expm1(fit.joint.residuals)).tolist(), strict=True))


def _curve(law: Law, seen: tuple[float, float]) -> list[tuple[float, float]]:
    return [(x, law.score_at(x)) for x in np.geomspace(*seen, _PLACES).tolist()]


def _band(law: LawFit) -> list[tuple[float, float, float]]:
    places = np.geomspace(*law.compute_seen, _PLACES)
    low, high = np.quantile(law.drawn_scores(places), (0.05, 0.95), axis=0)
    return list(zip(places.tolist(), low.tolist(), high.tolist(), strict=True))


def _law_row(fit: ArmFit, tone: int) -> LawRow:
    law = fit.law
    if law is None:
        return LawRow(fit.arm.name, tone, (), fit.refused)

    def cell(value: float, interval: Interval) -> str:
        return f"{shown(value)} {span(interval)}"

    notes = [f"fitted to {fit.method}" if fit.method != "all its runs" else "", *law.warnings]
    if fit.joint_refused:
        notes.append(f"no joint form: {fit.joint_refused}")
    cells = (
        cell(law.law.l_min, law.interval("l_min")),
        cell(law.law.alpha, law.interval("alpha")),
        cell(law.law.intercept, law.interval("intercept")),
        f"{law.r2:.3f}" if math.isfinite(law.r2) else "–",
        str(len(fit.runs)),
    )
    return LawRow(fit.arm.name, tone, cells, "; ".join(note for note in notes if note))


def _first(fits: list[ArmFit]) -> str:
    laws = {fit.arm.name: fit.law for fit in fits if fit.law is not None}
    if len(laws) < 2:
        return ""
    low = max(law.compute_seen[0] for law in laws.values())
    high = min(law.compute_seen[1] for law in laws.values())
    if low >= high:
        return ""
    words = []
    for compute in (low, high):
        name = min(laws, key=lambda one: laws[one].law.score_at(compute))
        at = np.array([compute])
        draws = np.stack([law.drawn_scores(at)[:, 0] for law in laws.values()])
        share = float((np.argmin(draws, axis=0) == list(laws).index(name)).mean())
        words.append(f"at {shown(compute)} FLOPs {name} (in {share:.0%} of refits)")
    without = [fit.arm.name for fit in fits if fit.law is None]
    of = f"all that have a law (not {', '.join(without)})" if without else "all"
    return f"By its law of gFD the best of {of} is {words[0]}, and {words[1]}."


def _by_difference(
    study: dict[str, Any], found: list[Crossing], arms: list[GridArm]
) -> dict[str, list[str]]:
    family = {name: place for place, names in enumerate(families_of(study)) for name in names}
    tokenizers = {arm["name"]: arm["tokenizer"] for arm in study["config"]["arms"]}
    by_name = {arm.name: arm for arm in arms}
    groups: dict[str, list[str]] = {}
    for crossing in found:
        one, other = (by_name[name] for name in crossing.arms)
        words, heading = crossing.words, _UNLIKE
        if one.tokens == other.tokens and one.codes == other.codes:
            heading = "in their training alone"
        elif family[one.name] == family[other.name]:
            heading = "in the number of codes alone"
            small = min(one, other, key=lambda arm: arm.codes)
            is_sure = min(crossing.sure_low, crossing.sure_high) >= _SURE
            if crossing.is_seen and crossing.below == small.name and is_sure:
                words += " The smaller codebook wins at low compute and loses at high."
        elif tokenizers[one.name] == tokenizers[other.name]:
            heading = "in the tokens of a picture alone"
        groups.setdefault(heading, []).append(words)
    return groups
