"""What pictures of an arm's codes are drawn from, small enough to be kept with its scores.

Two pictures: where on the token grid some codes are used, and a codebook's vectors in the plane.
``scaling.code_figures`` draws them, and so needs neither tokens nor a network.
"""

import torch

from cartok.core.levels import text_of_levels
from cartok.core.shapes import Image, Tokens
from cartok.lab.arm import score_of
from cartok.lab.inputs import Scores
from cartok.metrics.code_maps import Placement, most_and_spread, placement_of
from cartok.metrics.code_plane import mean_colours, plane_of, spread_by_use
from cartok.tokenizer.model import Tokenizer

MAPS = 12
"""Codes whose places are kept."""
PLACES = 3072
"""Of all maps together, at most; finer grids have fewer maps, though two at least."""
LOOKED_AT = 2_000
"""Pictures that a plane and its colours are of, at most."""
DOTS = 96
"""Codes that are kept of a plane."""


def maps_of(tokens: Tokens, tokenizer: Tokenizer) -> dict[str, object] | None:
    """Where some codes are used: the most bound to their places, and others evenly over the rest.

    Codes count that are used as often as there are places, or more. ``bits`` (see ``Placement``,
    corrected) is their mean by use, and ``by_chance`` that of the same tokens dealt out to places
    at random. Each line of ``shown`` is a code's number, uses, bits, largest share of its uses at
    one place, and those at all places in raster order, as levels of that (see ``core.levels``).
    A place is a cell of the grid: codes of residual levels are told apart by their number, which
    runs on from level to level, not by where in a cell they stand. None where no code is used
    enough.
    """
    levels, size = tokenizer.quantizer.tokens_per_cell, tokenizer.codebook_size
    apart = tokens.long().unflatten(2, (-1, levels)) + size * torch.arange(levels)
    cells = apart.movedim(3, 1).flatten(0, 1)
    rows, columns = cells.shape[1:]
    found = placement_of(cells, levels * size, least=rows * columns)
    if not len(found.codes):
        return None
    order = torch.randperm(cells.numel(), generator=torch.Generator().manual_seed(0))
    dealt = placement_of(cells.flatten()[order].view_as(cells), levels * size, rows * columns)
    bits, uses, shares = found.bits(corrected=True), found.uses, found.shares
    most = max(2, min(MAPS, PLACES // (rows * columns)))
    shown = []
    for at in most_and_spread(bits, most).tolist():
        share = shares[at]
        peak = share.max().item()
        numbers = f"{found.codes[at]} {uses[at]} {bits[at]:.3f} {peak:.6f}"
        shown.append(f"{numbers} {text_of_levels(share.flatten().tolist(), peak)}")
    return {
        "grid": [rows, columns],
        "codes": len(uses),
        "bits": _mean_by_use(found),
        "by_chance": _mean_by_use(dealt),
        "shown": shown,
    }


def _mean_by_use(found: Placement) -> float:
    return (found.bits(corrected=True) @ found.uses.double() / found.uses.sum()).item()


def plane_score(image: Image, tokens: Tokens, tokenizer: Tokenizer) -> Scores:
    """How much of the used codes' variance lies in a plane, and where some of them lie there.

    Of ``LOOKED_AT`` pictures or fewer, spread evenly over these. The codebook's vectors count as
    often as tokens use them. ``dots`` holds each code's number, x, y, uses and mean colour (see
    ``mean_colours``) in hexadecimal, parted by ";"; x and y are thousandths of ``reach``. Nothing
    where codes have no vector each, as those of residual levels, which only add up to one, or where
    a single code is used.
    """
    if tokenizer.quantizer.tokens_per_cell > 1:
        return {}
    size, step = tokenizer.codebook_size, -(-len(image) // LOOKED_AT)
    image, tokens = image[::step], tokens[::step]
    uses = torch.bincount(tokens.flatten().long(), minlength=size)
    used = uses.nonzero()[:, 0]
    device = next(tokenizer.parameters()).device
    with torch.inference_mode():
        codes = tokenizer.quantizer.codes_of(used.to(device)[None, None])
    colours = mean_colours(image, tokens, size)[used]
    plane = plane_of(codes[0, :, 0].T.cpu(), uses[used], colours.mean(1))
    if plane is None:
        return {}
    shown = spread_by_use(uses[used], DOTS)
    reach = plane.places[shown].abs().max().item()
    dots = []
    for at in shown.tolist():
        x, y = (plane.places[at] / reach * 1000).round().long().tolist()
        colour = bytes(colours[at].round().clamp(0, 255).byte().tolist()).hex()
        dots.append(f"{used[at]} {x} {y} {uses[used[at]]} {colour}")
    about = {"pictures": len(image), "split": "validation", "weighted": "by use"}
    share = sum(plane.shares)
    return {
        "embedding_plane": score_of(
            min(share, 1.0), "share of variance", **about, codes=len(used), of=size,
            shares=list(plane.shares), reach=reach, dots="; ".join(dots),
        )
    }  # fmt: skip
