"""A batch's draw, all positions of it, as one CUDA graph: a single launch in place of thousands.

A prior draws token after token, and launching a step's kernels takes the host longer than they run.
Every batch runs the same kernels on other numbers in the same places, so they are recorded once,
each position with just the keys and values before it, and replayed.
"""

from collections.abc import Callable, Hashable
from dataclasses import dataclass, fields

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from cartok.core.capture import records_on
from cartok.core.errors import warn
from cartok.core.shapes import Labels, Mixtures, TokenSequence


@dataclass(frozen=True)
class ToDraw:
    """What differs between batches that run the same kernels; on the prior's device."""

    labels: Labels | Mixtures
    noise: Float[Tensor, "batch position"]
    """Uniform numbers in [0, 1), float64."""
    scales: Float[Tensor, " position"]
    """Of guidance; float64."""
    kept: TokenSequence
    """Tokens that stay as they are; -1 where one is to be drawn."""


@dataclass(frozen=True)
class Drawn:
    """Tokens of a batch, and whether all logits they were drawn from were finite."""

    tokens: TokenSequence
    all_finite: Bool[Tensor, ""]


Draw = Callable[[ToDraw], Drawn]


class Recording:
    """A CUDA graph of a draw, with the tensors it reads and writes.

    Raises:
        RuntimeError: the draw waits for the host, or there is no memory for a second cache.
    """

    def __init__(self, draw: Draw, batch: ToDraw):
        self._batch = ToDraw(*(getattr(batch, field.name).clone() for field in fields(batch)))
        torch.cuda.synchronize()
        torch.cuda.empty_cache()  # the graph has a pool of its own
        self._graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(self._graph, capture_error_mode="thread_local"):
            self._drawn = draw(self._batch)

    def replay(self, batch: ToDraw) -> Drawn:
        """The draw of another batch of as many rows; good until the next."""
        for field in fields(batch):
            getattr(self._batch, field.name).copy_(getattr(batch, field.name))
        self._graph.replay()
        return self._drawn


class Replays:
    """Draws batches as it is told the first time, and then from a recording, where one can be made.

    One recording is kept, since it holds a whole cache of keys and values.
    """

    def __init__(self, record: Callable[[Draw, ToDraw], Recording] = Recording):
        self._record = record
        self._key: Hashable = None
        self._rows = 0
        self._recording: Recording | None = None
        self._fails = False

    def __call__(self, draw: Draw, batch: ToDraw, key: Hashable) -> Drawn:
        """``key`` is everything but the batch that ``draw`` depends on."""
        num = len(batch.labels)
        if key != self._key or num > self._rows:
            self._key, self._rows, self._recording, self._fails = key, num, None, False
            return draw(batch)
        if self._recording is None and num == self._rows:  # not for a few that are left over
            self._start(draw, batch)
        if self._recording is None or num < self._rows / 2:
            return draw(batch)
        drawn = self._recording.replay(_padded(batch, self._rows))
        return Drawn(drawn.tokens[:num].clone(), drawn.all_finite.clone())

    def _start(self, draw: Draw, batch: ToDraw) -> None:
        if self._fails or not records_on(batch.labels.device):
            return
        try:
            self._recording = self._record(draw, batch)
        except RuntimeError as error:
            self._fails = True
            reason = str(error).strip().split("\n")[0]
            warn(f"samples are drawn kernel by kernel, since that cannot be recorded: {reason}")


def _padded(batch: ToDraw, rows: int) -> ToDraw:
    """More rows, the last one again: no sample depends on its neighbours."""
    at = torch.arange(rows, device=batch.labels.device).clamp(max=len(batch.labels) - 1)
    return ToDraw(batch.labels[at], batch.noise[at], batch.scales, batch.kept[at])
