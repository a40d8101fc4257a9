"""A study's arms as a table and on planes: what a prior can exploit against reconstruction.

Reads ``study.json`` alone. Arms that differ in nothing but the number of codes are one curve; the
question is whether the curve with the regulariser lies below the one without.
"""

import json
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import quantiles
from typing import Any

from markupsafe import Markup

from cartok.core.errors import UserError
from cartok.scaling.canvas import TONES
from cartok.scaling.charts import Dot, Series, line_chart, plane_chart
from cartok.scaling.figures import Figure, csv_of, csv_of_series
from cartok.scaling.grid import is_grid
from cartok.scaling.numbers import Cell, Number, shown

COLUMNS = {
    "rfd": "rFD",
    "psnr_db": "PSNR, dB",
    "gfd": "gFD",
    "gkd": "gKD",
    "prior_bits_per_image": "bits/image",
    "prior_nats_per_token": "nats/token",
    "redrawn_fd": "redrawn FD",
    "redrawn_psnr_db": "redrawn PSNR, dB",
    "next_latent_r2": "R² from latents",
    "probe_r2_quantised": "R² from codes",
    "next_latent_mse": "next-latent error",
    "commitment_mse": "quantisation error",
    "latent_variance": "latent variance",
    "code_dimension": "dimensions",
    "code_usage": "usage",
    "code_perplexity": "perplexity",
    "tokenizer_steps": "steps",
}
"""Scores by heading, in the order of the table."""

PLANES = {
    "gfd": ("Generation against reconstruction", "gFD", "lower left is better"),
    "prior_bits_per_image": (
        "What the prior must learn against reconstruction",
        "bits/image",
        "fewer bits at equal rFD: tokens that are easier to predict, not poorer",
    ),
}
"""What is drawn over rFD: title, axis, and the words under it."""

_MANY = 8  # arms among which one that lies far off can be told


@dataclass(frozen=True)
class ArmRow:
    """One arm of the table."""

    name: str
    tone: int
    finished: int
    note: str
    cells: list[str]
    """By ``COLUMNS``; a dash for what is missing."""


def rows_of_study(study: dict[str, Any]) -> list[ArmRow]:
    """Every arm, with its means over seeds."""
    tones = _tones(study)
    return [
        ArmRow(
            name=arm["name"],
            tone=tones[arm["name"]],
            finished=arm["finished"],
            note="; ".join(arm["failures"][:1]),
            cells=[_text(arm["scores"].get(key)) for key in COLUMNS],
        )
        for arm in study["arms"]
    ]


def unfinished(study: dict[str, Any]) -> str:
    """How many runs have finished, wait and failed, in words; empty if all have finished."""
    counts = Counter(run["status"] for run in study["runs"])
    left = [f"{counts[key]:,} {word}" for key, word in (("waiting", "wait"), ("failed", "failed"))
            if counts[key]]  # fmt: skip
    if not left:
        return ""
    told = f"{counts['finished']:,} of {len(study['runs']):,} runs have finished"
    return f"{told}; {' and '.join(left)}."


def num_seeds(study: dict[str, Any]) -> int:
    """Seeds that each arm is to have, finished or not."""
    return study["config"].get("seeds") or len({run["seed"] for run in study["runs"]})


def study_figures(study: dict[str, Any]) -> list[Figure]:
    """A plane for each of ``PLANES`` that at least one run has a point on."""
    return [figure for key in PLANES if (figure := _plane(study, key))]


def learning_figures(study: dict[str, Any]) -> list[Figure]:
    """Bits over a prior's training: each arm's mean over seeds, a figure a prior."""
    found: dict[str, dict[str, list[list[tuple[float, float]]]]] = {}
    for run in study["runs"]:
        for key, score in run.get("scores", {}).items():
            way = score.get("receipt", {}).get("over_steps")
            if key.startswith("prior_bits_per_image") and way:
                found.setdefault(key, {}).setdefault(run["arm"], []).append(way)
    tones = _tones(study)
    figures = []
    for key, arms in found.items():
        title = f"What is left to learn {key.partition('/')[2]}".strip()
        series = [
            Series(arm, [_middle(at) for at in zip(*ways, strict=False)], tones[arm])
            for arm, ways in arms.items()
        ]
        ends = tuple((one.name, one.tone, one.points[-1][1]) for one in series)
        told = ", ".join(f"{name} ends at {shown(value)}" for name, _, value in ends)
        note = "bits/image over the prior's steps; a gap that closes was faster learning"
        chart = line_chart(series, f"{title}: {told}.")
        table = csv_of_series(series, "step", "bits an image")
        figures.append(Figure(title, note, Markup(chart), ends, table))
    return figures


def families_of(study: dict[str, Any]) -> list[list[str]]:
    """Names of arms that differ in nothing but the number of codes, fewest codes first."""
    families: dict[str, list[tuple[int, str]]] = {}
    for arm in study["config"]["arms"]:
        tokenizer = json.loads(json.dumps(arm["tokenizer"])) | {"pixels": arm.get("pixels", 0)}
        codes = tokenizer["model"]["quantizer"].pop("codebook_size", 0)
        families.setdefault(json.dumps(tokenizer, sort_keys=True), []).append((codes, arm["name"]))
    return [[name for _, name in sorted(family)] for family in families.values()]


def check_study(study: Any, path: str) -> dict[str, Any]:
    """The study, if it is one as far as a page needs it.

    Raises:
        UserError: it is not.
    """
    wanted = ("name", "config", "arms", "runs", "warnings", "provenance")
    if not isinstance(study, dict) or any(key not in study for key in wanted):
        raise UserError(
            f"a study is what 'cartok study run' wrote, but {path} is none; run it again"
        )
    return study


def priors_of(study: dict[str, Any]) -> list[str]:
    """What tells a study's priors apart: depth and width."""
    shapes = [prior["transformer"] for prior in study["config"].get("priors", ())]
    return [f"{shape['depth']}x{shape['width']}" for shape in shapes]


def _toned(study: dict[str, Any]) -> list[tuple[int, list[str]]]:
    """Families with their tones: the first one's, which is the baseline's, comes once.

    Arms of a grid, whose laws are lines of their own, stand alone.
    """
    if is_grid(study):
        return [(place, [arm["name"]]) for place, arm in enumerate(study["config"]["arms"])]
    others = len(TONES) - 1
    return [
        (1 + (place - 1) % others if place else 0, family)
        for place, family in enumerate(families_of(study))
    ]


def _tones(study: dict[str, Any]) -> dict[str, int]:
    return {name: tone for tone, family in _toned(study) for name in family}


def _plane(study: dict[str, Any], key: str) -> Figure | None:
    found: dict[str, list[tuple[float, float]]] = {}
    for run in study["runs"]:
        scores = run.get("scores", {})
        values = [scores.get(name, {}).get("value") for name in ("rfd", key)]
        if None not in values:
            found.setdefault(run["arm"], []).append((values[0], values[1]))
    if not found:
        return None
    far = _far_from_all({name: _middle(points) for name, points in found.items()})
    rows = [(name, *point) for name, points in found.items() for point in points]
    found = {name: points for name, points in found.items() if name not in far}
    lines = []
    for tone, family in _toned(study):
        here = [name for name in family if name in found]
        lines.append([Dot(name, *_middle(found[name]), tone) for name in here])
    alone = [
        Dot("", x, y, tone)
        for tone, family in _toned(study)
        for name in family
        for x, y in found.get(name, ())
        if len(found[name]) > 1
    ]
    title, axis, note = PLANES[key]
    if len(priors := priors_of(study)) > 1:
        note = f"{note}; {axis} is the mean over priors {', '.join(priors)}"
    if far:
        places = (f"{name} at ({shown(x)}, {shown(y)})" for name, (x, y) in far.items())
        note = f"{note}; beyond the plane: {', '.join(places)}"
    told = ", ".join(f"{d.name} {shown(d.x)} and {shown(d.y)}" for line in lines for d in line)
    label = f"{title}: rFD and {axis} of each arm: {told}."
    chart = plane_chart([line for line in lines if line], alone, "rFD", axis, label)
    return Figure(title, note, Markup(chart), csv=csv_of(("arm", "rFD", axis), rows))


def _far_from_all(places: dict[str, tuple[float, float]]) -> dict[str, tuple[float, float]]:
    """Arms that would press the others into a corner: off their middle half by four times that."""
    if len(places) < _MANY:
        return {}
    far = {}
    for axis in (0, 1):
        low, _, high = quantiles([place[axis] for place in places.values()], n=4)
        reach = 4 * (high - low)
        for name, place in places.items():
            if not low - reach <= place[axis] <= high + reach:
                far[name] = place
    return far


def _middle(points: Sequence[Sequence[Number]]) -> tuple[float, float]:
    return sum(x for x, _ in points) / len(points), sum(y for _, y in points) / len(points)


def _text(score: dict[str, Any] | None) -> str:
    return "–" if score is None or score["value"] is None else Cell(**score).text
