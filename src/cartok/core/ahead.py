"""What a GPU and the host send each other while both are at work."""

import time
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor


class Ahead:
    """Batches of a stream, in its order, and how long nothing was computed for want of them."""

    def __init__(self, stream: Iterator[Any], device: torch.device):
        self._stream, self._on_gpu = stream, device.type == "cuda"
        self._fetched: list[Any] = []
        self._failed: Exception | None = None
        self._stalled = 0.0

    def take(self) -> Any:
        """The next batch.

        Raises:
            Exception: whatever the stream raises, be it in this call or when it was fetched.
        """
        if self._failed is not None:
            raise self._failed
        if not self._fetched:
            begin = time.monotonic()
            self._fetched.append(next(self._stream))
            self._stalled += time.monotonic() - begin
        return self._fetched.pop()

    def fetch(self) -> None:
        """To be called when work is under way: a GPU goes on with it while the host waits here.

        A CPU has done the work by then, so there it fetches nothing. An error waits for ``take``:
        the step that is under way has all it needs.
        """
        if not self._on_gpu or self._fetched or self._failed is not None:
            return
        begin, work = time.monotonic(), _everything_asked_for()
        try:
            self._fetched.append(next(self._stream))
        except Exception as error:
            self._failed = error
        if work.query():  # it is through, and perhaps was all the while
            self._stalled += time.monotonic() - begin

    def stall(self) -> float:
        """Seconds since the last call in which nothing was computed, or at most so many."""
        stalled, self._stalled = self._stalled, 0.0
        return stalled


def sent(tensor: Tensor, device: torch.device | str) -> Tensor:
    """A tensor on its way to a device; a GPU fetches it when it comes to that, nobody waits."""
    if torch.device(device).type == "cuda" and not tensor.is_cuda and not tensor.is_pinned():
        tensor = tensor.pin_memory()
    return tensor.to(device, non_blocking=True)


def arriving(tensor: Tensor) -> Callable[[], Tensor]:
    """A tensor on its way to the host; what comes back waits for it, and for nothing after it.

    A plain copy would wait for all that the GPU has been asked for by then.
    """
    if not tensor.is_cuda:
        return tensor.cpu
    host, copied = tensor.to("cpu", non_blocking=True), _everything_asked_for()

    def arrived() -> Tensor:
        copied.synchronize()
        return host

    return arrived


def _everything_asked_for() -> torch.cuda.Event:
    """Has happened when the GPU is through with all that it was asked for up to now."""
    event = torch.cuda.Event()
    event.record()
    return event
