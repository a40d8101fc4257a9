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
        x = torch.zeros(1, 1, device=device)
        kernel[(1,)](x, x, x, 1, 1.0, wide=1)

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
        is_few = rows * net.heads < 512
        self._tile, self._warps = (128, 8) if is_few else (16, 1)  # the fastest on an H100
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
            1 / math.sqrt(net.head_dim), normed=normed, wide=_power(net.head_dim // 2),
            tile=self._tile, num_warps=self._warps,
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
        self._kernels.gate_kernel[grid](both, out, out.shape[1], tile=tile)
        return out

    def _add(self, stream: Tensor, x: Tensor, weight: Tensor) -> None:
        if self._is_thin:
            self._thin(x, weight, None, stream, adds=True)
        else:
            stream.addmm_(x, weight.t())

    def _normal(self, x: Tensor, norm: Any) -> Tensor:
        out, width = torch.empty_like(x), x.shape[1]
        self._kernels.norm_kernel[(len(x),)](
            x, norm.weight, out, width, norm.eps, wide=_power(width)
        )
        return out

    def _thin(
        self, x: Tensor, weight: Tensor, norm: Any, out: Tensor,
        gated: bool = False, adds: bool = False,
    ) -> Tensor:  # fmt: skip
        outputs = out.shape[1]
        self._kernels.product_kernel[(_parts(outputs, _THIN["tile"]),)](
            x, weight, weight if norm is None else norm.weight, out, len(x), x.shape[1], outputs,
            0.0 if norm is None else norm.eps, normed=norm is not None, gated=gated, adds=adds,
            tall=_TALL, **_THIN,
        )  # fmt: skip
        return out


def _power(number: int) -> int:
    """The least power of two that is no smaller."""
    return 1 << (number - 1).bit_length()


def _parts(length: int, tile: int) -> int:
    return -(-length // tile)
