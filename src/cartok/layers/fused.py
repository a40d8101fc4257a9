"""What a block does between its products of matrices, as torch functions over ``kernels``.

Only imported where they can run (see ``layers.trains_fused``). Activations and their gradients are
float32, bfloat16 or float16, a row's channels together in memory and four or a multiple of it.
Sums over rows are made in a fixed order, so a gradient is the same every time. Gradients have no
gradients of their own.
"""

import torch
import triton
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn import functional as F

from cartok.layers.kernels import (
    add_kernel,
    add_norm_back_kernel,
    add_norm_kernel,
    gate_back_kernel,
    gate_kernel,
    turn_back_kernel,
    turn_kernel,
)

_ADD = {"tile": 2048, "num_warps": 8}
_NORM = {"each": 8}  # numbers of a row that a thread holds
_NORM_BACK = {"each": 8, "programs": 528, "stages": 2}  # programs: four for each unit of an H100
_TURN = {"tile": 32, "num_warps": 4}  # heads at a time
_TURN_BACK = {"tile": 16, "programs": 1056, "stages": 1, "num_warps": 4}
_GATE = {"tile": 4096, "num_warps": 8}
_GATE_BACK = {"tile": 4096, "num_warps": 8}


def run_one(device: torch.device) -> None:
    """The smallest kernel there is, to see whether any can run.

    Its mask is of no generator: a draw here would shift all later ones of a training.
    """
    x = torch.zeros(1, 4, device=device)
    _added(x, x, torch.zeros(1, dtype=torch.int64, device=device), 0.5, x.dtype)


def add_norm(
    x: Tensor, branch: Tensor | None, drop: float, gain: Tensor, eps: float
) -> tuple[Tensor, Tensor]:
    """x + dropout(branch), in the dtype of x, and its RMS norm, in that of matrix products.

    Without a branch the first is x: whoever goes on with it gives its gradient to the norm's, and
    the two are added in the pass that makes the second.
    """
    kind = x.device.type
    has_autocast = torch.is_autocast_enabled(kind)
    dtype = torch.get_autocast_dtype(kind) if has_autocast else x.dtype
    return AddNorm.apply(x, branch, drop, gain, eps, dtype)


def gated_product(gate_up: Tensor, weight: Tensor) -> Tensor:
    """(silu(gate) * up) times a weight, in the dtype of ``gate_up``, [..., gate then up]."""
    return GatedProduct.apply(gate_up, weight.to(gate_up.dtype))


class Add(torch.autograd.Function):
    """x + dropout(branch), in the dtype of x."""

    @staticmethod
    def forward(ctx, x: Tensor, branch: Tensor, drop: float) -> Tensor:
        """``drop`` is the share that is zeroed; the rest grows by 1 / (1 - drop)."""
        seed = _seed(x.device, drop)
        ctx.save_for_backward(seed)
        ctx.drop, ctx.dtype = drop, branch.dtype
        return _added(x.contiguous(), branch.contiguous(), seed, drop, x.dtype)

    @staticmethod
    @once_differentiable
    def backward(ctx, of_stream: Tensor) -> tuple[Tensor | None, ...]:
        """The gradient itself, and what of it went through dropout."""
        return of_stream, _through_dropout(ctx, of_stream, *ctx.saved_tensors), None


class AddNorm(torch.autograd.Function):
    """s = x + dropout(branch), and rms_norm(s) times a gain."""

    @staticmethod
    def forward(ctx, x: Tensor, branch: Tensor | None, drop: float, gain: Tensor, eps: float,
                dtype: torch.dtype) -> tuple[Tensor, Tensor]:  # fmt: skip
        """s in the dtype of x, and x itself without a branch; the norm in ``dtype``."""
        x, width = x.contiguous(), x.shape[-1]
        seed = None if branch is None else _seed(x.device, drop)
        stream = x if branch is None else torch.empty_like(x)
        normed = torch.empty_like(x, dtype=dtype)
        rates = torch.empty(x.shape[:-1], dtype=torch.float32, device=x.device)
        with torch.cuda.device_of(x):
            add_norm_kernel[(rates.numel(),)](
                x, None if branch is None else branch.contiguous(), gain, seed, stream, normed,
                rates, width, *_least_and_scale(drop), eps, adds=branch is not None,
                drops=seed is not None, **_row(width, **_NORM),
            )  # fmt: skip
        ctx.save_for_backward(stream, gain, rates, seed)
        ctx.set_materialize_grads(False)
        ctx.drop, ctx.dtype = drop, None if branch is None else branch.dtype
        return stream, normed

    @staticmethod
    @once_differentiable
    def backward(
        ctx, of_stream: Tensor | None, of_normed: Tensor | None
    ) -> tuple[Tensor | None, ...]:
        """Gradients of x, branch and gain."""
        stream, gain, rates, seed = ctx.saved_tensors
        if of_normed is None:
            back = None
            if of_stream is not None and ctx.dtype is not None:
                back = _through_dropout(ctx, of_stream, seed)
            return of_stream, back, None, None, None, None
        width, (programs, shape) = stream.shape[-1], _walk(rates.numel(), **_NORM_BACK)
        found = torch.empty_like(stream)
        splits = ctx.dtype is not None and (seed is not None or ctx.dtype != stream.dtype)
        back = torch.empty_like(stream, dtype=ctx.dtype) if splits else None
        to_gain = torch.empty(programs, width, dtype=torch.float32, device=stream.device)
        with torch.cuda.device_of(stream):
            add_norm_back_kernel[(programs,)](
                stream, gain, rates, seed, of_normed.contiguous(),
                None if of_stream is None else of_stream.contiguous(), found, back, to_gain,
                rates.numel(), width, *_least_and_scale(ctx.drop), carries=of_stream is not None,
                splits=splits, drops=seed is not None, **_row(width, **shape),
            )  # fmt: skip
        if ctx.dtype is not None and not splits:
            back = found
        return found, back, None, to_gain.sum(0).to(gain.dtype), None, None


class Turn(torch.autograd.Function):
    """Queries, keys and values of a projection; the first two normed, if they have gains, turned.

    Each is [batch, position, head, channel]; values are a view.
    """

    @staticmethod
    def forward(
        ctx, qkv: Tensor, query_gain: Tensor | None, key_gain: Tensor | None, rotary: Tensor,
        heads: int, eps: float,
    ) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
        """``qkv`` [batch, position, 3 x heads x channels]; ``rotary`` as in ``layers.rotate``."""
        qkv = qkv.contiguous().unflatten(2, (3, heads, -1))
        query, key = (qkv.new_empty(qkv[:, :, 0].shape) for _ in range(2))
        count, shape = _heads(qkv, rotary)
        with torch.cuda.device_of(qkv):
            turn_kernel[(triton.cdiv(count, _TURN["tile"]), 2)](
                qkv, query_gain, key_gain, rotary.contiguous(), query, key, count, qkv.shape[1],
                eps, normed=query_gain is not None, **shape, **_TURN,
            )  # fmt: skip
        ctx.save_for_backward(qkv, query_gain, key_gain, rotary)
        ctx.eps = eps
        return query, key, qkv[:, :, 2]

    @staticmethod
    @once_differentiable
    def backward(ctx, *slopes: Tensor) -> tuple[Tensor | None, ...]:
        """Gradients of qkv and of both gains."""
        qkv, query_gain, key_gain, rotary = ctx.saved_tensors
        count, shape = _heads(qkv, rotary)
        tiles = triton.cdiv(count, _TURN_BACK["tile"])
        programs, walk = _walk(tiles, **_TURN_BACK)
        found, channels = torch.empty_like(qkv), qkv.shape[-1]
        to_gain = torch.empty(2, programs, channels, dtype=torch.float32, device=qkv.device)
        with torch.cuda.device_of(qkv):
            turn_back_kernel[(programs, 3)](
                *(slope.contiguous() for slope in slopes), qkv, query_gain, key_gain,
                rotary.contiguous(), found, to_gain, count, qkv.shape[1], ctx.eps,
                normed=query_gain is not None, **shape, **walk,
            )  # fmt: skip
        found = found.flatten(2)
        if query_gain is None:
            return found, None, None, None, None, None
        of_query, of_key = to_gain.sum(1).to(query_gain.dtype)
        return found, of_query, of_key, None, None, None


class GatedProduct(torch.autograd.Function):
    """(silu(gate) * up) @ weight.T; what stands in brackets is made again on the way back."""

    @staticmethod
    def forward(ctx, gate_up: Tensor, weight: Tensor) -> Tensor:
        """``gate_up`` [..., gate then up], ``weight`` of its dtype."""
        gate_up = gate_up.contiguous()
        ctx.save_for_backward(gate_up, weight)
        hidden = gate_up.new_empty(*gate_up.shape[:-1], weight.shape[1])
        with torch.cuda.device_of(gate_up):
            gate_kernel[_gate_grid(hidden, _GATE["tile"])](
                gate_up, hidden, hidden.shape[-1], **_GATE
            )
        return F.linear(hidden, weight)

    @staticmethod
    @once_differentiable
    def backward(ctx, of_out: Tensor) -> tuple[Tensor, Tensor | None]:
        """Gradients of gate_up and weight."""
        gate_up, weight = ctx.saved_tensors
        slope = of_out @ weight
        found, hidden = torch.empty_like(gate_up), torch.empty_like(slope)
        with torch.cuda.device_of(gate_up):
            gate_back_kernel[_gate_grid(hidden, _GATE_BACK["tile"])](
                gate_up, slope, found, hidden, hidden.shape[-1], **_GATE_BACK
            )
        if not ctx.needs_input_grad[1]:
            return found, None
        return found, of_out.flatten(0, -2).t() @ hidden.flatten(0, -2)


def _seed(device: torch.device, drop: float) -> Tensor | None:
    """One draw of torch's own generator; a mask is made of it, twice."""
    return torch.empty(1, dtype=torch.int64, device=device).random_() if drop else None


def _least_and_scale(drop: float) -> tuple[int, float]:
    """Of 31 random bits the least with which an element is kept, and by what it grows then."""
    return round(drop * 2**31), 1 / (1 - drop)


def _added(x: Tensor | None, branch: Tensor, seed: Tensor | None, drop: float,
           dtype: torch.dtype) -> Tensor:  # fmt: skip
    """x + dropout(branch), or the second alone; both contiguous."""
    out = torch.empty_like(branch, dtype=dtype)
    with torch.cuda.device_of(branch):
        add_kernel[(triton.cdiv(out.numel(), _ADD["tile"]),)](
            x, branch, seed, out, out.numel(), *_least_and_scale(drop), adds=x is not None,
            drops=seed is not None, **_ADD,
        )  # fmt: skip
    return out


def _through_dropout(ctx, slope: Tensor, seed: Tensor | None) -> Tensor:
    """The gradient of a branch, given that of the stream."""
    if seed is None:
        return slope.to(ctx.dtype)
    return _added(None, slope.contiguous(), seed, ctx.drop, ctx.dtype)


def _row(width: int, each: int, **rest: int) -> dict[str, int]:
    """How a kernel holds a row at once."""
    wide = triton.next_power_of_2(width)
    return {"wide": wide, "num_warps": max(1, min(16, wide // (32 * each))), **rest}


def _walk(tiles: int, programs: int, **rest: int) -> tuple[int, dict[str, int]]:
    """Programs that walk over all tiles, and the rest of the choices."""
    return min(tiles, programs), rest


def _heads(qkv: Tensor, rotary: Tensor) -> tuple[int, dict[str, int]]:
    """How many heads there are at all positions together, and their shape."""
    batch, positions, _, heads, channels = qkv.shape
    assert rotary.shape == (positions, 2, channels // 2)
    wide = triton.next_power_of_2(channels // 2)
    return batch * positions * heads, {"heads": heads, "half": channels // 2, "wide": wide}


def _gate_grid(hidden: Tensor, tile: int) -> tuple[int, int]:
    width = hidden.shape[-1]
    return hidden.numel() // width, triton.cdiv(width, tile)
