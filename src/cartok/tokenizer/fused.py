"""The codec's GPU steps as torch functions: ``kernels`` with their gradients.

Only imported where they can run (see ``blocks.runs_fused``). Parameters are float32; activations
have their channels last in memory, and answers the dtype of activations. A norm's variance is the
mean square less the squared mean, in float32: exact to 1e-4 where the mean is 30 deviations, to
1e-2 where it is 300, of which bfloat16 could store nothing.
"""

import torch
import triton
from torch import Tensor

from cartok.tokenizer.kernels import (
    add_kernel,
    apply_kernel,
    back_kernel,
    coefficients_kernel,
    gradient_kernel,
    sums_kernel,
)

_PARTS = 64  # into how many a picture is cut where its cells are added up, at most
_ELEMENTS = 4096  # of one tile
_WARPS = 4


def run_one(device: torch.device) -> None:
    """The smallest kernel there is, to see whether any can run."""
    x = torch.zeros(1, 1, 1, 1, device=device)
    AddBias.apply(x, x.flatten(), None)


class NormSiLU(torch.autograd.Function):
    """silu(group_norm(x + bias)) of x whose channels come last.

    ``bias`` is that of the convolution before: added here, it costs no pass of its own.
    """

    @staticmethod
    def forward(ctx, x: Tensor, weight: Tensor, beta: Tensor, bias: Tensor | None,
                groups: int, eps: float) -> Tensor:  # fmt: skip
        """In the dtype of ``x``."""
        before = torch.zeros_like(weight) if bias is None else bias
        y = _normalised(ctx, x, _sums(x), weight, beta, before, groups, eps)
        ctx.has_bias = bias is not None
        return y

    @staticmethod
    def backward(ctx, dy: Tensor) -> tuple[Tensor | None, ...]:
        """Gradients of x, weight, beta and bias; the last three from sums that are there."""
        dx, moved, _ = _gradients(ctx, dy)
        dweight, dbeta, dbias = moved.sum(0)
        return dx, dweight, dbeta, dbias if ctx.has_bias else None, None, None


class AddNormSiLU(torch.autograd.Function):
    """s = h + bias + x, in place of h, and silu(group_norm(s)); channels last.

    What the end of one residual block and the beginning of the next take together: the moments of
    s are added up as it is written, and its bias' gradient as that of s is.
    """

    @staticmethod
    def forward(ctx, h: Tensor, bias: Tensor, x: Tensor | None, weight: Tensor, beta: Tensor,
                groups: int, eps: float) -> tuple[Tensor, Tensor]:  # fmt: skip
        """The norm's answer, and s for the branch round it; both in the dtype of ``h``."""
        sums = _add(h, bias, x, adds_up=True)
        y = _normalised(ctx, h, sums, weight, beta, torch.zeros_like(weight), groups, eps)
        ctx.mark_dirty(h)
        ctx.set_materialize_grads(False)
        ctx.dtype = None if x is None else x.dtype
        return y, h

    @staticmethod
    def backward(ctx, dy: Tensor | None, carried: Tensor | None) -> tuple[Tensor | None, ...]:
        """Gradients of h, bias, x, weight and beta."""
        dy = torch.zeros_like(carried) if dy is None else dy
        ds, moved, dbias = _gradients(ctx, dy, carried, adds_up=True)
        dweight, dbeta, _ = moved.sum(0)
        dx = None if ctx.dtype is None else ds.to(ctx.dtype)
        return ds, dbias, dx, dweight, dbeta, None, None


class AddBias(torch.autograd.Function):
    """h + bias, or h + bias + x, in one pass and in place of h; channels last in memory."""

    @staticmethod
    def forward(ctx, h: Tensor, bias: Tensor, x: Tensor | None) -> Tensor:
        """``h``; ``x`` is of its shape."""
        _add(h, bias, x, adds_up=False)
        ctx.mark_dirty(h)
        ctx.dtype = None if x is None else x.dtype
        return h

    @staticmethod
    def backward(ctx, dy: Tensor) -> tuple[Tensor, Tensor, Tensor | None]:
        """The gradient itself, its sum per channel, itself again."""
        dy = channels_last(dy)
        dbias = _sums(dy)[:, :, 0].sum((0, 1))
        return dy, dbias, None if ctx.dtype is None else dy.to(ctx.dtype)


def channels_last(x: Tensor) -> Tensor:
    """The same numbers with channels last in memory."""
    return x.contiguous(memory_format=torch.channels_last)


def _normalised(
    ctx, x: Tensor, sums: Tensor, weight: Tensor, beta: Tensor, before: Tensor, groups: int,
    eps: float,
) -> Tensor:  # fmt: skip
    """silu(group_norm(x + before)) given the sums of x; remembers what going back needs."""
    batch, channels, cells = x.shape[0], x.shape[1], x.shape[2] * x.shape[3]
    scale, shift = torch.empty(2, batch, channels, device=x.device)
    kept = torch.empty(batch, 3, channels, device=x.device)
    y = torch.empty_like(x)
    grid, shape = _tiles(x, most=0)
    with torch.cuda.device_of(x):
        coefficients_kernel[(batch,)](
            sums, weight, beta, before, scale, shift, kept, sums.shape[1], channels, cells, groups,
            eps, wide=triton.next_power_of_2(channels), square=_square(channels, groups),
        )  # fmt: skip
        apply_kernel[grid](x, scale, shift, y, cells, channels, **shape, num_warps=_WARPS)
    ctx.save_for_backward(x, weight, before, scale, shift, kept)
    ctx.groups = groups
    return y


def _gradients(
    ctx, dy: Tensor, carried: Tensor | None = None, adds_up: bool = False
) -> tuple[Tensor, Tensor, Tensor | None]:
    """Of x; of weight, beta and the bias before, picture by picture; and the sum of the first."""
    x, weight, before, scale, shift, kept = ctx.saved_tensors
    batch, channels, cells = x.shape[0], x.shape[1], x.shape[2] * x.shape[3]
    dy = channels_last(dy)
    sums = _sums(x, dy, scale, shift)
    tilt, lift = torch.empty_like(scale), torch.empty_like(scale)
    moved, dx = torch.empty_like(kept), torch.empty_like(x)
    beside = dy if carried is None else channels_last(carried)
    grid, shape = _tiles(x, most=_PARTS if adds_up else 0)
    parts = torch.empty(batch, grid[0], channels, device=x.device) if adds_up else tilt
    steps = _steps(cells, grid[0], shape["tile"])
    with torch.cuda.device_of(x):
        back_kernel[(batch,)](
            sums, weight, before, scale, kept, tilt, lift, moved, sums.shape[1], channels, cells,
            ctx.groups, wide=triton.next_power_of_2(channels),
            square=_square(channels, ctx.groups),
        )  # fmt: skip
        gradient_kernel[grid](
            x, dy, beside, scale, shift, tilt, lift, dx, parts, cells, channels, steps,
            carries=carried is not None, adds_up=adds_up, **shape, num_warps=_WARPS,
        )  # fmt: skip
    return dx, moved, parts.sum((0, 1)) if adds_up else None


def _add(h: Tensor, bias: Tensor, x: Tensor | None, adds_up: bool) -> Tensor:
    """h + bias + x into h; returns its sums, if asked for: batch, part, 2, channel."""
    grid, shape = _tiles(h, most=_PARTS if adds_up else 0)
    cells, channels = h.shape[2] * h.shape[3], h.shape[1]
    sums = torch.empty(h.shape[0], grid[0] if adds_up else 0, 2, channels, device=h.device)
    beside = h if x is None else channels_last(x)
    steps = _steps(cells, grid[0], shape["tile"])
    with torch.cuda.device_of(h):
        add_kernel[grid](
            h, bias, beside, sums, cells, channels, steps,
            has_x=x is not None, adds_up=adds_up, **shape, num_warps=_WARPS,
        )  # fmt: skip
    return sums


def _sums(
    x: Tensor, slope: Tensor | None = None, scale: Tensor | None = None, shift: Tensor | None = None
) -> Tensor:
    """Batch, part, 2, channel: to be added over the parts."""
    grid, shape = _tiles(x, most=_PARTS)
    cells, channels = x.shape[2] * x.shape[3], x.shape[1]
    out = torch.empty(x.shape[0], grid[0], 2, channels, device=x.device)
    steps = _steps(cells, grid[0], shape["tile"])
    with torch.cuda.device_of(x):
        sums_kernel[grid](
            x, x if slope is None else slope, out if scale is None else scale,
            out if shift is None else shift, out, cells, channels, steps,
            sloped=slope is not None, **shape, num_warps=_WARPS,
        )  # fmt: skip
    return out


def _tiles(x: Tensor, most: int) -> tuple[tuple[int, int], dict[str, int]]:
    """Programs for the parts, at most ``most`` if that is not 0, of each picture; and a tile."""
    rows, wide = x.shape[2] * x.shape[3], triton.next_power_of_2(x.shape[1])
    tile = max(1, _ELEMENTS // wide)
    parts = triton.cdiv(rows, tile)
    if most:
        parts = triton.cdiv(rows, tile * _steps(rows, min(parts, most), tile))
    return (parts, x.shape[0]), {"tile": tile, "wide": wide}


def _steps(rows: int, parts: int, tile: int) -> int:
    """Tiles of a part."""
    return triton.cdiv(triton.cdiv(rows, tile), parts)


def _square(channels: int, groups: int) -> int:
    size = channels // groups
    return size if triton.next_power_of_2(channels) == channels and size & (size - 1) == 0 else 0
