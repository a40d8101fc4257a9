"""Tokens of nothing, to write and read."""

import torch

from cartok.data.tokens import TokenManifest
from cartok.data.views import View

ABOUT = TokenManifest(
    tokenizer_digest="0123456789abcdef",
    codebook_size=500,
    grid=(2, 3),
    classes=("cat", "dog", "emu"),
    source="photos",
    picture_digests={"train": "aa", "val": "bb"},
    view=View(size=32),
    kind="flip",
)


def tokens_of(num, about=ABOUT, seed=0):
    """Random tokens of every view, and labels."""
    generator = torch.Generator().manual_seed(seed)
    shape = (num, about.num_views, about.num_tokens)
    tokens = torch.randint(about.codebook_size, shape, generator=generator)
    return tokens, torch.randint(len(about.classes), (num,), generator=generator)
