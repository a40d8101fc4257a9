"""Charts of laws: scores over compute on logarithmic axes, in FLOPs and about the paper's unit.

That unit is 6 N pictures T / 256 by N parameters and T tokens. FLOPs that are strictly counted
leave out embeddings and add attention, so 256 of them are about one: 40 % off for the tiniest
priors with many codes.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, NullFormatter, NullLocator

from cartok.scaling.canvas import INK, PLAIN, RULE, TONES, axes_of, style_of, svg_of
from cartok.scaling.charts import Points
from cartok.scaling.numbers import Number, raised
from cartok.scaling.units import FLOPS_PER_PAPER_UNIT

MARKERS = ("o", "s", "^", "D", "v", "P", "X")
"""By tone, so that runs can be told apart without colours."""


@dataclass(frozen=True)
class LawLine:
    """One tokenizer's runs and its law; compute is in FLOPs."""

    name: str
    tone: int
    points: Points = ()
    curve: Points = ()
    """Empty where there is no law."""
    band: Sequence[tuple[Number, Number, Number]] = ()
    """Compute, low, high."""


def law_chart(lines: Sequence[LawLine], frontier: Points, score: str, label: str) -> str:
    """Runs as marks, laws as lines with their bands, and the frontier of all runs as steps."""
    figure, axes = axes_of(6.4, 4.0)
    if frontier:
        xs, ys = zip(*frontier, strict=True)
        axes.step(_paper(xs), ys, where="post", color=RULE, linewidth=3, zorder=0)
    for line in lines:
        colour = TONES[line.tone % len(TONES)]
        if line.band:
            xs, lows, highs = zip(*line.band, strict=True)
            axes.fill_between(_paper(xs), lows, highs, color=colour, alpha=0.2, linewidth=0)
        if line.curve:
            xs, ys = zip(*line.curve, strict=True)
            axes.plot(_paper(xs), ys, **style_of(line.tone))
        _marks(axes, line)
    axes.set_yscale("log")
    low, high = axes.get_ylim()
    narrow = high < 8 * low
    axes.yaxis.set_major_locator(
        MaxNLocator(6) if narrow else LogLocator(subs=(1.0, 2.0, 3.0, 5.0, 7.0))
    )
    axes.yaxis.set_minor_locator(NullLocator())
    axes.yaxis.set_major_formatter(PLAIN)
    axes.set_ylabel(score, color=INK)
    _compute_axis(axes)
    return svg_of(figure, label)


def residual_chart(lines: Sequence[LawLine], label: str) -> str:
    """How far runs lie from their laws, in per cent; ``points`` are compute and that."""
    figure, axes = axes_of(6.4, 2.2)
    axes.axhline(0.0, color=RULE, linewidth=1)
    for line in lines:
        _marks(axes, line)
    axes.yaxis.set_major_locator(MaxNLocator(5))
    axes.yaxis.set_major_formatter(PLAIN)
    axes.set_ylabel("% off the law", color=INK)
    _compute_axis(axes)
    return svg_of(figure, label)


def _marks(axes: Axes, line: LawLine) -> None:
    xs = _paper([x for x, _ in line.points])
    style: dict[str, Any] = {"color": TONES[line.tone % len(TONES)], "markersize": 4.5}
    marker = MARKERS[line.tone % len(MARKERS)]
    axes.plot(xs, [y for _, y in line.points], marker=marker, linestyle="", **style)


def _paper(flops: Sequence[Number]) -> list[float]:
    return [value / FLOPS_PER_PAPER_UNIT for value in flops]


def _compute_axis(axes: Axes) -> None:
    """About the paper's unit below, FLOPs above."""
    axes.set_xscale("log")
    above = axes.secondary_xaxis(
        "top",
        (
            lambda x: np.asarray(x) * FLOPS_PER_PAPER_UNIT,
            lambda x: np.asarray(x) / FLOPS_PER_PAPER_UNIT,
        ),
    )
    above.spines["top"].set_color(RULE)
    above.tick_params(color=RULE, labelcolor=INK, length=3)
    low, high = axes.get_xlim()
    subs = (1.0, 2.0, 5.0) if high < 300 * low else (1.0,)
    for one, name in (
        (axes, "256 FLOPs: about the paper's unit"),
        (above, "FLOPs of the training"),
    ):
        one.set_xlabel(name, color=INK)
        one.xaxis.set_major_locator(LogLocator(subs=subs, numticks=12))
        one.xaxis.set_major_formatter(FuncFormatter(lambda value, _: _power(value)))
        one.xaxis.set_minor_locator(NullLocator())
        one.xaxis.set_minor_formatter(NullFormatter())


def _power(value: float) -> str:
    if value <= 0:
        return ""
    power = math.floor(math.log10(value) + 1e-9)
    front = round(value / 10**power)
    return f"{'' if front == 1 else f'{front} × '}10{raised(power)}"
