"""Pictures of codes as inline SVG: maps over the token grid, and dots in the plane.

Written out by hand: of thousands of cells a plotting library makes as many paths. Colours are the
page's, as in ``canvas``.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape
from itertools import groupby

from cartok.scaling.numbers import Number

FULL = 4.0
"""Times what even use would be, from which a map's cell has its full strength."""

_STEPS = 12  # of strength; even use is a quarter of them
_WIDTH = 390.0  # of a chart, in its own units
_COLUMNS, _GAP, _CAPTION = 6, 8.0, 12.0
_HIGHEST = 230.0  # of a plane
_LARGEST = 11.0  # radius of the most used code


@dataclass(frozen=True)
class Tile:
    """A code's map: what stands under it, and how often it is used at each place, row by row."""

    name: str
    times: Sequence[Sequence[Number]]
    """As a multiple of what use at all places alike would be; 0 or more."""


@dataclass(frozen=True)
class Disc:
    """A code in the plane."""

    name: str
    x: Number
    y: Number
    uses: int
    colour: str
    """Six hexadecimal digits."""


def tiles_chart(tiles: Sequence[Tile], label: str) -> str:
    """Small maps, six a line, in one hue whose strength says how often; with its scale below."""
    rows, columns = len(tiles[0].times), len(tiles[0].times[0])
    side = (_WIDTH - (_COLUMNS - 1) * _GAP) / _COLUMNS
    height = side * rows / columns
    parts = []
    for number, tile in enumerate(tiles):
        x = number % _COLUMNS * (side + _GAP)
        y = number // _COLUMNS * (height + _CAPTION + _GAP)
        parts.append(
            f'<g transform="translate({x:.1f} {y:.1f}) scale({side / columns:.4f})">'
            f"{_cells(tile.times)}</g>"
            f'<rect x="{x:.1f}" y="{y:.1f}" width="{side:.1f}" height="{height:.1f}" fill="none" '
            'stroke="var(--rule)" stroke-width=".7"/>'
            + _text(x + side / 2, y + height + 9, tile.name)
        )
    bottom = math.ceil(len(tiles) / _COLUMNS) * (height + _CAPTION + _GAP) + 4
    return _svg(bottom + 12, "".join(parts) + _scale(bottom), label)


def discs_chart(discs: Sequence[Disc], shares: tuple[Number, Number], label: str) -> str:
    """Codes in the plane: area by uses, in their colour; the largest lie below the others.

    Axes cross at the mean of all uses; below stand the ``shares`` of the variance along each, 0
    to 1.
    """
    left, right = (end([0.0, *(disc.x for disc in discs)]) for end in (min, max))
    low, high = (end([0.0, *(disc.y for disc in discs)]) for end in (min, max))
    room = 2 * _LARGEST
    scale = min(
        (_WIDTH - room) / max(right - left, 1e-9), (_HIGHEST - room) / max(high - low, 1e-9)
    )
    start = (_WIDTH - scale * (right - left)) / 2
    height = scale * (high - low) + room
    zero_x, zero_y = start - scale * left, _LARGEST + scale * high
    parts = [
        f'<path d="M0 {zero_y:.1f}H{_WIDTH:g}M{zero_x:.1f} 0V{height:.1f}" stroke="var(--rule)" '
        'stroke-width=".7"/>',
        _text(
            0.0,
            height + 14,
            f"→ first direction, {shares[0]:.0%} of the variance; ↑ second, {shares[1]:.0%}",
            "start",
        ),
    ]
    most = max(disc.uses for disc in discs)
    for disc in sorted(discs, key=lambda disc: -disc.uses):
        radius = max(1.5, _LARGEST * math.sqrt(disc.uses / most))
        parts.append(
            f'<circle cx="{zero_x + scale * disc.x:.1f}" cy="{zero_y - scale * disc.y:.1f}" '
            f'r="{radius:.1f}" fill="#{disc.colour}" stroke="currentColor" stroke-width=".6">'
            f"<title>{escape(disc.name)}</title></circle>"
        )
    return _svg(height + 18, "".join(parts), label)


def _cells(times: Sequence[Sequence[Number]]) -> str:
    """A path for each strength, a run of equal cells of a row at a time."""
    paths: dict[int, list[str]] = {}
    for row, values in enumerate(times):
        start = 0
        for step, run in groupby(round(_STEPS * min(value / FULL, 1.0)) for value in values):
            length = len(list(run))
            if step:
                paths.setdefault(step, []).append(f"M{start} {row}h{length}v1h-{length}z")
            start += length
    return "".join(
        f'<path fill="var(--heat)" fill-opacity="{step / _STEPS:.2f}" '
        f'shape-rendering="crispEdges" d="{"".join(path)}"/>'
        for step, path in sorted(paths.items())
    )


def _scale(y: float) -> str:
    """What strengths mean."""
    parts = []
    for place, times in enumerate((0.0, 0.5, 1.0, 2.0, FULL)):
        x, words = place * 62.0, f"{times:g}×" + (" or more" if times == FULL else "")
        parts.append(
            f'<rect x="{x:g}" y="{y:.1f}" width="14" height="9" fill="var(--heat)" '
            f'fill-opacity="{times / FULL:.3f}" stroke="var(--rule)" stroke-width=".7"/>'
            + _text(x + 18, y + 8, words, "start")
        )
    return "".join(parts)


def _text(x: float, y: float, words: str, anchor: str = "middle") -> str:
    return (
        f'<text x="{x:.1f}" y="{y:.1f}" font-size="9" text-anchor="{anchor}" fill="currentColor">'
        f"{escape(words)}</text>"
    )


def _svg(height: float, body: str, label: str) -> str:
    box = f"0 0 {_WIDTH:g} {height:.1f}"
    return f'<svg role="img" aria-label="{escape(label)}" viewBox="{box}">{body}</svg>'
