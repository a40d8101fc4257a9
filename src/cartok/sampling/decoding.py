"""A prior's step while it draws: as it is written, or on a GPU as a few kernels in fixed places.

Both take the vectors of the tokens drawn last and give logits of the next ones. The second keeps
everything in tensors that are allocated once and reads the position from one of them, so a step
can be recorded, and serves every position.
"""

import functools
import math
from typing import Any, Protocol, runtime_checkable

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn import functional as F

from cartok.core.compiled import kernels_work
from cartok.core.errors import warn
from cartok.layers import Block
from cartok.prior.model import Prior

Vectors = Float[Tensor, "row width"]
Logits = Float[Tensor, "row code"]
Position = Int[Tensor, " 1"]

_TALL = 16
"""The most rows of a product that is a kernel of ours: one tile of a tensor core."""

_THIN = {"tile": 32, "deep": 128, "num_warps": 2, "num_stages": 5}
"""How it is cut: the fastest of 14 ways for one image of a prior of 775M on an H100."""

_FEW = 4
"""The most rows that are multiplied one after another, by weights that are read ahead."""

_DEEP = 256
"""Weights that a warp loads at once there, 16 bytes a lane."""

_HELD = 16
"""The most such loads that a warp's registers hold: inputs up to 4,096, gated ones up to 2,048."""


@runtime_checkable  # for the checks that run in tests
class Decoder(Protocol):
    """Rows of tokens, one step after another."""

    def restart(self) -> None:
        """Forgets what was seen."""
        ...

    def logits(self, x: Vectors, position: Position) -> Logits:
        """Of the tokens that follow ``x``, which stands at ``position``; steps go up by one."""
        ...


def decoder_of(prior: Prior, rows: int) -> Decoder:
    """The faster one that runs where the prior lies; on a GPU a warning says why it is not."""
    if not prior.rotary.is_cuda:
        return PlainDecoder(prior, rows)
    why_not = why_not_fused(prior)
    if not why_not and _kernels_work(prior.rotary.device):
        return FusedDecoder(prior, rows)
    if why_not:
        warn(f"samples are drawn kernel by kernel, several times slower: {why_not}")
    return PlainDecoder(prior, rows)


def why_not_fused(prior: Prior) -> str:
    """What keeps a prior on a GPU from the kernels, in words; nothing if they can run."""
    kinds = {weight.dtype for weight in prior.parameters()}
    if torch.version.hip is not None:
        return "kernels were tried on NVIDIA's GPUs alone"
    if torch.is_autocast_enabled("cuda"):
        return "autocast is on; keep the weights in bfloat16 instead (core.precision)"
    if len(kinds) > 1 or not kinds <= {torch.float32, torch.bfloat16}:
        return "weights are to be all float32 or all bfloat16"
    if not all(weight.is_contiguous() for weight in prior.parameters()):
        return "weights are to lie row by row in memory"
    return ""


@functools.cache
def _kernels_work(device: torch.device) -> bool:
    def run_one() -> None:
        from cartok.sampling.kernels import norm_kernel

        kernel: Any = norm_kernel  # triton's own annotations contradict its calls
        x, early = torch.zeros(1, 1, device=device), _starts_early(device)
        kernel[(1,)](x, x, x, 1, 1.0, early=early, wide=1, **_launch_of(early))

    return kernels_work(device, run_one, "sampler")


class PlainDecoder:
    """The prior's own modules, with a cache that grows."""

    def __init__(self, prior: Prior, rows: int) -> None:
        self._prior, self._rows = prior, rows
        self.restart()

    def restart(self) -> None:
        """Forgets what was seen."""
        self._cache = self._prior.empty_cache(self._rows)

    def logits(self, x: Vectors, position: Position) -> Logits:
        """Of the tokens that follow ``x``."""
        return self._prior.logits_after(x, self._cache)


class FusedDecoder:
    """``kernels`` between the products of matrices, and for few rows in their place.

    Weights are read where they lie, so what is changed in place is seen.
    """

    def __init__(self, prior: Prior, rows: int) -> None:
        from cartok.sampling import kernels  # triton, only where it can run

        self._kernels: Any = kernels
        self._prior, self._rows = prior, rows
        net, like = prior.config.transformer, prior.head.weight
        cache = (net.depth, rows, net.heads, prior.config.num_places, net.head_dim)
        self._keys, self._values = like.new_zeros(cache), like.new_zeros(cache)
        self._rotary = prior.rotary.contiguous()
        self._is_thin = rows <= _TALL and like.dtype != torch.float32
        self._is_few = rows <= _FEW
        self._tile, self._warps = _cut_of(rows * net.heads)
        self._early = _starts_early(like.device)
        self._launch = _launch_of(self._early)
        self._stream = like.new_empty(rows, net.width)

    def restart(self) -> None:
        """Nothing to forget: no position is read before it has been written."""

    def logits(self, x: Vectors, position: Position) -> Logits:
        """Of the tokens that follow ``x``; ``position`` is read when the kernels run."""
        stream = self._stream.copy_(x)
        transformer = self._prior.transformer
        for index, block in enumerate(transformer.blocks):
            assert isinstance(block, Block)
            feed, attention = block.feed, block.attention
            qkv = self._product(stream, attention.qkv.weight, block.attention_norm)
            mixed = self._attend(qkv, index, block, position)
            self._add(stream, mixed, attention.out.weight)
            hidden = self._gated(stream, feed.gate_up.weight, block.feed_norm)
            self._add(stream, hidden, feed.down.weight)
        return self._product(stream, self._prior.head.weight, transformer.norm)

    def _attend(self, qkv: Tensor, index: int, block: Block, position: Position) -> Tensor:
        net, attention = self._prior.config.transformer, block.attention
        normed = self._prior.config.query_key_norm
        query, key = (  # without norms, whatever stands in is not read
            (attention.query_norm, attention.key_norm) if normed else (block.feed_norm,) * 2
        )
        mixed = qkv.new_empty(self._rows, net.width)
        self._kernels.attend_kernel[self._rows, net.heads](
            qkv, query.weight, key.weight, self._rotary, self._keys[index], self._values[index],
            position, mixed, net.heads, self._keys.shape[3], net.head_dim // 2, query.eps,
            1 / math.sqrt(net.head_dim), normed=normed, early=self._early,
            wide=power_of_two(net.head_dim), tile=self._tile, num_warps=self._warps, **self._launch,
        )  # fmt: skip
        return mixed

    def _product(self, x: Tensor, weight: Tensor, norm: Any) -> Tensor:
        """Of normalised rows."""
        if self._is_thin:
            return self._thin(x, weight, norm, x.new_empty(len(x), len(weight)))
        return F.linear(self._normal(x, norm), weight)

    def _gated(self, x: Tensor, weight: Tensor, norm: Any) -> Tensor:
        """Of normalised rows: silu(gate) * up."""
        out = x.new_empty(len(x), len(weight) // 2)
        if self._is_thin:
            return self._thin(x, weight, norm, out, gated=True)
        both, tile = F.linear(self._normal(x, norm), weight), 1024
        grid = (len(x), _parts(out.shape[1], tile))
        self._kernels.gate_kernel[grid](
            both, out, out.shape[1], early=self._early, tile=tile, **self._launch
        )
        return out

    def _add(self, stream: Tensor, x: Tensor, weight: Tensor) -> None:
        if self._is_thin:
            self._thin(x, weight, None, stream, adds=True)
        else:
            stream.addmm_(x, weight.t())

    def _normal(self, x: Tensor, norm: Any) -> Tensor:
        out, width = torch.empty_like(x), x.shape[1]
        self._kernels.norm_kernel[(len(x),)](
            x,
            norm.weight,
            out,
            width,
            norm.eps,
            early=self._early,
            wide=power_of_two(width),
            **self._launch,
        )
        return out

    def _thin(
        self, x: Tensor, weight: Tensor, norm: Any, out: Tensor,
        gated: bool = False, adds: bool = False,
    ) -> Tensor:  # fmt: skip
        inputs, outputs = x.shape[1], out.shape[1]
        given = (
            x, weight, weight if norm is None else norm.weight, out, len(x), inputs, outputs,
            0.0 if norm is None else norm.eps,
        )  # fmt: skip
        what: dict[str, Any] = {"normed": norm is not None, "gated": gated, "adds": adds}
        held = _parts(inputs, _DEEP)
        if not self._is_few or held * (1 + gated) > _HELD:
            grid = (_parts(outputs, _THIN["tile"]),)
            self._kernels.product_kernel[grid](*given, **what, tall=_TALL, **_THIN)
            return out
        tile = 1 if held > 8 else 4  # so many warps too; the fastest on an H100
        self._kernels.streamed_kernel[(_parts(outputs, tile),)](
            *given, **what, early=self._early, tall=power_of_two(len(x)), tile=tile, deep=_DEEP,
            parts=held, num_warps=tile, **self._launch,
        )  # fmt: skip
        return out


def _cut_of(heads: int) -> tuple[int, int]:
    """Places of attention's tile, and warps: the fastest on an H100 for so many rows' heads.

    Of one warp, so that many run on a multiprocessor, or wide where there are few.
    """
    if heads < 128:
        return 128, 4
    return (64, 4) if heads < 512 else (8, 1)


def _launch_of(early: bool) -> dict[str, bool]:
    """Options of a launch; not all GPUs, nor the interpreter, know those of an early start."""
    return {"launch_pdl": True} if early else {}


def _starts_early(device: torch.device) -> bool:
    return device.type == "cuda" and torch.cuda.get_device_capability(device) >= (9, 0)


def power_of_two(number: int) -> int:
    """The least power of two that is no smaller."""
    return 1 << (number - 1).bit_length()


def _parts(length: int, tile: int) -> int:
    return -(-length // tile)
