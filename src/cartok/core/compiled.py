"""Networks compiled for training steps, and run as they are written in everything else."""

import sys
from collections.abc import Callable, Iterable
from contextlib import AbstractContextManager, nullcontext

import torch
from torch import nn

from cartok.core.errors import warn


def compile_in_place(modules: Iterable[nn.Module]) -> None:
    """Compiles each at its first call; those of one shape share what is compiled.

    Forgets what this process compiled before: of an earlier training's shapes the compiler would
    conclude that shapes vary. What it left on disk is taken up.
    """
    torch.compiler.reset()
    for module in modules:
        module.compile()


def as_written() -> AbstractContextManager[object]:
    """Runs compiled modules uncompiled while the body runs.

    An evaluation's batches have other shapes, each of which would be compiled anew.
    """
    if "torch._dynamo" not in sys.modules:  # nothing is compiled; loading it takes seconds
        return nullcontext()
    return torch.compiler.set_stance("force_eager")


def kernels_work(device: torch.device, run_one: Callable[[], object], whose: str) -> bool:
    """True if triton can compile and run a kernel there; a failure is told in a warning.

    The first kernel of a process needs a C compiler and the headers of Python.
    """
    try:
        with torch.no_grad(), torch.cuda.device_of(torch.empty(0, device=device)):
            run_one()
        if device.type == "cuda":  # else a fault of the kernel is told by whatever comes next
            torch.cuda.synchronize(device)
    except Exception as error:  # whatever a compiler, a driver or an old triton raises
        reason = str(error).strip().split("\n")[0] or type(error).__name__
        warn(
            f"the {whose}'s GPU kernels cannot run on {device} ({reason}): it takes plain torch, "
            "which is several times slower; triton, a C compiler and Python's headers must be there"
        )
        return False
    return True
