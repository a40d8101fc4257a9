"""GPU kernels of cross-entropy over rows of logits: one pass forwards, one back, in place.

Written as torch's operators, the same takes ten passes over logits, most of them in float32.
"""

import triton
import triton.language as tl


@triton.jit
def total_kernel(logits, tokens, nats, total, codes, tile: tl.constexpr):
    """Of a row: the log of the sum of exp(logits), and how far the token's logit lies below it."""
    row, at = tl.program_id(0).to(tl.int64), tl.arange(0, tile)
    highest, added = -float("inf"), 0.0
    for begin in range(0, codes, tile):
        inside = begin + at < codes
        value = tl.load(logits + row * codes + begin + at, mask=inside, other=-float("inf"))
        value = value.to(tl.float32)
        peak = tl.maximum(highest, tl.max(value, 0))
        added = added * tl.exp(highest - peak) + tl.sum(tl.exp(value - peak), 0)
        highest = peak
    found = highest + tl.log(added)
    true = tl.load(logits + row * codes + tl.load(tokens + row)).to(tl.float32)
    tl.store(total + row, found)
    tl.store(nats + row, found - true)


@triton.jit
def slope_kernel(logits, tokens, total, of_nats, of_total, codes, tile: tl.constexpr):
    """Logits become their gradient, given those of the row's nats and of its total."""
    row, at = tl.program_id(0).to(tl.int64), tl.program_id(1) * tile + tl.arange(0, tile)
    inside = at < codes
    here = logits + row * codes + at
    nats = tl.load(of_nats + row).to(tl.float32)
    both = nats + tl.load(of_total + row).to(tl.float32)
    value = tl.load(here, mask=inside, other=-float("inf")).to(tl.float32)
    slope = tl.exp(value - tl.load(total + row)) * both
    slope -= tl.where(at == tl.load(tokens + row), nats, 0.0)
    tl.store(here, slope.to(logits.dtype.element_ty), mask=inside)
