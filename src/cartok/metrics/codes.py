"""How a codebook is used: counts of tokens turned into shares, perplexities and entropies.

Entropies are plug-in estimates in bits: they come out low when pictures are few, and never exceed
log2 of the number of tokens counted.
"""

import torch
from jaxtyping import Float, Integer
from torch import Tensor

from cartok.core.errors import UserError

TokenGrid = Integer[Tensor, "batch *position"]
"""Tokens of pictures, on a grid or in raster order."""


def code_usage(tokens: TokenGrid, codebook_size: int) -> float:
    """The share of codes that occur at least once, 0 to 1."""
    return (_counts(tokens.flatten()[None], codebook_size) > 0).double().mean().item()


def code_perplexity(tokens: TokenGrid, codebook_size: int) -> float:
    """2 to the unigram entropy: how many equally likely codes would be as diverse."""
    return 2 ** unigram_bits(tokens, codebook_size)


def unigram_bits(tokens: TokenGrid, codebook_size: int) -> float:
    """The entropy of a token when its position is unknown, in bits per token."""
    return _entropy(_counts(tokens.flatten()[None], codebook_size)).item()


def per_position_entropy(tokens: TokenGrid, codebook_size: int) -> Float[Tensor, "*position"]:
    """The entropy of the token at each position over pictures, in bits; shaped as the grid."""
    by_position = tokens.flatten(1).T  # position batch
    return _entropy(_counts(by_position, codebook_size)).reshape(tokens.shape[1:])


def skew(tokens: TokenGrid, codebook_size: int) -> float:
    """How far codes specialise by position: 1 - 2^H_position / 2^H_total (the paper, section 4).

    H_position is the mean entropy per position, H_total the unigram entropy; 0 means that every
    position uses the codes alike.
    """
    at_position = per_position_entropy(tokens, codebook_size).mean().item()
    return 1 - 2 ** (at_position - unigram_bits(tokens, codebook_size))


def _counts(rows: Integer[Tensor, "row token"], codebook_size: int) -> Integer[Tensor, "row code"]:
    """How often each code occurs in each row."""
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


def _entropy(counts: Integer[Tensor, "row code"]) -> Float[Tensor, " row"]:
    """Bits, per row."""
    share = counts.double() / counts.sum(1, keepdim=True)
    return torch.special.entr(share).sum(1) / torch.log(torch.tensor(2.0, dtype=torch.float64))
