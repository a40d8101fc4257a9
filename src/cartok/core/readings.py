"""What a step computes on its way to the host: collected on the device, read in one go.

A GPU idles whenever the host waits for a number, so a step has one such wait: it reads every term
of every phase and part, every gradient's norm, and whether a rank was asked to stop, of all ranks.
"""

import math
from dataclasses import dataclass
from functools import cached_property
from typing import Any, NamedTuple

import torch
from torch import Tensor

from cartok.core.job import Terms
from cartok.core.parallel import World


class Column(NamedTuple):
    """One number that every rank has."""

    name: str
    """``phase/term``, or ``gradient/mover``."""
    part: int
    """Of the accumulation it was computed in; -1: of the whole batch."""
    weight: float
    """In its objective; 0 if it is only watched, and then it may be NaN."""


@dataclass(frozen=True)
class Reading:
    """A step's numbers on the host, alike on all ranks."""

    columns: list[Column]
    rows: list[list[float]]
    """A rank each."""
    is_stopping: bool
    """Whether a rank was asked to stop."""
    indices: list[Any]
    """Of this rank's samples, part by part; ``None`` where a batch does not name them."""

    @property
    def is_finite(self) -> bool:
        """Whether all that decides where weights go is finite on all ranks."""
        return not self.faults

    @cached_property
    def faults(self) -> list[tuple[int, Column]]:
        """What is minimised and not finite, with its rank; losses first, as they come in a step.

        A loss that is not finite spoils the gradient too: the loss is the one to blame.
        """
        return [
            (rank, column)
            for number, column in enumerate(self.columns)
            for rank, row in enumerate(self.rows)
            if column.weight and not math.isfinite(row[number])
        ]

    @property
    def means(self) -> dict[str, float]:
        """The mean of every term and norm over ranks and parts; not finite if one of them is not.

        That of a norm is the norm itself, which is the same on all ranks.
        """
        values: dict[str, list[float]] = {}
        for row in self.rows:
            for column, value in zip(self.columns, row, strict=True):
                values.setdefault(column.name, []).append(value)
        return {name: sum(some) / len(some) for name, some in values.items()}


class Readings:
    """Collects what a step computes; nothing here waits for the device but ``read``."""

    def __init__(self, world: World):
        self._world = world
        self._columns: list[Column] = []
        self._values: list[Tensor] = []
        self._indices: list[Any] = []

    def add_part(self, batch: Any) -> None:
        """The terms that follow are this part's."""
        indices = getattr(batch, "indices", None)
        self._indices.append(indices if isinstance(indices, Tensor) else None)

    def add_terms(self, phase: str, terms: Terms) -> None:
        """Takes the values of a phase's terms as they are now."""
        part = len(self._indices) - 1
        for values, weights in ((terms.losses, terms.weights), (terms.watched, {})):
            self._add(values)
            self._columns += [Column(f"{phase}/{k}", part, weights.get(k, 0.0)) for k in values]

    def add_norms(self, norms: dict[str, Tensor]) -> None:
        """Takes the norms of the movers' gradients."""
        self._add(norms)
        self._columns += [Column(f"gradient/{name}", -1, 1.0) for name in norms]

    def read(self, is_stopping: bool = False) -> Reading:
        """All ranks' numbers: one exchange, and the one time in a step that the host waits."""
        claim = torch.full((1,), float(is_stopping), device=self._world.device)
        rows = self._world.gather(torch.cat([*self._values, claim])[None]).tolist()
        stopping = any(row.pop() > 0 for row in rows)
        return Reading(self._columns, rows, stopping, self._indices)

    @torch.no_grad()
    def _add(self, values: dict[str, Tensor]) -> None:
        if values:  # a copy, since a captured graph would overwrite them in the next part
            flat = [value.to(self._world.device, torch.float32) for value in values.values()]
            self._values.append(torch.stack(flat))
