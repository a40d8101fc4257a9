"""Two sets of pictures under a preset to all its numbers, each with its receipt.

Names are those that others publish (FID, KID, precision) only on Inception's published weights;
other networks mark theirs.
"""

from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from cartok import __version__
from cartok.core.config import digest_of
from cartok.core.errors import UserError
from cartok.data.crops import WORDS
from cartok.metrics.features import ROUNDING
from cartok.metrics.gaussian import Gaussian
from cartok.metrics.numbers import METRICS, Metric, Number
from cartok.metrics.presets import Preset
from cartok.metrics.score import EVALUATOR, Score
from cartok.metrics.sides import Extractor, Side

FIRM_FROM = 10_000
"""Pictures on each side below which every score is marked as indicative."""


@dataclass(frozen=True)
class Sides:
    """What is scored under a preset, and how."""

    generated: Side
    reference: Side
    preset: Preset
    extractor: Extractor
    seed: int = 0
    paired: bool = False
    indicative: bool = False
    """The projected form in place of what few pictures do not allow."""


def score_sides(sides: Sides, pairs: Sequence[Number] = ()) -> tuple[dict[str, Score], list[str]]:
    """All numbers of a preset by name, and lines that a person should read beside them.

    ``pairs`` are numbers of pairs in order, which get their receipts here. What the reference does
    not allow, since it is statistics alone, is left out, and said.

    Raises:
        UserError: there are too few pictures, or a preset wants statistics that are not there.
    """
    preset = sides.preset
    refuse_reference(
        preset, sides.reference.stored, bool(sides.reference.rows), indicative=sides.indicative
    )
    scores: dict[str, Score] = {}
    notes: list[str] = []
    for name in _names(preset, sides.indicative):
        metric = METRICS[name]
        if metric.against == "pictures" and not sides.reference.rows:
            notes.append(f"{name} is left out: the reference is statistics without pictures")
            continue
        numbers = _measured(metric, sides)
        scores |= scores_of(numbers, _naming(sides), receipt_of(metric, sides))
        notes += [n.note.format(_named(n.name, _naming(sides))) for n in numbers if n.note]
    unread = {"network": "none", "network_sha256": "", "size": 0, "precision": "float64"}
    for number in pairs:
        receipt = receipt_of(METRICS["kd"], sides) | unread | number.own
        scores[number.name] = Score(number.value, number.unit, {"metric": number.name} | receipt)
    return scores, [*notes, *_few(sides)]


def refuse_reference(
    preset: Preset, stored: Collection[str], has_pictures: bool, indicative: bool = False
) -> None:
    """Refuses a reference of which a preset cannot be made, before pictures are looked at.

    ``stored`` are the kinds of features that it has statistics of.

    Raises:
        UserError: a preset wants statistics that are not there, or pictures where there are none.
    """
    if preset.statistics == "computed":
        if not has_pictures:
            raise UserError(
                f"{preset.name} compares with the reference's pictures, but it is statistics "
                "alone; name pictures, or take a preset of stored statistics"
            )
        return
    if not stored:
        raise UserError(
            f"{preset.name} takes mu and sigma from the reference's npz, but it has none; "
            "give the published npz, or the preset own-data"
        )
    for metric in (METRICS[name] for name in _names(preset, indicative)):
        if metric.against == "statistics" and metric.reads not in stored:
            raise UserError(
                f"{preset.name} takes statistics of {metric.reads} features from the reference's "
                "npz, but it has none of them; give the published npz"
            )


def refuse_few(preset: Preset, fewest: int, indicative: bool = False) -> None:
    """Refuses fewer pictures on a side than a preset can be measured with, before any is read.

    Raises:
        UserError: says how many it takes, and what else there is.
    """
    names = _names(preset, indicative)
    least = max(METRICS[name].least for name in names)
    if fewest >= least:
        return
    else_ = max(METRICS[name].least for name in preset.indicative_metrics)
    remedy = "make more"
    if not indicative and fewest >= else_:
        remedy += ", or give --indicative, which measures less"
    raise UserError(
        f"{preset.name}{' with --indicative' if indicative else ''} needs {least} pictures or more "
        f"on each side, but one has {fewest}; {remedy}"
    )


def _names(preset: Preset, indicative: bool) -> tuple[str, ...]:
    return preset.indicative_metrics if indicative else preset.metrics


def _measured(metric: Metric, sides: Sides) -> list[Number]:
    device, reads = sides.extractor.device, metric.reads
    ours = sides.generated.rows[reads].to(device)
    theirs = ours
    if metric.against != "nothing":
        theirs = _reference_of(metric, sides, device)
    fewest = min(len(ours), theirs.count if isinstance(theirs, Gaussian) else len(theirs))
    if metric.needs_more_than_features and fewest <= ours.shape[1]:
        raise UserError(
            f"a Frechet distance of {ours.shape[1]} features needs more than {ours.shape[1]} "
            f"pictures on each side, but one has {fewest}; make more, or give --indicative, which "
            "projects the features and bears another name"
        )
    return metric.measure(ours, theirs, sides.preset, sides.seed)


def _reference_of(metric: Metric, sides: Sides, device: torch.device) -> Tensor | Gaussian:
    if metric.against == "pictures" or sides.preset.statistics == "computed":
        return sides.reference.rows[metric.reads].to(device)
    stored = sides.reference.stored[metric.reads]
    return Gaussian(stored.mean.to(device), stored.cov.to(device), stored.count)


def receipt_of(metric: Metric, sides: Sides) -> dict[str, Any]:
    """What the numbers of one metric share."""
    preset, ours, theirs = sides.preset, sides.generated, sides.reference
    stored = preset.statistics == "stored" and metric.against == "statistics"
    reference = theirs.stored_hash if stored else theirs.hash
    count = "as stored" if stored else theirs.count
    crops = [WORDS[crop] for crop in (preset.generated_crop, preset.reference_crop)]
    return {
        "preset": preset.name,
        "protocol": digest_of(preset),
        "what": "rfd" if sides.paired else "gfd",
        "reference": "none" if metric.against == "nothing" else reference,
        "reference_count": 0 if metric.against == "nothing" else count,
        "generated": ours.hash,
        "generated_count": ours.count,
        "picture_size": list(ours.picture_size),
        "crop": crops[0] if crops[0] == crops[1] else f"{crops[0]}; reference: {crops[1]}",
        "resize": preset.resize,
        "rounding": ROUNDING,
        "seed": sides.seed,
        "size": sides.extractor.size,
        "precision": sides.extractor.precision,
        "network": sides.extractor.name,
        "network_sha256": sides.extractor.sha256,
        "indicative": sides.indicative or _fewest(sides) < FIRM_FROM,
        "converted": {"generated": ours.converted, "reference": theirs.converted},
        "skipped": {"generated": ours.num_skipped, "reference": theirs.num_skipped},
        "evaluator": EVALUATOR,
        "cartok": __version__,
    }


def _fewest(sides: Sides) -> int:
    counts = [side.count for side in (sides.generated, sides.reference) if side.count]
    return min(counts)


def _few(sides: Sides) -> list[str]:
    if (fewest := _fewest(sides)) >= FIRM_FROM:
        return []
    return [
        f"warning: {fewest:,} pictures on one side; below {FIRM_FROM:,} numbers are indicative, "
        "and compare only with those of as many"
    ]


def _naming(sides: Sides) -> str:
    """The suffix of names; on published weights "", and names are those of the papers."""
    if sides.extractor.suffix:
        return sides.extractor.suffix
    return "rfid" if sides.paired else "fid"


def scores_of(numbers: Iterable[Number], naming: str, receipt: dict[str, Any]) -> dict[str, Score]:
    """Numbers with their receipts, named for a network: see ``Extractor.suffix``."""
    scores = {}
    for number in numbers:
        name = _named(number.name, naming)
        scores[name] = Score(number.value, number.unit, {"metric": name} | number.own | receipt)
    return scores


def _named(name: str, naming: str) -> str:
    if naming.startswith("_"):
        return name.format(naming)
    papers = {"fd": naming, "sfd": "sfid", "kd": "kid"}
    base, _, rest = name.partition("{}")
    return papers.get(base, base) + rest
