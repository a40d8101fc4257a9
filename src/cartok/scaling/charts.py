"""Charts as inline SVG: lines, planes, maps, intervals. Nothing here knows what one is about."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import matplotlib
from matplotlib.axes import Axes
from matplotlib.colors import LinearSegmentedColormap, Normalize
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, MaxNLocator, NullLocator
from numpy import array

from cartok.scaling.canvas import DASHES, INK, PLAIN, RULE, TONES, axes_of, style_of, svg_of
from cartok.scaling.numbers import Number

Points = Sequence[Sequence[Number]]
"""[[x, y], ...]"""

DIVERGING = ("#0072B2", "#9CC9E3", "#EDEDED", "#F0B48A", "#D55E00")
"""Below 0, 0, above 0; Okabe and Ito's blue and vermillion."""

Box = tuple[float, float, float, float]
"""Left, low, right, high."""

_NAMES = 7
"""Points; the size of the names of dots."""

_FAR = (1.0, 2.2, 3.6)
"""How far above or below its dot a name may go, by the nearest."""

LOG_FROM = 30.0
"""The ratio of largest to smallest value from which a falling curve's axis is logarithmic."""


@dataclass(frozen=True)
class Series:
    """A line; ``tone`` picks colour and dash, the same everywhere on a page."""

    name: str
    points: Points
    tone: int


@dataclass(frozen=True)
class Mark:
    """A value with the interval around it, on a line of its own."""

    name: str
    value: Number
    low: Number
    high: Number
    tone: int


@dataclass(frozen=True)
class Pair:
    """Two values of one arm, on a line of its own: a filled mark and a hollow one."""

    name: str
    filled: Number
    hollow: Number
    tone: int


@dataclass(frozen=True)
class Dot:
    """A point of a plane; without a name it is one of several that a named one stands for."""

    name: str
    x: Number
    y: Number
    tone: int
    x_interval: tuple[Number, Number] | None = None
    y_interval: tuple[Number, Number] | None = None


def plane_chart(
    lines: Sequence[Sequence[Dot]], alone: Sequence[Dot], x: str, y: str, label: str
) -> str:
    """Named dots, joined where they belong together; small ones for what they are the means of.

    Bars span the intervals of named dots that have some.
    """
    figure, axes = axes_of(5.4, 3.4 if len(lines) < 8 else 4.6)
    for dot in alone:
        style: dict[str, Any] = {"color": TONES[dot.tone % len(TONES)], "markersize": 3}
        axes.plot([dot.x], [dot.y], marker="o", linestyle="", markerfacecolor="none", **style)
    for line in lines:
        axes.plot(
            [dot.x for dot in line], [dot.y for dot in line], marker="o", **style_of(line[0].tone)
        )
        for dot in line:
            style = {"color": TONES[dot.tone % len(TONES)], "linewidth": 0.8}
            if dot.x_interval:
                axes.plot(dot.x_interval, [dot.y, dot.y], **style)
            if dot.y_interval:
                axes.plot([dot.x, dot.x], dot.y_interval, **style)
    axes.margins(0.14)
    _name(axes, [dot for line in lines for dot in line], alone)
    for axis, name in ((axes.xaxis, x), (axes.yaxis, y)):
        axis.set_label_text(name, color=INK)
        axis.set_major_locator(MaxNLocator(6))
        axis.set_major_formatter(PLAIN)
    return svg_of(figure, label)


def _name(axes: Axes, dots: Sequence[Dot], others: Sequence[Dot]) -> None:
    """Writes each dot's name where it covers least of all dots and names, as near as can be.

    In points; a letter is taken to be as wide as most are. A name that had to go far is led to.
    """
    axes.autoscale_view()
    both = [(dot.x, dot.y) for dot in (*dots, *others)]
    places = axes.transData.transform(both) * 72 / axes.figure.dpi
    taken: list[Box] = [(x - 3, y - 3, x + 3, y + 3) for x, y in places.tolist()]
    for dot, (x, y) in zip(dots, places.tolist(), strict=False):
        width = 0.55 * _NAMES * len(dot.name)
        beside = [(side, up) for side in (5.0, -5.0 - width) for up in (4.0, -9.0)]
        above = [(-width / 2, 6.0), (-width / 2, -12.0)]
        spots = [(side, up * far) for far in _FAR for side, up in (*beside, *above)]
        boxes = [(x + a, y + b, x + a + width, y + b + _NAMES) for a, b in spots]
        covers = [sum(_overlap(box, other) for other in taken) for box in boxes]
        best = min(range(len(spots)), key=lambda place: (covers[place], place))
        led = {"arrowstyle": "-", "color": RULE, "linewidth": 0.6}
        axes.annotate(
            dot.name, (dot.x, dot.y), xytext=spots[best], textcoords="offset points",
            fontsize=_NAMES, color=INK,
            arrowprops=led if best >= len(spots) // len(_FAR) else None,
        )  # fmt: skip
        taken.append(boxes[best])


def _overlap(one: Box, other: Box) -> float:
    across = min(one[2], other[2]) - max(one[0], other[0])
    up = min(one[3], other[3]) - max(one[1], other[1])
    return max(across, 0.0) * max(up, 0.0)


def line_chart(series: Sequence[Series], label: str) -> str:
    """Lines over steps; the vertical axis is logarithmic where values above 0 fall far."""
    figure, axes = axes_of(3.6, 2.1)
    for one in series:
        axes.plot(*_columns(one.points), **style_of(one.tone))
    _scale(axes, [_columns(one.points)[1] for one in series])
    axes.set_xlabel("step")
    axes.xaxis.set_major_locator(MaxNLocator(5, integer=True))
    axes.xaxis.set_major_formatter(PLAIN)
    return svg_of(figure, label)


def position_chart(series: Sequence[Series], row_length: int, label: str) -> str:
    """Lines over token positions, with a rule where each row of the token grid begins."""
    figure, axes = axes_of(5.4, 2.2)
    last = max(len(one.points) for one in series)
    for start in range(row_length, last, row_length):
        axes.axvline(start - 0.5, color=RULE, linewidth=0.6)
    for one in series:
        axes.plot(*_columns(one.points), **style_of(one.tone))
    axes.set_xlim(-0.5, last - 0.5)
    axes.set_xlabel("position, row by row")
    axes.xaxis.set_major_locator(MaxNLocator(9, integer=True, steps=[1, 2, 4, 5, 8, 10]))
    axes.yaxis.set_major_formatter(PLAIN)
    return svg_of(figure, label)


def heat_map(values: Sequence[Sequence[Number]], limits: tuple[Number, Number], label: str) -> str:
    """A cell per place of the token grid. Limits around 0 get diverging colours."""
    figure, axes = axes_of(2.4, 2.3)
    diverging = limits[0] < 0
    colours = (
        LinearSegmentedColormap.from_list("blue to vermillion", DIVERGING)
        if diverging
        else matplotlib.colormaps["cividis"]
    )
    mesh = axes.pcolormesh(
        array(values), cmap=colours, norm=Normalize(*limits), edgecolors="face", linewidth=0.3
    )
    axes.set_aspect("equal")
    axes.invert_yaxis()
    axes.set_axis_off()
    bar = figure.colorbar(mesh, ax=axes, orientation="horizontal", pad=0.05, aspect=18)
    bar.outline.set_visible(False)
    bar.ax.patch.set_visible(False)
    assert bar.solids is not None, "a mesh has them"
    bar.solids.set_edgecolor("face")
    bar.ax.xaxis.set_major_locator(MaxNLocator(3))
    bar.ax.xaxis.set_major_formatter(PLAIN)
    bar.ax.tick_params(color=INK, labelcolor=INK, length=2)
    return svg_of(figure, label)


def interval_chart(marks: Sequence[Mark], label: str) -> str:
    """A line for each value with its interval: whether they overlap is seen at once."""
    figure, axes = _rows([mark.name for mark in marks])
    for row, mark in enumerate(marks):
        style: dict[str, Any] = {"color": TONES[mark.tone], "zorder": 3}
        axes.plot([mark.low, mark.high], [row, row], linestyle=DASHES[mark.tone], **style)
        axes.plot([mark.low, mark.high], [row, row], linestyle="", marker="|", **style)
        axes.plot([mark.value], [row], marker="o", **style)
    return svg_of(figure, label)


def pair_chart(pairs: Sequence[Pair], label: str) -> str:
    """A line for each arm with two marks, joined: which is larger, and by how much."""
    figure, axes = _rows([pair.name for pair in pairs])
    for row, pair in enumerate(pairs):
        style: dict[str, Any] = {"color": TONES[pair.tone], "markersize": 7}
        axes.plot([pair.filled, pair.hollow], [row, row], linewidth=1, color=TONES[pair.tone])
        axes.plot([pair.hollow], [row], marker="s", markerfacecolor="none", **style)
        axes.plot([pair.filled], [row], marker="o", **style)
    axes.set_xlim(left=min(0.0, axes.get_xlim()[0]))
    return svg_of(figure, label)


def _rows(names: list[str]) -> tuple[Figure, Axes]:
    figure, axes = axes_of(2.9, 0.5 + 0.28 * len(names))
    axes.set_yticks(range(len(names)), names)
    axes.set_ylim(len(names) - 0.5, -0.5)
    axes.spines["left"].set_visible(False)
    axes.tick_params(axis="y", length=0)
    axes.grid(visible=False, axis="y")
    axes.grid(axis="x", color=RULE, linewidth=0.5)
    axes.xaxis.set_major_locator(MaxNLocator(4))
    axes.xaxis.set_major_formatter(PLAIN)
    return figure, axes


def _columns(points: Points) -> tuple[list[Number], list[Number]]:
    return [x for x, _ in points], [y for _, y in points]


def _scale(axes: Axes, lines: list[list[Number]]) -> None:
    values = [value for line in lines for value in line]
    falling = all(line[0] > line[-1] for line in lines)
    if falling and min(values) > 0 and max(values) > LOG_FROM * min(values):
        axes.set_yscale("log")
        axes.yaxis.set_major_locator(LogLocator(subs=(1.0, 3.0), numticks=6))
        axes.yaxis.set_minor_locator(NullLocator())
    else:
        axes.yaxis.set_major_locator(MaxNLocator(5))
    axes.yaxis.set_major_formatter(PLAIN)
