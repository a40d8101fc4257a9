"""Two pictures of an arm's codes: where on the grid they are used, and their vectors in the plane.

Drawn from the receipts of ``code_skew`` and ``embedding_plane``, as ``lab.code_pictures`` leaves
them; records from before have neither, and then there is nothing to show.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from markupsafe import Markup
from numpy import array, average, linalg, ones

from cartok.core.levels import values_of_levels
from cartok.scaling.claim import twins_of_arms
from cartok.scaling.code_charts import Disc, Tile, discs_chart, tiles_chart
from cartok.scaling.figures import Figure, csv_of
from cartok.scaling.measures import ARMS

MOST = 6
"""Arms that are shown."""

DRAWN = {"maps": "code_skew", "dots": "embedding_plane"}
"""Fields of receipts that are drawn and not read, by their score."""

Drawn = dict[str, dict[str, Any]]
"""An arm's receipts that hold such a field, by it."""


@dataclass(frozen=True)
class CodeFigures:
    """Of each arm that has them; a regularised one behind the arm that differs in that alone."""

    maps: list[Figure]
    planes: list[Figure]
    about: str
    """Which arms and seeds are shown, where those are not all."""


@dataclass(frozen=True)
class CodeMap:
    """Where one code is used."""

    code: int
    uses: int
    bits: float
    """What it tells of its place."""
    shares: list[float]
    """Of its uses, by place in raster order; near to what they were."""

    @property
    def times(self) -> list[float]:
        """The same as multiples of what even use would be."""
        return [share * len(self.shares) for share in self.shares]

    @property
    def half(self) -> int:
        """The fewest places that hold half of its uses."""
        total, places = 0.0, 0
        for share in sorted(self.shares, reverse=True):
            if total >= sum(self.shares) / 2:
                break
            total, places = total + share, places + 1
        return places


def code_figures(study: dict[str, Any]) -> CodeFigures:
    """The pictures of a study, each of an arm's first seed; none where no run has what they take.

    Where arms have twins, the pairs come, else all arms in their order; ``MOST`` at most.
    """
    drawn, seeds = {}, {}
    for run in sorted(study["runs"], key=lambda run: run["seed"]):
        if run["arm"] not in drawn and (found := _drawn(run.get("scores", {}))):
            drawn[run["arm"]], seeds[run["arm"]] = found, run["seed"]
    pairs = [pair for pair in twins_of_arms(study) if drawn.keys() >= {*pair}]
    order = [name for pair in pairs for name in pair]
    names = list(dict.fromkeys(order or [arm["name"] for arm in study["config"]["arms"]]))
    shown = [name for name in names if name in drawn][:MOST]
    told = []
    if left := len(drawn) - len(shown):
        told.append(f"{_counted(left, 'more arm')} not shown")
    if len({run["seed"] for run in study["runs"]}) > 1:
        told.append(f"of seed {', '.join(str(s) for s in sorted({seeds[n] for n in shown}))} alone")
    twins = {arm: twin for twin, arm in pairs}
    return _figures({name: drawn[name] for name in shown}, twins, "; ".join(told))


def demo_code_figures(summary: dict[str, Any]) -> CodeFigures:
    """The pictures of a demo's two arms."""
    return _figures({arm: _drawn(summary[arm]) for arm in ARMS}, {ARMS[1]: ARMS[0]}, "")


def _drawn(scores: dict[str, Any]) -> Drawn:
    receipts = {name: scores.get(key, {}).get("receipt") or {} for name, key in DRAWN.items()}
    return {name: receipt for name, receipt in receipts.items() if name in receipt}


def _figures(drawn: dict[str, Drawn], twins: dict[str, str], about: str) -> CodeFigures:
    maps = {arm: found["maps"]["maps"] for arm, found in drawn.items() if "maps" in found}
    planes = {arm: found["dots"] for arm, found in drawn.items() if "dots" in found}
    return CodeFigures(
        [map_figure(arm, its, twins.get(arm, ""), maps) for arm, its in maps.items()],
        [plane_figure(arm, its) for arm, its in planes.items()],
        about,
    )


def map_figure(
    name: str, maps: dict[str, Any], twin: str, others: dict[str, dict[str, Any]]
) -> Figure:
    """An arm's codes over the grid, and what its twin says if it is among the ``others``."""
    rows, columns = maps["grid"]
    codes = [_map_of(line) for line in maps["shown"]]
    beside = f"; of {twin} {others[twin]['bits']:.2f}" if twin in others else ""
    note = (
        f"Bits that a code tells of its place, 0 to {math.log2(rows * columns):.3g}: "
        f"{maps['bits']:.2f} ({maps['by_chance']:.2f} if codes were dealt out by chance){beside}. "
        f"Half of all uses of the code most bound to its place, {codes[0].code}, fall on "
        f"{_counted(codes[0].half, 'place')} of {rows * columns}; of the freest shown, "
        f"{codes[-1].code}, on {codes[-1].half}."
    )
    tiles = [Tile(f"{one.code}: {one.bits:.2f}", _rows(one.times, columns)) for one in codes]
    title = f"Where codes are used: {name}"
    table = csv_of(
        ("code", "uses", "bits of its place", "row", *(f"column {at}" for at in range(columns))),
        [
            (one.code, one.uses, one.bits, row, *(f"{share:.3g}" for share in shares))
            for one in codes
            for row, shares in enumerate(_rows(one.shares, columns))
        ],
    )
    return Figure(title, note, Markup(tiles_chart(tiles, f"{title}. {note}")), csv=table)


def plane_figure(name: str, plane: dict[str, Any]) -> Figure:
    """An arm's codebook in its first two principal directions."""
    rows = [dot.split() for dot in plane["dots"].split("; ")]
    places = [(int(x) * plane["reach"] / 1000, int(y) * plane["reach"] / 1000)
              for _, x, y, _, _ in rows]  # fmt: skip
    discs = [
        Disc(f"code {code}: {int(uses):,} uses", x, y, int(uses), colour)
        for (code, _, _, uses, colour), (x, y) in zip(rows, places, strict=True)
    ]
    first, second = plane["shares"]
    note = (
        f"{len(discs)} of the {plane['codes']:,} codes in use ({plane['of']:,} in all). This plane "
        f"holds {first + second:.0%} of how codes differ, by use. Where a code lies in it tells "
        f"{_told_of_colour(discs):.0%} of how its mean colour differs from that of others."
    )
    title = f"Codes in the plane: {name}"
    table = csv_of(
        ("code", "x", "y", "uses", "mean colour"),
        [(row[0], f"{disc.x:.4g}", f"{disc.y:.4g}", disc.uses, f"#{disc.colour}")
         for row, disc in zip(rows, discs, strict=True)],
    )  # fmt: skip
    chart = discs_chart(discs, (first, second), f"{title}. {note}")
    return Figure(title, note, Markup(chart), csv=table)


def _map_of(line: str) -> CodeMap:
    code, uses, bits, peak, levels = line.split()
    return CodeMap(int(code), int(uses), float(bits), values_of_levels(levels, float(peak)))


def _rows(values: list[float], columns: int) -> list[list[float]]:
    return [values[start : start + columns] for start in range(0, len(values), columns)]


def _told_of_colour(discs: Sequence[Disc]) -> float:
    """Of the variance of mean colours, by use, what a linear function of x and y explains."""
    colours = array([list(bytes.fromhex(disc.colour)) for disc in discs], float)
    weights = array([disc.uses for disc in discs], float)
    places = array([(disc.x, disc.y) for disc in discs])
    centred = colours - average(colours, axis=0, weights=weights)
    roots = weights[:, None] ** 0.5
    known = roots * centred
    if not (known**2).sum():
        return 0.0
    asked = roots * array([*places.T, ones(len(discs))]).T
    left = known - asked @ linalg.lstsq(asked, known, rcond=None)[0]
    return float(1 - (left**2).sum() / (known**2).sum())


def _counted(number: int, what: str) -> str:
    return f"{number:,} {what}" + ("" if number == 1 else "s")
