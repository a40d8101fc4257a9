"""What the page of a score shows, from its ``scores.json``."""

from dataclasses import dataclass
from typing import Any

from markupsafe import Markup

from cartok.core.errors import UserError
from cartok.scaling.charts import Dot, plane_chart
from cartok.scaling.figures import Figure, csv_of
from cartok.scaling.numbers import Cell, Number, shown

SHEETS = {
    "nearest": (
        "Samples that are most like a reference picture",
        "Each sample stands before its nearest reference pictures, two samples a row; the most "
        "suspicious come first. A copy would show here.",
    ),
    "worst": (
        "Worst reconstructions",
        "Pairs of least PSNR, three a row: the reference, then what was made of it.",
    ),
}
"""Files of ``pictures``, with heading and words."""

_NETWORK = ("network", "network_sha256", "size", "precision")
"""Fields that numbers of pairs, which need no network, have otherwise."""

FRESH = 0.5
"""Of samples drawn as the reference was, at most about this share is nearer to a reference picture
than that is to any other."""


@dataclass(frozen=True)
class ScoreRow:
    """One number of the table."""

    name: str
    value: Number
    text: str
    unit: str
    own: str
    """What only its receipt says."""


def cells_of(scores: Any, path: str) -> dict[str, Cell]:
    """Checked as far as a page needs it.

    Raises:
        UserError: it is no file that ``cartok score`` wrote.
    """
    try:
        return {
            name: Cell(score["value"], score["unit"], dict(score["receipt"]))
            for name, score in scores.items()
        }
    except (AttributeError, KeyError, TypeError, ValueError):
        raise UserError(
            f"scores are numbers with receipts, but {path} holds something else; score again"
        ) from None


def shared_of(cells: dict[str, Cell]) -> dict[str, Any]:
    """What every receipt says alike, and the network of those that have one."""
    receipts = [cell.receipt for cell in cells.values()]
    first = receipts[0] if receipts else {}
    return {
        key: value
        for key, value in first.items()
        if key in _NETWORK or all(receipt.get(key, ...) == value for receipt in receipts)
    }


def rows_of_scores(cells: dict[str, Cell]) -> list[ScoreRow]:
    """Every number, with what its receipt alone says."""
    shared = shared_of(cells)
    hidden = {"interval", "standard_error", "bootstrap", "metric", *shared}
    return [
        ScoreRow(
            name, cell.value, cell.text, cell.unit,
            "; ".join(f"{key} {value}" for key, value in cell.receipt.items() if key not in hidden),
        )
        for name, cell in cells.items()
    ]  # fmt: skip


def warnings_of(cells: dict[str, Cell]) -> list[str]:
    """What a reader should know before the numbers."""
    found = []
    if any(cell.receipt.get("indicative") for cell in cells.values()):
        words = "fewer than 10,000 pictures on a side: distances are indicative, and hold the"
        found.append(f"{words} bias of their number")
    copied = cells.get("closer_than_reference")
    if copied is not None and copied.value > 1.2 * FRESH:
        found.append(
            f"{copied.value:.0%} of the samples are more like a reference picture than any other "
            f"reference picture is; of samples drawn afresh {FRESH:.0%} or fewer would be: look "
            "for copies"
        )
    return found


def manifold_figure(cells: dict[str, Cell]) -> Figure | None:
    """Precision over recall and density over coverage, where they were measured."""
    dots = []
    for tone, (y, x) in enumerate((("precision", "recall"), ("density", "coverage"))):
        for name in cells:
            if name.startswith(y) and (across := cells.get(name.replace(y, x, 1))):
                dots.append(_dot(f"{y} over {x}", across, cells[name], tone))
    if not dots:
        return None
    told = ", ".join(f"{dot.name}: {shown(dot.y)} and {shown(dot.x)}" for dot in dots)
    words = "rings: nothing, and everything; density has no upper end"
    if any(dot.x_interval or dot.y_interval for dot in dots):
        words = f"bars: 90 % intervals; {words}"
    corners = [Dot("", 0.0, 0.0, 0), Dot("", 1.0, 1.0, 0)]
    chart = plane_chart(
        [[dot] for dot in dots], corners, "recall; coverage", "precision; density", told
    )
    table = csv_of(("what", "x", "y"), [(dot.name, dot.x, dot.y) for dot in dots])
    return Figure("How true, how much", words, Markup(chart), csv=table)


def _dot(name: str, x: Cell, y: Cell, tone: int) -> Dot:
    return Dot(name, x.value, y.value, tone, _span(x), _span(y))


def _span(cell: Cell) -> tuple[Number, Number] | None:
    return (cell.interval.low, cell.interval.high) if cell.interval else None
