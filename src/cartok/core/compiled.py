"""Networks compiled for training steps, and run as they are written in everything else."""

import sys
from collections.abc import Iterable
from contextlib import AbstractContextManager, nullcontext

import torch
from torch import nn


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
