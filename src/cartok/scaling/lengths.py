"""gFD of a grid study by the length of the prior's training, as a table."""

from collections.abc import Collection
from dataclasses import dataclass

from cartok.scaling.grid import GridArm
from cartok.scaling.numbers import Number, shown

_MARK = "*"
_RFD = "rFD"


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
    """Every tokenizer by every prior: means over seeds, marked where some are missing."""

    priors: list[str]
    """Headings: by size, then by steps."""
    rows: list[LengthRow]
    seeds: int
    trainings: str
    """How many have finished for each tokenizer, over all its seeds: as many, or fewest to most."""
    fewer: str
    """What the mark means; empty if there is none."""


def lengths_of(arms: list[GridArm], tones: dict[str, int], seeds: int) -> LengthTable:
    """The table of a grid's tokenizers, each to have so many seeds; ``tones`` by their names."""
    places: dict[str, tuple[int, int]] = {}
    for arm in arms:
        for point in arm.points:
            place = point.parameters, point.steps
            places[point.prior] = min(place, places.get(point.prior, place))
    priors = sorted(places, key=places.__getitem__)
    scores = [_over_seeds(arm) for arm in arms]
    fewer = {len(values) for some in scores for values in some.values() if len(values) < seeds}
    rows = []
    for arm, some in zip(arms, scores, strict=True):
        rfd, *cells = (_cell(some.get(name, []), seeds) for name in (_RFD, *priors))
        rows.append(LengthRow(arm.name, tones[arm.name], arm.codes, arm.tokens, rfd, cells))
    return LengthTable(
        priors,
        rows,
        seeds,
        trainings=_few_to_many([len(arm.points) for arm in arms]),
        fewer=f"{_MARK} of {_few_to_many(fewer)} of {seeds} seeds" if fewer else "",
    )


def _over_seeds(arm: GridArm) -> dict[str, list[Number]]:
    """Its rFD, and gFD by prior: one for each seed that has finished with it."""
    by_seed = {p.seed: p.scores["rfd"] for p in arm.points if "rfd" in p.scores}
    found = {_RFD: list(by_seed.values())} if by_seed else {}
    for point in arm.points:
        if "gfd" in point.scores:
            found.setdefault(point.prior, []).append(point.scores["gfd"])
    return found


def _cell(values: list[Number], seeds: int) -> str:
    if not values:
        return "–"
    return shown(sum(values) / len(values)) + (f" {_MARK}" if len(values) < seeds else "")


def _few_to_many(counts: Collection[int]) -> str:
    few, many = min(counts), max(counts)
    return f"{few}" if few == many else f"{few} to {many}"
