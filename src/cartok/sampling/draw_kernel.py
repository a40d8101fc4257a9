"""The GPU kernel of a draw: from logits to the next step's vectors, in place of thirty kernels."""

import triton
import triton.language as tl


@triton.jit
def draw_kernel(
    logits, scales, temperature, noise, kept, position, tokens, table, x, all_finite,
    codes, pictures, places, width,
    guided: tl.constexpr, tile: tl.constexpr, wide: tl.constexpr,
):  # fmt: skip
    """One picture: guidance, softmax in float64, the code at its noise, and that code's vector.

    As ``drawing.codes_at``, but that the total is added up in another order: noise within an ulp of
    1 may draw the last possible code where that draws the one before.

    ``logits`` row, code, the unconditional rows after the others; ``noise``, ``kept`` and
    ``tokens`` picture, place; ``x`` row, width; ``wide`` is the power of two that holds width.
    """
    picture = tl.program_id(0).to(tl.int64)
    at = tl.arange(0, tile)
    now = tl.load(position)
    scale, heat = tl.load(scales + now), tl.load(temperature)
    wanted = tl.load(noise + picture * places + now)
    stays = tl.load(kept + picture * places + now)
    with_class, without = logits + picture * codes, logits + (pictures + picture) * codes
    peak = tl.full([tile], -float("inf"), tl.float64)
    strange = tl.zeros([tile], tl.int32)
    for begin in range(0, codes, tile):
        inside = begin + at < codes
        value = tl.load(with_class + begin + at, mask=inside, other=0.0).to(tl.float64)
        strange += tl.where(value - value == 0, 0, 1)  # infinite, or not a number
        if guided:
            plain = tl.load(without + begin + at, mask=inside, other=0.0).to(tl.float64)
            strange += tl.where(plain - plain == 0, 0, 1)
        score = _score(with_class, without, begin + at, inside, scale, heat, guided)
        peak = tl.maximum(peak, score)
    peak = tl.max(peak, 0)
    total = tl.zeros([tile], tl.float64)
    for begin in range(0, codes, tile):
        inside = begin + at < codes
        score = _score(with_class, without, begin + at, inside, scale, heat, guided)
        total += tl.exp(score - peak)
    wanted = wanted * tl.sum(total, 0)
    below, code, last = peak * 0, now * 0, now * 0
    for begin in range(0, codes, tile):
        inside = begin + at < codes
        score = _score(with_class, without, begin + at, inside, scale, heat, guided)
        share = tl.exp(score - peak)
        reached = below + tl.cumsum(share, 0)
        code += tl.sum(tl.where(inside, tl.where(reached <= wanted, 1, 0), 0), 0)
        last = tl.maximum(last, tl.max(tl.where(share > 0, begin + at, 0), 0))
        below += tl.sum(share, 0)
    code = tl.minimum(code, last)  # a code of probability 0 is never drawn, not even at the end
    code = tl.where(stays >= 0, stays, code)
    tl.store(tokens + picture * places + now, code)
    if tl.max(strange, 0) > 0:
        tl.store(all_finite, False)
    channel = tl.arange(0, wide)
    inside = channel < width
    vector = tl.load(table + code * width + channel, mask=inside, other=0.0)
    tl.store(x + picture * width + channel, vector, mask=inside)
    if guided:
        tl.store(x + (pictures + picture) * width + channel, vector, mask=inside)


@triton.jit
def _score(with_class, without, at, inside, scale, heat, guided: tl.constexpr):
    """Guided logits over temperature; nothing, -inf, outside."""
    value = tl.load(with_class + at, mask=inside, other=0.0).to(tl.float64)
    if guided:
        plain = tl.load(without + at, mask=inside, other=0.0).to(tl.float64)
        value = plain + (value - plain) * scale
    return tl.where(inside, value / heat, -float("inf"))
