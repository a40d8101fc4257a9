"""A study's means over priors, warnings, and tables for a terminal."""

from contextlib import suppress
from typing import Any

from cartok.scaling.grid import arm_name
from cartok.scaling.means import LEVEL, ArmMeans, mean_of, said_by_all
from cartok.scaling.numbers import Cell, aligned
from cartok.tokenizer.doctor import Measures, gaming_of, measures_of

SCORES = {
    "steps": "tokenizer_steps",
    "FLOPs": "tokenizer_flops",
    "rFD": "rfd",
    "gFD": "gfd",
    "nats/token": "prior_nats_per_token",
    "bits/image": "prior_bits_per_image",
    "redrawn FD": "redrawn_fd",
    "R2 latents": "next_latent_r2",
    "R2 codes": "probe_r2_quantised",
    "next-latent MSE": "next_latent_mse",
    "quantisation MSE": "commitment_mse",
    "dimensions": "code_dimension",
    "usage": "code_usage",
    "perplexity": "code_perplexity",
}
"""Columns of the first table, by heading."""

LOSSES = ("pixel_l2", "pixel_l1", "perceptual", "codebook", "commitment", "entropy")
"""Terms of the codec's objective, unweighted: columns of the second table (paper, Figure 12)."""


def mean_over_sizes(scores: list[dict[str, Any]]) -> dict[str, Any]:
    """The mean of one score over priors, as the paper averages gFID (its Table 4).

    The ends of its interval are the means of the ends: never too narrow, since the sizes' errors
    may go together (all are scored against one reference).
    """
    mean: dict[str, Any] = {
        "value": mean_of([score["value"] for score in scores]),
        "unit": scores[0]["unit"],
        "receipt": said_by_all([score["receipt"] for score in scores]) | {"mean_over": len(scores)},
    }
    cells = [Cell(**score) for score in scores]
    ends = [cell.interval for cell in cells if cell.interval is not None]
    if len(ends) == len(cells):
        low, high = mean_of([end.low for end in ends]), mean_of([end.high for end in ends])
        mean["receipt"]["bootstrap"] = {"level": LEVEL, "interval": [low, high]}
    return mean


_ALIKE = {
    "reference": "the pictures that samples are scored against",
    "network_sha256": "the network that judges them",
    "evaluator": "the version of the evaluator",
}
"""What receipts of one study have in common, by its key there."""


def warnings_of(arms: list[ArmMeans], twins: dict[str, str]) -> list[str]:
    """Warnings that a regulariser was won without helping, against each arm's weight-0 twin.

    They speak of tokenizers, so of a grid the first prior that has them speaks for all.
    """
    known, found = _measured(arms), {}
    for name, twin in twins.items():
        if name in known and twin in known:
            found.setdefault(arm_name(name), gaming_of(known[name], known[twin]))
    return [f"{name}: {line}" for name, lines in found.items() for line in lines]


def scored_unlike(records: list[dict[str, Any]]) -> list[str]:
    """Warnings that samples of some runs were scored against other pictures, or by another judge.

    Records are matched by the name of their pictures, which others may bear elsewhere.
    """
    found = []
    for key, what in _ALIKE.items():
        runs: dict[str, list[str]] = {}
        for record in records:
            value = record.get("scores", {}).get("gfd", {}).get("receipt", {}).get(key)
            if value is not None:
                runs.setdefault(str(value), []).append(f"{record['arm']}-s{record['seed']}")
        if len(runs) > 1:
            groups = "; ".join(f"{value}: {', '.join(names)}" for value, names in runs.items())
            found.append(f"scores do not compare, since runs differ in {what}: {groups}")
    return found


def tables_of(arms: list[ArmMeans]) -> list[str]:
    """Scores and losses, an arm a line; what an arm lacks is a dash, a failure its reason."""
    losses = {name: f"loss_{name}" for name in LOSSES}
    losses = {n: k for n, k in losses.items() if any(k in arm.scores for arm in arms)}
    return [_table(arms, columns) for columns in (SCORES, losses) if columns]


def _table(arms: list[ArmMeans], columns: dict[str, str]) -> str:
    rows = [["arm", *columns]]
    rows += [[arm.name, *(_text(arm.scores.get(key)) for key in columns.values())] for arm in arms]
    notes = ["", *(f"failed: {arm.failures[0]}" if arm.failures else "" for arm in arms)]
    lines = aligned(rows).splitlines()
    return "\n".join(f"{line}  {note}".rstrip() for line, note in zip(lines, notes, strict=True))


def _text(score: dict[str, Any] | None) -> str:
    return "-" if score is None else Cell(**score).text


def _measured(arms: list[ArmMeans]) -> dict[str, Measures]:
    """Of every arm that has them."""
    found = {}
    for arm in arms:
        with suppress(KeyError):  # no seed has finished, or a score is missing
            found[arm.name] = measures_of(arm.scores)
    return found
