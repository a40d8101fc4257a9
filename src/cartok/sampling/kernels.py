"""GPU kernels of one decoding step: what runs between a prior's matrix products, and the thin ones.

A step reads every weight once for a few rows, so its time is that of reading them and of starting
kernels. Here attention is one kernel from the projection to the mix; products with 16 rows or fewer
carry the norm before them and the sum or the gate after them. Arithmetic is float32, storage the
input's. The position is read from memory, so that one recorded step serves all of them.

``early`` kernels start while the one before still runs, and before they wait for it fetch what it
does not write: products their weights, attention the cache (programmatic dependent launch, from
Hopper on). What they fetch was written two kernels ago or earlier: a kernel lets the next one start
only once its own wait is over, and so the one before it is done.
"""

import triton
import triton.language as tl
from triton.language.extra.cuda import gdc_launch_dependents, gdc_wait


@triton.jit
def attend_kernel(
    qkv, query_weight, key_weight, rotary, keys, values, position, mixed,
    heads, length, half, eps, scale,
    normed: tl.constexpr, early: tl.constexpr, wide: tl.constexpr, tile: tl.constexpr,
):  # fmt: skip
    """One head of one row: norms, rotation, the cache's new entry, and attention over all so far.

    ``qkv`` row, 3 x heads x 2 half; ``keys`` and ``values`` row, head, length, 2 half; ``rotary``
    place, 2, half; ``wide`` is the power of two that holds 2 half.
    """
    row, head = tl.program_id(0).to(tl.int64), tl.program_id(1)
    kind: tl.constexpr = keys.dtype.element_ty
    width = 2 * half
    at, place = tl.arange(0, wide), tl.arange(0, tile)
    inside = at < width
    partner = tl.where(at < half, at + half, at - half)  # what a rotation takes it together with
    angle = tl.where(at < half, at, at - half)
    sign = tl.where(at < half, -1.0, 1.0)
    now = tl.load(position)
    cos = tl.load(rotary + now * width + angle, mask=inside, other=0.0).to(tl.float32)
    sin = sign * tl.load(rotary + now * width + half + angle, mask=inside, other=0.0).to(tl.float32)
    start = (row * heads + head) * length * width
    old = start + place[:, None] * width + at[None, :]
    known = (place < now)[:, None] & inside[None, :]
    seen = tl.load(keys + old, mask=known, other=0.0)
    told = tl.load(values + old, mask=known, other=0.0)
    if early:
        gdc_wait()
        gdc_launch_dependents()
    mine, step = qkv + (row * 3 * heads + head) * width, heads * width
    query = _turned(mine, query_weight, at, partner, inside, width, cos, sin, eps, normed, kind)
    key = _turned(mine + step, key_weight, at, partner, inside, width, cos, sin, eps, normed, kind)
    value = tl.load(mine + 2 * step + at, mask=inside, other=0.0).to(tl.float32)
    new = start + now * width + at
    tl.store(keys + new, key.to(kind), mask=inside)
    tl.store(values + new, value.to(kind), mask=inside)
    # The newest position is still at hand, so nothing that was just written is read. Each place of
    # the tile keeps a maximum and a mix of its own; they meet once, at the end.
    query = query * scale
    latest = tl.sum(query * key, 0)
    highest = tl.zeros([tile], tl.float32) + latest
    total = tl.zeros([tile], tl.float32)
    mix = tl.zeros([tile, wide], tl.float32)
    for begin in range(0, now, tile):
        score = tl.sum(seen.to(tl.float32) * query[None, :], 1)
        score = tl.where(begin + place < now, score, -float("inf"))
        peak = tl.maximum(highest, score)
        fade, share = tl.exp(highest - peak), tl.exp(score - peak)
        total = total * fade + share
        mix = mix * fade[:, None] + share[:, None] * told.to(tl.float32)
        highest = peak
        old += tile * width
        known = (begin + tile + place < now)[:, None] & inside[None, :]
        seen = tl.load(keys + old, mask=known, other=0.0)
        told = tl.load(values + old, mask=known, other=0.0)
    peak = tl.max(highest, 0)
    fade, share = tl.exp(highest - peak), tl.exp(latest - peak)
    answer = tl.sum(mix * fade[:, None], 0) + share * value
    answer = answer / (tl.sum(total * fade, 0) + share)
    tl.store(mixed + (row * heads + head) * width + at, answer.to(kind), mask=inside)


@triton.jit
def _turned(
    x, weight, at, partner, inside, width, cos, sin, eps, normed: tl.constexpr, kind: tl.constexpr
):
    """A head at unit root mean square times the weight, rotated; rounded as it is stored."""
    value = tl.load(x + at, mask=inside, other=0.0).to(tl.float32)
    other = tl.load(x + partner, mask=inside, other=0.0).to(tl.float32)
    if normed:
        rate = 1 / tl.sqrt(tl.sum(value * value, 0) / width + eps)
        by = tl.load(weight + at, mask=inside, other=0.0).to(tl.float32)
        value = (value * rate * by).to(kind).to(tl.float32)
        by = tl.load(weight + partner, mask=inside, other=0.0).to(tl.float32)
        other = (other * rate * by).to(kind).to(tl.float32)
    return (value * cos + other * sin).to(kind).to(tl.float32)


@triton.jit
def streamed_kernel(
    x, weight, norm, out, rows, inputs, outputs, eps,
    normed: tl.constexpr, gated: tl.constexpr, adds: tl.constexpr, early: tl.constexpr,
    tall: tl.constexpr, tile: tl.constexpr, deep: tl.constexpr, parts: tl.constexpr,
):  # fmt: skip
    """Rows times a weight of ``outputs`` x ``inputs``, for at most ``tall``, which are few.

    A program's whole weights are under way before the rows are there; ``deep`` of them are what a
    warp loads at once, so that sums stay within a warp. ``normed``: of rows at unit root mean
    square, times ``norm``. ``gated``: the weight has twice the rows, gate and up, and
    silu(gate) * up comes out. ``adds``: to what is in ``out``.
    """
    column, k = tl.program_id(0) * tile + tl.arange(0, tile), tl.arange(0, deep)
    kind: tl.constexpr = weight.dtype.element_ty
    at = column[:, None] * inputs + k[None, :]
    along = column[:, None] * 0 + k[None, :]
    matrices, seconds, gains, before, answers = (), (), (), (), ()
    for part in tl.static_range(parts):
        first = part * deep
        mask = (column < outputs)[:, None] & (first + k < inputs)[None, :]
        matrices = matrices + (tl.load(weight + at + first, mask=mask, other=0.0),)
        if gated:
            under = weight + outputs * inputs + at + first
            seconds = seconds + (tl.load(under, mask=mask, other=0.0),)
        if normed:
            by = tl.load(norm + along + first, mask=along + first < inputs, other=0.0)
            gains = gains + (by,)
    if adds:
        for row in tl.static_range(tall):
            mask = column < outputs * (row < rows)
            before = before + (tl.load(out + row * outputs + column, mask=mask, other=0.0),)
    if early:
        gdc_wait()
        gdc_launch_dependents()
    for row in tl.static_range(tall):
        power = tl.zeros([tile, deep], tl.float32)
        found = tl.zeros([tile, deep], tl.float32)
        other = tl.zeros([tile, deep], tl.float32)
        for part in tl.static_range(parts):
            here = along + part * deep
            mask = here < inputs * (row < rows)
            some = tl.load(x + row * inputs + here, mask=mask, other=0.0).to(tl.float32)
            if normed:
                power += some * some
                some = (some * gains[part].to(tl.float32)).to(kind).to(tl.float32)
            found += matrices[part].to(tl.float32) * some
            if gated:
                other += seconds[part].to(tl.float32) * some
        answer = tl.sum(found, 1)
        if normed:
            rate = 1 / tl.sqrt(tl.sum(power, 1) / inputs + eps)
            answer = answer * rate
        if gated:
            up = tl.sum(other, 1)
            if normed:
                up = up * rate
            answer = answer * tl.sigmoid(answer) * up
        if adds:
            answer += before[row].to(tl.float32)
        answers = answers + (answer,)
    for row in tl.static_range(tall):
        mask = column < outputs * (row < rows)
        tl.store(out + row * outputs + column, answers[row].to(kind), mask=mask)


@triton.jit
def product_kernel(
    x, weight, norm, out, rows, inputs, outputs, eps,
    normed: tl.constexpr, gated: tl.constexpr, adds: tl.constexpr,
    tall: tl.constexpr, tile: tl.constexpr, deep: tl.constexpr,
):  # fmt: skip
    """The same for up to 16 rows, ``tall``, which tensor cores multiply."""
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
def norm_kernel(x, weight, out, width, eps, early: tl.constexpr, wide: tl.constexpr):
    """A row at unit root mean square, times the weight."""
    row, at = tl.program_id(0).to(tl.int64), tl.arange(0, wide)
    inside = at < width
    by = tl.load(weight + at, mask=inside, other=0.0).to(tl.float32)
    if early:
        gdc_wait()
        gdc_launch_dependents()
    value = tl.load(x + row * width + at, mask=inside, other=0.0).to(tl.float32)
    rate = 1 / tl.sqrt(tl.sum(value * value, 0) / width + eps)
    tl.store(out + row * width + at, (value * rate * by).to(out.dtype.element_ty), mask=inside)


@triton.jit
def gate_kernel(both, out, hidden, early: tl.constexpr, tile: tl.constexpr):
    """silu(gate) * up of rows that hold first the one, then the other."""
    row, at = tl.program_id(0).to(tl.int64), tl.program_id(1) * tile + tl.arange(0, tile)
    inside = at < hidden
    if early:
        gdc_wait()
        gdc_launch_dependents()
    gate = tl.load(both + row * 2 * hidden + at, mask=inside, other=0.0).to(tl.float32)
    up = tl.load(both + row * 2 * hidden + hidden + at, mask=inside, other=0.0).to(tl.float32)
    told = (gate * tl.sigmoid(gate) * up).to(out.dtype.element_ty)
    tl.store(out + row * hidden + at, told, mask=inside)
