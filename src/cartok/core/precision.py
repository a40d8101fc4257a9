"""Where a computation runs in bfloat16, and the islands in it that stay in float32."""

from collections.abc import Generator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any, Literal

import torch
from torch import nn

Precision = Literal["fp32", "bf16"]


def computing_in(precision: Precision, device: torch.device) -> AbstractContextManager:
    """Matrix products and convolutions run in this precision while the body runs."""
    if precision == "fp32":
        return nullcontext()
    return torch.autocast(device.type, torch.bfloat16)


def full_precision(device: torch.device) -> AbstractContextManager:
    """An island: what runs here runs in float32, given float32.

    Shapes without numbers (the meta device, where FLOPs are counted) know no autocast.
    """
    return nullcontext() if device.type == "meta" else torch.autocast(device.type, enabled=False)


@contextmanager
def rounding(tf32: bool) -> Generator[None]:
    """Whether a GPU rounds factors to TF32, in convolutions alone, whatever the program has set."""
    backends: Any = torch.backends
    settings = {backends.cudnn.conv: "tf32" if tf32 else "ieee", backends.cuda.matmul: "ieee"}
    before = {setting: setting.fp32_precision for setting in settings}
    try:
        for setting, wanted in settings.items():
            setting.fp32_precision = wanted
        yield
    finally:
        for setting, found in before.items():
            setting.fp32_precision = found


def keep_weights_in(precision: Precision, network: nn.Module) -> None:
    """Rounds a network that is trained no more; its buffers (angles, tables) stay as they are."""
    dtype = torch.bfloat16 if precision == "bf16" else torch.float32
    for weight in network.parameters():
        weight.data = weight.data.to(dtype)
