"""gFD of a grid study by the length of the prior's training, as a table."""

from dataclasses import dataclass

from cartok.scaling.grid import GridArm
from cartok.scaling.numbers import Number, shown


@dataclass(frozen=True)
class LengthRow:
    """One tokenizer's gFD by the prior that followed it."""

    arm: str
    tone: int
    codes: int
    tokens: int
    rfd: str
    cells: list[str]


@dataclass(frozen=True)
class LengthTable:
    """Every tokenizer by every prior."""

    priors: list[str]
    """Headings: by size, then by steps."""
    rows: list[LengthRow]


def lengths_of(arms: list[GridArm], tones: dict[str, int]) -> LengthTable:
    """The table of a grid's tokenizers; ``tones`` by their names."""
    places: dict[str, tuple[int, int]] = {}
    for arm in arms:
        for point in arm.points:
            place = point.parameters, point.steps
            places[point.prior] = min(place, places.get(point.prior, place))
    priors = sorted(places, key=places.__getitem__)
    return LengthTable(priors, [_row(arm, priors, tones[arm.name]) for arm in arms])


def _row(arm: GridArm, priors: list[str], tone: int) -> LengthRow:
    found: dict[str, list[Number]] = {}
    for point in arm.points:
        if "gfd" in point.scores:
            found.setdefault(point.prior, []).append(point.scores["gfd"])
    means = {name: sum(values) / len(values) for name, values in found.items()}
    return LengthRow(
        arm.name, tone, arm.codes, arm.tokens,
        "–" if arm.rfd is None else shown(arm.rfd),
        [shown(means[name]) if name in means else "–" for name in priors],
    )  # fmt: skip
