"""The convolutional encoder and decoder: pictures to a small grid of vectors, and back.

The network of VQGAN (Esser et al. 2021) as the paper uses it: residual blocks of GroupNorm, SiLU
and 3x3 convolutions, attention on the coarsest grid. It knows nothing of codes.
"""

from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from cartok.core.config import config
from cartok.core.errors import UserError
from cartok.core.shapes import Image, Latents
from cartok.tokenizer.blocks import (
    Downsample,
    GridAttention,
    NormSiLU,
    Pending,
    ResidualBlock,
    Upsample,
    channels_last,
    pending,
    settled,
)


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
        x = pending(F.conv2d(x, self.enter.weight, padding=1), self.enter.bias)
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


def through(level: nn.Module, x: Tensor | Pending, again: bool) -> Tensor | Pending:
    """A level's answer; ``again`` computes it once more in the backward pass, and keeps nothing."""
    return checkpoint(level, settled(x), use_reentrant=False) if again else level(x)


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
