"""A grid study in a terminal: a line a tokenizer, and where the better one changes."""

from typing import Any

from cartok.scaling.arm_fits import ArmFit, fits_of
from cartok.scaling.laws_of_study import crossings_of
from cartok.scaling.luck import words_of
from cartok.scaling.numbers import aligned, shown, span


def grid_lines(study: dict[str, Any]) -> list[str]:
    """A table of laws of gFD, then refusals and sentences, each a paragraph."""
    fits = fits_of(study, "gfd")
    failed = [run for run in study["runs"] if run["status"] == "failed"]
    rows = [["arm", "codes", "tokens", "rFD", "runs", "best gFD", "of prior", "L_min", "alpha"]]
    found = [aligned([*rows, *map(_row, fits)])]
    if any(fit.law for fit in fits):
        found.append(words_of(fits[0].tokenizers_differ, "gFD"))
    found += [f"{fit.arm.name}: no law of gFD: {fit.refused}" for fit in fits if fit.refused]
    found += [crossing.words for crossing in crossings_of(fits) if crossing.is_seen]
    return found + [f"failed: {run['arm']}-s{run['seed']}: {run['reason']}" for run in failed]


def _row(fit: ArmFit) -> list[str]:
    arm, law = fit.arm, fit.law
    best = min(fit.points, key=lambda point: point.scores[fit.key], default=None)
    return [
        arm.name,
        f"{arm.codes:,}" if arm.codes else "-",
        f"{arm.tokens:,}" if arm.tokens else "-",
        "-" if arm.rfd is None else shown(arm.rfd),
        str(len(arm.points)),
        *(("-", "-") if best is None else (shown(best.scores[fit.key]), best.prior)),
        *(("-", "-") if law is None else (
            f"{shown(law.law.l_min)} {span(law.interval('l_min'))}",
            f"{shown(law.law.alpha)} {span(law.interval('alpha'))}",
        )),
    ]  # fmt: skip
