"""Class-conditional priors of LlamaGen (arXiv 2406.06525) as ours.

The same transformer, but for three things. Theirs turns neighbouring channels of a head together,
ours those half a head apart: the channels of queries and keys are put in our order, which leaves
their inner products alone. Theirs has no QK-norm, and no key at the class token, where its table of
rotations is zero: a prior of ours can do without both (``PriorConfig``).
"""

import math
import re

import torch
from torch import Tensor

from cartok.core.checkpoint import put_tensors
from cartok.core.errors import UserError
from cartok.interop.doubts import told_by_shapes
from cartok.layers import TransformerConfig
from cartok.prior.model import Prior, PriorConfig, rotation_of
from cartok.tokenizer.model import Tokenizer

HEADS = {(768, 12): 12, (1024, 24): 16, (1280, 36): 20, (1536, 48): 24, (3200, 24): 32}
"""Of B, L, XL, XXL and 3B, by width and depth: the one number that no shape tells."""

_ENDS = {
    "cls_embedding.embedding_table.weight": "class_embedding.weight",
    "tok_embeddings.weight": "token_embedding.weight",
    "norm.weight": "transformer.norm.weight",
    "output.weight": "head.weight",
}
_IN_BLOCK = {
    "attention_norm.weight": "attention_norm.weight",
    "attention.wo.weight": "attention.out.weight",
    "ffn_norm.weight": "feed_norm.weight",
    "feed_forward.w2.weight": "feed.down.weight",
}


def prior_of_llamagen(
    tensors: dict[str, Tensor], tokenizer: Tokenizer, *, size: int, heads: int = 0
) -> Prior:
    """LlamaGen's prior from its named tensors.

    ``tokenizer`` made its tokens, of pictures of ``size`` pixels a side. Classes are named by their
    numbers. ``heads`` need be given only of a shape that was never published.

    Raises:
        UserError: a tensor is missing, left over or of another shape; the tokenizer is another.
    """
    kept = {name: value for name, value in tensors.items() if name != "freqs_cis"}  # of the grid
    with told_by_shapes("prior"):
        config = _config_of(kept, tokenizer, size, heads)
        ours = _ours(kept, config.transformer)
    classes = [str(label) for label in range(config.num_classes)]
    with torch.device("meta"):  # draws no billions of numbers that are thrown away at once
        prior = Prior(config, tokenizer_digest=tokenizer.digest, classes=classes)
    put_tensors(prior, ours, "the prior that their shapes describe", assign=True)
    prior.rotary = rotation_of(config)  # computed, not stored
    return prior.eval()


def _config_of(
    tensors: dict[str, Tensor], tokenizer: Tokenizer, size: int, heads: int
) -> PriorConfig:
    num_codes, width = tensors["tok_embeddings.weight"].shape
    depth = sum(name.endswith(".attention.wqkv.weight") for name in tensors)
    heads = heads or HEADS.get((width, depth), 0)
    if not heads:
        raise UserError(
            f"no published prior has {depth} layers of width {width}, so its number of heads is "
            "not known; give --heads"
        )
    if tokenizer.codebook_size != num_codes:
        raise UserError(
            f"this prior's tokens are of {num_codes} codes, but those of --tokenizer are of "
            f"{tokenizer.codebook_size}; name the tokenizer that the prior was trained with"
        )
    hidden = tensors["layers.0.feed_forward.w1.weight"].shape[0]
    return PriorConfig(
        transformer=TransformerConfig(
            width=width, depth=depth, heads=heads, dropout=0.1,
            hidden_multiple=_multiple_of(width, hidden),
        ),
        codebook_size=num_codes,
        grid=tokenizer.grid_of(size, size),
        num_classes=len(tensors["cls_embedding.embedding_table.weight"]) - 1,
        query_key_norm=False,
        class_has_key=False,
    )  # fmt: skip


def _multiple_of(width: int, hidden: int) -> int:
    """What the feed-forward width was rounded up to a multiple of: 256, of all published ones."""
    for multiple in (256, 128, 64, 32, 16, 8, 4, 2):
        if math.ceil(8 * width / (3 * multiple)) * multiple == hidden:
            return multiple
    raise UserError(
        f"a feed-forward width is 8/3 of the width {width}, rounded up, but this prior's is "
        f"{hidden}; it cannot be imported"
    )


def _ours(tensors: dict[str, Tensor], config: TransformerConfig) -> dict[str, Tensor]:
    """All tensors under our names, in float32; a name that is not known stays, to be refused."""
    ours = {}
    for name, value in tensors.items():
        layer = re.fullmatch(r"layers\.(\d+)\.(.+)", name)
        block, inside = (f"transformer.blocks.{layer[1]}.", layer[2]) if layer else ("", name)
        if inside == "attention.wqkv.weight":
            ours[f"{block}attention.qkv.weight"] = _reordered(value.float(), config)
        elif inside == "feed_forward.w1.weight":
            up = tensors[name.replace(".w1.", ".w3.")]
            ours[f"{block}feed.gate_up.weight"] = torch.cat([value, up]).float()
        elif inside != "feed_forward.w3.weight":
            ours[block + (_IN_BLOCK if layer else _ENDS).get(inside, inside)] = value.float()
    return ours


def _reordered(qkv: Tensor, config: TransformerConfig) -> Tensor:
    """Queries' and keys' channels with neighbours put half a head apart; values as they are."""
    if qkv.shape != (3 * config.width, config.width):
        raise UserError(
            f"attention has as many keys as queries, which takes {3 * config.width} rows, but this "
            f"prior has {len(qkv)}; it cannot be imported"
        )
    query_key, value = qkv.split([2 * config.width, config.width])
    pairs = query_key.unflatten(0, (2 * config.heads, -1, 2))  # head, pair, which of the two
    return torch.cat([pairs.transpose(1, 2).flatten(0, 2), value])
