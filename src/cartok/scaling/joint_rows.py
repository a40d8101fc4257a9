"""The joint forms of a grid study as a table: how a score falls with parameters and data."""

from dataclasses import dataclass

from cartok.core.errors import UserError
from cartok.scaling.arm_fits import ArmFit
from cartok.scaling.joint import Choice, JointFit
from cartok.scaling.numbers import shown, span


@dataclass(frozen=True)
class JointRow:
    """One tokenizer's joint form, or why there is none."""

    arm: str
    tone: int
    cells: tuple[str, ...]
    """L_min, a, b, R2, the best parameters and pictures under the most compute that was seen, log A
    and log B; empty if there is no form."""
    note: str


def joint_rows(fits: list[ArmFit], tones: dict[str, int]) -> list[JointRow]:
    """Of tokenizers whose priors have two sizes or more."""
    return [_row(fit, tones[fit.arm.name]) for fit in fits if len(fit.arm.sizes) > 1]


def _row(fit: ArmFit, tone: int) -> JointRow:
    joint = fit.joint
    if joint is None:
        return JointRow(fit.arm.name, tone, (), fit.joint_refused or fit.refused)
    law = joint.law
    best, note = _best(joint)
    sizes = ("–", "–") if best is None else _sizes(best)
    l_min, a, b, log_a, log_b = (
        f"{shown(value)} {span(joint.interval(name))}"
        for name, value in (
            ("l_min", law.l_min), ("a", law.a), ("b", law.b), ("log_a", law.log_a),
            ("log_b", law.log_b),
        )
    )  # fmt: skip
    cells = (l_min, a, b, f"{joint.r2:.3f}", *sizes, log_a, log_b)
    return JointRow(fit.arm.name, tone, cells, note)


def _best(joint: JointFit) -> tuple[Choice | None, str]:
    try:
        return joint.best_under(joint.compute_seen[1]), ""
    except UserError as error:  # of a size or a length far from all that was seen
        return None, f"nothing is said of the best size: {error}"


def _sizes(best: Choice) -> tuple[str, str]:
    return (
        f"{shown(best.parameters)} {span(best.parameters_interval)}",
        f"{shown(best.seen)} {span(best.seen_interval)}",
    )
