"""GPU kernels of the codec's most frequent step: group norm, then SiLU, channels last in memory.

torch has no group norm for that layout: its own turns every activation round and back, in
float32, which takes longer than the convolutions. Here a picture's activations are rows of
channels. Every pass over them runs at the memory's speed: the moments of each channel; the answer;
and, going back, the two sums that the gradient needs; the gradient. Arithmetic is float32, storage
the input's.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

_PARTS = 64  # into how many a picture is cut where its cells are added up, at most
_ELEMENTS = 4096  # of one tile
_WARPS = 4


@triton.jit
def _silu_slope(z):
    gate = tl.sigmoid(z)
    return gate * (1 + z * (1 - gate))


@triton.jit
def _sums_kernel(
    x, slope, scale, shift, out, rows, channels, steps,
    sloped: tl.constexpr, tile: tl.constexpr, wide: tl.constexpr,
):  # fmt: skip
    """Of a part of a picture: per channel the sums of a and a * x; a is x, or a gradient."""
    picture, part = tl.program_id(0).to(tl.int64), tl.program_id(1)
    c = tl.arange(0, wide)
    inside = c < channels
    first = tl.zeros([tile, wide], tl.float32)
    second = tl.zeros([tile, wide], tl.float32)
    if sloped:
        a = tl.load(scale + picture * channels + c, mask=inside, other=0.0)
        b = tl.load(shift + picture * channels + c, mask=inside, other=0.0)
    for step in range(steps):
        row = (part * steps + step) * tile + tl.arange(0, tile)
        at = (picture * rows + row)[:, None] * channels + c[None, :]
        known = (row < rows)[:, None] & inside[None, :]
        value = tl.load(x + at, mask=known, other=0.0).to(tl.float32)
        if sloped:
            weight = tl.load(slope + at, mask=known, other=0.0).to(tl.float32)
            weight = weight * _silu_slope(value * a[None, :] + b[None, :])
        else:
            weight = value
        first += weight
        second += weight * value
    to = out + (picture * tl.num_programs(1) + part) * 2 * channels
    tl.store(to + c, tl.sum(first, 0), mask=inside)
    tl.store(to + channels + c, tl.sum(second, 0), mask=inside)


@triton.jit
def _added(sums, picture, parts, channels, c, inside):
    """Both sums of a picture, over its parts."""
    first = tl.zeros_like(c).to(tl.float32)
    second = tl.zeros_like(c).to(tl.float32)
    for part in range(parts):
        at = sums + (picture * parts + part) * 2 * channels + c
        first += tl.load(at, mask=inside, other=0.0)
        second += tl.load(at + channels, mask=inside, other=0.0)
    return first, second


@triton.jit
def _over_groups(one, two, c, groups, size):
    """The mean of each channel's group, at every channel, of two things at once."""
    mean_one = tl.zeros_like(one)
    mean_two = tl.zeros_like(two)
    for group in range(groups):
        mine = c // size == group
        mean_one = tl.where(mine, tl.sum(tl.where(mine, one, 0.0), 0) / size, mean_one)
        mean_two = tl.where(mine, tl.sum(tl.where(mine, two, 0.0), 0) / size, mean_two)
    return mean_one, mean_two


@triton.jit
def _coefficients_kernel(
    sums, weight, beta, bias, scale, shift, kept, parts, channels, cells, groups, eps,
    wide: tl.constexpr,
):  # fmt: skip
    """From a picture's sums: silu's argument is x * scale + shift."""
    picture = tl.program_id(0).to(tl.int64)
    c = tl.arange(0, wide)
    inside = c < channels
    first, second = _added(sums, picture, parts, channels, c, inside)
    before = tl.load(bias + c, mask=inside, other=0.0)
    first = first / cells
    mean_c = first + before
    square_c = second / cells + 2 * before * first + before * before
    mean, square = _over_groups(mean_c, square_c, c, groups, channels // groups)
    rate = 1 / tl.sqrt(tl.maximum(square - mean * mean, 0.0) + eps)
    by = rate * tl.load(weight + c, mask=inside, other=0.0)
    to = tl.load(beta + c, mask=inside, other=0.0) + (before - mean) * by
    at = picture * channels + c
    tl.store(scale + at, by, mask=inside)
    tl.store(shift + at, to, mask=inside)
    at = picture * 3 * channels + c
    tl.store(kept + at, mean_c, mask=inside)
    tl.store(kept + at + channels, mean, mask=inside)
    tl.store(kept + at + 2 * channels, rate, mask=inside)


@triton.jit
def _back_kernel(
    sums, weight, bias, scale, kept, tilt, lift, moved, parts, channels, cells, groups,
    wide: tl.constexpr,
):  # fmt: skip
    """From a picture's sums: its gradient is that of z times scale, plus x * tilt + lift."""
    picture = tl.program_id(0).to(tl.int64)
    c = tl.arange(0, wide)
    inside = c < channels
    straight, crossed = _added(sums, picture, parts, channels, c, inside)
    before = tl.load(bias + c, mask=inside, other=0.0)
    gain = tl.load(weight + c, mask=inside, other=0.0)
    at = picture * 3 * channels + c
    mean_c = tl.load(kept + at, mask=inside, other=0.0)
    mean = tl.load(kept + at + channels, mask=inside, other=0.0)
    rate = tl.load(kept + at + 2 * channels, mask=inside, other=0.0)
    crossed = (crossed + (before - mean) * straight) * rate  # with the normalised input
    one, two = _over_groups(straight * gain, crossed * gain, c, groups, channels // groups)
    by = -rate * rate * two / cells
    to = -rate * one / cells - mean * by
    tl.store(tilt + picture * channels + c, by, mask=inside)
    tl.store(lift + picture * channels + c, to + before * by, mask=inside)
    a = tl.load(scale + picture * channels + c, mask=inside, other=0.0)
    tl.store(moved + at, crossed, mask=inside)
    tl.store(moved + at + channels, straight, mask=inside)
    tl.store(moved + at + 2 * channels, a * straight + cells * (by * mean_c + to), mask=inside)


@triton.jit
def _apply_kernel(x, scale, shift, y, rows, channels, tile: tl.constexpr, wide: tl.constexpr):
    """silu(x * scale + shift)."""
    picture = tl.program_id(0).to(tl.int64)
    c = tl.arange(0, wide)
    inside = c < channels
    a = tl.load(scale + picture * channels + c, mask=inside, other=0.0)
    b = tl.load(shift + picture * channels + c, mask=inside, other=0.0)
    row = tl.program_id(1) * tile + tl.arange(0, tile)
    at = (picture * rows + row)[:, None] * channels + c[None, :]
    known = (row < rows)[:, None] & inside[None, :]
    z = tl.load(x + at, mask=known, other=0.0).to(tl.float32) * a[None, :] + b[None, :]
    tl.store(y + at, (z * tl.sigmoid(z)).to(y.dtype.element_ty), mask=known)


@triton.jit
def _gradient_kernel(
    x, slope, carried, scale, shift, tilt, lift, dx, rows, channels,
    carries: tl.constexpr, tile: tl.constexpr, wide: tl.constexpr,
):  # fmt: skip
    """Gradient of z times scale, plus x * tilt + lift, plus what comes round the norm."""
    picture = tl.program_id(0).to(tl.int64)
    c = tl.arange(0, wide)
    inside = c < channels
    a = tl.load(scale + picture * channels + c, mask=inside, other=0.0)
    b = tl.load(shift + picture * channels + c, mask=inside, other=0.0)
    p = tl.load(tilt + picture * channels + c, mask=inside, other=0.0)
    q = tl.load(lift + picture * channels + c, mask=inside, other=0.0)
    row = tl.program_id(1) * tile + tl.arange(0, tile)
    at = (picture * rows + row)[:, None] * channels + c[None, :]
    known = (row < rows)[:, None] & inside[None, :]
    value = tl.load(x + at, mask=known, other=0.0).to(tl.float32)
    dz = tl.load(slope + at, mask=known, other=0.0).to(tl.float32)
    dz = dz * _silu_slope(value * a[None, :] + b[None, :])
    out = dz * a[None, :] + value * p[None, :] + q[None, :]
    if carries:
        out += tl.load(carried + at, mask=known, other=0.0).to(tl.float32)
    tl.store(dx + at, out.to(dx.dtype.element_ty), mask=known)


@triton.jit
def _add_kernel(h, bias, x, total, channels, has_x: tl.constexpr, size: tl.constexpr):
    """h + bias + x into h, where channels come last."""
    at = tl.program_id(0).to(tl.int64) * size + tl.arange(0, size)
    known = at < total
    value = tl.load(h + at, mask=known, other=0.0).to(tl.float32)
    value += tl.load(bias + at % channels, mask=known, other=0.0)
    if has_x:
        value += tl.load(x + at, mask=known, other=0.0).to(tl.float32)
    tl.store(h + at, value.to(h.dtype.element_ty), mask=known)


class GroupNormSiLU(torch.autograd.Function):
    """silu(group_norm(x + bias)) of x whose channels come last, and x itself.

    Who also needs x (a residual branch) takes the second answer: the two gradients of x are then
    added in the pass that makes the first. ``bias`` is that of the convolution before: added here,
    it costs no pass of its own.
    """

    @staticmethod
    def forward(ctx, x: Tensor, weight: Tensor, beta: Tensor, bias: Tensor | None,
                groups: int, eps: float) -> tuple[Tensor, Tensor]:  # fmt: skip
        """Both answers in the dtype of ``x``; parameters are float32."""
        batch, channels, cells = x.shape[0], x.shape[1], x.shape[2] * x.shape[3]
        before = torch.zeros_like(weight) if bias is None else bias
        sums = _sums(x)
        scale, shift = torch.empty(2, batch, channels, device=x.device)
        kept = torch.empty(batch, 3, channels, device=x.device)
        _coefficients_kernel[(batch,)](
            sums, weight, beta, before, scale, shift, kept, sums.shape[1], channels, cells, groups,
            eps, wide=triton.next_power_of_2(channels),
        )  # fmt: skip
        y = torch.empty_like(x)
        _over_tiles(_apply_kernel, x, scale, shift, y)
        ctx.save_for_backward(x, weight, before, scale, shift, kept)
        ctx.groups, ctx.has_bias = groups, bias is not None
        ctx.set_materialize_grads(False)
        return y, x

    @staticmethod
    def backward(ctx, dy: Tensor, carried: Tensor | None) -> tuple[Tensor | None, ...]:
        """Gradients of x, weight, beta and bias; the last three from sums that are there."""
        x, weight, before, scale, shift, kept = ctx.saved_tensors
        batch, channels, cells = x.shape[0], x.shape[1], x.shape[2] * x.shape[3]
        dy = channels_last(dy)
        sums = _sums(x, dy, scale, shift)
        tilt, lift = torch.empty_like(scale), torch.empty_like(scale)
        moved = torch.empty_like(kept)
        _back_kernel[(batch,)](
            sums, weight, before, scale, kept, tilt, lift, moved, sums.shape[1], channels, cells,
            ctx.groups, wide=triton.next_power_of_2(channels),
        )  # fmt: skip
        carries = carried is not None
        beside = channels_last(carried) if carries else dy
        dx = torch.empty_like(x)
        _over_tiles(_gradient_kernel, x, dy, beside, scale, shift, tilt, lift, dx, carries=carries)
        dweight, dbeta, dbias = moved.sum(0)
        return dx, dweight, dbeta, dbias if ctx.has_bias else None, None, None


class AddBias(torch.autograd.Function):
    """h + bias, or h + bias + x, in one pass and in place of h; channels last in memory."""

    @staticmethod
    def forward(ctx, h: Tensor, bias: Tensor, x: Tensor | None) -> Tensor:
        """``h``; ``x`` is of its shape."""
        beside = h if x is None else channels_last(x)
        grid = (triton.cdiv(h.numel(), _ELEMENTS),)
        _add_kernel[grid](
            h,
            bias,
            beside,
            h.numel(),
            h.shape[1],
            has_x=x is not None,
            size=_ELEMENTS,
            num_warps=_WARPS,
        )
        ctx.mark_dirty(h)
        ctx.dtype = None if x is None else x.dtype
        return h

    @staticmethod
    def backward(ctx, dy: Tensor) -> tuple[Tensor, Tensor, Tensor | None]:
        """The gradient itself, its sum per channel, itself again."""
        dy = channels_last(dy)
        dbias = _sums(dy)[:, :, 0].sum((0, 1))
        return dy, dbias, None if ctx.dtype is None else dy.to(ctx.dtype)


def _sums(
    x: Tensor, slope: Tensor | None = None, scale: Tensor | None = None, shift: Tensor | None = None
) -> Tensor:
    """Batch, part, 2, channel: to be added over the parts."""
    batch, channels, rows = x.shape[0], x.shape[1], x.shape[2] * x.shape[3]
    wide = triton.next_power_of_2(channels)
    tile = max(1, _ELEMENTS // wide)
    steps = max(1, triton.cdiv(triton.cdiv(rows, tile), _PARTS))
    parts = triton.cdiv(rows, tile * steps)
    out = torch.empty(batch, parts, 2, channels, device=x.device, dtype=torch.float32)
    _sums_kernel[batch, parts](
        x, x if slope is None else slope, out if scale is None else scale,
        out if shift is None else shift, out, rows, channels, steps,
        sloped=slope is not None, tile=tile, wide=wide, num_warps=_WARPS,
    )  # fmt: skip
    return out


def _over_tiles(kernel, x: Tensor, *others: Tensor, **flags: bool) -> None:
    rows, channels = x.shape[2] * x.shape[3], x.shape[1]
    wide = triton.next_power_of_2(channels)
    tile = max(1, _ELEMENTS // wide)
    grid = (x.shape[0], triton.cdiv(rows, tile))
    kernel[grid](x, *others, rows, channels, tile=tile, wide=wide, num_warps=_WARPS, **flags)


def channels_last(x: Tensor) -> Tensor:
    """The same numbers with channels last in memory."""
    return x.contiguous(memory_format=torch.channels_last)
