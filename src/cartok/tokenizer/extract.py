"""A data set of pictures to token shards, stamped with the tokenizer that made them.

Workers decode, the device encodes: the next batches are under way while the host takes in the
tokens of the last one. A shard is a function of tokenizer and pictures, so those of a killed
extraction are kept and the rest is made.
"""

from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, NamedTuple

import torch

from cartok.core.ahead import arriving, sent
from cartok.core.errors import UserError
from cartok.core.precision import Precision, computing_in
from cartok.core.progress import Progress, Tick
from cartok.core.shapes import Labels, image_of_pixels
from cartok.data.batches import ViewBatch, view_batches
from cartok.data.pictures import Pictures
from cartok.data.token_writer import TokenWriter
from cartok.data.tokens import MANIFEST, TokenManifest, ViewTokens, difference, read_manifest
from cartok.data.views import Kind, View, num_views, transform_of
from cartok.tokenizer.model import Tokenizer

SHARD_SIZE = 16_384
"""Pictures of a shard: what a kill costs at most."""

_AHEAD = 2  # batches that the device has been asked for when the host waits for one


def extract(
    tokenizer: Tokenizer,
    splits: dict[Literal["train", "val"], Pictures],
    folder: Path,
    *,
    source: str,
    view: View,
    kind: Kind,
    precision: Precision = "fp32",
    batch: int = 128,
    workers: int = 0,
    resume: bool = False,
    shard_size: int = SHARD_SIZE,
    progress: Progress | None = None,
    title: str = "tokens",
) -> TokenManifest:
    """Writes the tokens of every picture and view, split by split.

    In float32 they are the same on any device, but for rounding; bf16 is faster on a GPU, and some
    tokens are others. ``batch`` counts views that are encoded at once, ``workers`` processes that
    decode ahead (0: this one decodes). With ``resume`` it goes on with what an earlier call has
    written, and ends in the bytes of one that was never stopped; on a GPU but for rounding, if it
    takes other kernels the second time.

    Raises:
        UserError: the view's size is no multiple of the tokenizer's factor; there are finished
            tokens, or with ``resume`` other ones; more than 1 % of the pictures cannot be decoded;
            the disk is full.
    """
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
        transform=transform_of(view, kind),
    )
    if resume and (folder / MANIFEST).exists():
        return _finished(folder, manifest)
    writer = TokenWriter(folder, manifest, resume=resume)
    progress = progress or Progress()
    for split, pictures in splits.items():
        parts = {
            number: part
            for number, part in enumerate(_cut(range(len(pictures)), shard_size))
            if not writer.has(split, number, part)
        }
        with progress.stage(f"{title}, {split}", len(pictures)) as tick:
            encoding = _Encoding(tokenizer, pictures, manifest, max(1, batch // num_views(kind)))
            made = encoding.of(list(parts.values()), workers, tick)
            for (number, part), encoded in zip(parts.items(), made, strict=True):
                for index in encoded.lost:
                    pictures.load(index)  # a worker has found it out, and counts for itself alone
                writer.write(split, number, *encoded, pictures=part)
    return writer.finish()


class _Encoded(NamedTuple):
    """Tokens of some pictures, on the host, and the indices of those that cannot be decoded."""

    tokens: ViewTokens
    labels: Labels
    lost: tuple[int, ...]


@dataclass(frozen=True)
class _Encoding:
    """Pictures of a split on their way to tokens."""

    tokenizer: Tokenizer
    pictures: Pictures
    manifest: TokenManifest
    at_once: int
    """Pictures of a batch."""

    def of(self, parts: list[range], workers: int, tick: Tick) -> Iterator[_Encoded]:
        """The tokens of each part; ``tick`` is told of every batch how many pictures are done."""
        device = next(self.tokenizer.parameters()).device
        wanted = [some for part in parts for some in _cut(part, self.at_once)]
        done = len(self.pictures) - sum(map(len, wanted))
        batches = view_batches(
            self.pictures, self.manifest.view, self.manifest.kind, wanted,
            workers=workers, pinned=device.type == "cuda",
        )  # fmt: skip
        made = self._ahead(batches)
        for part in parts:
            found = []
            for some in _cut(part, self.at_once):
                found.append(next(made))
                done += len(some)
                tick(done, "")
            tokens, labels, lost = zip(*found, strict=True)
            yield _Encoded(torch.cat(tokens), torch.cat(labels), sum(lost, ()))

    def _ahead(self, batches: Iterator[ViewBatch]) -> Iterator[_Encoded]:
        """The tokens of each batch; by then the device has been asked for those of the next."""
        under_way: deque[Callable[[], _Encoded]] = deque()
        for batch in batches:
            under_way.append(self._asked_for(batch))
            if len(under_way) > _AHEAD:
                yield under_way.popleft()()
        for arrived in under_way:
            yield arrived()

    def _asked_for(self, batch: ViewBatch) -> Callable[[], _Encoded]:
        tokens = arriving(self._tokens_of(batch))
        # A copy: what a worker sends keeps a file open, and a shard is thousands of batches.
        labels, lost = batch.labels.clone(), batch.lost
        return lambda: _Encoded(tokens(), labels, lost)

    def _tokens_of(self, batch: ViewBatch) -> ViewTokens:
        """On the device, which may still be at work on them."""
        num, num_views = batch.pixels.shape[:2]
        if not num:
            return torch.empty(0, num_views, self.manifest.num_tokens, dtype=torch.int32)
        device = next(self.tokenizer.parameters()).device
        image = image_of_pixels(sent(batch.pixels, device).flatten(0, 1))
        with computing_in(self.manifest.precision, device):
            return self.tokenizer.tokens_of(image).view(num, num_views, -1).int()


def _finished(folder: Path, asked: TokenManifest) -> TokenManifest:
    found = read_manifest(folder)
    if parted := difference(found, asked):
        raise UserError(
            f"--resume goes on with equal tokens, but in the manifest of {folder} {parted}; "
            "give --overwrite to start again, or another --out"
        )
    return found


def _cut(whole: range, size: int) -> list[range]:
    return [whole[start : start + size] for start in range(0, len(whole), size)]
