"""Which charts a page has: from rows and records to titled figures."""

from collections.abc import Iterable
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
from cartok.scaling.measures import Number, Row, shown, signed

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


@dataclass(frozen=True)
class Figure:
    """A chart, its title and the words under it."""

    title: str
    note: str
    svg: Markup
    ends: tuple[tuple[str, int, Number], ...] = ()
    """Last value of each line: name, tone, value."""


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


def demo_figures(rows: list[Row], records: Records) -> DemoFigures:
    """Charts of a demo: records are ``ARM/tokenizer`` and ``ARM/prior``."""
    by_arm = {"baseline": {}, "causal": {}}
    for arm, curves in by_arm.items():
        for part in ("tokenizer", "prior"):
            curves |= records.get(f"{arm}/{part}", {}).get("curves", {})
    priors = {arm: records.get(f"{arm}/prior", {}) for arm in by_arm}
    nats = {arm: prior["nats_per_position"] for arm, prior in priors.items()
            if prior.get("nats_per_position")}  # fmt: skip
    grid = next((p["grid"] for p in priors.values() if p.get("grid")), None)
    by_key = {row.key: row for row in rows}
    return DemoFigures(
        intervals=[_intervals(row) for row in rows if row.overlaps is not None],
        curves=_curves(by_arm),
        positions=[_positions(nats, grid)] if nats and grid else [],
        maps=_maps(nats, grid) if grid and _same_grid(nats, grid) else [],
        positions_text=_positions_text(nats) if grid and _same_grid(nats, grid) else "",
        pairs=[*_errors(by_key), *_shares(by_key)],
    )


def run_figures(records: Records) -> CurveFigures:
    """Curves of any runs, one line a run."""
    return _curves({name: record.get("curves", {}) for name, record in records.items()})


def _curves(by_line: dict[str, dict[str, list]]) -> CurveFigures:
    found = list(dict.fromkeys(name for curves in by_line.values() for name in curves))
    main = [name for name in CURVES if name in found]
    figures = {name: _curve(name, by_line) for name in found}
    further = [figures[name] for name in sorted(set(found) - set(main))]
    return CurveFigures(tuple(by_line), [figures[name] for name in main], further)


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
    return Figure(title, note, Markup(line_chart(series, label)), ends)


def _intervals(row: Row) -> Figure:
    marks = []
    for tone, (arm, cell) in enumerate((("baseline", row.baseline), ("causal", row.causal))):
        marks.append(Mark(arm, cell.value, cell.interval.low, cell.interval.high, tone))
    note = "the intervals overlap" if row.overlaps else "the intervals lie apart"
    label = f"{row.measure.name} with 90% intervals: " + ", ".join(
        f"{m.name} {shown(m.value)} between {shown(m.low)} and {shown(m.high)}" for m in marks
    )
    return Figure(row.measure.name, note, Markup(interval_chart(marks, f"{label}; {note}.")))


def _positions(nats: dict[str, list[Number]], grid: list[int]) -> Figure:
    tones = {"baseline": 0, "causal": 1}
    series = [Series(arm, list(enumerate(values)), tones[arm]) for arm, values in nats.items()]
    means = ", ".join(f"{arm} {shown(sum(v) / len(v))}" for arm, v in nats.items())
    label = f"Prior loss at each of {grid[0] * grid[1]} token positions; means: {means} nats."
    return Figure(
        "Prior loss at each position",
        "nats; a rule where each row of the token grid begins",
        Markup(position_chart(series, grid[1], label)),
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
    return Figure(title, note, Markup(heat_map(rows, limits, label)))


def _positions_text(nats: dict[str, list[Number]]) -> str:
    change = _change(nats)
    half = len(change) // 2
    fell = sum(value < 0 for value in change)
    first, second = _mean(change[:half] or change), _mean(change[half:])
    return (
        f"Here the causal arm is lower at {fell} of {len(change)} positions; causal minus baseline "
        f"is on average {signed(first)} nats in the first half and {signed(second)} in the second."
    )


def _errors(rows: dict[str, Row]) -> Iterable[Figure]:
    yield from _pair(
        rows, "next_latent_mse", "commitment_mse", "Next-latent and commitment error",
        "filled: next-latent error; hollow: commitment error",
    )  # fmt: skip


def _shares(rows: dict[str, Row]) -> Iterable[Figure]:
    yield from _pair(
        rows, "next_latent_r2", "probe_r2_quantised", "R² from latents and from codes",
        "filled: from latents; hollow: from codes",
    )  # fmt: skip


def _pair(rows: dict[str, Row], filled: str, hollow: str, title: str, note: str):
    a, b = rows.get(filled), rows.get(hollow)
    if a is None or b is None:
        return
    pairs = [
        Pair(arm, one.value, other.value, tone)
        for tone, (arm, one, other) in enumerate(
            (("baseline", a.baseline, b.baseline), ("causal", a.causal, b.causal))
        )
        if one and other
    ]
    told = ", ".join(f"{p.name} {shown(p.filled)} and {shown(p.hollow)}" for p in pairs)
    if pairs:
        yield Figure(title, note, Markup(pair_chart(pairs, f"{title}: {told}.")))


def _same_grid(nats: dict[str, list[Number]], grid: list[int]) -> bool:
    return len(nats) == 2 and all(len(values) == grid[0] * grid[1] for values in nats.values())


def _change(nats: dict[str, list[Number]]) -> list[Number]:
    return [b - a for a, b in zip(nats["baseline"], nats["causal"], strict=True)]


def _mean(values: list[Number]) -> float:
    return sum(values) / len(values)
