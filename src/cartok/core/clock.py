"""What a training has taken, over all its tries: seconds, waiting, and energy."""

import time
from collections.abc import Generator
from contextlib import contextmanager
from typing import Any

import torch


class Clock:
    """Counts on from what an earlier try had taken.

    Seconds are of steps alone. Joules are those of the whole device since the try began, with its
    evaluations and whatever else ran there: where several trainings share a GPU each is charged
    with all of them, so that their sum is too high.
    """

    def __init__(self, device: torch.device):
        self.seconds = self.stalled = 0.0
        self._meter = _meter_of(device)
        self._began = self._read()
        self._before = 0.0

    @property
    def joules(self) -> float | None:
        """None where the device does not say."""
        now = self._read()
        return None if now is None or self._began is None else self._before + now - self._began

    @property
    def stall_share(self) -> float:
        """Of the seconds, that nothing was computed for want of data; 0 to 1."""
        return self.stalled / self.seconds if self.seconds else 0.0

    @contextmanager
    def running(self) -> Generator[None]:
        """Counts the seconds of the body."""
        begin = time.monotonic()
        yield
        self.seconds += time.monotonic() - begin

    def to_json(self) -> dict[str, Any]:
        """For a checkpoint."""
        return {"seconds": self.seconds, "stalled": self.stalled, "joules": self.joules}

    def go_on(self, taken: dict[str, Any]) -> None:
        """Takes up a checkpoint's; older ones do not know joules, and then nobody does."""
        self.seconds, self.stalled = taken["seconds"], taken["stalled"]
        before = taken.get("joules")
        if before is None:
            self._meter = self._began = None
        else:
            self._before = before

    def _read(self) -> float | None:
        if self._meter is None:
            return None
        return self._meter()


def _meter_of(device: torch.device):
    """What reads the joules that a GPU has spent since it was started; None if it does not say."""
    if device.type != "cuda":
        return None
    try:
        import pynvml

        pynvml.nvmlInit()
        name = f"GPU-{torch.cuda.get_device_properties(device).uuid}"
        handle = pynvml.nvmlDeviceGetHandleByUUID(name)
        pynvml.nvmlDeviceGetTotalEnergyConsumption(handle)
    except Exception:  # no library, no NVIDIA driver, or a card that does not count
        return None
    return lambda: pynvml.nvmlDeviceGetTotalEnergyConsumption(handle) / 1e3
