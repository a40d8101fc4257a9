"""A data set of pictures to token shards, stamped with the tokenizer that made them."""

from collections.abc import Iterator
from pathlib import Path
from typing import Literal

import torch

from cartok.core.precision import Precision, computing_in
from cartok.core.progress import Progress
from cartok.core.shapes import image_of_pixels
from cartok.data.pictures import Pictures
from cartok.data.token_writer import TokenWriter
from cartok.data.tokens import TokenManifest
from cartok.data.views import Kind, View, views_of
from cartok.tokenizer.model import Tokenizer


def extract(
    tokenizer: Tokenizer,
    splits: dict[Literal["train", "val"], Pictures],
    folder: Path,
    *,
    source: str,
    view: View,
    kind: Kind,
    precision: Precision = "fp32",
    batch: int = 64,
    progress: Progress | None = None,
    title: str = "tokens",
) -> TokenManifest:
    """Writes the tokens of every picture and view, split by split.

    In float32 they are the same on any device, but for rounding; bf16 is faster on a GPU, and some
    tokens are others.

    Raises:
        UserError: the view's size is no multiple of the tokenizer's factor; the disk is full.
    """
    device = next(tokenizer.parameters()).device
    manifest = TokenManifest(
        tokenizer_digest=tokenizer.digest,
        codebook_size=tokenizer.codebook_size,
        grid=tokenizer.grid_of(view.size, view.size),
        classes=splits["train"].classes,
        source=source,
        picture_digests={split: pictures.digest for split, pictures in splits.items()},
        view=view,
        kind=kind,
        precision=precision,
    )
    writer = TokenWriter(folder, manifest)
    progress = progress or Progress()
    for split, pictures in splits.items():
        with progress.stage(f"{title}, {split}", len(pictures)) as tick:
            for indices in _chunks(len(pictures), batch):
                tried = [(index, pictures.load(index)) for index in indices]
                # One that cannot be decoded is left out: its stand-in has a row of its own.
                loaded = [item for index, item in tried if item.index == index]
                if not loaded:
                    continue
                pixels = torch.stack([views_of(item.picture, view, kind) for item in loaded])
                num, num_views = pixels.shape[:2]
                image = image_of_pixels(pixels.flatten(0, 1)).to(device)
                with computing_in(precision, device):
                    tokens = tokenizer.tokens_of(image).view(num, num_views, -1)
                labels = torch.from_numpy(pictures.labels[[item.index for item in loaded]])
                writer.add(split, tokens.cpu(), labels)
                tick(indices.stop, "")
    return writer.finish()


def _chunks(num: int, batch: int) -> Iterator[range]:
    for start in range(0, num, batch):
        yield range(start, min(start + batch, num))
