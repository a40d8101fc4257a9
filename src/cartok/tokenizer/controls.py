"""What shows whether the regulariser works, is felt, or is won without helping: numbers, no force.

Nothing here changes a gradient or waits for a GPU.
"""

from dataclasses import dataclass, fields

import torch
from jaxtyping import Float
from torch import Tensor

from cartok.core.shapes import Latents, Sequence

Scalar = Float[Tensor, ""]


@dataclass(frozen=True)
class CausalLoss:
    """The regulariser's loss and what is watched beside it; ``None`` is what its form has not."""

    loss: Scalar
    """What is minimised; its gradient reaches the encoder times lambda."""
    next_latent_mse: Scalar | None
    """Mean squared error of the target; under the cosine loss, which leaves a prediction's length
    open, at the target's length. Below ``quantisation_mse``, suspect that the next latent is hidden
    under the quantisation step."""
    next_latent_r2: Scalar | None
    """Share of the target's variance that is predicted; unlike the error, shrinking cannot raise
    it."""
    latent_variance: Scalar
    """Over batch and positions, mean of channels. Falls when latents shrink to be predictable."""
    quantisation_mse: Scalar | None = None
    """Mean squared distance of latents and codes."""
    causal_share: Scalar | None = None
    """Lambda times the regulariser's gradient over the whole objective's, as norms at the latents
    it reads: 0 until the backward pass fills it in. 1: nothing else is felt. Above 1: it works
    against the rest."""
    next_token_accuracy: Scalar | None = None
    """Of the cross-entropy: how often the likeliest token is the right one."""

    @property
    def watched(self) -> dict[str, Scalar]:
        """What is logged beside the loss."""
        values = {field.name: getattr(self, field.name) for field in fields(self)}
        return {k: v for k, v in values.items() if k != "loss" and v is not None}


def share_of_gradient(latents: Latents, scaled: Latents, weight: float) -> Scalar:
    """Filled in by the backward pass: what comes through ``scaled`` over all that reaches it.

    ``scaled`` is ``latents`` whose gradient is multiplied by ``weight`` on its way. Two hooks take
    one norm each, so no second backward is needed. An encoder and a decoder may be compiled, the
    quantizer between them may not: what never leaves a compiled graph is not seen.
    """
    share = torch.zeros((), device=latents.device)
    if not scaled.requires_grad:  # weight 0, or no gradient is wanted
        return share
    own = torch.zeros_like(share)

    def note_own(gradient: Tensor) -> None:
        own.copy_(weight * _norm(gradient))

    def note_share(gradient: Tensor) -> None:
        share.copy_(own / _norm(gradient).clamp_min(1e-30))
        own.zero_()

    scaled.register_hook(note_own)
    latents.register_hook(note_share)
    return share


def variance_of(vectors: Sequence) -> Scalar:
    """Over batch and positions, mean of channels; with its gradient."""
    return vectors.var((0, 1), correction=0).mean()


def _norm(gradient: Tensor) -> Scalar:
    return torch.linalg.vector_norm(gradient.detach().float())
