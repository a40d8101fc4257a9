"""GPU kernels of a training step between its products of matrices, forwards and backwards.

All of it is bound by memory, so each kernel reads and writes every number once: the residual sum
with dropout and the norm after it; the norms and rotations of queries and keys; SwiGLU's gate.
Arithmetic is float32, storage that of each tensor. Dropout's noise is never stored: it is a
function of a seed and of an element's number, four elements from one draw.
"""

import triton
import triton.language as tl

ROUNDS = tl.constexpr(7)
"""Of Philox: the fewest that pass BigCrush (Salmon et al. 2011, table 2)."""


@triton.jit
def _dropped(value, seed, first, least, scale, wide: tl.constexpr):
    """``wide`` elements, of which the first is number 4 * ``first`` of its tensor (int64).

    An element is kept, and scaled, where 31 random bits are ``least`` or more.
    """
    quad = first + tl.arange(0, wide // 4)
    a, b, c, d = tl.randint4x(tl.load(seed), quad, n_rounds=ROUNDS)
    bits = tl.reshape(tl.join(tl.join(a, c), tl.join(b, d)), (wide,))  # a, b, c, d of each quad
    return tl.where((bits >> 1).to(tl.int32) >= least, value * scale, 0.0)


@triton.jit
def add_kernel(
    x, branch, seed, out, count, least, scale,
    adds: tl.constexpr, drops: tl.constexpr, tile: tl.constexpr,
):  # fmt: skip
    """A branch after dropout, added to x or (as its gradient) alone; of ``count`` elements."""
    part = tl.program_id(0).to(tl.int64)
    at = part * tile + tl.arange(0, tile)
    inside = at < count
    value = tl.load(branch + at, mask=inside, other=0.0).to(tl.float32)
    if drops:
        value = _dropped(value, seed, part * (tile // 4), least, scale, tile)
    if adds:
        value += tl.load(x + at, mask=inside, other=0.0).to(tl.float32)
    tl.store(out + at, value.to(out.dtype.element_ty), mask=inside)


@triton.jit
def add_norm_kernel(
    x, branch, gain, seed, stream, normed, rates, width, least, scale, eps,
    adds: tl.constexpr, drops: tl.constexpr, wide: tl.constexpr,
):  # fmt: skip
    """Of a row: the stream, x plus the branch after dropout, and its norm times the gain.

    ``rates`` keeps one over the root mean square. Without ``adds`` the stream is x itself.
    """
    row, at = tl.program_id(0).to(tl.int64), tl.arange(0, wide)
    inside = at < width
    here = row * width + at
    value = tl.load(x + here, mask=inside, other=0.0).to(tl.float32)
    if adds:
        told = tl.load(branch + here, mask=inside, other=0.0).to(tl.float32)
        if drops:
            told = _dropped(told, seed, row * (width // 4), least, scale, wide)
        rounded = (value + told).to(stream.dtype.element_ty)
        tl.store(stream + here, rounded, mask=inside)
        value = rounded.to(tl.float32)
    rate = 1 / tl.sqrt(tl.sum(value * value, 0) / width + eps)
    by = tl.load(gain + at, mask=inside, other=0.0).to(tl.float32)
    tl.store(normed + here, (value * rate * by).to(normed.dtype.element_ty), mask=inside)
    tl.store(rates + row, rate)


@triton.jit
def add_norm_back_kernel(
    stream, gain, rates, seed, of_normed, of_stream, to_stream, to_branch, to_gain,
    rows, width, least, scale,
    carries: tl.constexpr, splits: tl.constexpr, drops: tl.constexpr, wide: tl.constexpr,
    stages: tl.constexpr,
):  # fmt: skip
    """Gradients of the stream, of the branch and, summed over this program's rows, of the gain.

    ``carries``: the stream itself has one that comes in; ``splits``: the branch's is written too.
    """
    program, at = tl.program_id(0), tl.arange(0, wide)
    inside = at < width
    step = width.to(tl.int64)
    by = tl.load(gain + at, mask=inside, other=0.0).to(tl.float32)
    total = tl.zeros([wide], tl.float32)
    for row in tl.range(program, rows, tl.num_programs(0), num_stages=stages):
        here = row * step + at
        rate = tl.load(rates + row)
        unit = tl.load(stream + here, mask=inside, other=0.0).to(tl.float32) * rate
        slope = tl.load(of_normed + here, mask=inside, other=0.0).to(tl.float32)
        total += slope * unit
        slope *= by
        found = rate * (slope - unit * (tl.sum(slope * unit, 0) / width))
        if carries:
            found += tl.load(of_stream + here, mask=inside, other=0.0).to(tl.float32)
        tl.store(to_stream + here, found.to(to_stream.dtype.element_ty), mask=inside)
        if splits:
            if drops:
                found = _dropped(found, seed, row * (step // 4), least, scale, wide)
            tl.store(to_branch + here, found.to(to_branch.dtype.element_ty), mask=inside)
    tl.store(to_gain + program * step + at, total, mask=inside)


@triton.jit
def _place(part: tl.constexpr, n, heads: tl.constexpr, half: tl.constexpr):
    """Where head number n (over positions, then heads) of queries, keys or values lies in qkv."""
    row = (n // heads).to(tl.int64)
    return ((row * 3 + part) * heads + n % heads) * (2 * half)


@triton.jit
def _angles(rotary, n, c, length, known, heads: tl.constexpr, half: tl.constexpr):
    """Cosines and sines at each head's position."""
    at = rotary + ((n // heads) % length)[:, None] * (2 * half) + c[None, :]
    cos = tl.load(at, mask=known, other=0.0).to(tl.float32)
    return cos, tl.load(at + half, mask=known, other=0.0).to(tl.float32)


@triton.jit
def _turn(
    part: tl.constexpr, qkv, gain, rotary, out, count, length, eps, normed: tl.constexpr,
    heads: tl.constexpr, half: tl.constexpr, wide: tl.constexpr, tile: tl.constexpr,
):  # fmt: skip
    n, c = tl.program_id(0) * tile + tl.arange(0, tile), tl.arange(0, wide)
    known = (n < count)[:, None] & (c < half)[None, :]
    here = qkv + _place(part, n, heads, half)[:, None] + c[None, :]
    first = tl.load(here, mask=known, other=0.0).to(tl.float32)
    second = tl.load(here + half, mask=known, other=0.0).to(tl.float32)
    if normed:
        power = tl.sum(first * first + second * second, 1) / (2 * half)
        rate = 1 / tl.sqrt(power + eps)
        by = tl.load(gain + c, mask=c < half, other=0.0).to(tl.float32)
        first *= rate[:, None] * by[None, :]
        by = tl.load(gain + half + c, mask=c < half, other=0.0).to(tl.float32)
        second *= rate[:, None] * by[None, :]
    cos, sin = _angles(rotary, n, c, length, known, heads, half)
    to = out + n.to(tl.int64)[:, None] * (2 * half) + c[None, :]
    tl.store(to, (first * cos - second * sin).to(out.dtype.element_ty), mask=known)
    tl.store(to + half, (first * sin + second * cos).to(out.dtype.element_ty), mask=known)


@triton.jit
def turn_kernel(
    qkv, query_gain, key_gain, rotary, query, key, count, length, eps, normed: tl.constexpr,
    heads: tl.constexpr, half: tl.constexpr, wide: tl.constexpr, tile: tl.constexpr,
):  # fmt: skip
    """Queries (axis 1 of the grid: 0) and keys (1), each head normed, then turned.

    ``qkv`` position, 3, heads, 2 half; ``rotary`` place, 2, half; ``count`` positions x heads.
    """
    if tl.program_id(1) == 0:
        _turn(0, qkv, query_gain, rotary, query, count, length, eps, normed, heads, half, wide,
              tile)  # fmt: skip
    else:
        _turn(1, qkv, key_gain, rotary, key, count, length, eps, normed, heads, half, wide, tile)


@triton.jit
def _turn_back(
    part: tl.constexpr, of, qkv, gain, rotary, to_qkv, to_gain, count, length, eps,
    normed: tl.constexpr, heads: tl.constexpr, half: tl.constexpr, wide: tl.constexpr,
    tile: tl.constexpr, stages: tl.constexpr,
):  # fmt: skip
    program, c = tl.program_id(0), tl.arange(0, wide)
    inside = c < half
    if normed:
        by1 = tl.load(gain + c, mask=inside, other=0.0).to(tl.float32)
        by2 = tl.load(gain + half + c, mask=inside, other=0.0).to(tl.float32)
        total1 = tl.zeros([tile, wide], tl.float32)
        total2 = tl.zeros([tile, wide], tl.float32)
    for begin in tl.range(program * tile, count, tl.num_programs(0) * tile, num_stages=stages):
        n = begin + tl.arange(0, tile)
        known = (n < count)[:, None] & inside[None, :]
        slope = of + n.to(tl.int64)[:, None] * (2 * half) + c[None, :]
        turned1 = tl.load(slope, mask=known, other=0.0).to(tl.float32)
        turned2 = tl.load(slope + half, mask=known, other=0.0).to(tl.float32)
        cos, sin = _angles(rotary, n, c, length, known, heads, half)
        slope1 = turned1 * cos + turned2 * sin
        slope2 = turned2 * cos - turned1 * sin
        here = _place(part, n, heads, half)[:, None] + c[None, :]
        if normed:
            unit1 = tl.load(qkv + here, mask=known, other=0.0).to(tl.float32)
            unit2 = tl.load(qkv + here + half, mask=known, other=0.0).to(tl.float32)
            power = tl.sum(unit1 * unit1 + unit2 * unit2, 1) / (2 * half)
            rate = (1 / tl.sqrt(power + eps))[:, None]
            unit1, unit2 = unit1 * rate, unit2 * rate
            total1 += slope1 * unit1
            total2 += slope2 * unit2
            slope1, slope2 = slope1 * by1[None, :], slope2 * by2[None, :]
            mean = (tl.sum(slope1 * unit1 + slope2 * unit2, 1) / (2 * half))[:, None]
            slope1 = rate * (slope1 - unit1 * mean)
            slope2 = rate * (slope2 - unit2 * mean)
        tl.store(to_qkv + here, slope1.to(to_qkv.dtype.element_ty), mask=known)
        tl.store(to_qkv + here + half, slope2.to(to_qkv.dtype.element_ty), mask=known)
    if normed:
        to = to_gain + (part * tl.num_programs(0) + program) * (2 * half) + c
        tl.store(to, tl.sum(total1, 0), mask=inside)
        tl.store(to + half, tl.sum(total2, 0), mask=inside)


@triton.jit
def _copy(
    part: tl.constexpr, of, to_qkv, count, heads: tl.constexpr, half: tl.constexpr,
    wide: tl.constexpr, tile: tl.constexpr, stages: tl.constexpr,
):  # fmt: skip
    c = tl.arange(0, 2 * wide)
    steps = tl.num_programs(0) * tile
    for begin in tl.range(tl.program_id(0) * tile, count, steps, num_stages=stages):
        n = begin + tl.arange(0, tile)
        known = (n < count)[:, None] & (c < 2 * half)[None, :]
        from_here = of + n.to(tl.int64)[:, None] * (2 * half) + c[None, :]
        here = to_qkv + _place(part, n, heads, half)[:, None] + c[None, :]
        tl.store(here, tl.load(from_here, mask=known, other=0.0), mask=known)


@triton.jit
def turn_back_kernel(
    of_query, of_key, of_value, qkv, query_gain, key_gain, rotary, to_qkv, to_gain, count, length,
    eps, normed: tl.constexpr, heads: tl.constexpr, half: tl.constexpr, wide: tl.constexpr,
    tile: tl.constexpr, stages: tl.constexpr,
):  # fmt: skip
    """The gradient of qkv: axis 1 of the grid is queries, keys and values.

    ``to_gain`` [2, program, 2 half] gets those of the gains, summed over each program's heads.
    """
    part = tl.program_id(1)
    if part == 0:
        _turn_back(0, of_query, qkv, query_gain, rotary, to_qkv, to_gain, count, length, eps,
                   normed, heads, half, wide, tile, stages)  # fmt: skip
    elif part == 1:
        _turn_back(1, of_key, qkv, key_gain, rotary, to_qkv, to_gain, count, length, eps,
                   normed, heads, half, wide, tile, stages)  # fmt: skip
    else:
        _copy(2, of_value, to_qkv, count, heads, half, wide, tile, stages)


@triton.jit
def gate_kernel(gate_up, out, hidden, tile: tl.constexpr):
    """silu(gate) * up of rows that hold first the one, then the other."""
    row, at = tl.program_id(0).to(tl.int64), tl.program_id(1) * tile + tl.arange(0, tile)
    inside = at < hidden
    here = gate_up + row * 2 * hidden + at
    gate = tl.load(here, mask=inside, other=0.0).to(tl.float32)
    up = tl.load(here + hidden, mask=inside, other=0.0).to(tl.float32)
    told = gate * tl.sigmoid(gate) * up
    tl.store(out + row * hidden + at, told.to(out.dtype.element_ty), mask=inside)


@triton.jit
def gate_back_kernel(gate_up, of_out, to_gate_up, out, hidden, tile: tl.constexpr):
    """The gradient of a row's gate and up, and what came of them, once more."""
    row, at = tl.program_id(0).to(tl.int64), tl.program_id(1) * tile + tl.arange(0, tile)
    inside = at < hidden
    both, here = row * 2 * hidden + at, row * hidden + at
    gate = tl.load(gate_up + both, mask=inside, other=0.0).to(tl.float32)
    up = tl.load(gate_up + both + hidden, mask=inside, other=0.0).to(tl.float32)
    slope = tl.load(of_out + here, mask=inside, other=0.0).to(tl.float32)
    share = tl.sigmoid(gate)
    open_by = gate * share
    tl.store(out + here, (open_by * up).to(out.dtype.element_ty), mask=inside)
    kind: tl.constexpr = to_gate_up.dtype.element_ty
    to_gate = slope * up * (share + open_by * (1 - share))
    tl.store(to_gate_up + both, to_gate.to(kind), mask=inside)
    tl.store(to_gate_up + both + hidden, (slope * open_by).to(kind), mask=inside)
