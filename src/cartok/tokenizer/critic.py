"""The critic: judges whether patches of a picture are photographs or reconstructions.

PatchGAN (Isola et al. 2017) with the hinge loss is the paper's. Its text says Wasserstein; the
losses it plots are those of a hinge at weight 0.5, as in LlamaGen. ``DinoCritic`` judges by the
features of a frozen network instead, as StyleGAN-T does (Sauer et al. 2023).

When it learns and when the codec hears it, by step:

    0 .. start - warm     it rests: no pass, no cost
    start - warm .. start it learns; the codec does not hear it
    start .. start + ramp it learns; its weight in the codec's loss rises from 0, along a cosine
    start + ramp ..       it learns; full weight
"""

import math
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F

from cartok.core.config import config
from cartok.core.precision import full_precision
from cartok.core.shapes import Image, Sequence
from cartok.frozen import TokenFeatures

Scalar = Float[Tensor, ""]

Verdicts = Float[Tensor, "batch 1 row column"]
"""One of every patch; of a ``DinoCritic``, a row for each layer and a column for each token."""

LossName = Literal["hinge", "wasserstein", "non-saturating"]

LECAM_DECAY = 0.999
"""Of the running means of the verdicts, as in 1d-tokenizer; Tseng et al. 2021 take 0.99."""


@config
class CriticConfig:
    """The critic and when it speaks; the defaults are the paper's (A.1) but for ``norm``."""

    weight: float = 0.5
    """Of its term in the codec's loss; 0: no critic at all."""
    kind: Literal["patch", "dino"] = "patch"
    """Which network: convolutions on the picture, or heads on a frozen network's features."""
    channels: int = 64
    """Of the patch critic's first layer."""
    layers: int = 3
    """Halvings of the patch critic's grid; 3 give patches of 70 pixels."""
    norm: Literal["group", "batch"] = "group"
    """Batch is the paper's; group makes parts of a batch and ranks give equal results."""
    loss: LossName = "hinge"
    """A Wasserstein critic, the paper's word, has no bound of its own; lecam above 0 gives it one.
    """
    start: int = 20_000
    """Step from which the codec hears the critic."""
    ramp: int = 2_000
    """Steps over which its weight rises from 0, along a cosine."""
    warm: int = 0
    """Steps before ``start`` for which the critic already learns."""
    weighting: Literal["constant", "adaptive"] = "constant"
    """Constant is the paper's. Adaptive is VQGAN's: times the ratio of the gradients that pictures
    and critic send to the decoder's last layer (see ``adaptive_factor``)."""
    adaptive_max: float = 100.0
    """Largest such ratio. VQGAN's 10,000 never holds; see ``adaptive_factor`` for this one."""
    lecam: float = 0.0
    """Weight of LeCam regularisation in the critic's loss; tokenizers take 0.001. 0: none."""

    def __post_init__(self):
        if min(self.weight, self.lecam, self.start, self.ramp, self.warm) < 0:
            raise ValueError("weight, lecam, start, ramp and warm must not be negative")
        if self.channels < 1 or self.layers < 1:
            raise ValueError("a critic has at least 1 channel and 1 layer")
        if self.adaptive_max <= 0:
            raise ValueError(f"adaptive_max must be above 0, but is {self.adaptive_max:g}")

    def weight_at(self, step: int) -> float:
        """Weight of the critic's term at a step, before an adaptive factor."""
        if step < self.start:
            return 0.0
        share = min(1.0, (step - self.start) / self.ramp) if self.ramp else 1.0
        return self.weight * 0.5 * (1 - math.cos(math.pi * share))

    def learns_at(self, step: int) -> bool:
        """True if the critic itself learns at a step."""
        return self.weight > 0 and step >= self.start - self.warm


class RunningVerdicts(nn.Module):
    """Running means of the verdicts on photographs and on reconstructions, and LeCam's use of them.

    A buffer, so that checkpoints hold it. It starts at 0, which is what an untrained critic says.
    """

    means: Tensor

    def __init__(self):
        super().__init__()
        self.register_buffer("means", torch.zeros(2))

    def regularise(self, real: Verdicts, fake: Verdicts) -> Scalar:
        """Holds each side to the other's running mean, once it has passed it: LeCam.

            mean of relu(real - mean fake)^2 + mean of relu(mean real - fake)^2

        One-sided as in the authors' code, where the equation of the paper (Tseng et al. 2021)
        has no relu; the two differ only for verdicts that are wrong.
        """
        mean_real, mean_fake = self.means.unbind()
        over, under = F.relu(real.float() - mean_fake), F.relu(mean_real - fake.float())
        return over.square().mean() + under.square().mean()

    @torch.no_grad()
    def update(self, means: Float[Tensor, "2"]) -> None:
        """Moves both means towards a step's, which must be that of all ranks and parts."""
        self.means.lerp_(means.to(self.means), 1 - LECAM_DECAY)


class Critic(nn.Module):
    """Convolutions that give every patch a verdict: high for photographs."""

    def __init__(self, config: CriticConfig):
        super().__init__()
        self.config = config
        self.running = RunningVerdicts() if config.lecam else None
        width = config.channels
        layers: list[nn.Module] = [nn.Conv2d(3, width, 4, 2, 1), nn.LeakyReLU(0.2)]
        for index in range(1, config.layers + 1):
            before, width = width, config.channels * min(2**index, 8)
            stride = 2 if index < config.layers else 1
            conv = nn.Conv2d(before, width, 4, stride, 1, bias=False)
            layers += [conv, _norm(config.norm, width), nn.LeakyReLU(0.2)]
        self.layers = nn.Sequential(*layers, nn.Conv2d(width, 1, 4, 1, 1))
        _start(self)

    def forward(self, image: Image) -> Verdicts:
        """A verdict for every patch."""
        return self.layers(image)


class DinoCritic(nn.Module):
    """A head on each of several layers of a frozen network; every head judges every token.

    ``features`` makes ``TokenFeatures`` of pictures, with ``widths`` channels by layer, and lets
    their gradient through, as ``frozen.DinoFeatures`` does. It holds nothing that is trained or
    saved, so neither does this critic hold anything of it.
    """

    def __init__(self, config: CriticConfig, features: nn.Module, widths: tuple[int, ...]):
        super().__init__()
        assert not features.state_dict(), "frozen features hold nothing that is saved or moved"
        self.config = config
        self.running = RunningVerdicts() if config.lecam else None
        self.features = features
        self.heads = nn.ModuleList(_Head(width, config.norm) for width in widths)
        _start(self.heads)

    def forward(self, image: Image) -> Verdicts:
        """A verdict for every layer and token."""
        seen: TokenFeatures = self.features(image)
        verdicts = [head(layer) for head, layer in zip(self.heads, seen.layers, strict=True)]
        return torch.stack(verdicts, dim=2)


AnyCritic = Critic | DinoCritic


def critic_of(
    config: CriticConfig, features: nn.Module | None = None, widths: tuple[int, ...] = ()
) -> AnyCritic:
    """The critic a config names; a DINO critic needs ``features`` and their ``widths``."""
    if config.kind == "patch":
        return Critic(config)
    assert features is not None, "a DINO critic judges by features, which come from outside"
    return DinoCritic(config, features, widths)


def critic_loss(real: Verdicts, fake: Verdicts, loss: LossName = "hinge") -> Scalar:
    """What the critic minimises, in float32.

    Hinge: 1 at chance, 0 when every verdict is right by a margin of 1. Non-saturating: log 2 at
    chance, and towards 0. Wasserstein: 0 at chance, and without end.
    """
    real, fake = real.float(), fake.float()
    if loss == "hinge":
        real, fake = F.relu(1 - real), F.relu(1 + fake)
    elif loss == "non-saturating":
        real, fake = F.softplus(-real), F.softplus(fake)
    else:
        real = -real
    return 0.5 * (real.mean() + fake.mean())


def codec_loss(fake: Verdicts, loss: LossName = "hinge") -> Scalar:
    """What the codec minimises: the negative of the verdicts on its reconstructions, in float32.

    Non-saturating: softplus of that, which lets go of a reconstruction that convinces.
    """
    if loss == "non-saturating":
        return F.softplus(-fake.float()).mean()
    return -fake.float().mean()


def adaptive_factor(pictures: Scalar, critic: Scalar, last_layer: Tensor, most: float) -> Scalar:
    """How much louder the critic must speak to be heard as loudly as the pictures, up to ``most``.

        |d pictures / d last layer| / |d critic / d last layer|

    as in VQGAN (Esser et al. 2021, eq. 7), detached, in float32. ``pictures`` is the weighted sum
    of the pixel and perceptual terms; ``last_layer`` any tensor both gradients pass through, and
    outside of what is compiled, or the compiled part would run backward too. Each part of a batch,
    on each rank, has a factor of its own.

    The limit matters when the critic's gradient vanishes, as a flat or a saturated critic's does:
    the ratio then turns noise into a gradient of full size. VQGAN's limit of 10,000 lets it. In
    three trials at 32 pixels, over the first 200 steps with a critic and without a ramp, the ratio
    was 0.04 to 44, its medians 1.5 to 4.5: the default of 100 leaves a working critic alone.
    """
    with full_precision(last_layer.device):
        wanted, found = (
            torch.linalg.vector_norm(gradient.float())
            for loss in (pictures, critic)
            for gradient in torch.autograd.grad(loss, last_layer, retain_graph=True)
        )
    return (wanted / found.clamp_min(1e-12)).clamp(max=most)


class _Head(nn.Module):
    """Judges each token of a layer by itself and its four neighbours on both sides, in a ring."""

    def __init__(self, width: int, norm: str):
        super().__init__()
        self.read = self._layer(width, 1, norm)
        self.mix = self._layer(width, 9, norm)
        self.judge = nn.Conv1d(width, 1, 1)

    def forward(self, tokens: Sequence) -> Float[Tensor, "batch 1 position"]:
        read = self.read(tokens.transpose(1, 2))
        return self.judge((read + self.mix(read)) * math.sqrt(0.5))

    @staticmethod
    def _layer(width: int, taps: int, norm: str) -> nn.Module:
        # Group norm, which looks at one picture alone, sees its scale against a bias only.
        bias = norm == "group"
        pad = taps // 2
        conv = nn.Conv1d(width, width, taps, padding=pad, padding_mode="circular", bias=bias)
        return nn.Sequential(conv, _norm(norm, width, nn.BatchNorm1d), nn.LeakyReLU(0.2))


def _norm(name: str, width: int, batch: type[nn.Module] = nn.BatchNorm2d) -> nn.Module:
    return batch(width) if name == "batch" else nn.GroupNorm(math.gcd(16, width), width)


def _start(network: nn.Module) -> None:
    """Small weights: the first verdicts are close to 0."""
    for module in network.modules():
        if isinstance(module, nn.Conv1d | nn.Conv2d):
            nn.init.normal_(module.weight, 0.0, 0.02)
