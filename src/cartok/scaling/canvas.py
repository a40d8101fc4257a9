"""What all charts are drawn on: axes as inline SVG, small, deterministic, coloured by the page.

Colours are CSS variables of the page (``page/report.css``), so that one chart serves a light, a
dark and a printed page. Text stays text.
"""

import io
import re
from html import escape
from typing import Any

import matplotlib
from matplotlib.axes import Axes
from matplotlib.backends.backend_svg import FigureCanvasSVG
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter

INK, RULE = "#010203", "#040506"
TONES = tuple(f"#0{i}0a0b" for i in range(7))
"""Stand-ins that matplotlib accepts; ``svg_of`` replaces them by the page's variables."""

DASHES = ((0, (4, 2)), "-", (0, (1, 1.5)), (0, (6, 2, 1, 2)))
"""Series 0, the baseline, is dashed and series 1, the causal one, solid. With the seven colours, 28
lines can be told apart."""

PLAIN = FuncFormatter(lambda value, _: f"{value:g}".replace("-", "−"))
"""Ticks as short as can be."""


def axes_of(width: float, height: float) -> tuple[Figure, Axes]:
    """A figure of so many inches with one pair of axes."""
    figure = Figure(figsize=(width, height), layout="constrained")
    axes = figure.add_subplot()
    axes.patch.set_visible(False)
    figure.patch.set_visible(False)
    axes.spines[["top", "right"]].set_visible(False)
    axes.spines[["left", "bottom"]].set_color(RULE)
    axes.tick_params(color=RULE, labelcolor=INK, length=3)
    axes.xaxis.label.set_color(INK)
    axes.grid(axis="y", color=RULE, linewidth=0.5)
    axes.set_axisbelow(True)
    return figure, axes


def style_of(tone: int) -> dict[str, Any]:
    """Colour and dash of a line."""
    return {
        "color": TONES[tone % len(TONES)],
        "linestyle": DASHES[tone % len(DASHES)],
        "linewidth": 1.6,
        "clip_on": False,
    }


def svg_of(figure: Figure, label: str) -> str:
    """The figure as one ``<svg>`` element with ``label`` read aloud in its place."""
    buffer = io.StringIO()
    with matplotlib.rc_context({"svg.fonttype": "none", "svg.hashsalt": label}):
        FigureCanvasSVG(figure).print_svg(
            buffer, metadata=dict.fromkeys(("Date", "Creator", "Format", "Type"))
        )
    text = buffer.getvalue()
    body = text[text.index(">", text.index("<svg")) + 1 :]
    for pattern in (r"<metadata>.*?</metadata>", r"<style.*?</style>", r"(?<=<g) id=\"[^\"]*\""):
        body = re.sub(pattern, "", body, flags=re.DOTALL)
    width, height = 72 * figure.get_size_inches()  # in points
    box = f"0 0 {width:g} {height:g}"
    return f'<svg role="img" aria-label="{escape(label)}" viewBox="{box}">{_coloured(body)}'


def _coloured(body: str) -> str:
    for tone, stand_in in enumerate(TONES):
        body = body.replace(stand_in, f"var(--tone-{tone})")
    return body.replace(INK, "currentColor").replace(RULE, "var(--rule)")
