"""Latents as rows of vectors, the search for the nearest code, and what gradients pass."""

import torch
from jaxtyping import Float, Integer
from torch import Tensor
from torch.nn import functional as F

from cartok.core.shapes import Codes, Latents

_SCORES_AT_ONCE = 2**27  # bounds the table of similarities: half a gigabyte

Rows = Float[Tensor, "cell channel"]
"""One vector per cell: picture after picture, in raster order."""

Book = Float[Tensor, "code channel"]
"""All codes."""


def rows_of(latents: Latents) -> Rows:
    """The grid's vectors, one under the other."""
    return latents.movedim(1, -1).flatten(0, 2)


def grid_of(rows: Rows, like: Latents) -> Codes:
    """Rows laid out as the grid that they came from."""
    batch, _, height, width = like.shape
    return rows.view(batch, height, width, -1).movedim(-1, 1)


def unit(vectors: Float[Tensor, "..."], dim: int) -> Float[Tensor, "..."]:
    """Vectors of unit length; zero stays zero, with a finite gradient."""
    return vectors * torch.rsqrt(vectors.square().sum(dim, keepdim=True) + 1e-6)


@torch.no_grad()
def nearest(rows: Rows, book: Book, temperature: float = 0.0) -> Integer[Tensor, " cell"]:
    """The index of every row's nearest code.

    With a temperature it is drawn instead, from torch's global generator, with probability
    softmax(similarity / temperature), where similarity is minus half the squared distance: the
    cosine, but for a constant, on the unit sphere.
    """
    half_norms = 0.5 * book.square().sum(1)  # nearest = largest inner product less this
    found = []
    for part in rows.split(rows_at_once(len(book))):
        similarity = torch.addmm(-half_norms, part, book.T)
        if temperature:
            # The largest of logits with Gumbel noise is a draw from their softmax.
            noise = torch.empty_like(similarity).exponential_()
            similarity = similarity / temperature - noise.clamp_min_(1e-38).log_()
        found.append(similarity.argmax(1))
    return torch.cat(found)


def rows_at_once(num_scores: int) -> int:
    """How many rows are compared at once, if each is compared with so many codes."""
    return max(1, _SCORES_AT_ONCE // num_scores)


def counts_of(index: Integer[Tensor, "..."], num_codes: int) -> Float[Tensor, " code"]:
    """How often each of so many codes occurs."""
    flat = index.flatten()
    counts = torch.zeros(num_codes, device=flat.device)
    return counts.index_add_(0, flat, torch.ones_like(flat, dtype=counts.dtype))


def straight_through(latents: Latents, codes: Codes) -> Codes:
    """The codes, through which gradients pass to the latents unchanged."""
    return latents + (codes - latents).detach()


def turned(latents: Latents, codes: Codes) -> Codes:
    """The latents rotated and stretched onto their codes; gradients turn along.

    The rotation trick (Fifty et al., arXiv 2410.06424, section 4.2): code = s R latent, with the
    rotation R in the plane of the two and the stretch s taken as constants.
    """
    size, wanted = (x.detach().norm(dim=1, keepdim=True) for x in (latents, codes))
    start = latents.detach() / size.clamp_min(1e-6)
    end = codes.detach() / wanted.clamp_min(1e-6)
    middle = F.normalize(start + end, dim=1, eps=1e-6)
    mirrored = latents - 2 * middle * (middle * latents).sum(1, keepdim=True)
    rotated = mirrored + 2 * end * (start * latents).sum(1, keepdim=True)
    return rotated * (wanted / size.clamp_min(1e-6))
