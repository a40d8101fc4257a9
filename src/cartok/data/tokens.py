"""Token shards on disk, each stamped with the digest of the tokenizer that made them.

A token folder holds ``manifest.json`` and files such as ``train-00000.safetensors`` with
``tokens`` [picture, view, position] (uint16, or int32 for codebooks above 65,536) and ``labels``
[picture] (int32), and in its header a stamp of what it was made of. The manifest is written last,
so a folder that has one is finished. Nothing here knows how tokens are made; ``token_writer``
writes them.
"""

import dataclasses
import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from jaxtyping import Int, Integer
from torch import Tensor

from cartok.core.ahead import sent
from cartok.core.config import ConfigError, config, config_of, dict_of, digest_of
from cartok.core.errors import UserError
from cartok.core.precision import Precision
from cartok.core.run import first_difference
from cartok.core.shapes import Labels, TokenSequence
from cartok.data.order import Order, choice_at
from cartok.data.shard import Shard, ShardStamp, bad_shard, read_shard, sha256_of, within
from cartok.data.views import Kind, View, num_views

ViewTokens = Integer[Tensor, "batch view position"]
"""Tokens of every view of some pictures, in raster order."""

Split = Literal["train", "val"]

MANIFEST = "manifest.json"


@config
class TokenShard:
    """One file of tokens: its split, how many pictures it holds, and its content's hash."""

    name: str
    split: Split
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
    transform: str = ""
    """What was done to a picture, in words; a manifest from before this was said says nothing."""
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
    """The tokens of one split, memory-mapped; ``open_tokens`` makes it after checking them.

    ``pictures`` holds the index in the split of each row's picture, where every shard says it, and
    is empty otherwise; ``num_pictures`` counts those that could not be decoded too.
    """

    def __init__(
        self,
        manifest: TokenManifest,
        tokens: list[np.ndarray],
        labels: np.ndarray,
        stamps: Sequence[ShardStamp | None] = (),
    ):
        self.manifest = manifest
        self.labels = torch.from_numpy(labels.astype(np.int64))
        known = [stamp for stamp in stamps if stamp is not None]
        is_known = len(known) == len(stamps)
        self.pictures = [i for stamp in known for i in stamp.pictures] if is_known else []
        self.num_pictures = max((stamp.stop for stamp in known), default=len(labels))
        self._tokens = tokens
        self._starts = np.cumsum([0, *(len(part) for part in tokens)])

    @property
    def num(self) -> int:
        """The number of pictures."""
        return len(self.labels)

    @property
    def unseen(self) -> tuple[int, ...]:
        """The labels of classes that no picture has; none where there are no pictures."""
        if not len(self.labels):
            return ()
        return tuple(sorted({*range(len(self.manifest.classes))} - {*self.labels.tolist()}))

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
    return _read_manifest(Path(folder))[0]


def open_tokens(folder: str | Path, split: Split) -> TokenShards:
    """The tokens of a split, after checking every file's hash, counts and values.

    Raises:
        UserError: the folder is unfinished or damaged, or holds nothing of the split.
    """
    folder = Path(folder)
    manifest, name = _read_manifest(folder)
    shards = [shard for shard in manifest.shards if shard.split == split]
    if not shards:
        raise UserError(f"{folder} must hold {split} tokens, but has none; extract that split too")
    parts = [_checked_shard(folder / shard.name, shard, manifest, name) for shard in shards]
    labels = np.concatenate([labels for _, labels, _ in parts])
    stamps = [stamp for _, _, stamp in parts]
    return TokenShards(manifest, [tokens for tokens, _, _ in parts], labels, stamps)


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


def difference(began: TokenManifest, now: TokenManifest) -> str:
    """Where two part that were to be of equal tokens, in words; nothing, if they may be.

    A manifest from before transforms were said is held against none. Where pictures lay does not
    count, since their digests say which they are; nor does how tokens are cut into shards.
    """
    old, new = (_made_of(dict_of(manifest)) for manifest in (began, now))
    if not (began.transform and now.transform):
        old["transform"] = new["transform"]
    return "" if old == new else first_difference(old, new)


def made_from(manifest: dict[str, Any]) -> str:
    """Sixteen hex digits that name what tokens were made of and how, wherever it lay.

    Of the manifest as it stands in its file, so that a field added later changes no name.
    """
    return digest_of(_made_of(manifest))


def _made_of(manifest: dict[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in manifest.items() if key not in ("shards", "source")}


def _read_manifest(folder: Path) -> tuple[TokenManifest, str]:
    """The manifest, and the name of what it says that the tokens were made of."""
    path = folder / MANIFEST
    if not path.is_file():
        half = any(folder.glob("*.safetensors")) if folder.is_dir() else False
        state = "is half-written" if half else "is no token folder"
        raise UserError(
            f"a token folder has a {MANIFEST}, but {folder} {state}; extract the tokens "
            + ("with --resume" if half else "(again)")
        )
    try:
        plain = json.loads(path.read_text())
        return config_of(TokenManifest, plain), made_from(plain)
    except (ConfigError, ValueError) as error:
        raise UserError(f"{path} is damaged: {error}; extract the tokens again") from error


def _checked_shard(path: Path, shard: TokenShard, manifest: TokenManifest, name: str) -> Shard:
    if not path.is_file():
        raise bad_shard(path, "is missing")
    if sha256_of(path) != shard.sha256:
        raise bad_shard(path, "has another checksum")
    found = read_shard(path)
    if found.stamp is not None and found.stamp.made_from != name:
        raise bad_shard(path, f"was made of other things than the {MANIFEST} beside it says")
    if found.tokens.shape != (shard.num, manifest.num_views, manifest.num_tokens):
        raise bad_shard(
            path, f"holds tokens {found.tokens.shape} instead of {shard.num} pictures of "
            f"{manifest.num_views} views and {manifest.num_tokens} tokens"
        )  # fmt: skip
    if len(found.labels) != shard.num or not within(found.labels, max(1, len(manifest.classes))):
        raise bad_shard(path, "has labels that are no classes of the manifest")
    if not within(found.tokens, manifest.codebook_size):
        raise bad_shard(path, f"has tokens outside a codebook of {manifest.codebook_size}")
    return found
