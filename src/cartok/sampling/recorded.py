"""Steps of a draw as one CUDA graph: a single launch in place of hundreds.

A prior draws token after token, and launching a step's kernels takes the host longer than they run.
Every step runs the same kernels on other numbers in the same places, so one is recorded, and
replayed for every token of every batch.
"""

from collections.abc import Callable, Hashable
from dataclasses import dataclass, fields
from typing import Protocol, runtime_checkable

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from cartok.core.capture import records_on
from cartok.core.errors import warn
from cartok.core.shapes import Condition, TokenSequence


@dataclass(frozen=True)
class ToDraw:
    """What differs between batches that run the same kernels; on the prior's device."""

    labels: Condition
    noise: Float[Tensor, "batch position"]
    """Uniform numbers in [0, 1), float64."""
    scales: Float[Tensor, " position"]
    """Of guidance; float64."""
    kept: TokenSequence
    """Tokens that stay as they are; -1 where one is to be drawn."""

    def padded(self, rows: int) -> "ToDraw":
        """More rows, the last one again: no sample depends on its neighbours."""
        at = torch.arange(rows, device=self.labels.device).clamp(max=len(self.labels) - 1)
        return ToDraw(self.labels[at], self.noise[at], self.scales, self.kept[at])

    def copied(self) -> "ToDraw":
        """The same numbers in places of their own, row by row."""
        rowwise = torch.contiguous_format
        return ToDraw(*(getattr(self, f.name).clone(memory_format=rowwise) for f in fields(self)))

    def put(self, other: "ToDraw") -> None:
        """Another batch's numbers into these places."""
        for field in fields(self):
            getattr(self, field.name).copy_(getattr(other, field.name))


@dataclass(frozen=True)
class Drawn:
    """Tokens of a batch, and whether all logits they were drawn from were finite."""

    tokens: TokenSequence
    all_finite: Bool[Tensor, ""]


@runtime_checkable  # for the checks that run in tests
class Drawing(Protocol):
    """A batch that is drawn token by token, in tensors of fixed places."""

    @property
    def rows(self) -> int:
        """Pictures of the batch."""
        ...

    @property
    def num_positions(self) -> int:
        """Steps until it is drawn."""
        ...

    @property
    def is_fixed(self) -> bool:
        """True if every step runs the same kernels in the same places."""
        ...

    def start(self, batch: ToDraw) -> None:
        """Begins with a batch of as many rows."""
        ...

    def step(self) -> None:
        """Draws one token of each picture."""
        ...

    def drawn(self) -> Drawn:
        """What has been drawn; good until the next start."""
        ...


class Recording:
    """A CUDA graph of a step that has run before, so that its kernels are compiled.

    Raises:
        RuntimeError: the step waits for the host.
    """

    def __init__(self, step: Callable[[], None]):
        torch.cuda.synchronize()
        self._graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(self._graph, capture_error_mode="thread_local"):
            step()

    def replay(self) -> None:
        """The step again, on what lies in its places now."""
        self._graph.replay()


class Draws:
    """Draws batches, by replaying a recorded step where one can be made.

    One drawing is kept with its recording, since it holds a whole cache of keys and values. A
    smaller batch is drawn in it, unless it would leave more than half of it idle.
    """

    def __init__(self, record: Callable[[Callable[[], None]], Recording] = Recording):
        self._record = record
        self._key: Hashable = None
        self._drawing: Drawing | None = None
        self._step: Callable[[], None] | None = None

    def __call__(self, begin: Callable[[], Drawing], batch: ToDraw, key: Hashable) -> Drawn:
        """``key`` is everything but the batch that a drawing depends on."""
        num, device = len(batch.labels), batch.labels.device
        if self._drawing is None or key != self._key or not self._fits(num, self._drawing, device):
            self._drawing = self._step = None  # its memory comes first
            self._key, self._drawing = key, begin()
        drawing = self._drawing
        batch = batch.padded(drawing.rows)
        if self._step is None:
            self._step = self._step_of(drawing, batch)
        drawing.start(batch)
        for _ in range(drawing.num_positions):
            self._step()
        drawn = drawing.drawn()
        return Drawn(drawn.tokens[:num].clone(), drawn.all_finite.clone())

    def _fits(self, num: int, drawing: Drawing, device: torch.device) -> bool:
        if not (drawing.is_fixed and records_on(device)):
            return num == drawing.rows
        return drawing.rows / 2 <= num <= drawing.rows

    def _step_of(self, drawing: Drawing, batch: ToDraw) -> Callable[[], None]:
        if not (drawing.is_fixed and records_on(batch.labels.device)):
            return drawing.step
        drawing.start(batch)
        drawing.step()  # compiles the kernels
        try:
            return self._record(drawing.step).replay
        except RuntimeError as error:
            reason = str(error).strip().split("\n")[0]
            warn(f"samples are drawn kernel by kernel, since that cannot be recorded: {reason}")
            return drawing.step
