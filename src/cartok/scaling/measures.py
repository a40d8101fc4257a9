"""What the numbers of a comparison mean.

Knows names, units and directions; not how any number was measured. A key that is not listed here
is shown under its own name.
"""

from dataclasses import dataclass
from typing import Any, Literal

from cartok.scaling.numbers import Cell, Number

Better = Literal["lower", "higher", ""]
"""The side on which an arm is better; none where an arm is not judged by the number."""

ARMS = ("baseline", "causal")
"""An arm's place here is its tone in every chart."""


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
        "floor": Measure(
            "gFD floor",
            "The same distance between validation and training photographs; no sampler can be "
            "expected to go below it.",
        ),
        "gkd": Measure("gKD", "The same two sets by the kernel distance.", "lower"),
        "floor_kd": Measure(
            "gKD floor", "The kernel distance between the same two sets of photographs."
        ),
        "redrawn_fd": Measure(
            "Redrawn FD",
            "Held-out tokens against the same with every code drawn again, given the true ones "
            "before it: what the prior's doubts cost in pictures, before errors build up.",
            "lower",
        ),
        "redrawn_kd": Measure("Redrawn KD", "The same two sets by the kernel distance.", "lower"),
        "redrawn_psnr_db": Measure(
            "Redrawn PSNR", "The same pictures, pair by pair: codes near in pixels cost less."
        ),
        "redrawn_kept": Measure("Redrawn as they were", "The share of codes that the draw kept."),
    },
    "Tokens and latents": {
        "code_usage": Measure(
            "Code usage", "Codes that occur at all in held-out pictures; 1 is all.", "higher"
        ),
        "code_perplexity": Measure(
            "Code perplexity", "How many equally frequent codes would be as diverse.", "higher"
        ),
        "unigram_bits": Measure(
            "Entropy of codes", "Of a token whose position and neighbours are unknown."
        ),
        "position_bits": Measure(
            "Entropy at a position", "The mean over positions; low where pictures are few."
        ),
        "code_skew": Measure(
            "Skew", "How far codes specialise by position; 0 where all are used alike everywhere."
        ),
        "bits_given_left": Measure(
            "Bits given the left code", "Of a token when its left neighbour is known.", "lower"
        ),
        "bits_given_above": Measure(
            "Bits given the upper code", "Of a token when the one above is known.", "lower"
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
        "code_dimension": Measure(
            "Dimensions of codes",
            "Directions that codes spread over alike: the participation ratio of their covariance.",
        ),
        "embedding_plane": Measure(
            "Variance in a plane",
            "Of codes as they are used, in the two directions in which they vary most.",
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

FREE = frozenset({"generated", "bootstrap", "standard_error", "interval", "spread", "indicative",
                  "converted", "skipped", "cartok"})  # fmt: skip
"""Receipt fields in which two compared scores may differ; equal to ``metrics.score.FREE``, which a
test checks, since this room may not import that one."""


@dataclass(frozen=True)
class Row:
    """One measure in both arms."""

    key: str
    group: str
    measure: Measure
    cells: dict[str, Cell]
    """By arm, in the order of ``ARMS``; one of them may be missing."""

    @property
    def unit(self) -> str:
        """The unit, from whichever arm has the number."""
        return next(cell.unit for cell in self.cells.values())

    def text(self, arm: str) -> str:
        """An arm's value with its interval; empty if it has none."""
        cell = self.cells.get(arm)
        return "" if cell is None else cell.text

    @property
    def obstacles(self) -> list[str]:
        """What forbids comparing the arms: names of receipt fields that differ, or a lack."""
        if len(self.cells) < len(ARMS):
            return ["one arm lacks it"]
        a, b = self.cells.values()
        if a.unit != b.unit:
            return ["unit"]
        if "metric" not in a.receipt and "metric" not in b.receipt:
            return []
        fields = {**a.receipt, **b.receipt}
        return [f for f in fields if f not in FREE and a.receipt.get(f) != b.receipt.get(f)]

    @property
    def total(self) -> Number | None:
        """Causal plus baseline, where the two compare."""
        return None if self.obstacles else sum(cell.value for cell in self.cells.values())

    @property
    def difference(self) -> Number | None:
        """Causal minus baseline, where the two compare."""
        if self.obstacles:
            return None
        baseline, causal = self.cells.values()
        return causal.value - baseline.value

    @property
    def side(self) -> Literal["lower", "higher"]:
        """Where the causal arm's number lies, seen from the baseline's."""
        baseline, causal = self.cells.values()
        return "lower" if causal.value < baseline.value else "higher"

    @property
    def overlaps(self) -> bool | None:
        """Whether the intervals do; ``None`` if the arms do not compare or lack intervals."""
        if self.obstacles:
            return None
        a, b = (cell.interval for cell in self.cells.values())
        return a.overlaps(b) if a and b else None

    @property
    def percent(self) -> float | None:
        """The difference in percent of the baseline, where that means something.

        It does not for shares, and not unless both numbers are above 0.
        """
        if self.difference is None or self.unit.startswith("share"):
            return None
        if min(cell.value for cell in self.cells.values()) <= 0:
            return None
        return 100 * self.difference / self.cells["baseline"].value

    @property
    def percent_text(self) -> str:
        """``percent`` with its sign, to a tenth."""
        return "" if self.percent is None else f"{self.percent:+.1f}%".replace("-", "−")


Rows = dict[str, Row]
"""By key."""


def rows_of(summary: dict[str, Any]) -> Rows:
    """Every number of a summary: the known ones in their order, then the others by name."""
    known = {key for measures in GROUPS.values() for key in measures}
    others = sorted({*summary["baseline"], *summary["causal"]} - known)
    rows = [
        Row(key, group, measure, _cells(summary, key))
        for group, measures in (GROUPS | {OTHERS: {key: Measure(key) for key in others}}).items()
        for key, measure in measures.items()
    ]
    return {row.key: row for row in rows if row.cells}


def _cells(summary: dict[str, Any], key: str) -> dict[str, Cell]:
    return {
        arm: Cell(score["value"], score.get("unit", ""), score.get("receipt") or {})
        for arm in ARMS
        if (score := summary[arm].get(key))
    }
