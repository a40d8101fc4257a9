"""The blocks of the codec: residual, attention, halving and doubling.

Where they run on a GPU, group norm, SiLU, residual sums and the convolutions' biases are done in
passes of our own (``fused``): the same numbers, but for rounding.
"""

import functools
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from cartok.core.compiled import kernels_work
from cartok.core.precision import full_precision

_PLAIN_CELLS = 1024
"""Up to here attention writes its table out: no fused kernel knows heads of 512 channels well."""

_FUSED_CHANNELS = 128
"""Up to here a GPU's fused kernels know heads well, whatever the grid."""


class Pending(NamedTuple):
    """h + bias, + x if there is one, not added yet: who takes it adds it in a pass of its own.

    On a GPU that is a third of a block's memory traffic. ``h`` is fresh from a convolution and may
    be written to.
    """

    h: Tensor
    bias: Tensor | None
    x: Tensor | None = None

    def added(self) -> Tensor:
        """The sum."""
        assert self.bias is not None
        if runs_fused(self.h):
            from cartok.tokenizer.fused import AddBias

            return AddBias.apply(self.h, self.bias, self.x)
        h = self.h + self.bias.to(self.h.dtype)[:, None, None]
        return h if self.x is None else self.x + h


def settled(x: Tensor | Pending) -> Tensor:
    """A tensor of what may be a sum yet to be made."""
    return x.added() if isinstance(x, Pending) else x


class ResidualBlock(nn.Module):
    """Two normalised 3x3 convolutions beside the identity (or a 1x1 where widths differ)."""

    def __init__(self, before: int, after: int, groups: int):
        super().__init__()
        self.norm1 = NormSiLU(groups, before)
        self.conv1 = nn.Conv2d(before, after, 3, padding=1)
        self.norm2 = NormSiLU(groups, after)
        self.conv2 = nn.Conv2d(after, after, 3, padding=1)
        self.skip = nn.Identity() if before == after else nn.Conv2d(before, after, 1)

    def forward(self, x: Tensor | Pending) -> Tensor | Pending:
        """Same grid, ``after`` channels."""
        h, x = self.norm1.beside(x)
        if not runs_fused(x):
            return self.skip(x) + self.conv2(self.norm2(self.conv1(h)))
        # The biases of the convolutions ride on passes that are made anyway.
        h = self.norm2(F.conv2d(h, self.conv1.weight, padding=1), self.conv1.bias)
        h, bias = F.conv2d(h, self.conv2.weight, padding=1), self.conv2.bias
        if isinstance(self.skip, nn.Conv2d):
            assert bias is not None
            assert self.skip.bias is not None
            x, bias = F.conv2d(x, self.skip.weight), bias + self.skip.bias
        return Pending(h, bias, x)


class NormSiLU(nn.Module):
    """Group norm, then SiLU; statistics in float32, the answer in the dtype of the input."""

    def __init__(self, groups: int, channels: int):
        super().__init__()
        self.groups, self.eps = groups, 1e-6
        self.weight = nn.Parameter(torch.ones(channels))
        self.bias = nn.Parameter(torch.zeros(channels))

    def forward(self, x: Tensor | Pending, bias: Tensor | None = None) -> Tensor:
        """Same shape; ``bias``, one number a channel, is added to a tensor first."""
        if isinstance(x, Pending):
            return self.beside(x)[0]
        if runs_fused(x):
            from cartok.tokenizer import fused

            return fused.NormSiLU.apply(x, self.weight, self.bias, bias, self.groups, self.eps)
        with full_precision(x.device):
            h = x if bias is None else x + bias.to(x.dtype)[:, None, None]
            weight, shift = self.weight.to(x.dtype), self.bias.to(x.dtype)
            return F.silu(F.group_norm(h, self.groups, weight, shift, self.eps))

    def beside(self, x: Tensor | Pending) -> tuple[Tensor, Tensor]:
        """The answer, and the input, settled, for the branch round the norm."""
        if isinstance(x, Pending) and runs_fused(x.h):
            from cartok.tokenizer.fused import AddNormSiLU

            return AddNormSiLU.apply(*x, self.weight, self.bias, self.groups, self.eps)
        x = settled(x)
        return self(x), x


class GridAttention(nn.Module):
    """Every cell of the grid looks at every other: one head, as VQGAN has it."""

    def __init__(self, channels: int, groups: int):
        super().__init__()
        self.norm = nn.GroupNorm(groups, channels, eps=1e-6)
        self.qkv = nn.Conv2d(channels, 3 * channels, 1)
        self.out = nn.Conv2d(channels, channels, 1)

    def __call__(self, x: Tensor | Pending) -> Tensor:
        """Settles first: what may be compiled, ``forward``, meets no kernels of our own."""
        return super().__call__(settled(x))

    def forward(self, x: Tensor) -> Tensor:
        """Same shape."""
        _, channels, rows, cols = x.shape
        cells = self.norm(x).movedim(1, -1).flatten(1, 2)  # batch, cell, channel
        q, k, v = _each_cell(self.qkv, cells).chunk(3, dim=-1)
        if rows * cols <= _PLAIN_CELLS and not (x.is_cuda and channels <= _FUSED_CHANNELS):
            h = (q @ k.mT * channels**-0.5).softmax(-1).to(v.dtype) @ v
        else:
            h = F.scaled_dot_product_attention(q[:, None], k[:, None], v[:, None]).squeeze(1)
        return x + _each_cell(self.out, h).unflatten(1, (rows, cols)).movedim(-1, 1)


def _each_cell(conv: nn.Conv2d, cells: Tensor) -> Tensor:
    """A 1x1 convolution as the matrix product it is, of cells in rows."""
    return F.linear(cells, conv.weight.flatten(1), conv.bias)


class Downsample(nn.Module):
    """Halves the grid with a strided convolution, padded on the right and below."""

    def __init__(self, channels: int):
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, 3, stride=2)

    def forward(self, x: Tensor | Pending) -> Tensor | Pending:
        """Half the side, same channels."""
        # Padded by two all round, which takes no copy, then without the first row and column.
        h = F.conv2d(settled(x), self.conv.weight, stride=2, padding=2)[:, :, 1:, 1:]
        return pending(channels_last(h), self.conv.bias)


class Upsample(nn.Module):
    """Doubles the grid: nearest cell, then a 3x3 convolution; both in one.

    A cell's four copies meet only 2x2 different cells under a 3x3 kernel, so the two are one
    transposed convolution whose 4x4 kernel holds sums of the 3x3 one: 4/9 of the work.
    """

    def __init__(self, channels: int):
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, 3, padding=1)

    def forward(self, x: Tensor | Pending) -> Tensor | Pending:
        """Twice the side, same channels."""
        kernel = self.conv.weight.flip(2, 3)
        kernel = F.pad(kernel, (1, 0)) + F.pad(kernel, (0, 1))
        kernel = F.pad(kernel, (0, 0, 1, 0)) + F.pad(kernel, (0, 0, 0, 1))
        h = F.conv_transpose2d(settled(x), kernel.transpose(0, 1), stride=2, padding=1)
        return pending(h, self.conv.bias)


def channels_last(x: Tensor) -> Tensor:
    """On a GPU, the layout in memory that its convolutions are fastest in; the same numbers."""
    return x.contiguous(memory_format=torch.channels_last) if x.is_cuda else x


def pending(h: Tensor, bias: Tensor | None) -> Tensor | Pending:
    """A convolution's answer and its bias, added at once where nothing is gained by waiting."""
    made = Pending(h, bias)
    return made if runs_fused(h) else made.added()


def runs_fused(x: Tensor) -> bool:
    """True where ``kernels`` can run: on an NVIDIA GPU, channels last."""
    last = x.is_cuda and x.is_contiguous(memory_format=torch.channels_last)
    return last and _kernels_work(x.device)


@functools.cache
def _kernels_work(device: torch.device) -> bool:
    def run_one() -> None:
        from cartok.tokenizer import fused

        fused.run_one(device)

    return kernels_work(device, run_one, "codec")
