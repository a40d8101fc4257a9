"""Where on the token grid each code is used, and how far that is from everywhere alike."""

import math
from dataclasses import dataclass

import torch
from jaxtyping import Float, Integer
from torch import Tensor

from cartok.metrics.codes import code_counts, entropy_bits


@dataclass(frozen=True)
class Placement:
    """Some codes, and how often each is used at each place of the grid."""

    codes: Integer[Tensor, " code"]
    """By rising number."""
    counts: Integer[Tensor, "code row column"]

    @property
    def uses(self) -> Integer[Tensor, " code"]:
        """At all places together."""
        return self.counts.flatten(1).sum(1)

    @property
    def shares(self) -> Float[Tensor, "code row column"]:
        """Of a code's uses, those at each place; they sum to 1."""
        return self.counts.double() / self.uses[:, None, None]

    def bits(self, *, corrected: bool = False) -> Float[Tensor, " code"]:
        """What a code tells of its place: 0 if it is used everywhere alike, log2(places) if at one.

        KL(shares || 1 / places) = log2(places) - the entropy of the code's place. Weighted by uses,
        its mean over all codes is the mutual information of code and place. Plain shares of few
        uses come out high; ``corrected`` takes the bias off (Miller and Madow 1955, as in
        ``metrics.codes``), down to 0.
        """
        counts = self.counts.flatten(1)
        told = math.log2(counts.shape[1]) - entropy_bits(counts, corrected=corrected)
        return told.clamp_min(0)


def placement_of(
    tokens: Integer[Tensor, "picture row column"], codebook_size: int, least: int = 1
) -> Placement:
    """The codes that are used ``least`` times or more, 1 at least.

    Raises:
        UserError: there are no tokens, or tokens of another codebook.
    """
    uses = code_counts(tokens.flatten()[None], codebook_size)[0]
    codes = (uses >= max(1, least)).nonzero()[:, 0]
    rank = torch.full_like(uses, -1)
    rank[codes] = torch.arange(len(codes), device=codes.device)
    ranks, places = rank[tokens.long()].flatten(1), tokens[0].numel()
    cells = ranks * places + torch.arange(places, device=tokens.device)
    counts = torch.bincount(cells[ranks >= 0], minlength=len(codes) * places)
    return Placement(codes, counts.view(-1, *tokens.shape[1:]))


def most_and_spread(bits: Float[Tensor, " code"], most: int) -> Integer[Tensor, " chosen"]:
    """Which codes to show: the ``most`` / 2 with the most bits, then as many evenly over the rest.

    The rest is gone through by falling bits, from its first to its last. Of fewer codes all come.
    """
    order = bits.argsort(descending=True, stable=True)
    first, rest = order[: most - most // 2], order[most - most // 2 :]
    spread = torch.linspace(0, len(rest) - 1, min(most // 2, len(rest))).round().long()
    return torch.cat([first, rest[spread]])
