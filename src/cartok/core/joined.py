"""Batch norm whose batch is that of all ranks.

torch's own joins on GPUs alone, waits for the host in every layer, and cannot be counted on the
meta device. This one runs wherever ranks meet, so that a test on CPUs holds it to one process.
"""

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from cartok.core.precision import full_precision

Mean = Callable[[Tensor], Tensor]
"""The mean of a tensor over all ranks, alike on each; see ``World.mean``."""


def joined(module: nn.Module, mean: Mean, ranks: int) -> nn.Module:
    """The module, with joined batch norms in place of plain ones, in it or as itself."""
    if isinstance(module, _BatchNorm):
        return JoinedBatchNorm(module, mean, ranks)
    for name, child in module.named_children():
        setattr(module, name, joined(child, mean, ranks))
    return module


class JoinedBatchNorm(_BatchNorm):
    """Takes over a batch norm's parameters and statistics, under the same names.

    Every rank has an equally large part of the batch. Moments are float32, the answer has the
    input's dtype.
    """

    def __init__(self, norm: _BatchNorm, mean: Mean, ranks: int):
        assert norm.affine, "a batch norm without parameters is not joined"
        assert norm.momentum is not None, "nor one whose statistics are plain means"
        super().__init__(norm.num_features, norm.eps, norm.momentum)
        self.load_state_dict(norm.state_dict())
        self._ranks = ranks
        # Ranks meet outside of what is compiled.
        self._over_ranks = torch.compiler.disable(partial(_MeanOverRanks.apply, mean))

    def forward(self, input: Tensor) -> Tensor:
        """Same shape; channels are the second axis."""
        x = input
        if not self.training:
            return super().forward(x)
        over = [axis for axis in range(x.ndim) if axis != 1]
        shape = (-1, *(1 for _ in over[1:]))
        with full_precision(x.device):
            h = x.float()
            mine = torch.stack([h.mean(over), h.square().mean(over)])
            mean, power = self._over_ranks(mine)
            variance = (power - mean.square()).clamp_min(0)
            self._follow(mean.detach(), variance.detach(), self._ranks * x.numel() // x.shape[1])
            scale = self.weight * (variance + self.eps).rsqrt()
            shift = self.bias - mean * scale
            return (h * scale.view(shape) + shift.view(shape)).to(x.dtype)

    def _check_input_dim(self, input: Tensor) -> None:
        """Any number of axes."""

    @torch.no_grad()
    def _follow(self, mean: Tensor, variance: Tensor, num: int) -> None:
        assert isinstance(self.running_mean, Tensor)
        assert isinstance(self.running_var, Tensor)
        assert isinstance(self.num_batches_tracked, Tensor)
        assert self.momentum is not None
        self.running_mean.lerp_(mean, self.momentum)
        self.running_var.lerp_(variance * (num / max(1, num - 1)), self.momentum)
        self.num_batches_tracked += 1


class _MeanOverRanks(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, mean: Mean, value: Tensor) -> Tensor:
        ctx.mean = mean
        return mean(value)

    @staticmethod
    def backward(ctx: Any, *slopes: Tensor) -> tuple[None, Tensor]:
        # A rank's moments reach the losses of all ranks; gradients are averaged over ranks later.
        return None, ctx.mean(slopes[0].contiguous())
