"""A step that was not finite, told to people in ``fault.md`` and to programs in ``fault.json``."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from cartok.core.files import remove, write_json, write_text
from cartok.core.job import LoopConfig, Phase
from cartok.core.parallel import World
from cartok.core.readings import Reading

FILES = ("fault.json", "fault.md")
NUM_LINES = 20
"""Lines of the log that are looked at for what rose before."""


@dataclass(frozen=True)
class Fault:
    """What was not finite in a step, and what else the step computed; alike on all ranks."""

    step: int
    """Steps that were done before it."""
    phase: str
    culprits: tuple[str, ...]
    """Loss terms as ``phase/term``; if all are finite, gradients as ``gradient/mover``."""
    terms: dict[str, float]
    """Means over ranks and parts, watched values among them."""
    weights: dict[str, float]
    """Of the terms that are minimised."""
    gradient_norms: dict[str, float]
    rates: dict[str, float]
    """Learning rates of the phase's movers."""
    clips: dict[str, float]
    ranks: tuple[int, ...]
    """Those on which it was not finite."""
    samples: tuple[int, ...]
    """What those ranks computed the culprits from; empty if batches do not name their samples."""

    @property
    def is_in_a_loss(self) -> bool:
        """Whether a loss was not finite, rather than a gradient alone."""
        return not self.culprits[0].startswith("gradient/")

    @property
    def words(self) -> str:
        """What was not finite, when and where, as the beginning of a sentence."""
        loss = f"loss term '{self.culprits[0]}'"
        what = loss if self.is_in_a_loss else " and the ".join(self.culprits)
        more = " ..." if len(self.samples) > 8 else ""
        samples = f" (samples {list(self.samples[:8])}{more})" if self.samples else ""
        return f"the {what} is not finite at step {self.step}{samples}"


def fault_of(reading: Reading, phases: Sequence[Phase], step: int, world: World) -> Fault:
    """Finds the fault in a reading that has one; every rank must ask, to tell its samples."""
    in_losses = [fault for fault in reading.faults if fault[1].part >= 0]
    faults = in_losses or reading.faults
    culprits = tuple(dict.fromkeys(column.name for _, column in faults))
    kind, name = culprits[0].split("/", 1)
    phase = next(
        phase
        for phase in phases
        if (phase.name == kind if in_losses else name in [mover.name for mover in phase.movers])
    )
    parts = {(rank, column.part) for rank, column in faults}
    return Fault(
        step=step,
        phase=phase.name,
        culprits=culprits,
        terms={k: v for k, v in reading.means.items() if not k.startswith("gradient/")},
        weights={c.name: c.weight for c in reading.columns if c.weight and c.part >= 0},
        gradient_norms={
            k.removeprefix("gradient/"): v
            for k, v in reading.means.items()
            if k.startswith("gradient/")
        },
        rates={mover.name: mover.rate(step) for mover in phase.movers},
        clips={mover.name: mover.clip for mover in phase.movers},
        ranks=tuple(sorted({rank for rank, _ in parts})),
        samples=tuple(_samples(reading, parts, world)),
    )


def write_fault(
    folder: Path,
    fault: Fault,
    config: LoopConfig,
    counts: dict[str, int],
    lines: list[dict[str, Any]],
) -> None:
    """Writes both files: ``counts`` are the skips and rollbacks so far, ``lines`` the log's."""
    last = lines[-NUM_LINES:]
    report = {
        "kind": "non-finite",
        "step": fault.step,
        "phase": fault.phase,
        "culprits": list(fault.culprits),
        "terms": _told(fault.terms),
        "weights": fault.weights,
        "gradient_norms": _told(fault.gradient_norms),
        "rates": fault.rates,
        "clips": fault.clips,
        "ranks": list(fault.ranks),
        "samples": list(fault.samples),
        "policy": config.on_non_finite,
        "precision": config.precision,
        **counts,
        "last": last,
    }
    write_json(folder / "fault.json", report)
    write_text(folder / "fault.md", _page(fault, config, counts, last))


def remove_fault(folder: Path) -> None:
    """Removes both files, if they are there."""
    for name in FILES:
        remove(folder / name)


@dataclass(frozen=True)
class Rise:
    """How a logged value rose from the least it was, to the last it was."""

    name: str
    step: int
    """Of the least, the last time."""
    least: float
    last: float

    @property
    def factor(self) -> float:
        """How many times the least the last is."""
        return self.last / self.least if self.least else math.inf


def rises_of(lines: list[dict[str, Any]], least_factor: float = 2.0) -> list[Rise]:
    """The losses and gradients whose size rose by this factor or more, the steepest first."""
    sizes: dict[str, list[tuple[float, int]]] = {}
    for line in lines:
        for name, value in line.items():
            is_told = "/" in name and name.split("/")[0] not in ("rate", "speed", "fault")
            if is_told and isinstance(value, int | float):
                sizes.setdefault(name, []).append((abs(value), line["step"]))
    found = []
    for name, points in sizes.items():
        least, negative = min((size, -step) for size, step in points)
        found.append(Rise(name, -negative, least, points[-1][0]))
    found = [rise for rise in found if rise.last and rise.factor >= least_factor]
    return sorted(found, key=lambda rise: -rise.factor)


def _samples(reading: Reading, parts: set[tuple[int, int]], world: World) -> list[int]:
    if not reading.indices or any(indices is None for indices in reading.indices):
        return []
    mine = torch.stack([indices.reshape(-1) for indices in reading.indices]).to(world.device)
    shares = world.gather(mine[None]).tolist()  # [rank][part]; parts are equally large
    return [
        index
        for rank, of_rank in enumerate(shares)
        for part, some in enumerate(of_rank)
        if (rank, part) in parts or (rank, -1) in parts
        for index in some
    ]


def _told(values: dict[str, float]) -> dict[str, float | str]:
    """JSON has no NaN and no infinity, so these are words."""
    return {name: value if math.isfinite(value) else str(value) for name, value in values.items()}


def _page(
    fault: Fault, config: LoopConfig, counts: dict[str, int], lines: list[dict[str, Any]]
) -> str:
    values = fault.terms | {f"gradient/{name}": v for name, v in fault.gradient_norms.items()}
    names = " and ".join(f"`{name}`" for name in fault.culprits)
    table = [
        f"| `{name}` | {f'**{value}**' if name in fault.culprits else f'{value:.4g}'} "
        f"| {fault.weights.get(name, '')} |"
        for name, value in values.items()
    ]
    samples = ", ".join(map(str, fault.samples)) or "not named by the batches"
    return "\n".join([
        f"# Stopped at step {fault.step}: {names} not finite",
        "",
        f"After {fault.step} steps the next one was not finite: {_where(fault)}. It moved no "
        "weight, optimizer, running mean or quantizer, and no checkpoint. "
        f"Policy: {config.on_non_finite}; batches skipped before: {counts['skips']}; "
        f"times gone back to a checkpoint: {counts['rollbacks']}.",
        "", "## What that step computed", "",
        "| value | mean | weight |", "|---|---|---|", *table,
        "", f"Samples: {samples}.",
        "", "## What rose before", "", *_rises(lines, values, fault.step),
        "", "## What to change", "", *_advice(fault, config), "",
        "With an equal config, the run can be taken up again from its newest checkpoint; a changed "
        "config needs a new run.", "",
    ])  # fmt: skip


def _where(fault: Fault) -> str:
    words = "the loss term" if fault.is_in_a_loss else "all losses were finite, but not the"
    ranks = ", ".join(map(str, fault.ranks))
    return f"{words} `{fault.culprits[0]}` of the phase `{fault.phase}`, on rank {ranks}"


def _rises(lines: list[dict[str, Any]], values: dict[str, float], step: int) -> list[str]:
    lines = [line for line in lines if "fault/skips" not in line]
    if not lines:
        return ["Nothing was logged before."]
    now = {name: value for name, value in values.items() if math.isfinite(value)}
    span = f"steps {lines[0]['step']} to {lines[-1]['step']}, and the one that failed"
    rises = rises_of([*lines, {"step": step + 1, **now}])[:5]
    if not rises:
        return [f"No loss and no gradient rose to twice its least in the log ({span})."]
    told = [f"* `{r.name}`: {r.factor:.3g} times, from {r.least:.4g} at step {r.step} to "
            f"{r.last:.4g}" for r in rises]  # fmt: skip
    return [f"In the log ({span}), `{rises[0].name}` rose most:", "", *told]


def _advice(fault: Fault, config: LoopConfig) -> list[str]:
    culprit = fault.culprits[0]
    rates = ", ".join(f"{rate:.3g} for `{name}`" for name, rate in fault.rates.items())
    unclipped = " and ".join(f"`{name}`" for name, clip in fault.clips.items() if not clip)
    clips = ", ".join(f"{clip:g} for `{name}`" for name, clip in fault.clips.items() if clip)
    advice = [
        f"Lower the learning rate (it was {rates}), or warm up longer.",
        f"Clip the gradient of {unclipped}." if unclipped else f"Clip harder (it was {clips}).",
    ]
    if config.precision == "bf16":
        advice.append(
            "Compute in float32 (loop.precision fp32). If that helps, what computes "
            f"`{culprit}` overflows in bf16 and belongs in a float32 island."
        )
    if fault.is_in_a_loss:
        weight = fault.weights[culprit]
        advice.append(f"Lower the weight of `{culprit}` (it was {weight:g}), or let it rise later.")
    if fault.samples:
        advice.append("Look at the samples above: if they are at fault, others will not fail.")
    if config.on_non_finite == "stop":
        advice.append("Set loop.on_non_finite to recover: a few bad batches are then skipped.")
    return [f"{number}. {text}" for number, text in enumerate(advice, 1)]
