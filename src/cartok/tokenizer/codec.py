"""The convolutional encoder and decoder: pictures to a small grid of vectors, and back.

The network of VQGAN (Esser et al. 2021) as the paper uses it: residual blocks of GroupNorm, SiLU
and 3x3 convolutions, attention on the coarsest grid. It knows nothing of codes.
"""

from torch import Tensor, nn
from torch.nn import functional as F

from cartok.core.config import config
from cartok.core.errors import UserError
from cartok.core.shapes import Image, Latents


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
        x = self.enter(F.pixel_unshuffle(image, self.stem))
        for level in self.levels:
            x = level(x)
        return self.leave(self.middle(x))


class Decoder(nn.Module):
    """Latents back to pictures; the output is about [-1, 1] but not clipped."""

    def __init__(self, config: CodecConfig):
        super().__init__()
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
        x = self.middle(self.enter(latents))
        for level in self.levels:
            x = level(x)
        return F.pixel_shuffle(self.leave(x), self.stem)


class ResidualBlock(nn.Module):
    """Two normalised 3x3 convolutions beside the identity (or a 1x1 where widths differ)."""

    def __init__(self, before: int, after: int, groups: int):
        super().__init__()
        self.norm1 = nn.GroupNorm(groups, before, eps=1e-6)
        self.conv1 = nn.Conv2d(before, after, 3, padding=1)
        self.norm2 = nn.GroupNorm(groups, after, eps=1e-6)
        self.conv2 = nn.Conv2d(after, after, 3, padding=1)
        self.skip = nn.Identity() if before == after else nn.Conv2d(before, after, 1)

    def forward(self, x: Tensor) -> Tensor:
        """Same grid, ``after`` channels."""
        h = self.conv1(F.silu(self.norm1(x)))
        h = self.conv2(F.silu(self.norm2(h)))
        return self.skip(x) + h


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
        qkv = self.qkv(self.norm(x)).flatten(2).transpose(1, 2)  # batch, cell, 3 * channel
        q, k, v = qkv.unsqueeze(1).chunk(3, dim=-1)  # batch, 1 head, cell, channel
        h = F.scaled_dot_product_attention(q, k, v).squeeze(1)
        h = h.transpose(1, 2).reshape(-1, channels, rows, cols)
        return x + self.out(h)


class Downsample(nn.Module):
    """Halves the grid with a strided convolution, padded on the right and below."""

    def __init__(self, channels: int):
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, 3, stride=2)

    def forward(self, x: Tensor) -> Tensor:
        """Half the side, same channels."""
        return self.conv(F.pad(x, (0, 1, 0, 1)))


class Upsample(nn.Module):
    """Doubles the grid: nearest cell, then a convolution."""

    def __init__(self, channels: int):
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        """Twice the side, same channels."""
        return self.conv(F.interpolate(x, scale_factor=2.0, mode="nearest"))


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
    norm = nn.GroupNorm(groups, before, eps=1e-6)
    return nn.Sequential(norm, nn.SiLU(), nn.Conv2d(before, after, 3, padding=1))


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
