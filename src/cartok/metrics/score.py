"""A number and its receipt: everything that must be equal before two numbers are compared."""

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from scipy.special import ndtri

from cartok.core.errors import UserError
from cartok.core.files import read_json

LEVEL = 0.9
"""The coverage of the intervals that are printed."""

EVALUATOR = 1
"""Rises whenever a change of ours would change a score; part of every receipt."""

FREE = frozenset({"generated", "bootstrap", "standard_error", "interval", "spread", "indicative",
                  "converted", "skipped", "cartok"})  # fmt: skip
"""Receipt fields that may differ between two scores that are compared."""


@dataclass(frozen=True)
class Score:
    """A value, its unit, and the receipt that says how it came about."""

    value: float
    unit: str
    receipt: dict[str, Any]

    def to_json(self) -> dict[str, Any]:
        """The score as plain JSON values."""
        return asdict(self)


@dataclass(frozen=True)
class Difference:
    """By how much a second score exceeds a first, and the interval of that, where it is known."""

    value: float
    interval: tuple[float, float] | None


def interval_of(score: Score) -> tuple[float, float] | None:
    """Where, at 90 %, a score lies: as its receipt says, or from its standard error; else None."""
    bootstrap = score.receipt.get("bootstrap", {})
    interval = score.receipt.get("interval", bootstrap.get("interval"))
    if interval is not None:
        return interval[0], interval[1]
    error = score.receipt.get("standard_error")
    reach = None if error is None else float(ndtri((1 + LEVEL) / 2)) * error
    return None if reach is None else (score.value - reach, score.value + reach)


def difference(first: Score, second: Score) -> Difference:
    """The second less the first, with a 90 % interval as of two independent errors.

    Scores against the same reference share its error, and then the interval is wider than need be.

    Raises:
        UserError: the receipts differ; names every field, with both values.
    """
    if differing := comparable(first, second):
        metric = second.receipt.get("metric", "a number")
        fields = ", ".join(
            f"{name} ({_short(first, name)} against {_short(second, name)})" for name in differing
        )
        raise UserError(
            f"two numbers compare only under equal receipts, but {metric} differs in {fields}; "
            "score both in the same way"
        )
    value, ours, theirs = second.value - first.value, interval_of(second), interval_of(first)
    if ours is None or theirs is None:
        return Difference(value, None)
    below = ((second.value - ours[0]) ** 2 + (theirs[1] - first.value) ** 2) ** 0.5
    above = ((ours[1] - second.value) ** 2 + (first.value - theirs[0]) ** 2) ** 0.5
    return Difference(value, (value - below, value + above))


def read_scores(path: Path) -> dict[str, Score]:
    """The scores that ``cartok score --json`` wrote.

    Raises:
        UserError: the file is missing or holds something else.
    """
    found = read_json(path, "scores")
    try:
        return {
            name: Score(float(plain["value"]), str(plain["unit"]), dict(plain["receipt"]))
            for name, plain in found.items()
        }
    except (AttributeError, KeyError, TypeError, ValueError):
        raise UserError(
            f"scores are numbers with receipts, as --json writes them, but {path} holds something "
            "else; name a file that cartok score wrote"
        ) from None


def comparable(a: Score, b: Score) -> list[str]:
    """Names the receipt fields that forbid comparing two scores; empty when they compare."""
    fields = {**a.receipt, **b.receipt}
    differing = [
        name for name in fields if name not in FREE and a.receipt.get(name) != b.receipt.get(name)
    ]
    return differing if a.unit == b.unit else ["unit", *differing]


def _short(score: Score, name: str) -> str:
    text = score.unit if name == "unit" else str(score.receipt.get(name, "nothing"))
    return text if len(text) <= 40 else f"{text[:39]}…"
