"""GPU kernels of the codec's most frequent step: group norm, then SiLU, channels last in memory.

torch has no group norm for that layout: its own turns every activation round and back, in
float32, which takes longer than the convolutions. Here a picture's activations are rows of
channels. Every pass over them runs at the memory's speed: the moments of each channel; the answer;
and, going back, the two sums that the gradient needs; the gradient. Arithmetic is float32, storage
the input's. A grid's first axis is the parts of a picture: CUDA counts only that beyond 65,535.
"""

import triton
import triton.language as tl


@triton.jit
def _silu_slope(z):
    gate = tl.sigmoid(z)
    return gate * (1 + z * (1 - gate))


@triton.jit
def sums_kernel(
    x, slope, scale, shift, out, rows, channels, steps,
    sloped: tl.constexpr, tile: tl.constexpr, wide: tl.constexpr,
):  # fmt: skip
    """Of a part of a picture: per channel the sums of a and a * x; a is x, or a gradient."""
    part, picture = tl.program_id(0), tl.program_id(1).to(tl.int64)
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
    to = out + (picture * tl.num_programs(0) + part) * 2 * channels
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
def _over_groups(one, two, c, groups, size, wide: tl.constexpr, square: tl.constexpr):
    """The mean of each channel's group, at every channel, of two things at once.

    ``square`` is the size of a group where all is a power of two, and 0 where it is not.
    """
    if square:
        shape: tl.constexpr = (wide // square, square)
        mean_one = tl.sum(tl.reshape(one, shape), 1, keep_dims=True) / square
        mean_two = tl.sum(tl.reshape(two, shape), 1, keep_dims=True) / square
        mean_one = tl.reshape(tl.broadcast_to(mean_one, shape), (wide,))
        mean_two = tl.reshape(tl.broadcast_to(mean_two, shape), (wide,))
        return mean_one, mean_two
    mean_one = tl.zeros_like(one)
    mean_two = tl.zeros_like(two)
    for group in range(groups):
        mine = c // size == group
        mean_one = tl.where(mine, tl.sum(tl.where(mine, one, 0.0), 0) / size, mean_one)
        mean_two = tl.where(mine, tl.sum(tl.where(mine, two, 0.0), 0) / size, mean_two)
    return mean_one, mean_two


@triton.jit
def coefficients_kernel(
    sums, weight, beta, bias, scale, shift, kept, parts, channels, cells, groups, eps,
    wide: tl.constexpr, square: tl.constexpr,
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
    size = channels // groups
    mean, power = _over_groups(mean_c, square_c, c, groups, size, wide, square)
    rate = 1 / tl.sqrt(tl.maximum(power - mean * mean, 0.0) + eps)
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
def back_kernel(
    sums, weight, bias, scale, kept, tilt, lift, moved, parts, channels, cells, groups,
    wide: tl.constexpr, square: tl.constexpr,
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
    one, two = straight * gain, crossed * gain
    one, two = _over_groups(one, two, c, groups, channels // groups, wide, square)
    by = -rate * rate * two / cells
    to = -rate * one / cells - mean * by
    tl.store(tilt + picture * channels + c, by, mask=inside)
    tl.store(lift + picture * channels + c, to + before * by, mask=inside)
    a = tl.load(scale + picture * channels + c, mask=inside, other=0.0)
    tl.store(moved + at, crossed, mask=inside)
    tl.store(moved + at + channels, straight, mask=inside)
    tl.store(moved + at + 2 * channels, a * straight + cells * (by * mean_c + to), mask=inside)


@triton.jit
def apply_kernel(x, scale, shift, y, rows, channels, tile: tl.constexpr, wide: tl.constexpr):
    """silu(x * scale + shift)."""
    part, picture = tl.program_id(0), tl.program_id(1).to(tl.int64)
    c = tl.arange(0, wide)
    inside = c < channels
    a = tl.load(scale + picture * channels + c, mask=inside, other=0.0)
    b = tl.load(shift + picture * channels + c, mask=inside, other=0.0)
    row = part * tile + tl.arange(0, tile)
    at = (picture * rows + row)[:, None] * channels + c[None, :]
    known = (row < rows)[:, None] & inside[None, :]
    z = tl.load(x + at, mask=known, other=0.0).to(tl.float32) * a[None, :] + b[None, :]
    tl.store(y + at, (z * tl.sigmoid(z)).to(y.dtype.element_ty), mask=known)


@triton.jit
def gradient_kernel(
    x, slope, carried, scale, shift, tilt, lift, dx, out, rows, channels, steps,
    carries: tl.constexpr, adds_up: tl.constexpr, tile: tl.constexpr, wide: tl.constexpr,
):  # fmt: skip
    """Gradient of z times scale, plus x * tilt + lift, plus what comes round the norm.

    Of a part of a picture; ``adds_up`` leaves the part's sum per channel in ``out``.
    """
    part, picture = tl.program_id(0), tl.program_id(1).to(tl.int64)
    c = tl.arange(0, wide)
    inside = c < channels
    a = tl.load(scale + picture * channels + c, mask=inside, other=0.0)
    b = tl.load(shift + picture * channels + c, mask=inside, other=0.0)
    p = tl.load(tilt + picture * channels + c, mask=inside, other=0.0)
    q = tl.load(lift + picture * channels + c, mask=inside, other=0.0)
    total = tl.zeros([tile, wide], tl.float32)
    for step in range(steps):
        row = (part * steps + step) * tile + tl.arange(0, tile)
        at = (picture * rows + row)[:, None] * channels + c[None, :]
        known = (row < rows)[:, None] & inside[None, :]
        value = tl.load(x + at, mask=known, other=0.0).to(tl.float32)
        dz = tl.load(slope + at, mask=known, other=0.0).to(tl.float32)
        dz = dz * _silu_slope(value * a[None, :] + b[None, :])
        found = dz * a[None, :] + value * p[None, :] + q[None, :]
        if carries:
            found += tl.load(carried + at, mask=known, other=0.0).to(tl.float32)
        tl.store(dx + at, found.to(dx.dtype.element_ty), mask=known)
        if adds_up:
            total += tl.where(known, found, 0.0)
    if adds_up:
        to = out + (picture * tl.num_programs(0) + part) * channels
        tl.store(to + c, tl.sum(total, 0), mask=inside)


@triton.jit
def add_kernel(
    h, bias, x, out, rows, channels, steps,
    has_x: tl.constexpr, adds_up: tl.constexpr, tile: tl.constexpr, wide: tl.constexpr,
):  # fmt: skip
    """h + bias + x into h; ``adds_up`` leaves a part's sums, as ``sums_kernel`` does."""
    part, picture = tl.program_id(0), tl.program_id(1).to(tl.int64)
    c = tl.arange(0, wide)
    inside = c < channels
    before = tl.load(bias + c, mask=inside, other=0.0)
    first = tl.zeros([tile, wide], tl.float32)
    second = tl.zeros([tile, wide], tl.float32)
    for step in range(steps):
        row = (part * steps + step) * tile + tl.arange(0, tile)
        at = (picture * rows + row)[:, None] * channels + c[None, :]
        known = (row < rows)[:, None] & inside[None, :]
        value = tl.load(h + at, mask=known, other=0.0).to(tl.float32) + before[None, :]
        if has_x:
            value += tl.load(x + at, mask=known, other=0.0).to(tl.float32)
        rounded = value.to(h.dtype.element_ty)
        tl.store(h + at, rounded, mask=known)
        if adds_up:
            value = tl.where(known, rounded.to(tl.float32), 0.0)
            first += value
            second += value * value
    if adds_up:
        to = out + (picture * tl.num_programs(0) + part) * 2 * channels
        tl.store(to + c, tl.sum(first, 0), mask=inside)
        tl.store(to + channels + c, tl.sum(second, 0), mask=inside)
