"""A number with its interval, and how both are written, alone and as a table."""

import math
import statistics
from dataclasses import dataclass
from functools import cache
from typing import Any

from scipy.stats import t as student

Number = float | int
"""JSON has one kind of number, Python two."""

NORMAL_90 = 1.645
"""Standard errors to either side of a value that hold 90 % of a Gaussian."""


@dataclass(frozen=True)
class Interval:
    """Where repeats would fall, 90 % of them unless ``source`` says otherwise, which also says what
    they repeat: other pictures, or other seeds."""

    low: Number
    high: Number
    source: str

    def overlaps(self, other: "Interval") -> bool:
        """True if no difference can be claimed."""
        return self.low <= other.high and other.low <= self.high


def students(values: list[Number], level: float) -> tuple[float, float]:
    """Student's interval for the mean over two or more seeds."""
    mean, error = statistics.fmean(values), statistics.stdev(values) / math.sqrt(len(values))
    reach = error * _students_quantile((1 + level) / 2, len(values) - 1)
    return mean - reach, mean + reach


@cache
def _students_quantile(share: float, freedom: int) -> float:
    return float(student.ppf(share, freedom))  # slow, and the same for all scores of a study


INTERVAL_FIELDS = ("over_seeds", "bootstrap", "standard_error")
"""Of a receipt: where a number's interval stands."""


@dataclass(frozen=True)
class Cell:
    """One arm's number."""

    value: Number
    unit: str
    receipt: dict[str, Any]

    @property
    def interval(self) -> Interval | None:
        """From the receipt: over seeds, a bootstrap's, its own, or by a standard error."""
        if seeds := self.receipt.get("over_seeds"):
            return Interval(*seeds["interval"], f"{seeds.get('level', 0.9):.0%} of seeds")
        bootstrap, error = self.receipt.get("bootstrap"), self.receipt.get("standard_error")
        if isinstance(bootstrap, dict) and "interval" in bootstrap:
            low, high = bootstrap["interval"]
            return Interval(low, high, f"{bootstrap.get('level', 0.9):.0%} bootstrap interval")
        if interval := self.receipt.get("interval"):
            return Interval(*interval, "90% interval")
        if error is not None:
            reach = NORMAL_90 * error
            return Interval(self.value - reach, self.value + reach, "90% by the standard error")
        return None

    @property
    def text(self) -> str:
        """The value, with its interval if it has one."""
        interval = self.interval
        return f"{shown(self.value)} {span(interval)}" if interval else shown(self.value)


def shown(value: Number) -> str:
    """Four significant digits; whole numbers below a billion in full, extremes as powers of ten."""
    if not math.isfinite(value):
        return "not finite"
    if value == int(value) and abs(value) < 1e9:
        return f"{int(value):,}".replace("-", "−")
    if not 1e-3 <= abs(value) < 1e6:
        digits, power = f"{value:.2e}".split("e")
        text = f"{digits} × 10{raised(int(power))}"
    else:
        text = f"{value:,.{max(0, 3 - math.floor(math.log10(abs(value))))}f}"
    return text.replace("-", "−")


def raised(power: int) -> str:
    """An exponent as it is written above the line."""
    return str(power).translate(_RAISED)


def signed(value: Number) -> str:
    """As ``shown``, with a plus where the value rises."""
    return f"+{shown(value)}" if value > 0 else shown(value)


def span(interval: Interval) -> str:
    """An interval in brackets."""
    return f"[{shown(interval.low)}, {shown(interval.high)}]"


def aligned(rows: list[list[str]], left: int = 1) -> str:
    """Rows of cells as text: so many columns to the left, the others to the right."""
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    turned = [str.ljust] * left + [str.rjust] * (len(widths) - left)
    lines = (
        "  ".join(turn(cell, width) for turn, cell, width in zip(turned, row, widths, strict=True))
        for row in rows
    )
    return "\n".join(line.rstrip() for line in lines)


_RAISED = str.maketrans("-0123456789", "⁻⁰¹²³⁴⁵⁶⁷⁸⁹")
