"""GPU kernels of one decoding step: what runs between a prior's matrix products, and the thin ones.

A step reads every weight once for a few rows, so its time is that of reading them and of starting
kernels. Here attention is one kernel from the projection to the mix; products with 16 rows or fewer
carry the norm before them and the sum or the gate after them. Arithmetic is float32, storage the
input's. The position is read from memory, so that one recorded step serves all of them.
"""

import triton
import triton.language as tl


@triton.jit
def _turned(first, second, cos, sin, kind: tl.constexpr):
    """Both halves of a head, rotated, and rounded as they are stored."""
    one = (first * cos - second * sin).to(kind).to(tl.float32)
    two = (first * sin + second * cos).to(kind).to(tl.float32)
    return one, two


@triton.jit
def _normal(first, second, weight, at, inside, half, eps, kind: tl.constexpr):
    """Both halves of a head at unit root mean square, times the weight."""
    power = (tl.sum(first * first, 0) + tl.sum(second * second, 0)) / (2 * half)
    rate = 1 / tl.sqrt(power + eps)
    one = first * rate * tl.load(weight + at, mask=inside, other=0.0).to(tl.float32)
    two = second * rate * tl.load(weight + half + at, mask=inside, other=0.0).to(tl.float32)
    return one.to(kind).to(tl.float32), two.to(kind).to(tl.float32)


@triton.jit
def attend_kernel(
    qkv, query_weight, key_weight, rotary, keys, values, position, mixed,
    heads, length, half, eps, scale,
    normed: tl.constexpr, wide: tl.constexpr, tile: tl.constexpr,
):  # fmt: skip
    """One head of one row: norms, rotation, the cache's new entry, and attention over all so far.

    ``qkv`` row, 3 x heads x 2 half; ``keys`` and ``values`` row, head, length, 2 half; ``rotary``
    place, 2, half; ``wide`` is the power of two that holds ``half``.
    """
    row, head = tl.program_id(0).to(tl.int64), tl.program_id(1)
    kind: tl.constexpr = keys.dtype.element_ty
    at = tl.arange(0, wide)
    inside = at < half
    now = tl.load(position)
    from_row = qkv + (row * 3 * heads + head) * 2 * half + at
    step = heads * 2 * half
    q1 = tl.load(from_row, mask=inside, other=0.0).to(tl.float32)
    q2 = tl.load(from_row + half, mask=inside, other=0.0).to(tl.float32)
    k1 = tl.load(from_row + step, mask=inside, other=0.0).to(tl.float32)
    k2 = tl.load(from_row + step + half, mask=inside, other=0.0).to(tl.float32)
    v1 = tl.load(from_row + 2 * step, mask=inside, other=0.0).to(tl.float32)
    v2 = tl.load(from_row + 2 * step + half, mask=inside, other=0.0).to(tl.float32)
    if normed:
        q1, q2 = _normal(q1, q2, query_weight, at, inside, half, eps, kind)
        k1, k2 = _normal(k1, k2, key_weight, at, inside, half, eps, kind)
    cos = tl.load(rotary + now * 2 * half + at, mask=inside, other=0.0).to(tl.float32)
    sin = tl.load(rotary + (now * 2 + 1) * half + at, mask=inside, other=0.0).to(tl.float32)
    q1, q2 = _turned(q1, q2, cos, sin, kind)
    k1, k2 = _turned(k1, k2, cos, sin, kind)
    start = (row * heads + head) * length * 2 * half
    new = start + now * 2 * half + at
    tl.store(keys + new, k1.to(kind), mask=inside)
    tl.store(keys + new + half, k2.to(kind), mask=inside)
    tl.store(values + new, v1.to(kind), mask=inside)
    tl.store(values + new + half, v2.to(kind), mask=inside)
    # The newest position is still at hand, so nothing that was just written is read.
    q1, q2 = q1 * scale, q2 * scale
    highest = tl.sum(q1 * k1, 0) + tl.sum(q2 * k2, 0)
    total = highest * 0 + 1.0
    mix1, mix2 = v1, v2
    for begin in range(0, now, tile):
        place = begin + tl.arange(0, tile)
        known = (place < now)[:, None] & inside[None, :]
        old = start + place[:, None] * 2 * half + at[None, :]
        seen1 = tl.load(keys + old, mask=known, other=0.0).to(tl.float32)
        seen2 = tl.load(keys + old + half, mask=known, other=0.0).to(tl.float32)
        told1 = tl.load(values + old, mask=known, other=0.0).to(tl.float32)
        told2 = tl.load(values + old + half, mask=known, other=0.0).to(tl.float32)
        score = tl.sum(seen1 * q1[None, :], 1) + tl.sum(seen2 * q2[None, :], 1)
        score = tl.where(place < now, score, -float("inf"))
        peak = tl.maximum(highest, tl.max(score, 0))
        fade, share = tl.exp(highest - peak), tl.exp(score - peak)
        total = total * fade + tl.sum(share, 0)
        mix1 = mix1 * fade + tl.sum(share[:, None] * told1, 0)
        mix2 = mix2 * fade + tl.sum(share[:, None] * told2, 0)
        highest = peak
    to = mixed + (row * heads + head) * 2 * half + at
    tl.store(to, (mix1 / total).to(kind), mask=inside)
    tl.store(to + half, (mix2 / total).to(kind), mask=inside)


@triton.jit
def product_kernel(
    x, weight, norm, out, rows, inputs, outputs, eps,
    normed: tl.constexpr, gated: tl.constexpr, adds: tl.constexpr,
    tall: tl.constexpr, tile: tl.constexpr, deep: tl.constexpr,
):  # fmt: skip
    """Rows times a weight of ``outputs`` x ``inputs``, for at most ``tall`` rows.

    ``normed``: of rows at unit root mean square, times ``norm``. ``gated``: the weight has twice
    the rows, gate and up, and silu(gate) * up comes out. ``adds``: to what is in ``out``.
    """
    row, column = tl.arange(0, tall), tl.program_id(0) * tile + tl.arange(0, tile)
    kind: tl.constexpr = weight.dtype.element_ty
    power = tl.zeros([tall], tl.float32)
    found = tl.zeros([tall, tile], tl.float32)
    other = tl.zeros([tall, tile], tl.float32)
    wanted, within = row < rows, column < outputs
    for begin in range(0, inputs, deep):
        k = begin + tl.arange(0, deep)
        known = k < inputs
        mask = within[:, None] & known[None, :]
        matrix = tl.load(weight + column[:, None] * inputs + k[None, :], mask=mask, other=0.0)
        if gated:
            under = outputs * inputs + column[:, None] * inputs + k[None, :]
            second = tl.load(weight + under, mask=mask, other=0.0)
        mask = wanted[:, None] & known[None, :]
        part = tl.load(x + row[:, None] * inputs + k[None, :], mask=mask, other=0.0)
        if normed:
            value = part.to(tl.float32)
            power += tl.sum(value * value, 1)
            by = tl.load(norm + k, mask=known, other=0.0).to(tl.float32)
            part = (value * by[None, :]).to(kind)
        found = tl.dot(part, tl.trans(matrix), found, input_precision="ieee")
        if gated:
            other = tl.dot(part, tl.trans(second), other, input_precision="ieee")
    if normed:
        rate = 1 / tl.sqrt(power / inputs + eps)
        found = found * rate[:, None]
        other = other * rate[:, None]
    if gated:
        found = found * tl.sigmoid(found) * other
    to = out + row[:, None] * outputs + column[None, :]
    mask = wanted[:, None] & within[None, :]
    if adds:
        found += tl.load(to, mask=mask, other=0.0).to(tl.float32)
    tl.store(to, found.to(kind), mask=mask)


@triton.jit
def norm_kernel(x, weight, out, width, eps, wide: tl.constexpr):
    """A row at unit root mean square, times the weight."""
    row, at = tl.program_id(0).to(tl.int64), tl.arange(0, wide)
    inside = at < width
    value = tl.load(x + row * width + at, mask=inside, other=0.0).to(tl.float32)
    rate = 1 / tl.sqrt(tl.sum(value * value, 0) / width + eps)
    by = tl.load(weight + at, mask=inside, other=0.0).to(tl.float32)
    tl.store(out + row * width + at, (value * rate * by).to(out.dtype.element_ty), mask=inside)


@triton.jit
def gate_kernel(both, out, hidden, tile: tl.constexpr):
    """silu(gate) * up of rows that hold first the one, then the other."""
    row, at = tl.program_id(0).to(tl.int64), tl.program_id(1) * tile + tl.arange(0, tile)
    inside = at < hidden
    gate = tl.load(both + row * 2 * hidden + at, mask=inside, other=0.0).to(tl.float32)
    up = tl.load(both + row * 2 * hidden + hidden + at, mask=inside, other=0.0).to(tl.float32)
    told = (gate * tl.sigmoid(gate) * up).to(out.dtype.element_ty)
    tl.store(out + row * hidden + at, told, mask=inside)
