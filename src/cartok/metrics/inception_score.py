"""The Inception Score: how sure a classifier is of each picture, and how many classes it sees."""

from dataclasses import dataclass

import torch
from jaxtyping import Float, Shaped
from torch import Tensor

from cartok.core.errors import UserError

SPLIT = 5000
"""Pictures per split, as in the ADM evaluator."""

PROBABILITY_SLACK = 1e-3
"""How far a row of probabilities may be from adding up to 1."""

ClassRows = Shaped[Tensor, "..."]
"""What ought to be (picture, class), and is checked in words."""


@dataclass(frozen=True)
class InceptionScore:
    """From 1 to the number of classes; higher is better."""

    value: float
    """The mean over splits."""
    spread: float
    """The standard deviation over splits (population), as is printed after ±; 0 for one split."""
    splits: int


def inception_score(
    probabilities: ClassRows, split: int = SPLIT, shuffle_seed: int | None = None
) -> InceptionScore:
    """exp(H(mean of p) - mean of H(p)) of each split, averaged; Salimans et al. 2016, in float64.

    Splits are taken in order, unless a seed shuffles rows first. It matters: pictures in the order
    of their classes have few classes per split, and a low score. What is left over makes a last
    split that is smaller and counts like the others, as the ADM evaluator does; torch-fidelity cuts
    equal splits and shuffles by default. A split can not score higher than it has pictures.

    Raises:
        UserError: rows are no distributions over classes, or there are none.
    """
    _check(probabilities, split)
    low, high = (bound.item() for bound in probabilities.aminmax())
    off = (probabilities.double().sum(1) - 1).abs().max().item()
    if low < 0 or off > PROBABILITY_SLACK:
        raise UserError(
            f"probabilities are 0 or more and add up to 1, but these lie in {low:.4g} to "
            f"{high:.4g} and miss 1 by up to {off:.4g}; use inception_score_of_logits for logits"
        )
    if shuffle_seed is not None:
        generator = torch.Generator().manual_seed(shuffle_seed)
        order = torch.randperm(len(probabilities), generator=generator)
        probabilities = probabilities[order.to(probabilities.device)]
    scores = torch.stack([_score(part.double()) for part in probabilities.split(split)])
    return InceptionScore(scores.mean().item(), scores.std(correction=0).item(), splits=len(scores))


def inception_score_of_logits(
    logits: ClassRows, split: int = SPLIT, shuffle_seed: int | None = None
) -> InceptionScore:
    """``inception_score`` of softmax(logits); published ones leave the last layer's bias out.

    Raises:
        UserError: these are no rows of finite floats, or there are none.
    """
    _check(logits, split)
    return inception_score(logits.double().softmax(1), split, shuffle_seed)


def _score(probabilities: Float[Tensor, "picture label"]) -> Float[Tensor, ""]:
    sure = torch.special.entr(probabilities).sum(1).mean()  # 0 log 0 = 0
    diverse = torch.special.entr(probabilities.mean(0)).sum()
    return (diverse - sure).exp()


def _check(rows: ClassRows, split: int) -> None:
    if rows.ndim != 2 or 0 in rows.shape:
        raise UserError(
            f"an Inception Score takes (pictures, classes), but these are {tuple(rows.shape)}; "
            "give one row for each of one or more pictures"
        )
    if rows.dtype not in (torch.float32, torch.float64):
        raise UserError(
            f"an Inception Score takes float32 or float64, but these are {rows.dtype}; "
            "run the classifier in float32"
        )
    if not rows.isfinite().all():
        raise UserError("rows are finite, but these hold NaN or infinity; check the pictures")
    if split < 1:
        raise UserError(f"a split has one picture or more, but got {split}; 5000 is usual")
