"""Token shards on disk, each stamped with the digest of the tokenizer that made them.

A token folder holds ``manifest.json`` and files such as ``train-00000.safetensors`` with
``tokens`` [picture, view, position] (uint16, or int32 for codebooks above 65,536) and ``labels``
[picture] (int32). The manifest is written last, so a folder that has one is finished
(``token_writer`` writes it). Nothing here knows how tokens are made.
"""

import dataclasses
import hashlib
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from jaxtyping import Int, Integer
from safetensors import SafetensorError, safe_open
from torch import Tensor

from cartok.core.ahead import sent
from cartok.core.config import ConfigError, config, config_of
from cartok.core.errors import UserError
from cartok.core.precision import Precision
from cartok.core.shapes import Labels, TokenSequence
from cartok.data.order import Order, choice_at
from cartok.data.views import Kind, View, num_views

ViewTokens = Integer[Tensor, "batch view position"]
"""Tokens of every view of some pictures, in raster order."""

MANIFEST = "manifest.json"


@config
class TokenShard:
    """One file of tokens: its split, how many pictures it holds, and its content's hash."""

    name: str
    split: Literal["train", "val"]
    num: int
    sha256: str


@config
class TokenManifest:
    """What a token folder holds, and from what it was made. ``shards`` is filled by the writer."""

    tokenizer_digest: str
    codebook_size: int
    grid: tuple[int, int]
    """Rows and columns of tokens."""
    classes: tuple[str, ...]
    source: str
    picture_digests: dict[str, str]
    """The digest of the pictures, by split."""
    view: View
    kind: Kind
    precision: Precision = "fp32"
    """Of the encoder as it made them; a manifest from before there was a choice means fp32."""
    shards: tuple[TokenShard, ...] = ()

    def __post_init__(self):
        if self.codebook_size < 1 or min(self.grid) < 1:
            raise ValueError(
                f"codebook_size and grid are at least 1, but got {self.codebook_size}, {self.grid}"
            )

    @property
    def num_tokens(self) -> int:
        """Tokens of one view of one picture."""
        return self.grid[0] * self.grid[1]

    @property
    def num_views(self) -> int:
        """Views of one picture."""
        return num_views(self.kind)

    def num(self, split: str) -> int:
        """Pictures of a split."""
        return sum(shard.num for shard in self.shards if shard.split == split)


class TokenShards:
    """The tokens of one split, memory-mapped; ``open_tokens`` makes it after checking them."""

    def __init__(self, manifest: TokenManifest, tokens: list[np.ndarray], labels: np.ndarray):
        self.manifest = manifest
        self.labels = torch.from_numpy(labels.astype(np.int64))
        self._tokens = tokens
        self._starts = np.cumsum([0, *(len(part) for part in tokens)])

    @property
    def num(self) -> int:
        """The number of pictures."""
        return len(self.labels)

    def __len__(self) -> int:
        return self.num

    def __getitem__(self, index: int) -> Int[Tensor, "view position"]:
        """The tokens of every view of a picture."""
        if not 0 <= index < self.num:
            raise IndexError(f"an index is 0 to {self.num - 1}, but got {index}")
        part = int(np.searchsorted(self._starts, index, side="right")) - 1
        return torch.from_numpy(self._tokens[part][index - self._starts[part]].astype(np.int64))


@dataclasses.dataclass(frozen=True, eq=False)
class TokenBatch:
    """Tokens in raster order with their labels and the indices of their pictures."""

    tokens: TokenSequence
    labels: Labels
    indices: Integer[Tensor, " batch"]


def read_manifest(folder: str | Path) -> TokenManifest:
    """The manifest of a finished token folder.

    Raises:
        UserError: the folder is missing, is no token folder, is unfinished or has a bad manifest.
    """
    folder = Path(folder)
    path = folder / MANIFEST
    if not path.is_file():
        half = any(folder.glob("*.safetensors")) if folder.is_dir() else False
        state = "is half-written" if half else "is no token folder"
        raise UserError(
            f"a token folder has a {MANIFEST}, but {folder} {state}; extract the tokens (again)"
        )
    try:
        return config_of(TokenManifest, json.loads(path.read_text()))
    except (ConfigError, ValueError) as error:
        raise UserError(f"{path} is damaged: {error}; extract the tokens again") from error


def open_tokens(folder: str | Path, split: Literal["train", "val"]) -> TokenShards:
    """The tokens of a split, after checking every file's hash, counts and values.

    Raises:
        UserError: the folder is unfinished or damaged, or holds nothing of the split.
    """
    folder, manifest = Path(folder), read_manifest(folder)
    shards = [shard for shard in manifest.shards if shard.split == split]
    if not shards:
        raise UserError(f"{folder} must hold {split} tokens, but has none; extract that split too")
    parts = [_read_shard(folder / shard.name, shard, manifest) for shard in shards]
    labels = np.concatenate([labels for _, labels in parts])
    return TokenShards(manifest, [tokens for tokens, _ in parts], labels)


def token_batches(
    shards: TokenShards,
    *,
    batch: int,
    seed: int,
    start: int,
    device: torch.device | str = "cpu",
    rank: int = 0,
    world_size: int = 1,
) -> Iterator[TokenBatch]:
    """Endless batches for this rank, from position ``start`` of the global order.

    Each epoch shows one view of every picture, chosen by (seed, epoch, index).
    """
    order = Order(shards.num, seed=seed, start=start, rank=rank, world_size=world_size)
    while True:
        samples = order.take(batch)
        views = [choice_at(s, shards.num, seed, shards.manifest.num_views) for s in samples]
        chosen = [shards[s.index][view] for s, view in zip(samples, views, strict=True)]
        indices = torch.tensor([sample.index for sample in samples])
        yield TokenBatch(
            tokens=sent(torch.stack(chosen), device),
            labels=sent(shards.labels[indices], device),
            indices=sent(indices, device),
        )


def _read_shard(
    path: Path, shard: TokenShard, manifest: TokenManifest
) -> tuple[np.ndarray, np.ndarray]:
    def refuse(fault: str) -> UserError:
        return UserError(
            f"a token shard must be as it was written, but {path} {fault}; extract the tokens again"
        )

    if not path.is_file():
        raise refuse("is missing")
    if sha256_of(path) != shard.sha256:
        raise refuse("has another checksum")
    try:
        with safe_open(path, framework="pt") as file:
            tokens, labels = (file.get_tensor(name).numpy() for name in ("tokens", "labels"))
    except SafetensorError as error:
        raise refuse(f"is no token file ({error})") from error
    if tokens.shape != (shard.num, manifest.num_views, manifest.num_tokens):
        raise refuse(f"holds tokens {tokens.shape} instead of {shard.num} pictures")
    if len(labels) != shard.num or not within(labels, max(1, len(manifest.classes))):
        raise refuse("has labels that are no classes of the manifest")
    if not within(tokens, manifest.codebook_size):
        raise refuse(f"has tokens outside a codebook of {manifest.codebook_size}")
    return tokens, labels


def within(values: np.ndarray, limit: int) -> bool:
    """Whether all are 0 to ``limit`` - 1."""
    return values.size == 0 or (int(values.min()) >= 0 and int(values.max()) < limit)


def sha256_of(path: Path) -> str:
    """The hash of a file's content, in hex."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
