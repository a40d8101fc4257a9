"""LPIPS on VGG16 (Zhang et al. 2018, eq. 1), equal to the ``lpips`` package's, made for training.

    d(x, y) = sum over layers, mean over space, of | sqrt(w) * (x / |x| - y / |y|) |^2

Own code, because the package fetches its VGG16 through torchvision's deprecated door while it is
built, runs the target with the picture's gradient, and has no islands of float32. The learned
weights w are read from its wheel.
"""

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from cartok.core.precision import full_precision
from cartok.core.shapes import Image
from cartok.frozen.network import FeatureMap, Frozen, FrozenConv
from cartok.frozen.weights import LPIPS_HEADS, VGG16, Weights, read_weights

STAGES = (
    ((0, 64), (2, 64)),
    ((5, 128), (7, 128)),
    ((10, 256), (12, 256), (14, 256)),
    ((17, 512), (19, 512), (21, 512)),
    ((24, 512), (26, 512), (28, 512)),
)
"""VGG16's convolutions: number in torchvision's ``features``, channels out; a pooling between two
stages. Each stage's end is compared: relu1_2, relu2_2, relu3_3, relu4_3, relu5_3."""

MEAN = (-0.030, -0.088, -0.188)
DEVIATION = (0.458, 0.448, 0.450)
"""What turns [-1, 1] into the pictures that VGG16 was trained on, as lpips rounds it."""


def lpips_of(weights: str = "", random_weights: bool = False, heads: str = "") -> "LPIPS":
    """LPIPS with VGG16's published weights; ``weights`` is a path to them, see ``weights.find``.

    ``heads`` is a path to the learned weights (``v0.1/vgg.pth``), where they are not to come from
    the installed wheel. ``random_weights`` puts fixed random numbers in VGG16's place: the same
    cost and no meaning, so for benchmarks only.

    Raises:
        UserError: VGG16's weights or the lpips wheel are missing, or not the published ones.
    """
    learned = read_weights(LPIPS_HEADS, heads)
    if random_weights:
        nobodys = Weights("random vgg16, for benchmarks only", file="", sha256="", source="")
        return LPIPS(_random_vgg(), learned, nobodys)
    return LPIPS(read_weights(VGG16, weights), learned, VGG16)


class LPIPS(Frozen):
    """How different two pictures look to VGG16, by learned weights; 0 is identical.

    Takes pictures of 16 pixels or more. Convolutions run in the precision around them; lengths,
    differences and means in float32. Compile it: 32 pairs of 256 pixels, forward and backward in
    bfloat16 on an H100, take 11 ms and 1.9 GiB compiled, 41 ms and 3.4 GiB not.
    """

    mean: Tensor
    deviation: Tensor

    def __init__(self, vgg: dict[str, Tensor], heads: dict[str, Tensor], weights: Weights):
        super().__init__()
        self.weights = weights
        self.stages = nn.ModuleList(
            nn.Sequential(*(_conv(vgg, number) for number, _ in stage)) for stage in STAGES
        )
        self.register_buffer("mean", torch.tensor(MEAN).view(3, 1, 1), persistent=False)
        self.register_buffer("deviation", torch.tensor(DEVIATION).view(3, 1, 1), persistent=False)
        for number in range(len(STAGES)):
            head = heads[f"lin{number}.model.1.weight"].flatten()
            self.register_buffer(f"head{number}", head, persistent=False)
        self.eval()

    def forward(self, image: Image, target: Image) -> Float[Tensor, " batch"]:
        """One distance per pair, float32; the gradient reaches ``image`` and never ``target``.

        Both go through VGG16 side by side, so only one stage's features of ``target`` live at a
        time.
        """
        seen, wanted = self._prepared(image), self._prepared(target.detach())
        distances = []
        for number, stage in enumerate(self.stages):
            if number:
                seen, wanted = F.max_pool2d(seen, 2), F.max_pool2d(wanted, 2)
            seen, wanted = stage(seen), stage(wanted)
            distances.append(_distance(seen, wanted, getattr(self, f"head{number}")))
        return torch.stack(distances).sum(0)

    def _prepared(self, image: Image) -> FeatureMap:
        return (image.float() - self.mean) / self.deviation


def _distance(
    seen: FeatureMap, wanted: FeatureMap, head: Float[Tensor, " channel"]
) -> Float[Tensor, " batch"]:
    with full_precision(seen.device):
        difference = _unit(seen) - _unit(wanted)
        return (difference.square() * head.view(-1, 1, 1)).sum(1).mean((1, 2))


def _unit(features: FeatureMap) -> FeatureMap:
    """Vectors of unit length over channels, float32; zero stays zero, with a finite gradient."""
    length = torch.linalg.vector_norm(features, dim=1, keepdim=True, dtype=torch.float32)
    return features / (length + 1e-10)  # the constant of lpips


def _conv(vgg: dict[str, Tensor], number: int) -> FrozenConv:
    weight, bias = vgg[f"features.{number}.weight"], vgg[f"features.{number}.bias"]
    return FrozenConv(weight, bias, torch.relu_)


def _random_vgg() -> dict[str, Tensor]:
    """Normal numbers that keep the size of activations (He et al. 2015); the same every time."""
    generator = torch.Generator().manual_seed(0)
    vgg, channels = {}, 3
    for number, width in (conv for stage in STAGES for conv in stage):
        scale = (2 / (9 * channels)) ** 0.5
        weight = torch.randn(width, channels, 3, 3, generator=generator)
        vgg[f"features.{number}.weight"] = weight * scale
        vgg[f"features.{number}.bias"] = torch.zeros(width)
        channels = width
    return vgg
