"""A number and its receipt: everything that must be equal before two numbers are compared."""

from dataclasses import asdict, dataclass
from typing import Any

EVALUATOR = 1
"""Rises whenever a change of ours would change a score; part of every receipt."""

FREE = frozenset({"generated", "bootstrap", "standard_error", "indicative", "cartok"})
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


def comparable(a: Score, b: Score) -> list[str]:
    """Names the receipt fields that forbid comparing two scores; empty when they compare."""
    fields = {**a.receipt, **b.receipt}
    differing = [
        name for name in fields if name not in FREE and a.receipt.get(name) != b.receipt.get(name)
    ]
    return differing if a.unit == b.unit else ["unit", *differing]
