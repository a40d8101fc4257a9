"""What the paper prints, for plots and tests: arXiv 2412.16326, NeurIPS 2025.

Compute is on the paper's axis: ``6 N images`` for pictures of 256 tokens, T / 256 of that for
others, so ``units.FLOPS_PER_PAPER_UNIT`` FLOPs a unit. Curves were not read off figures.
"""

from dataclasses import dataclass
from typing import Literal

from cartok.scaling.law import Law

COMPUTE_RANGE = (1.2e15, 2.7e18)
"""Of its runs: 52M parameters for 15,000 iterations, 775M for 2,250,000; 256 pictures each."""

ITERATIONS = (15_000, 22_500, 45_000, 90_000, 187_500, 375_000, 750_000, 1_500_000, 2_250_000)
"""Every one a run of its own, with its own schedule (appendix A.2)."""

SIZES = {
    "52M": 52.1e6,
    "80M": 80.6e6,
    "111M": 111e6,
    "211M": 212e6,
    "340M": 343e6,
    "550M": 517e6,
    "775M": 775e6,
}
"""Parameters of the priors by the names that results go by (table 2)."""


@dataclass(frozen=True)
class PrintedFit:
    """A fit printed in a figure."""

    codes: int
    tokens: int
    metric: Literal["gFID", "validation loss"]
    law: Law
    """Of the validation loss L_min is not printed: it is read from an axis."""
    least_r2: float
    source: str
    causal: bool = False


FITS = {
    "baseline": PrintedFit(16_384, 256, "gFID", Law(2.21, -0.65, 25.91), 0.98, "figure 7"),
    "causal": PrintedFit(16_384, 256, "gFID", Law(2.21, -0.73, 28.85), 0.98, "figure 7", True),
    "400 tokens": PrintedFit(
        16_384, 400, "gFID", Law(1.30, -0.54, 22.54), 0.98, "section 3.3, tokens per image"
    ),
    "576 tokens": PrintedFit(
        16_384, 576, "gFID", Law(0.99, -0.58, 24.46), 0.98, "section 3.3, tokens per image"
    ),
    "1k codes": PrintedFit(1_024, 256, "gFID", Law(2.7, -0.67, 26.88), 0.98, "figure 6"),
    "16k codes": PrintedFit(16_384, 256, "gFID", Law(2.21, -0.64, 25.60), 0.98, "figure 6"),
    "131k codes": PrintedFit(131_072, 256, "gFID", Law(1.78, -0.57, 23.20), 0.98, "figure 6"),
    "baseline, loss": PrintedFit(
        16_384, 256, "validation loss", Law(7.3, -0.255, 8.622), 0.98, "figure 7"
    ),
    "causal, loss": PrintedFit(
        16_384, 256, "validation loss", Law(7.3, -0.264, 8.704), 0.98, "figure 7", True
    ),
}
"""Printed with two digits of alpha and lambda (three for the loss). "16k codes" is the baseline
with a prior of 31M parameters besides; the causal L_min was kept at the baseline's."""


@dataclass(frozen=True)
class Scores:
    """A row of a table of samples; lower gFID is better."""

    gfid: float
    inception_score: float
    precision: float
    recall: float


BASELINE = {
    "111M": Scores(4.90, 180.65, 0.82, 0.51),
    "211M": Scores(3.32, 251.93, 0.84, 0.52),
    "340M": Scores(2.89, 253.25, 0.83, 0.54),
    "550M": Scores(2.77, 277.53, 0.83, 0.56),
    "775M": Scores(2.55, 242.23, 0.80, 0.60),
}
"""Table 1b, rFID 2.21: by prior, "at saturation"; iterations are not said."""

CAUSAL = {
    "111M": Scores(4.34, 195.33, 0.81, 0.52),
    "211M": Scores(2.94, 241.95, 0.83, 0.55),
    "340M": Scores(2.75, 265.24, 0.83, 0.54),
    "550M": Scores(2.55, 278.29, 0.80, 0.59),
    "775M": Scores(2.35, 259.12, 0.81, 0.59),
}
"""Table 1b, rFID 2.36; its 111M, 340M and 775M are in table 1a, too."""

CAUSAL_OPT = {
    "111M": Scores(4.23, 194.87, 0.84, 0.49),
    "340M": Scores(2.45, 249.08, 0.82, 0.57),
    "775M": Scores(2.18, 268.38, 0.82, 0.58),
}
"""Table 1a: 131,072 codes, a decoder twice as large, 800,000 iterations."""

LLAMAGEN_576 = {
    "111M": Scores(5.46, 193.6, 0.83, 0.45),
    "343M": Scores(3.07, 256.1, 0.83, 0.52),
    "775M": Scores(2.62, 244.1, 0.80, 0.57),
    "1.4B": Scores(2.34, 253.9, 0.80, 0.59),
    "3.1B": Scores(2.18, 263.3, 0.81, 0.58),
}
"""Table 1a, at 576 tokens. Its 111M row looks swapped with that of 256 tokens, 6.10: LlamaGen's own
page has 5.46 at 256 and 6.09 at 576."""

VALIDATION = Scores(1.78, 236.9, 0.75, 0.67)
"""Table 1a: the validation pictures themselves."""


@dataclass(frozen=True)
class LsunRow:
    """A prior's samples of one LSUN category: the paper judges by gFID on CLIP's features."""

    category: Literal["cats", "horses", "bedrooms"]
    prior: str
    baseline_clip: float
    causal_clip: float
    baseline_gfid: float
    causal_gfid: float


LSUN = (
    LsunRow("cats", "111M", 8.14, 7.22, 5.77, 5.32),
    LsunRow("cats", "340M", 7.37, 6.77, 5.21, 4.98),
    LsunRow("cats", "775M", 6.72, 6.74, 5.31, 5.32),
    LsunRow("horses", "111M", 5.56, 5.20, 3.19, 2.65),
    LsunRow("horses", "340M", 5.09, 4.63, 3.00, 2.62),
    LsunRow("horses", "775M", 4.92, 4.05, 2.56, 2.76),
    LsunRow("bedrooms", "111M", 9.81, 9.06, 2.57, 2.37),
    LsunRow("bedrooms", "340M", 9.61, 8.56, 2.51, 2.08),
    LsunRow("bedrooms", "775M", 9.50, 8.50, 2.53, 2.22),
)
"""The table of LSUN, section 5 and appendix."""

LSUN_RFID = {"cats": (1.35, 1.48), "horses": (1.65, 1.83), "bedrooms": (0.99, 1.39)}
"""Baseline and causal, the same table."""


@dataclass(frozen=True)
class FormRow:
    """A form of the regulariser's loss."""

    rfid: float
    mean_gfid: float
    """Over priors of 52M, 111M, 211M and 340M, 250,000 iterations each."""


LOSS_FORMS = {
    "l2 before quantisation": FormRow(2.36, 5.51),
    "l2 after quantisation": FormRow(2.61, 6.37),
    "cross-entropy after quantisation": FormRow(2.53, 6.10),
    "as in LARP": FormRow(2.67, 6.08),
}
"""Table 4."""

RFID = {
    "1k codes": 3.0,
    "baseline": 2.21,
    "131k codes": 1.72,
    "400 tokens": 1.30,
    "576 tokens": 0.99,
    "causal": 2.36,
    "causal, optimised": 1.26,
}
"""Of tokenizers, by the names of ``FITS`` (section 3; that of 1k codes is approximate)."""


@dataclass(frozen=True)
class ResolutionRow:
    """A tokenizer run at a larger size than it was trained at, against one trained there."""

    extrapolated_rfid: float
    extrapolated_gfid: float
    native_rfid: float
    native_gfid: float


NATIVE_RESOLUTION = {
    400: ResolutionRow(1.30, 3.76, 1.21, 3.72),
    576: ResolutionRow(0.99, 3.61, 0.93, 3.66),
}
"""Table 3, by tokens; the prior's size is not said."""
