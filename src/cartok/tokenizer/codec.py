"""The convolutional encoder and decoder: pictures to a small grid of vectors, and back.

The network of VQGAN (Esser et al. 2021) as the paper uses it: residual blocks of GroupNorm, SiLU
and 3x3 convolutions, attention on the coarsest grid. It knows nothing of codes.
"""

import functools
import importlib.util

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from cartok.core.config import config
from cartok.core.errors import UserError
from cartok.core.precision import full_precision
from cartok.core.shapes import Image, Latents

_PLAIN_CELLS = 1024
"""Up to here attention writes its table out: no fused kernel knows heads of 512 channels well."""


@config
class CodecConfig:
    """Shape of the codec; the defaults are the paper's f=16 network (72M parameters)."""

    channels: int = 128
    multipliers: tuple[int, ...] = (1, 1, 2, 2, 4)
    """Channels of each level over ``channels``, finest first; each level halves the grid."""
    encoder_blocks: int = 2
    decoder_blocks: int = 3
    attention: bool = True
    """On the coarsest grid."""
    latent_channels: int = 256
    stem: int = 1
    """Side of the patches that are folded into channels first: a cheaper way to shrink."""
    groups: int = 32

    def __post_init__(self):
        if not self.multipliers or min(self.multipliers) < 1:
            raise ValueError(
                f"multipliers must be one or more positive numbers: {self.multipliers}"
            )
        counts = {"channels": self.channels, "groups": self.groups,
                  "encoder_blocks": self.encoder_blocks, "decoder_blocks": self.decoder_blocks,
                  "latent_channels": self.latent_channels}  # fmt: skip
        for name, value in counts.items():
            if value < 1:
                raise ValueError(f"{name} must be at least 1, but is {value}")
        if self.channels % self.groups:
            raise ValueError(f"channels {self.channels} must be a multiple of groups {self.groups}")
        if self.stem not in (1, 2, 4, 8):
            raise ValueError(f"stem must be 1, 2, 4 or 8, but is {self.stem}")

    @property
    def factor(self) -> int:
        """How many pixels a side of one grid cell covers: f in the paper."""
        return self.stem * 2 ** (len(self.multipliers) - 1)


class Encoder(nn.Module):
    """Pictures to latents, ``factor`` times smaller a side."""

    def __init__(self, config: CodecConfig):
        super().__init__()
        self.recompute_levels = 0  # finest levels whose activations are not kept for going back
        widths = [config.channels * m for m in config.multipliers]
        self.stem = config.stem
        self.enter = nn.Conv2d(3 * config.stem**2, widths[0], 3, padding=1)
        self.levels = nn.ModuleList()
        before = widths[0]
        for index, width in enumerate(widths):
            last = index == len(widths) - 1
            attention = last and config.attention
            blocks = _blocks(before, width, config.encoder_blocks, attention, config.groups)
            self.levels.append(blocks if last else nn.Sequential(blocks, Downsample(width)))
            before = width
        self.middle = _middle(before, config)
        self.leave = _leave(before, config.latent_channels, config.groups)

    def forward(self, image: Image) -> Latents:
        """Latents of pictures whose sides ``factor`` divides."""
        x = channels_last(F.pixel_unshuffle(image, self.stem))
        x = add_bias(F.conv2d(x, self.enter.weight, padding=1), self.enter.bias)
        for index, level in enumerate(self.levels):
            x = through(level, x, again=index < self.recompute_levels and self.training)
        return self.leave(self.middle(x))


class Decoder(nn.Module):
    """Latents back to pictures; the output is about [-1, 1] but not clipped."""

    def __init__(self, config: CodecConfig):
        super().__init__()
        self.recompute_levels = 0  # finest levels whose activations are not kept for going back
        widths = [config.channels * m for m in reversed(config.multipliers)]
        self.stem = config.stem
        self.enter = nn.Conv2d(config.latent_channels, widths[0], 3, padding=1)
        self.middle = _middle(widths[0], config)
        self.levels = nn.ModuleList()
        before = widths[0]
        for index, width in enumerate(widths):
            last = index == len(widths) - 1
            attention = index == 0 and config.attention
            blocks = _blocks(before, width, config.decoder_blocks, attention, config.groups)
            self.levels.append(blocks if last else nn.Sequential(blocks, Upsample(width)))
            before = width
        self.leave = _leave(before, 3 * config.stem**2, config.groups)

    def forward(self, latents: Latents) -> Image:
        """Pictures ``factor`` times larger a side."""
        x = self.middle(self.enter(channels_last(latents)))
        for index, level in enumerate(self.levels):
            finest = len(self.levels) - index
            x = through(level, x, again=finest <= self.recompute_levels and self.training)
        return F.pixel_shuffle(self.leave(x), self.stem)

    @property
    def last_layer(self) -> Tensor:
        """The last weight that pictures pass through."""
        last = self.leave[-1]
        assert isinstance(last, nn.Conv2d)
        return last.weight


class ResidualBlock(nn.Module):
    """Two normalised 3x3 convolutions beside the identity (or a 1x1 where widths differ)."""

    def __init__(self, before: int, after: int, groups: int):
        super().__init__()
        self.norm1 = NormSiLU(groups, before)
        self.conv1 = nn.Conv2d(before, after, 3, padding=1)
        self.norm2 = NormSiLU(groups, after)
        self.conv2 = nn.Conv2d(after, after, 3, padding=1)
        self.skip = nn.Identity() if before == after else nn.Conv2d(before, after, 1)

    def forward(self, x: Tensor) -> Tensor:
        """Same grid, ``after`` channels."""
        if not runs_fused(x):
            return self.skip(x) + self.conv2(self.norm2(self.conv1(self.norm1(x))))
        # The biases of the convolutions ride on passes that are made anyway.
        h, x = self.norm1.beside(x)
        h = F.conv2d(h, self.conv1.weight, padding=1)
        h = F.conv2d(self.norm2(h, self.conv1.bias), self.conv2.weight, padding=1)
        return add_bias(h, self.conv2.bias, self.skip(x))


class NormSiLU(nn.Module):
    """Group norm, then SiLU; statistics in float32, the answer in the dtype of the input."""

    def __init__(self, groups: int, channels: int):
        super().__init__()
        self.groups, self.eps = groups, 1e-6
        self.weight = nn.Parameter(torch.ones(channels))
        self.bias = nn.Parameter(torch.zeros(channels))

    def forward(self, x: Tensor, bias: Tensor | None = None) -> Tensor:
        """Same shape; ``bias``, one number a channel, is added first."""
        return self.beside(x, bias)[0]

    def beside(self, x: Tensor, bias: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """The answer, and ``x`` for who needs it too: so their gradients meet without a pass."""
        if runs_fused(x):
            from cartok.tokenizer.kernels import GroupNormSiLU

            return GroupNormSiLU.apply(x, self.weight, self.bias, bias, self.groups, self.eps)
        with full_precision(x.device):
            h = x if bias is None else x + bias.to(x.dtype)[:, None, None]
            weight, shift = self.weight.to(x.dtype), self.bias.to(x.dtype)
            return F.silu(F.group_norm(h, self.groups, weight, shift, self.eps)), x


class GridAttention(nn.Module):
    """Every cell of the grid looks at every other: one head, as VQGAN has it."""

    def __init__(self, channels: int, groups: int):
        super().__init__()
        self.norm = nn.GroupNorm(groups, channels, eps=1e-6)
        self.qkv = nn.Conv2d(channels, 3 * channels, 1)
        self.out = nn.Conv2d(channels, channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        """Same shape."""
        _, channels, rows, cols = x.shape
        qkv = self.qkv(self.norm(x)).movedim(1, -1).flatten(1, 2)  # batch, cell, 3 * channel
        q, k, v = qkv.chunk(3, dim=-1)
        if rows * cols <= _PLAIN_CELLS:
            h = (q @ k.mT * channels**-0.5).softmax(-1).to(v.dtype) @ v
        else:
            h = F.scaled_dot_product_attention(q[:, None], k[:, None], v[:, None]).squeeze(1)
        return x + self.out(h.unflatten(1, (rows, cols)).movedim(-1, 1))


class Downsample(nn.Module):
    """Halves the grid with a strided convolution, padded on the right and below."""

    def __init__(self, channels: int):
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, 3, stride=2)

    def forward(self, x: Tensor) -> Tensor:
        """Half the side, same channels."""
        # Padded by two all round, which takes no copy, then without the first row and column.
        h = F.conv2d(x, self.conv.weight, stride=2, padding=2)[:, :, 1:, 1:]
        return add_bias(channels_last(h), self.conv.bias)


class Upsample(nn.Module):
    """Doubles the grid: nearest cell, then a 3x3 convolution; both in one.

    A cell's four copies meet only 2x2 different cells under a 3x3 kernel, so the two are one
    transposed convolution whose 4x4 kernel holds sums of the 3x3 one: 4/9 of the work.
    """

    def __init__(self, channels: int):
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        """Twice the side, same channels."""
        kernel = self.conv.weight.flip(2, 3)
        kernel = F.pad(kernel, (1, 0)) + F.pad(kernel, (0, 1))
        kernel = F.pad(kernel, (0, 0, 1, 0)) + F.pad(kernel, (0, 0, 0, 1))
        h = F.conv_transpose2d(x, kernel.transpose(0, 1), stride=2, padding=1)
        return add_bias(h, self.conv.bias)


def _blocks(before: int, after: int, count: int, attention: bool, groups: int) -> nn.Sequential:
    layers: list[nn.Module] = []
    for index in range(count):
        layers.append(ResidualBlock(before if index == 0 else after, after, groups))
        if attention:
            layers.append(GridAttention(after, groups))
    return nn.Sequential(*layers)


def _middle(channels: int, config: CodecConfig) -> nn.Sequential:
    block = [ResidualBlock(channels, channels, config.groups) for _ in range(2)]
    attention = [GridAttention(channels, config.groups)] if config.attention else []
    return nn.Sequential(block[0], *attention, block[1])


def _leave(before: int, after: int, groups: int) -> nn.Sequential:
    return nn.Sequential(NormSiLU(groups, before), nn.Conv2d(before, after, 3, padding=1))


def through(level: nn.Module, x: Tensor, again: bool) -> Tensor:
    """A level's answer; ``again`` computes it once more in the backward pass, and keeps nothing."""
    return checkpoint(level, x, use_reentrant=False) if again else level(x)


def channels_last(x: Tensor) -> Tensor:
    """On a GPU, the layout in memory that its convolutions are fastest in; the same numbers."""
    return x.contiguous(memory_format=torch.channels_last) if x.is_cuda else x


def add_bias(h: Tensor, bias: Tensor | None, x: Tensor | None = None) -> Tensor:
    """``h`` plus a number a channel, plus ``x`` if given; ``h``, fresh from a convolution, goes."""
    assert bias is not None
    if runs_fused(h):
        from cartok.tokenizer.kernels import AddBias

        return AddBias.apply(h, bias, x)
    h = h + bias.to(h.dtype)[:, None, None]
    return h if x is None else x + h


def runs_fused(x: Tensor) -> bool:
    """True where ``kernels`` can run: on an NVIDIA GPU, channels last."""
    return x.is_cuda and _has_triton() and x.is_contiguous(memory_format=torch.channels_last)


@functools.cache
def _has_triton() -> bool:
    return importlib.util.find_spec("triton") is not None


def parameter_count(module: nn.Module) -> int:
    """Number of parameters, trained or not."""
    return sum(p.numel() for p in module.parameters())


def check_size(height: int, width: int, factor: int) -> tuple[int, int]:
    """The token grid of a picture of this size.

    Raises:
        UserError: a side is no multiple of ``factor``.
    """
    if height % factor or width % factor or min(height, width) < factor:
        raise UserError(
            f"a picture's sides must be multiples of {factor}, but it is {width}x{height}; "
            "crop or resize it"
        )
    return height // factor, width // factor
