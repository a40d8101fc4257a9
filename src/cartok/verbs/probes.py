"""The verb that compares tokenizers."""

from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from cartok.verbs.arguments import First, parse, progress_bar

if TYPE_CHECKING:
    from cartok.lab.inputs import Scores

_SHOWN = {
    "tokens": "tokens/image",
    "codes": "codes",
    "code_usage": "codes used",
    "psnr_db": "PSNR, dB",
    "rfd": "rFD",
    "prior_bits_per_image": "bits/image",
    "gfd": "gFD",
}
"""Columns of the table, by score."""


def probe(arguments: list[str]) -> None:
    """Compares tokenizers by a small prior."""
    from cartok.core.parallel import World
    from cartok.lab.trial import FILE, run_trial, usual_trial
    from cartok.recipes import recipe_of
    from cartok.recipes.prior import PRIORS

    @dataclass(frozen=True)
    class Probe:
        """Tokenizers side by side, before a large prior is paid for.

        Each gets the same small prior, with the same budget: bits it needs for a held-out picture,
        and how far its samples are from pictures, beside reconstructions.
        """

        tokenizers: First[tuple[str, ...]]
        """Runs, model folders or models of the hub; NAME=SOURCE names one."""
        out: Path
        """A new folder, or one of such a comparison, which goes on."""
        data: str = ""
        """Pictures; those the first tokenizer was trained on, if it is a run."""
        size: int = 0
        """Pixels a side; that of the first tokenizer's training, if it is a run."""
        prior: str = ""
        """A recipe of train-prior; 'demo' on a CPU and 'small' on a GPU, if nothing is given."""
        device: str = "auto"
        """auto, cpu, cuda, cuda:N or mps."""

    chosen = parse(Probe, arguments, "probe")
    world = World.join(chosen.device)
    trial = usual_trial(on_gpu=world.device.type == "cuda")
    if chosen.prior:
        trial = replace(trial, prior=recipe_of(PRIORS, chosen.prior))
    trial = replace(trial, data=chosen.data, size=chosen.size)
    found = run_trial(chosen.tokenizers, trial, chosen.out, chosen.device, progress_bar())
    for line in _table(found):
        print(line)
    first = next(iter(found.values()))
    rfd, gfd = (first[key]["receipt"] for key in ("rfd", "gfd"))
    print(
        f"lower rFD, bits and gFD are better. rFD: {rfd['generated_count']:,} reconstructions and "
        f"their originals; gFD: {gfd['generated_count']:,} samples at guidance "
        f"{gfd['guidance']:g} and {gfd['reference_count']:,} training pictures, from which "
        f"held-out ones are {_cell(first['floor'])}"
    )
    if any(receipt.get("indicative") for receipt in (rfd, gfd)):
        print("indicative: fewer than 10,000 pictures on a side")
    print(
        f"receipts, and pictures beside it: {chosen.out / FILE}; a page: cartok report {chosen.out}"
    )


def _table(found: "dict[str, Scores]") -> list[str]:
    rows = [["", *_SHOWN.values()]]
    rows += [
        [name, *(_cell(scores[key], key == "code_usage") for key in _SHOWN)]
        for name, scores in found.items()
    ]
    wide = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return ["  ".join(cell.ljust(w) for cell, w in zip(row, wide, strict=True)) for row in rows]


def _cell(score: dict, is_share: bool = False) -> str:
    """A number, and its interval where it has one."""
    if is_share:
        return f"{score['value']:.1%}"
    interval = score["receipt"].get("bootstrap", {}).get("interval")
    shown = f"{score['value']:.4g}"
    return f"{shown} [{interval[0]:.4g}, {interval[1]:.4g}]" if interval else shown
