"""How a codebook is used: counts of tokens turned into shares, perplexities and entropies.

Entropies are in bits. Those of counted shares (plug-in) come out low when tokens are few, by about
(codes seen - 1) / (2 tokens ln 2), and never exceed log2 of the number of tokens counted. What a
token costs given its neighbour has too many cells for that and would come out near 0 whatever the
truth: it is measured on pictures that were not counted, and comes out high but for chance.
"""

import math
from dataclasses import dataclass

import torch
from jaxtyping import Float, Integer
from torch import Tensor

from cartok.core.errors import UserError

TokenGrid = Integer[Tensor, "batch *position"]
"""Tokens of pictures, on a grid or in raster order."""


def code_usage(tokens: TokenGrid, codebook_size: int) -> float:
    """The share of codes that occur at least once, 0 to 1."""
    return (code_counts(tokens.flatten()[None], codebook_size) > 0).double().mean().item()


def code_perplexity(tokens: TokenGrid, codebook_size: int) -> float:
    """2 to the unigram entropy: how many equally likely codes would be as diverse."""
    return 2 ** unigram_bits(tokens, codebook_size)


def unigram_bits(tokens: TokenGrid, codebook_size: int) -> float:
    """The entropy of a token when its position is unknown, in bits per token."""
    return entropy_bits(code_counts(tokens.flatten()[None], codebook_size)).item()


def per_position_entropy(
    tokens: TokenGrid, codebook_size: int, *, corrected: bool = False
) -> Float[Tensor, "*position"]:
    """The entropy of the token at each position over pictures, in bits; shaped as the grid.

    ``corrected`` adds (codes seen - 1) / (2 pictures ln 2), the bias of plain shares to first order
    (Miller and Madow 1955). It still comes out low where codes outnumber pictures.
    """
    found = []
    for column in tokens.flatten(1).T:  # one by one: counts of all would be gigabytes
        found.append(entropy_bits(code_counts(column[None], codebook_size), corrected=corrected))
    return torch.cat(found).reshape(tokens.shape[1:])


def skew(tokens: TokenGrid, codebook_size: int) -> float:
    """How far codes specialise by position: 1 - 2^H_position / 2^H_total (the paper, section 4).

    H_position is the mean entropy per position, H_total the unigram entropy; 0 means that every
    position uses the codes alike. Of few pictures it comes out high: see ``skew_by_chance``.
    """
    at_position = per_position_entropy(tokens, codebook_size).mean().item()
    return 1 - 2 ** (at_position - unigram_bits(tokens, codebook_size))


def skew_by_chance(tokens: TokenGrid, codebook_size: int, seed: int = 0) -> float:
    """The skew of the same tokens dealt out to positions at random: what is shown of nothing."""
    generator = torch.Generator().manual_seed(seed)
    order = torch.randperm(tokens.numel(), generator=generator).to(tokens.device)
    return skew(tokens.flatten()[order].view(tokens.shape), codebook_size)


@dataclass(frozen=True)
class ContextBits:
    """What a token costs that is predicted from one neighbour, in bits; see ``context_bits``."""

    alone: float
    """From none."""
    given_before: float
    """From the one to its left."""
    given_above: float


def context_bits(tokens: Integer[Tensor, "picture row column"], codebook_size: int) -> ContextBits:
    """How much of a token its left or upper neighbour tells: estimates of entropies, in bits.

    Codes (and pairs of them) are counted on every other picture, and priced on the rest:

        q(x) = (n(x) + s / codes) / (n + s),   q(x | c) = (n(c, x) + r q(x)) / (n(c) + r)

    with s and r chosen among counted pictures alone, r = infinity included. The mean of -log2 q is
    at or above the true entropy on average. On few pictures it may fall below by chance, the more
    so as no context is reported above ``alone``; the fewer are counted, the nearer it is to that.
    Tokens at the border have "none" for a neighbour.

    Raises:
        UserError: there are fewer than four pictures, or tokens of another codebook.
    """
    if len(tokens) < 4:
        raise UserError(
            f"bits are measured on pictures that were not counted, which takes 4 or more, but "
            f"there are {len(tokens)}; extract more"
        )
    code_counts(tokens.flatten()[None], codebook_size)  # refuses those of another codebook
    tokens = tokens.long()
    before, above = (torch.full_like(tokens, codebook_size) for _ in range(2))
    before[:, :, 1:] = tokens[:, :, :-1]
    above[:, 1:] = tokens[:, :-1]
    flat = [grid.flatten(1) for grid in (tokens, before, above)]
    alone, *given = [0.0] * 3
    for counted in (0, 1):
        train, test = ([grid[start::2] for grid in flat] for start in (counted, 1 - counted))
        costs = _costs(train, test, codebook_size)
        share = test[0].numel() / tokens.numel()
        alone += share * costs[0]
        given = [total + share * cost for total, cost in zip(given, costs[1:], strict=True)]
    return ContextBits(alone, *(min(cost, alone) for cost in given))


_SHARES = tuple(2.0**power for power in range(-10, 3))  # s, in codes
_STRENGTHS = (*(2.0**power for power in range(-2, 13)), math.inf)  # r, in tokens


def _costs(train: list[Tensor], test: list[Tensor], size: int) -> list[float]:
    """Bits of a token of ``test``: from nothing, and from each context; counted on ``train``."""
    inner = [[grid[start::2] for grid in train] for start in (0, 1)]
    strength = min(
        (size * share for share in _SHARES),
        key=lambda s: _bits(_unigram(inner[0][0], size, s)[inner[1][0]]),
    )
    few, all_of = (_unigram(some[0], size, strength) for some in (inner[0], train))
    costs = [_bits(all_of[test[0]])]
    for at in range(1, len(train)):
        tried = _pairs_of(inner[0], inner[1], at, size)
        best = min(_STRENGTHS, key=lambda r: _bits(tried.shares(few[inner[1][0]], r)))
        found = _pairs_of(train, test, at, size)
        costs.append(_bits(found.shares(all_of[test[0]], best)))
    return costs


@dataclass(frozen=True)
class _Pairs:
    """How often each token of some pictures follows its context in others, and that anything."""

    together: Tensor
    context: Tensor

    def shares(self, alone: Tensor, strength: float) -> Tensor:
        """q of each token given its context."""
        if math.isinf(strength):
            return alone
        return (self.together + strength * alone) / (self.context + strength)


def _pairs_of(train: list[Tensor], test: list[Tensor], at: int, size: int) -> _Pairs:
    keys, counts = (train[at] * size + train[0]).flatten().unique(return_counts=True)
    wanted = test[at] * size + test[0]
    places = torch.searchsorted(keys, wanted).clamp(max=len(keys) - 1)
    together = torch.where(keys[places] == wanted, counts[places], 0)
    context = torch.bincount(train[at].flatten(), minlength=size + 1)[test[at]]
    return _Pairs(together.double(), context.double())


def _unigram(tokens: Tensor, size: int, strength: float) -> Float[Tensor, " code"]:
    counts = torch.bincount(tokens.flatten(), minlength=size).double()
    return (counts + strength / size) / (tokens.numel() + strength)


def _bits(shares: Tensor) -> float:
    return -shares.log2().mean().item()


def code_counts(
    rows: Integer[Tensor, "row token"], codebook_size: int
) -> Integer[Tensor, "row code"]:
    """How often each code occurs in each row.

    Raises:
        UserError: there are no tokens, or tokens of another codebook.
    """
    if rows.numel() == 0:
        raise UserError("code statistics need at least one token, but none came; encode pictures")
    low, high = rows.min().item(), rows.max().item()
    if low < 0 or high >= codebook_size:
        raise UserError(
            f"tokens lie in 0 to codebook size - 1 = {codebook_size - 1}, but these lie in "
            f"{low} to {high}; give the codebook size of the tokenizer that made them"
        )
    offsets = torch.arange(len(rows), device=rows.device)[:, None] * codebook_size
    cells = (rows.long() + offsets).flatten()
    return torch.bincount(cells, minlength=len(rows) * codebook_size).view(-1, codebook_size)


def entropy_bits(
    counts: Integer[Tensor, "row cell"], *, corrected: bool = False
) -> Float[Tensor, " row"]:
    """The entropy of each row's shares, in bits; ``corrected`` as in ``per_position_entropy``."""
    total = counts.sum(1, keepdim=True)
    share = counts.double() / total
    bits = torch.special.entr(share).sum(1) / math.log(2)
    missing = ((counts > 0).sum(1) - 1) / (2 * total[:, 0] * math.log(2))
    return bits + missing if corrected else bits
