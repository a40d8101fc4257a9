"""What a doctor finds, and how it reads a curve: where it began, where it ended."""

from collections.abc import Sequence
from dataclasses import dataclass
from statistics import median
from typing import Literal

Curve = Sequence[tuple[int, float]]
"""A logged value: steps and what it was at each."""
Severity = Literal["watch", "fault"]

LEAST_POINTS = 30
"""Logged points below which it is too early to say: a tenth, at either end, must hold three for one
odd batch not to decide."""


@dataclass(frozen=True)
class Finding:
    """One thing that is wrong, in words."""

    fault: str
    """Its name."""
    severity: Severity
    """A fault spoils the result; what is to be watched may."""
    seen: str
    """The numbers, with their steps."""
    means: str
    change: str
    """What to do, with the names of the config's fields."""

    @property
    def line(self) -> str:
        """All of it in one line."""
        return f"{self.fault}: {self.seen}; {self.means}; {self.change}"


def early(curve: Curve) -> float:
    """The median of the first tenth, of ten points at most."""
    return median(value for _, value in curve[: max(1, min(10, len(curve) // 10))])


def late(curve: Curve) -> float:
    """The median of the last tenth."""
    return median(value for _, value in curve[-max(1, len(curve) // 10) :])


def span_of(curve: Curve) -> str:
    """Where a curve came from and went to, in words."""
    start, end = curve[0][0], curve[-1][0]
    return f"from {early(curve):.3g} (step {start}) to {late(curve):.3g} (step {end})"
