"""A codebook's vectors seen in the plane, and what each code looks like on average."""

from dataclasses import dataclass

import torch
from jaxtyping import Float, Integer
from torch import Tensor
from torch.nn import functional as F

from cartok.core.shapes import Image, Tokens


@dataclass(frozen=True)
class Plane:
    """Vectors in their first two principal directions."""

    places: Float[Tensor, "code 2"]
    """From the mean of all uses, in units of the vectors."""
    shares: tuple[float, float]
    """Of the variance, in each direction."""


def plane_of(
    vectors: Float[Tensor, "code channel"],
    uses: Integer[Tensor, " code"],
    brightness: Float[Tensor, " code"],
) -> Plane | None:
    """The plane in which the vectors, each counted as often as it is used, vary most.

    A principal direction has two ends; that to which used codes grow brighter points right or up.
    So turning or mirroring the codebook leaves the picture as it is. Where brightness says nothing,
    the code that lies farthest out does. None if all uses are of one vector, which has no
    directions, or if a vector is not finite.
    """
    if not vectors.isfinite().all():
        return None
    weights = uses.double() / uses.sum()
    centred = vectors.double() - weights @ vectors.double()
    spread, directions = torch.linalg.eigh((centred.T * weights) @ centred)
    if not spread.sum() > 1e-12 * vectors.double().square().sum(1).max():
        return None
    spread, directions = spread.clamp_min(0).flip(0)[:2], directions.flip(1)[:, :2]
    places = centred @ directions
    brighter = (weights * (brightness.double() - weights @ brightness.double())) @ places
    farthest = places.gather(0, places.abs().argmax(0)[None])[0]
    says = brighter.abs() > 1e-9 * places.abs().amax(0) * brightness.abs().max()
    places = places * torch.where(torch.where(says, brighter, farthest) < 0, -1.0, 1.0)
    total = (weights @ centred.square()).sum()
    missing = 2 - places.shape[1]  # vectors of one channel lie on a line
    shares = F.pad(spread / total, (0, missing)).tolist()
    return Plane(F.pad(places, (0, missing)), (shares[0], shares[1]))


def mean_colours(image: Image, tokens: Tokens, codebook_size: int) -> Float[Tensor, "code 3"]:
    """The mean RGB, 0 to 255, of the pixels under the tokens that have each code; NaN of unused."""
    cells = F.adaptive_avg_pool2d(image, (tokens.shape[1], tokens.shape[2]))
    rows = cells.movedim(1, -1).flatten(0, 2).double() * 127.5 + 127.5
    index = tokens.flatten().long()
    sums = torch.zeros(codebook_size, 3, dtype=torch.float64).index_add_(0, index, rows)
    return sums / torch.bincount(index, minlength=codebook_size)[:, None]


def spread_by_use(uses: Integer[Tensor, " code"], most: int) -> Integer[Tensor, " chosen"]:
    """Which of the used codes to show: ``most`` evenly over them, from most to least used."""
    order = uses.argsort(descending=True, stable=True)[: int((uses > 0).sum())]
    return order[torch.linspace(0, len(order) - 1, min(most, len(order))).round().long()]
