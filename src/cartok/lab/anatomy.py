"""Where a training step's time goes on the device, by kind of kernel.

Kernels are told apart by name alone, so a kind is as good as its pattern: what no pattern knows is
``other``, and the largest kernels are listed by name beside the kinds.
"""

import re
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import torch
from torch.profiler import ProfilerActivity, profile

from cartok.core.shapes import Pixels
from cartok.lab.steps import step_seconds
from cartok.lab.timing import synchronise
from cartok.tokenizer.train import TokenizerJob

_LARGEST = 12
_WARM = 2  # steps before the one that is looked at
_NAME = 90  # characters of a kernel's name; templates run to thousands

KINDS = {
    "compiled by torch (triton)": r"^triton_",
    "convolution wgrad": r"wgrad",
    "convolution dgrad": r"dgrad",
    "convolution fprop": r"fprop",
    "other convolution": r"conv(?!ert)",
    "norm kernels of cartok": r"^(sums|coefficients|back|apply|gradient)_kernel",
    "sum kernel of cartok": r"^add_kernel",
    "optimizer and clipping": r"multi_tensor|adam|_foreach|LpNorm",
    "matmul and attention": r"gemm|gemv|nvjet|cutlass|flash|fmha|aten::(add|b)?mm\b|attention",
    "copies and layout": (
        r"copy|memcpy|memset|nchwTo|nhwcTo|transpose|padding|CatArray|aten::(cat|clone)\b"
        r"|tensorTransform"
    ),
    "reductions": r"reduce|softmax|argmax|welford|batch_norm|aten::(sum|mean|norm|std|var)",
    "look-ups": r"index|gather|scatter|embedding",
    "elementwise": r"elementwise|fill|distribution|aten::\w+_?$",
}
"""Patterns by kind, tried in order; they are searched for anywhere in a kernel's name."""


@dataclass(frozen=True)
class Kernel:
    """All launches of one kernel in a step; on the CPU, all calls of one operator."""

    name: str
    milliseconds: float
    count: int

    @property
    def kind(self) -> str:
        """One of ``KINDS``, or ``other``."""
        known = (kind for kind, pattern in KINDS.items() if re.search(pattern, self.name, re.I))
        return next(known, "other")


def kernels_of_a_step(job: TokenizerJob, pixels: Pixels) -> list[Kernel]:
    """The kernels of one training step, from the end of the step before to its own; weights move.

    A launch that waits for the host takes no kernel's time, so the sum may be less than the step.
    """
    device = job.world.device
    on_gpu = device.type == "cuda"
    watched = ProfilerActivity.CUDA if on_gpu else ProfilerActivity.CPU
    profiler = profile(activities=[watched], acc_events=True)

    def after_step(done: int) -> None:
        if done >= _WARM:
            synchronise(device)
            (profiler.start if done == _WARM else profiler.stop)()

    step_seconds(job, pixels, _WARM + 1, after_step=after_step)
    return kernels_of(profiler.key_averages(), device.type)


def kernels_of(events: Iterable[Any], device_type: str) -> list[Kernel]:
    """What a profiler's averages say of a device, largest first; marks of the host are left out."""
    found = []
    for event in events:
        on_gpu = event.device_type == torch.autograd.DeviceType.CUDA
        if on_gpu != (device_type == "cuda") or event.is_user_annotation:
            continue
        spent = event.self_device_time_total if on_gpu else event.self_cpu_time_total
        if spent:
            found.append(Kernel(event.key, spent / 1000, event.count))
    return sorted(found, key=lambda kernel: -kernel.milliseconds)


def anatomy_of(kernels: list[Kernel], title: str) -> str:
    """Two tables in Markdown: the kinds, and the largest kernels by name."""
    if not kernels:
        return f"# {title}\n\nThe profiler saw no kernel: is it allowed to on this machine?\n"
    total = sum(kernel.milliseconds for kernel in kernels)
    kinds: dict[str, list[Kernel]] = {}
    for kernel in kernels:
        kinds.setdefault(kernel.kind, []).append(kernel)
    ordered = sorted(kinds.items(), key=lambda item: -_sum(item[1]))
    rows = [[kind, *_cells(some, total)] for kind, some in ordered]
    rows.append(["all", *_cells(kernels, total)])
    largest = [
        [f"`{_short(kernel.name)}`", kernel.kind, *_cells([kernel], total)]
        for kernel in kernels[:_LARGEST]
    ]
    numbers = ["ms", "share", "launches"]
    tables = [_table(["kind", *numbers], rows), _table(["kernel", "kind", *numbers], largest)]
    return "\n\n".join([f"# {title}", *tables]) + "\n"


def _cells(kernels: list[Kernel], total: float) -> list[str]:
    spent = _sum(kernels)
    return [f"{spent:.2f}", f"{spent / total:.1%}", str(sum(kernel.count for kernel in kernels))]


def _sum(kernels: list[Kernel]) -> float:
    return sum(kernel.milliseconds for kernel in kernels)


def _short(name: str) -> str:
    name = name.replace("|", "/").replace("`", "'")
    return name if len(name) <= _NAME else f"{name[: _NAME - 1]}…"


def _table(head: list[str], rows: list[list[str]]) -> str:
    ruler = [":--" if word in ("kind", "kernel") else "--:" for word in head]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in [head, ruler, *rows])
