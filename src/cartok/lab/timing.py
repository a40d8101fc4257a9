"""What a device can do at best, how long a call takes on it, and how much memory it held.

A GPU works on while the host goes on, so every clock here waits for it before it is read.
"""

import gc
import time
from collections.abc import Callable, Generator
from contextlib import contextmanager
from dataclasses import dataclass
from statistics import median

import torch

from cartok.core.errors import UserError
from cartok.core.parallel import World
from cartok.core.run import forget_peak, peak_memory_bytes

GIB = 2**30
_CALLS, _REPEATS = 16, 5


@dataclass(frozen=True)
class Ceilings:
    """What nothing on this device exceeds by much."""

    matmul: float
    """FLOP/s of a large square matrix product: bfloat16 on a GPU, else float32."""
    copy: float
    """Bytes a second that a copy within memory reads and writes, both counted."""


@dataclass(frozen=True)
class Peak:
    """The most memory since ``clear_memory``, in bytes; on the CPU, of the process's whole life."""

    allocated: int
    """By tensors."""
    reserved: int
    """By the process, tensors or not."""


def ceilings_of(device: torch.device, tiny: bool = False) -> Ceilings:
    """Measures both, in a second on a GPU; ``tiny`` ones fit a cache, and so are only numbers."""
    side, num_bytes = (256, 2**22) if tiny else (8192, 2**30)
    dtype = torch.bfloat16 if device.type == "cuda" else torch.float32
    a, b = torch.randn(2, side, side, device=device).to(dtype)
    product = torch.empty_like(a)
    matmul = seconds_of(lambda: torch.mm(a, b, out=product), device, calls=_CALLS)
    source = torch.zeros(num_bytes, dtype=torch.uint8, device=device)
    target = torch.empty_like(source)
    copy = seconds_of(lambda: target.copy_(source), device, calls=_CALLS)
    return Ceilings(matmul=2 * side**3 / matmul, copy=2 * num_bytes / copy)


def seconds_of(action: Callable[[], object], device: torch.device, calls: int = 1) -> float:
    """Seconds that an action takes: the median over several times ``calls`` calls, warmed up."""
    for _ in range(2):
        action()
    taken = []
    for _ in range(_REPEATS):
        synchronise(device)
        begin = time.perf_counter()
        for _ in range(calls):
            action()
        synchronise(device)
        taken.append((time.perf_counter() - begin) / calls)
    return median(taken)


def synchronise(device: torch.device) -> None:
    """Waits until the device has done what it was given."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def clear_memory(device: torch.device) -> None:
    """Gives back what no tensor needs, and begins to look for the peak anew."""
    gc.collect()  # a job and its phases hold each other
    if device.type == "cuda":
        torch.cuda.empty_cache()
    forget_peak(device)


def peak_of(device: torch.device) -> Peak:
    """The most memory since ``clear_memory``."""
    allocated = peak_memory_bytes(device)
    if device.type != "cuda":
        return Peak(allocated, allocated)
    return Peak(allocated, torch.cuda.max_memory_reserved(device))


def refuse_slow(subject: str, world: World, tiny: bool) -> None:
    """Refuses several processes, and a bench of full size without a GPU.

    Raises:
        UserError: says which.
    """
    if world.size > 1:
        raise UserError(
            f"bench {subject} runs in one process, but there are {world.size}; start it without "
            "torchrun"
        )
    if world.device.type != "cuda" and not tiny:
        raise UserError(
            "a bench of this size needs a CUDA GPU and would take hours without one, but the "
            f"device is {world.device.type}; give --tiny to see that it runs"
        )


@contextmanager
def enough_memory(num: int, advice: str) -> Generator[None]:
    """Turns the failure of a body that has too little memory for ``num`` pictures into advice.

    Raises:
        UserError: in place of the device's error.
    """
    try:
        yield
    except torch.OutOfMemoryError:
        raise UserError(
            f"a batch must fit the device's memory, but one of {num} pictures does not; {advice}"
        ) from None
