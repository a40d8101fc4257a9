"""What the numbers of a comparison mean, and how they are written.

Knows names, units and directions; not how any number was measured. A key that is not listed here
is shown under its own name.
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Literal

Number = float | int
"""JSON has one kind of number, Python two."""

Better = Literal["lower", "higher", ""]


@dataclass(frozen=True)
class Measure:
    """A number's name for people."""

    name: str
    meaning: str = ""
    better: Better = ""


GROUPS: dict[str, dict[str, Measure]] = {
    "Reconstruction: a picture into tokens and back": {
        "psnr_db": Measure(
            "PSNR", "How faithfully held-out pictures come back, pixel by pixel.", "higher"
        ),
        "rfd": Measure(
            "rFD",
            "Reconstructions against the held-out pictures themselves: a Frechet distance between "
            "the two sets, in features of a frozen network. Not FID.",
            "lower",
        ),
        "rkd": Measure(
            "rKD",
            "The same two sets by a kernel distance; has no bias in small sets, so it may fall "
            "just below 0.",
            "lower",
        ),
    },
    "Prediction: how well the prior knows the next token": {
        "prior_nats_per_token": Measure(
            "Prior loss",
            "The prior's surprise at a held-out token. Tokens that say less surprise less, so "
            "read it beside the reconstruction.",
            "lower",
        ),
        "prior_bits_per_image": Measure(
            "Prior bits", "The same surprise, over all tokens of a picture.", "lower"
        ),
    },
    "Generation: pictures that the prior draws": {
        "gfd": Measure(
            "gFD",
            "Samples against training pictures: the Frechet distance between the two sets. "
            "This is what the regulariser is for.",
            "lower",
        ),
        "gkd": Measure("gKD", "The same two sets by the kernel distance.", "lower"),
    },
    "Tokens and latents": {
        "code_usage": Measure(
            "Code usage", "Codes that occur at all in held-out pictures; 1 is all.", "higher"
        ),
        "code_perplexity": Measure(
            "Code perplexity", "How many equally frequent codes would be as diverse.", "higher"
        ),
        "next_latent_r2": Measure(
            "R² from latents",
            "How much of the next latent a fresh probe predicts from the latents before it.",
            "higher",
        ),
        "probe_r2_quantised": Measure(
            "R² from codes",
            "The same from the codes before it, which are all that the prior sees.",
            "higher",
        ),
        "next_latent_mse": Measure(
            "Next-latent error",
            "Squared error of the probe that reads latents. Falls when latents shrink, too.",
            "lower",
        ),
        "commitment_mse": Measure(
            "Commitment error",
            "Squared distance from a latent to its code: the size of the quantisation step.",
            "lower",
        ),
        "latent_variance": Measure(
            "Latent variance", "How far latents spread; shrinking latents lower it."
        ),
    },
    "Cost": {
        "tokenizer_steps": Measure(
            "Tokenizer steps",
            "Fewer with the regulariser by what it costs, so that both arms compute as much.",
        ),
        "seconds": Measure("Time", "Everything the arm took: training, samples and scores."),
    },
}
"""The known numbers, in the order they are shown; the keys are those of ``summary.json``."""

OTHERS = "Others"

FREE = frozenset({"generated", "bootstrap", "standard_error", "indicative", "cartok"})
"""Receipt fields in which two compared scores may differ; equal to ``metrics.score.FREE``, which a
test checks, since this room may not import that one."""

NORMAL_90 = 1.645
"""Standard errors to either side of a value that hold 90 % of a Gaussian."""


@dataclass(frozen=True)
class Interval:
    """Where 90 % of repeats with other pictures would fall; other seeds are not in it."""

    low: Number
    high: Number
    source: str

    def overlaps(self, other: "Interval") -> bool:
        """True if no difference can be claimed."""
        return self.low <= other.high and other.low <= self.high


@dataclass(frozen=True)
class Cell:
    """One arm's number."""

    value: Number
    unit: str
    receipt: dict[str, Any]

    @property
    def interval(self) -> Interval | None:
        """From the receipt: a bootstrap's ends, or a standard error; ``None`` if it has neither."""
        bootstrap, error = self.receipt.get("bootstrap"), self.receipt.get("standard_error")
        if isinstance(bootstrap, dict) and "interval" in bootstrap:
            low, high = bootstrap["interval"]
            return Interval(low, high, f"{bootstrap.get('level', 0.9):.0%} bootstrap interval")
        if error is not None:
            reach = NORMAL_90 * error
            return Interval(self.value - reach, self.value + reach, "90% by the standard error")
        return None

    @property
    def text(self) -> str:
        """The value, with its interval if there is one."""
        interval = self.interval
        return shown(self.value) + (f" {span(interval)}" if interval else "")


@dataclass(frozen=True)
class Row:
    """One measure in both arms, either of which may lack it."""

    key: str
    group: str
    measure: Measure
    baseline: Cell | None
    causal: Cell | None

    @property
    def unit(self) -> str:
        """The unit, from whichever arm has the number."""
        return (self.baseline or self.causal or Cell(0, "", {})).unit

    @property
    def obstacles(self) -> list[str]:
        """What forbids comparing the arms: names of receipt fields that differ, or a lack."""
        a, b = self.baseline, self.causal
        if a is None or b is None:
            return ["one arm lacks it"]
        if a.unit != b.unit:
            return ["unit"]
        if "metric" not in a.receipt and "metric" not in b.receipt:
            return []
        fields = {**a.receipt, **b.receipt}
        return [f for f in fields if f not in FREE and a.receipt.get(f) != b.receipt.get(f)]

    @property
    def difference(self) -> Number | None:
        """Causal minus baseline, where the two compare."""
        if self.baseline is None or self.causal is None or self.obstacles:
            return None
        return self.causal.value - self.baseline.value

    @property
    def overlaps(self) -> bool | None:
        """Whether the intervals do; ``None`` if the arms do not compare or lack intervals."""
        if self.baseline is None or self.causal is None or self.obstacles:
            return None
        a, b = self.baseline.interval, self.causal.interval
        return a.overlaps(b) if a and b else None

    @property
    def percent(self) -> float | None:
        """The difference in percent of the baseline, where that means something.

        It does not for shares, and not unless both numbers are above 0.
        """
        if self.difference is None or self.unit.startswith("share"):
            return None
        if self.baseline.value <= 0 or self.causal.value <= 0:
            return None
        return 100 * self.difference / self.baseline.value

    @property
    def percent_text(self) -> str:
        """``percent`` with its sign, to a tenth."""
        return "" if self.percent is None else f"{self.percent:+.1f}%".replace("-", "−")


def rows_of(summary: dict[str, Any]) -> list[Row]:
    """Every number of a summary: the known ones in their order, then the others by name."""
    arms = summary["baseline"], summary["causal"]
    rows = [
        Row(key, group, measure, *(_cell(arm, key) for arm in arms))
        for key, group, measure in _known()
    ]
    known = {row.key for row in rows}
    for key in sorted({*arms[0], *arms[1]} - known):
        rows.append(Row(key, OTHERS, Measure(key), *(_cell(arm, key) for arm in arms)))
    return [row for row in rows if row.baseline or row.causal]


def shown(value: Number) -> str:
    """Four significant digits; whole numbers below a billion in full, extremes as powers of ten."""
    if not math.isfinite(value):
        return "not finite"
    if value == int(value) and abs(value) < 1e9:
        return f"{int(value):,}".replace("-", "−")
    if not 1e-3 <= abs(value) < 1e6:
        digits, power = f"{value:.2e}".split("e")
        text = f"{digits} × 10{str(int(power)).translate(_RAISED)}"
    else:
        text = f"{value:,.{max(0, 3 - math.floor(math.log10(abs(value))))}f}"
    return text.replace("-", "−")


def signed(value: Number) -> str:
    """As ``shown``, with a plus where the value rises."""
    return f"+{shown(value)}" if value > 0 else shown(value)


def span(interval: Interval) -> str:
    """An interval in brackets."""
    return f"[{shown(interval.low)}, {shown(interval.high)}]"


_RAISED = str.maketrans("-0123456789", "⁻⁰¹²³⁴⁵⁶⁷⁸⁹")


def _known() -> Iterator[tuple[str, str, Measure]]:
    for group, measures in GROUPS.items():
        for key, measure in measures.items():
            yield key, group, measure


def _cell(arm: dict[str, Any], key: str) -> Cell | None:
    if key not in arm:
        return None
    score = arm[key]
    return Cell(score["value"], score.get("unit", ""), score.get("receipt") or {})
