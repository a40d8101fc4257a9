"""Which charts a page has: from rows and records to titled figures."""

import base64
import csv
import io
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from markupsafe import Markup

from cartok.scaling.charts import (
    Mark,
    Pair,
    Series,
    heat_map,
    interval_chart,
    line_chart,
    pair_chart,
    position_chart,
)
from cartok.scaling.measures import ARMS, Row, Rows
from cartok.scaling.numbers import Number, shown, signed

Records = dict[str, dict[str, Any]]
"""Records by the path of their run."""

CURVES = {
    "codec/pixel_l2": ("Pixel error", "squared, pictures in [−1, 1]"),
    "codec/perceptual": ("Perceptual error", "in features of a frozen network"),
    "codec/commitment": ("Commitment error", "latents to their codes, squared"),
    "codec/causal": ("Causal loss", "the regulariser's; the baseline only watches it"),
    "codec/next_latent_mse": ("Next-latent error", "squared"),
    "codec/next_latent_r2": ("R² of the next latent", "the training predictor's"),
    "codec/latent_variance": ("Latent variance", "a fall is shrinkage"),
    "codec/batch_usage": ("Codes used in a batch", "share"),
    "next_token/cross_entropy": ("Prior: training loss", "nats a token, with dropout"),
    "validation/nats_per_token": ("Prior: validation loss", "nats a token"),
}
"""The curves shown first, in this order: title and what is plotted."""

PAIRS = {
    ("next_latent_mse", "commitment_mse"): (
        "Next-latent and commitment error",
        "filled: next-latent error; hollow: commitment error",
    ),
    ("next_latent_r2", "probe_r2_quantised"): (
        "R² from latents and from codes",
        "filled: from latents; hollow: from codes",
    ),
}
"""Two numbers of one arm that are read together: title and what the marks are."""


@dataclass(frozen=True)
class Figure:
    """A chart, its title and the words under it."""

    title: str
    note: str
    svg: Markup
    ends: tuple[tuple[str, int, Number], ...] = ()
    """Last value of each line: name, tone, value."""
    csv: str = ""
    """What is drawn, as a table."""

    @property
    def data(self) -> str:
        """The table as an address that a page can hold."""
        return "data:text/csv;base64," + base64.b64encode(self.csv.encode()).decode()


def csv_of(headings: Sequence[str], rows: Iterable[Sequence[Any]]) -> str:
    """A table as comma-separated text."""
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerows([headings, *rows] if headings else rows)
    return text.getvalue()


def csv_of_series(series: Sequence[Series], x: str, y: str) -> str:
    """A row for each point of some lines."""
    return csv_of(("line", x, y), [(one.name, *point) for one in series for point in one.points])


@dataclass(frozen=True)
class CurveFigures:
    """A page's curves: those everybody looks at, and the rest."""

    names: tuple[str, ...]
    main: list[Figure]
    further: list[Figure]


@dataclass(frozen=True)
class DemoFigures:
    """The charts of a comparison; whatever the records lack is missing here."""

    intervals: list[Figure]
    curves: CurveFigures
    positions: list[Figure]
    maps: list[Figure]
    positions_text: str
    pairs: list[Figure]


def demo_figures(rows: Rows, records: Records) -> DemoFigures:
    """Charts of a demo: records are ``ARM/tokenizer`` and ``ARM/prior``."""
    priors = {arm: records.get(f"{arm}/prior", {}) for arm in ARMS}
    curves = {
        arm: records.get(f"{arm}/tokenizer", {}).get("curves", {}) | prior.get("curves", {})
        for arm, prior in priors.items()
    }
    nats = {arm: prior.get("nats_per_position", []) for arm, prior in priors.items()}
    grid = priors["causal"].get("grid", [0, 0])
    fits = all(len(values) == grid[0] * grid[1] > 0 for values in nats.values())
    judged = [row for row in rows.values() if row.measure.better]
    return DemoFigures(
        intervals=[_intervals(row) for row in judged if row.overlaps is not None],
        curves=_curves(curves),
        positions=[_positions(nats, grid)] if fits else [],
        maps=_maps(nats, grid) if fits else [],
        positions_text=_positions_text(nats) if fits else "",
        pairs=[_pair(rows, *keys) for keys in PAIRS if _in_both_arms(rows, *keys)],
    )


def run_figures(records: Records) -> CurveFigures:
    """Curves of any runs, one line a run."""
    return _curves({name: record.get("curves", {}) for name, record in records.items()})


def _curves(by_line: dict[str, dict[str, list]]) -> CurveFigures:
    found = {name for curves in by_line.values() for name in curves}
    main = [_curve(name, by_line) for name in CURVES if name in found]
    further = [_curve(name, by_line) for name in sorted(found - CURVES.keys())]
    return CurveFigures(tuple(by_line), main, further)


def _curve(name: str, by_line: dict[str, dict[str, list]]) -> Figure:
    title, note = CURVES.get(name, (name, ""))
    series = [
        Series(line, curves[name], tone)
        for tone, (line, curves) in enumerate(by_line.items())
        if curves.get(name)
    ]
    ends = tuple((one.name, one.tone, one.points[-1][1]) for one in series)
    told = ", ".join(f"{line} ends at {shown(value)}" for line, _, value in ends)
    label = f"{title} over training steps ({name}): {told}."
    return Figure(
        title, note, Markup(line_chart(series, label)), ends, csv_of_series(series, "step", name)
    )


def _intervals(row: Row) -> Figure:
    marks = [
        Mark(arm, cell.value, interval.low, interval.high, tone)
        for tone, (arm, cell) in enumerate(row.cells.items())
        if (interval := cell.interval)
    ]
    note = "the intervals overlap" if row.overlaps else "the intervals lie apart"
    label = f"{row.measure.name} with 90% intervals: " + ", ".join(
        f"{m.name} {shown(m.value)} between {shown(m.low)} and {shown(m.high)}" for m in marks
    )
    table = csv_of(
        ("arm", "value", "low", "high"), [(m.name, m.value, m.low, m.high) for m in marks]
    )
    chart = interval_chart(marks, f"{label}; {note}.")
    return Figure(row.measure.name, note, Markup(chart), csv=table)


def _positions(nats: dict[str, list[Number]], grid: list[int]) -> Figure:
    series = [
        Series(arm, list(enumerate(values)), tone)
        for tone, (arm, values) in enumerate(nats.items())
    ]
    means = ", ".join(f"{arm} {shown(_mean(values))}" for arm, values in nats.items())
    label = f"Prior loss at each of {grid[0] * grid[1]} token positions; means: {means} nats."
    return Figure(
        "Prior loss at each position",
        "nats; a rule where each row of the token grid begins",
        Markup(position_chart(series, grid[1], label)),
        csv=csv_of_series(series, "position", "nats"),
    )


def _maps(nats: dict[str, list[Number]], grid: list[int]) -> list[Figure]:
    everything = [value for values in nats.values() for value in values]
    limits = (min(everything), max(everything))
    change = _change(nats)
    reach = max(max(map(abs, change)), 1e-9)
    figures = [
        _map(arm, "nats", values, grid, limits if limits[0] < limits[1] else (0.0, limits[1]))
        for arm, values in nats.items()
    ]
    note = "nats; blue: causal is easier to predict"
    return [*figures, _map("causal − baseline", note, change, grid, (-reach, reach))]


def _map(
    title: str, note: str, values: list[Number], grid: list[int], limits: tuple[Number, Number]
) -> Figure:
    rows = [values[start : start + grid[1]] for start in range(0, len(values), grid[1])]
    label = (
        f"Prior loss on the token grid, {title}: {shown(min(values))} to {shown(max(values))}; "
        f"first row on average {shown(_mean(rows[0]))}, last row {shown(_mean(rows[-1]))} nats."
    )
    table = csv_of((), rows)
    return Figure(title, note, Markup(heat_map(rows, limits, label)), csv=table)


def _positions_text(nats: dict[str, list[Number]]) -> str:
    change = _change(nats)
    half = len(change) // 2
    fell = sum(value < 0 for value in change)
    first, second = _mean(change[:half] or change), _mean(change[half:])
    return (
        f"Here the causal arm is lower at {fell} of {len(change)} positions; causal minus baseline "
        f"is on average {signed(first)} nats in the first half and {signed(second)} in the second."
    )


def _in_both_arms(rows: Rows, *keys: str) -> bool:
    return all(key in rows and len(rows[key].cells) == len(ARMS) for key in keys)


def _pair(rows: Rows, filled: str, hollow: str) -> Figure:
    title, note = PAIRS[filled, hollow]
    pairs = [
        Pair(arm, rows[filled].cells[arm].value, rows[hollow].cells[arm].value, tone)
        for tone, arm in enumerate(ARMS)
    ]
    told = ", ".join(f"{p.name} {shown(p.filled)} and {shown(p.hollow)}" for p in pairs)
    table = csv_of(("arm", filled, hollow), [(p.name, p.filled, p.hollow) for p in pairs])
    return Figure(title, note, Markup(pair_chart(pairs, f"{title}: {told}.")), csv=table)


def _change(nats: dict[str, list[Number]]) -> list[Number]:
    return [b - a for a, b in zip(nats["baseline"], nats["causal"], strict=True)]


def _mean(values: list[Number]) -> float:
    return sum(values) / len(values)
