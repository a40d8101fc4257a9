"""One causal transformer: two layers of it regularise the tokenizer, up to forty are the prior.

Pre-norm blocks as in Llama 2 with QK-norm and 2-D rotary positions, no biases. The layers know no
vocabulary, no class, no rank; they follow the device and dtype of what they are given.

In training on a GPU a block does what lies between its products of matrices in passes of our own
(``fused``): the same numbers, but for rounding and the noise of dropout.
"""

import functools
import math

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F

from cartok.core.compiled import kernels_work
from cartok.core.config import config
from cartok.core.shapes import Sequence

Rotary = Float[Tensor, "place 2 half"]
"""Cosine (index 0) and sine (index 1) of each place's angles; half a head's width of them."""

Projected = Float[Tensor, "batch position head channel"]
"""Queries, keys or values as a projection leaves them in memory."""

Heads = Float[Tensor, "batch head position channel"]
"""Queries, keys or values of the positions at hand, as attention takes them."""

SeenHeads = Float[Tensor, "batch head seen channel"]
"""Keys or values of all positions so far."""


@config
class TransformerConfig:
    """Shape of a causal transformer; the default is the 111M prior (paper, Table 2)."""

    width: int = 768
    depth: int = 12
    heads: int = 12
    dropout: float = 0.0
    """On both residual branches of a block."""
    rope_base: float = 10000.0
    hidden_multiple: int = 256
    """The feed-forward width is rounded up to a multiple of it; 64 keeps toy networks small."""

    def __post_init__(self) -> None:
        """Refuses widths that heads or 2-D rotary positions cannot divide."""
        if min(self.width, self.depth, self.heads, self.hidden_multiple) < 1:
            raise ValueError("width, depth, heads and hidden_multiple are at least 1")
        if self.width % (4 * self.heads):
            raise ValueError(
                f"a head's width is a multiple of 4 (rows and columns, cosine and sine), "
                f"but {self.width} over {self.heads} heads is {self.width / self.heads:g}; "
                f"choose a width that {4 * self.heads} divides"
            )
        if not 0 <= self.dropout < 1:
            raise ValueError(f"dropout lies in [0, 1), but is {self.dropout:g}")
        if self.rope_base <= 1:
            raise ValueError(f"rope_base is above 1, but is {self.rope_base:g}")

    @property
    def head_dim(self) -> int:
        """Width of one head."""
        return self.width // self.heads

    @property
    def hidden(self) -> int:
        """Width of SwiGLU: 8/3 of ``width``, rounded up, so three matrices cost what two did."""
        return math.ceil(8 * self.width / (3 * self.hidden_multiple)) * self.hidden_multiple


class RMSNorm(nn.Module):
    """Scales vectors to unit root mean square, then by a learned weight; float32 inside."""

    def __init__(self, width: int, eps: float = 1e-5) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(width))
        self.eps = eps

    def forward(self, x: Float[Tensor, "*axes width"]) -> Float[Tensor, "*axes width"]:
        """Normalised ``x``, in the dtype of ``x``."""
        wide = torch.promote_types(x.dtype, torch.float32)
        normal = F.rms_norm(x.to(wide), self.weight.shape, self.weight.to(wide), self.eps)
        return normal.to(x.dtype)


def rotary_table(
    rows: int, cols: int, head_dim: int, base: float = 10000.0, prefix: int = 0
) -> Rotary:
    """Rotary angles of a grid in raster order, after ``prefix`` positions that are not rotated.

    The first half of a head's angles turns with the row, the second with the column, so a query
    and a key meet in an inner product that depends on their offset on the grid alone (LlamaGen's
    2-D rotary). A class or start token belongs to no cell; its rotation is the identity.
    """
    quarter = head_dim // 4
    rates = base ** (-torch.arange(quarter, dtype=torch.float64) / quarter)
    row = torch.arange(rows, dtype=torch.float64).repeat_interleave(cols)
    col = torch.arange(cols, dtype=torch.float64).repeat(rows)
    angles = torch.cat([torch.outer(row, rates), torch.outer(col, rates)], dim=1)
    angles = F.pad(angles, (0, 0, prefix, 0))
    return torch.stack([angles.cos(), angles.sin()], dim=1).float()


def rotate(x: Projected, rotary: Rotary) -> Projected:
    """Turns coordinate i of each head together with coordinate i + half, by ``rotary``.

    Halves, not neighbours, are paired (neighbours in LlamaGen's weights), which needs no strided
    access.
    """
    cos, sin = rotary[:, None].unbind(2)
    first, second = x.chunk(2, dim=-1)
    turned = [first * cos - second * sin, first * sin + second * cos]
    return torch.cat(turned, dim=-1).to(x.dtype)


class LayerCache:
    """Keys and values of the positions one layer has seen, in two tensors allocated once.

    K and V stay apart: as views of one tensor, compiled decoding copies the whole cache per layer.
    """

    def __init__(self, key: Heads, value: Heads) -> None:
        self.key = key
        self.value = value
        self.filled = 0

    def extend(self, key: Heads, value: Heads) -> tuple[SeenHeads, SeenHeads]:
        """Writes the next positions in place; returns all that are filled, as views."""
        stop = self.filled + key.shape[2]
        self.key[:, :, self.filled : stop] = key
        self.value[:, :, self.filled : stop] = value
        self.filled = stop
        return self.key[:, :, :stop], self.value[:, :, :stop]


class KeyValueCache:
    """What a transformer remembers of ``length`` positions while it decodes one after another."""

    def __init__(self, config: TransformerConfig, batch: int, length: int, like: Tensor) -> None:
        shape = (batch, config.heads, length, config.head_dim)
        self.layers = [
            LayerCache(like.new_zeros(shape), like.new_zeros(shape)) for _ in range(config.depth)
        ]

    @property
    def filled(self) -> int:
        """Number of positions written so far: the index of the next one."""
        return self.layers[0].filled


class Attention(nn.Module):
    """Causal self-attention with QK-norm (before the rotation) and one fused projection."""

    def __init__(self, config: TransformerConfig) -> None:
        super().__init__()
        self.heads = config.heads
        self.qkv = nn.Linear(config.width, 3 * config.width, bias=False)
        self.query_norm: nn.Module = RMSNorm(config.head_dim)
        self.key_norm: nn.Module = RMSNorm(config.head_dim)
        self.out = nn.Linear(config.width, config.width, bias=False)

    def gains(self) -> tuple[Tensor | None, Tensor | None]:
        """Of the norms of queries and keys; None where there is no norm."""
        query, key = self.query_norm, self.key_norm
        return getattr(query, "weight", None), getattr(key, "weight", None)

    def forward(self, x: Sequence, rotary: Rotary, cache: LayerCache | None = None) -> Sequence:
        """Mixes each position with those before it, ``cache`` included; extends ``cache``."""
        qkv = self.qkv(x).unflatten(2, (3, self.heads, -1))
        query, key, value = qkv.unbind(2)  # batch position head channel
        query = rotate(self.query_norm(query), rotary)
        key = rotate(self.key_norm(key), rotary)
        # Turned as views: copies into another layout would cost a GPU a tenth of a training step.
        query, key, value = (part.transpose(1, 2) for part in (query, key, value))
        if cache is not None:
            key, value = cache.extend(key, value)
        mixed = _attend(query, key, value)
        return self.out(mixed.transpose(1, 2).flatten(2))


def _attend(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
    """Causal attention of the newest positions, which are the last ones of ``key``."""
    new, seen = query.shape[2], key.shape[2]
    if new == seen or new == 1:
        return F.scaled_dot_product_attention(query, key, value, is_causal=new > 1)
    mask = torch.ones(new, seen, dtype=torch.bool, device=query.device).tril(seen - new)
    return F.scaled_dot_product_attention(query, key, value, attn_mask=mask)


class SwiGLU(nn.Module):
    """Feed-forward network with a gate: down(silu(gate(x)) * up(x)); gate and up are fused."""

    def __init__(self, config: TransformerConfig) -> None:
        super().__init__()
        self.gate_up = nn.Linear(config.width, 2 * config.hidden, bias=False)
        self.down = nn.Linear(config.hidden, config.width, bias=False)

    def forward(self, x: Sequence) -> Sequence:
        """The gated transform of each position on its own."""
        gate, up = self.gate_up(x).chunk(2, dim=-1)
        return self.down(F.silu(gate) * up)


class Block(nn.Module):
    """One layer: attention, then SwiGLU, each normalised before and added to the stream.

    Where ``trains_fused``, norms, ``attention``, ``feed``, ``feed.down`` and ``dropout`` are not
    called as modules but read: hooks on them, and layers put in their place, have no part then.
    """

    def __init__(self, config: TransformerConfig) -> None:
        super().__init__()
        self.attention_norm = RMSNorm(config.width)
        self.attention = Attention(config)
        self.feed_norm = RMSNorm(config.width)
        self.feed = SwiGLU(config)
        self.dropout = nn.Dropout(config.dropout)

    def forward(self, x: Sequence, rotary: Rotary, cache: LayerCache | None = None) -> Sequence:
        """The residual stream after this layer; extends ``cache``."""
        if cache is None and trains_fused(x):
            return self._fused(x, rotary)
        x = x + self.dropout(self.attention(self.attention_norm(x), rotary, cache))
        return x + self.dropout(self.feed(self.feed_norm(x)))

    def _fused(self, x: Sequence, rotary: Rotary) -> Sequence:
        from cartok.layers import fused

        attention, feed = self.attention, self.feed
        before, between = self.attention_norm, self.feed_norm
        drop = self.dropout.p if self.training else 0.0
        x, normed = fused.add_norm(x, None, 0.0, before.weight, before.eps)
        heads = fused.Turn.apply(
            attention.qkv(normed),
            *attention.gains(),
            rotary,
            attention.heads,
            getattr(attention.query_norm, "eps", 0.0),
        )
        mixed = _attend(*(part.transpose(1, 2) for part in heads))
        branch = attention.out(mixed.transpose(1, 2).flatten(2))
        x, normed = fused.add_norm(x, branch, drop, between.weight, between.eps)
        branch = fused.gated_product(feed.gate_up(normed), feed.down.weight)
        return fused.Add.apply(x, branch, drop)


def trains_fused(x: Tensor) -> bool:
    """True where a block's ``kernels`` can run and have a use.

    That is with gradients on, on an NVIDIA GPU, and not while torch.compile reads the block.
    """
    if torch.compiler.is_compiling() or not (x.is_cuda and torch.is_grad_enabled()):
        return False
    known = x.dtype in (torch.float32, torch.bfloat16, torch.float16)
    return known and torch.version.hip is None and _kernels_work(x.device)


@functools.cache
def _kernels_work(device: torch.device) -> bool:
    def run_one() -> None:
        from cartok.layers import fused

        fused.run_one(device)

    return kernels_work(device, run_one, "transformer")


class Transformer(nn.Module):
    """A stack of causal blocks and a final norm; vectors in, vectors out."""

    def __init__(self, config: TransformerConfig) -> None:
        super().__init__()
        self.config = config
        self.blocks = nn.ModuleList(Block(config) for _ in range(config.depth))
        self.norm = RMSNorm(config.width)
        self.initialise()

    def initialise(self) -> None:
        """Draws all weights anew from the global generator.

        ============================ =====================================
        norms                        1
        qkv, gate and up             normal, 0.02
        attention out, feed down     normal, 0.02 / sqrt(2 * depth), so that
                                     the stream's variance is free of depth
        ============================ =====================================
        """
        into_stream = 0.02 / math.sqrt(2 * self.config.depth)
        for name, weight in self.named_parameters():
            if weight.ndim == 1:
                nn.init.ones_(weight)
            else:
                into = name.endswith(("out.weight", "down.weight"))
                nn.init.normal_(weight, std=into_stream if into else 0.02)

    def leave_out_query_key_norm(self) -> None:
        """Attends with queries and keys as they are projected, as weights of others may need."""
        for module in self.modules():
            if isinstance(module, Attention):
                module.query_norm = module.key_norm = nn.Identity()

    def empty_cache(self, batch: int, length: int) -> KeyValueCache:
        """A cache for ``length`` positions, on the device and in the dtype of the weights."""
        return KeyValueCache(self.config, batch, length, like=self.norm.weight)

    def forward(self, x: Sequence, rotary: Rotary, cache: KeyValueCache | None = None) -> Sequence:
        """Normalised features of every position, each a function of itself and those before.

        ``rotary`` covers the sequence from its start and may be longer than ``x``. With ``cache``,
        ``x`` holds the positions that follow the filled ones; the cache is extended by them.
        """
        start = 0 if cache is None else cache.filled
        rotary = rotary[start : start + x.shape[1]]
        layers = [None] * len(self.blocks) if cache is None else cache.layers
        for block, layer in zip(self.blocks, layers, strict=True):
            x = block(x, rotary, layer)
        return self.norm(x)
