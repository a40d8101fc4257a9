"""Why a prior finds some tokens easier: how codes depend on place and neighbours, by tokenizer.

Reads a study whose arms are each followed by one prior; see ``grid.at_longest``.
"""

from dataclasses import dataclass
from typing import Any

from markupsafe import Markup

from cartok.scaling.charts import Series, position_chart
from cartok.scaling.claim import twins_of_arms
from cartok.scaling.code_figures import CodeFigures, code_figures
from cartok.scaling.figures import Figure, csv_of_series
from cartok.scaling.numbers import Number, shown, signed
from cartok.scaling.study import rows_of_study

STATISTICS = {
    "unigram_bits": "bits of a code",
    "position_bits": "at its position",
    "bits_given_left": "given the left code",
    "bits_given_above": "given the upper code",
    "code_skew": "skew",
    "skew_by_chance": "by chance",
    "prior_nats_per_token": "prior, nats/token",
}
"""Columns of the table, by score; ``skew_by_chance`` stands in the receipt of ``code_skew``."""


@dataclass(frozen=True)
class Why:
    """What is shown."""

    columns: list[str]
    rows: list[tuple[str, int, list[str]]]
    """Name, tone and cells of every arm."""
    is_corrected: bool
    """True if bits at a position are corrected for the pictures that were not seen: all of them, or
    none, since plain ones are low."""
    figures: list[Figure]
    """Loss by position, of each regularised arm and the one that differs in that alone."""
    codes: CodeFigures
    """Where codes are used, and their vectors in the plane."""


def why_of(study: dict[str, Any]) -> Why | None:
    """None if no arm has these numbers."""
    arms = [arm for arm in study["arms"] if "unigram_bits" in arm["scores"]]
    tones = {row.name: row.tone for row in rows_of_study(study)}
    chance = _from_receipts(study, "code_skew", "by_chance")
    corrected = _from_receipts(study, "position_bits", "corrected")
    is_corrected = all(arm["name"] in corrected for arm in arms)
    rows = []
    for arm in arms:
        name, known = arm["name"], {key: each["value"] for key, each in arm["scores"].items()}
        known["skew_by_chance"] = chance.get(name)
        if is_corrected:
            known["position_bits"] = corrected[name]
        rows.append((name, tones[name], [_cell(known.get(key)) for key in STATISTICS]))
    nats = _nats_by_arm(study)
    figures = [
        _positions(pair, nats, tones)
        for pair in twins_of_arms(study)
        if all(name in nats for name in pair)
    ]
    codes = code_figures(study)
    if not (rows or figures or codes.maps or codes.planes):
        return None
    return Why(list(STATISTICS.values()), rows, is_corrected, figures, codes)


def _nats_by_arm(study: dict[str, Any]) -> dict[str, tuple[list[float], int]]:
    """Loss at every position as the mean over seeds, and tokens of a row, by arm."""
    found: dict[str, list[dict[str, Any]]] = {}
    for run in study["runs"]:
        receipt = run.get("scores", {}).get("prior_bits_per_image", {}).get("receipt", {})
        if "per_position" in receipt:
            found.setdefault(run["arm"], []).append(receipt)
    return {
        name: (
            [sum(some) / len(some) for some in zip(*(r["per_position"] for r in receipts),
                                                   strict=True)],
            receipts[0]["grid"][1],
        )
        for name, receipts in found.items()
    }  # fmt: skip


def _positions(
    pair: tuple[str, str], nats: dict[str, tuple[list[float], int]], tones: dict[str, int]
) -> Figure:
    twin, arm = pair
    series = [Series(name, list(enumerate(nats[name][0])), tones[name]) for name in pair]
    change = [b - a for a, b in zip(nats[twin][0], nats[arm][0], strict=True)]
    half = len(change) // 2
    lower = sum(value < 0 for value in change)
    first, second = (sum(part) / len(part) for part in (change[:half], change[half:]))
    note = (
        f"nats, means over seeds; {arm} is lower at {lower} of {len(change)} positions; its mean "
        f"differs by {signed(first)} in the first half and {signed(second)} in the second"
    )
    label = f"Prior loss at each position of {twin} and {arm}; {note}."
    ends: tuple[tuple[str, int, Number], ...] = tuple(
        (one.name, one.tone, one.points[-1][1]) for one in series
    )
    return Figure(
        f"Prior loss at each position: {arm} beside {twin}",
        note,
        Markup(position_chart(series, nats[arm][1], label)),
        ends,
        csv_of_series(series, "position", "nats"),
    )


def _from_receipts(study: dict[str, Any], key: str, field: str) -> dict[str, float]:
    """Of arms in whose runs every receipt of a score has the field, its mean over them."""
    found: dict[str, list[float | None]] = {}
    for run in study["runs"]:
        if key in run.get("scores", {}):
            found.setdefault(run["arm"], []).append(run["scores"][key]["receipt"].get(field))
    return {
        name: sum(known) / len(known)
        for name, values in found.items()
        if len(known := [value for value in values if value is not None]) == len(values)
    }


def _cell(value: Number | None) -> str:
    return "–" if value is None else shown(value)
