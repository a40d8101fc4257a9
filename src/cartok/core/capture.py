"""A step's computation as one CUDA graph: a single launch in place of thousands.

A small model leaves a GPU idle, since launching its kernels takes the host longer than they run.
Forward and backward passes are the same kernels step after step, on other numbers in the same
places; so they are recorded once and replayed. Optimizers, and the one number that decides whether
they move anything, stay outside.
"""

from collections.abc import Callable, Hashable, Iterable
from dataclasses import dataclass, fields, replace
from typing import Any

import torch
from torch import Tensor, nn

from cartok.core.errors import warn
from cartok.core.job import Terms

WARM = 3
"""Steps computed kernel by kernel before a graph is recorded: kernels are chosen, caches filled."""


@dataclass(frozen=True)
class Computed:
    """What became of a part of a batch; gradients have been added to the parameters."""

    outcome: Any
    terms: dict[str, Terms]
    """By phase, once going back has filled in what is watched."""


Compute = Callable[[Any], Computed]
"""Forward and backward passes on a batch, a dataclass of tensors."""


def records_on(device: torch.device) -> bool:
    """True where computations can be recorded."""
    return device.type == "cuda"


class Replayed:
    """Computes as it is told until the same has been told often enough, and then from a recording.

    A replay's tensors are those of the recording, with new numbers: what is to outlive the next
    step is copied. Gradients replace those of the step before.
    """

    def __init__(self, parameters: Iterable[nn.Parameter], record: "Record | None" = None):
        self._parameters = list(parameters)
        self._record = record or Recording
        self._key: Hashable = None
        self._times = 0
        self._recording: Recording | None = None
        self._fails = False

    def __call__(self, compute: Compute, batch: Any, key: Hashable) -> Computed:
        """``key`` is everything but tensors that the computation depends on."""
        key = (key, _shapes(batch))
        if key != self._key:
            self._key, self._times, self._recording = key, 0, None
        self._times += 1
        if self._recording is None and self._times > WARM and not self._fails:
            self._start(compute, batch)
        return self._recording.replay(batch) if self._recording else compute(batch)

    def _start(self, compute: Compute, batch: Any) -> None:
        try:
            self._recording = self._record(compute, batch, self._parameters)
        except RuntimeError as error:
            self._fails = True
            reason = str(error).strip().split("\n")[0]
            warn(f"steps run kernel by kernel, since they cannot be recorded: {reason}")


class Recording:
    """A CUDA graph of a computation, with the tensors it reads and writes.

    Raises:
        RuntimeError: the computation waits for the host, or does what no graph can.
    """

    def __init__(self, compute: Compute, batch: Any, parameters: list[nn.Parameter]):
        self._batch = _copied(batch)
        for parameter in parameters:
            parameter.grad = None
        torch.cuda.synchronize()
        self._graph = torch.cuda.CUDAGraph()
        # Of this thread alone: another one may be pinning memory for the next batches.
        with torch.cuda.graph(self._graph, capture_error_mode="thread_local"):
            self.computed = compute(self._batch)
        self._gradients = [(p, p.grad) for p in parameters]

    def replay(self, batch: Any) -> Computed:
        """The computation on another batch."""
        for name, value in _tensors(batch).items():
            getattr(self._batch, name).copy_(value, non_blocking=True)
        self._graph.replay()
        for parameter, gradient in self._gradients:
            parameter.grad = gradient
        return self.computed


Record = Callable[[Compute, Any, list[nn.Parameter]], Recording]


def _tensors(batch: Any) -> dict[str, Tensor]:
    found = {field.name: getattr(batch, field.name) for field in fields(batch)}
    return {name: value for name, value in found.items() if isinstance(value, Tensor)}


def _copied(batch: Any) -> Any:
    return replace(batch, **{name: value.clone() for name, value in _tensors(batch).items()})


def _shapes(batch: Any) -> tuple[Hashable, ...]:
    return tuple((name, value.shape, value.dtype) for name, value in _tensors(batch).items())
