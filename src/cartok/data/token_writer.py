"""Writes token folders: shards one by one, each whole or absent, and last of all the manifest."""

import dataclasses
from pathlib import Path
from typing import Literal

import numpy as np
from safetensors.numpy import save_file

from cartok.core.config import dict_of
from cartok.core.errors import UserError
from cartok.core.files import staged, write_json
from cartok.core.shapes import Labels
from cartok.data.tokens import MANIFEST, TokenManifest, TokenShard, ViewTokens, sha256_of, within

_UINT16_CODES = 1 << 16


class TokenWriter:
    """Writes a token folder: ``add`` pictures in order, then ``finish``.

    Each shard appears whole or not at all; without ``finish`` the folder counts as unfinished.

    Raises:
        UserError: the folder already holds finished tokens.
    """

    def __init__(self, folder: Path, manifest: TokenManifest, *, shard_size: int = 16_384):
        if (folder / MANIFEST).exists():
            raise UserError(
                f"a token folder is written once, but {folder} is finished; "
                "name another folder or delete it"
            )
        folder.mkdir(parents=True, exist_ok=True)
        self._folder = folder
        self._manifest = manifest
        self._shard_size = shard_size
        self._waiting: dict[str, list[tuple[np.ndarray, np.ndarray]]] = {"train": [], "val": []}
        self._shards: list[TokenShard] = []

    def add(self, split: Literal["train", "val"], tokens: ViewTokens, labels: Labels) -> None:
        """Appends pictures to a split; writes a shard when enough have come.

        Raises:
            ValueError: views, positions or values are not those of the manifest.
        """
        about = self._manifest
        if tuple(tokens.shape[1:]) != (about.num_views, about.num_tokens):
            raise ValueError(
                f"tokens are [picture, {about.num_views}, {about.num_tokens}] here, "
                f"but got {tuple(tokens.shape)}"
            )
        values = tokens.cpu().numpy()
        if not within(values, about.codebook_size):
            raise ValueError(
                f"tokens are 0 to {about.codebook_size - 1}, "
                f"but got {values.min()} to {values.max()}"
            )
        dtype = np.uint16 if about.codebook_size <= _UINT16_CODES else np.int32
        self._waiting[split].append((values.astype(dtype), labels.int().cpu().numpy()))
        if sum(len(labels) for _, labels in self._waiting[split]) >= self._shard_size:
            self._flush(split)

    def finish(self) -> TokenManifest:
        """Writes what is left and, last of all, the manifest."""
        for split in ("train", "val"):
            self._flush(split)
        finished = dataclasses.replace(self._manifest, shards=tuple(self._shards))
        write_json(self._folder / MANIFEST, dict_of(finished))
        return finished

    def _flush(self, split: Literal["train", "val"]) -> None:
        if not self._waiting[split]:
            return
        tokens, labels = (
            np.concatenate(parts) for parts in zip(*self._waiting[split], strict=True)
        )
        number = sum(shard.split == split for shard in self._shards)
        name = f"{split}-{number:05d}.safetensors"
        path = self._folder / name
        with staged(path) as temporary:
            save_file({"tokens": tokens, "labels": labels}, temporary)
        self._shards.append(
            TokenShard(name=name, split=split, num=len(labels), sha256=sha256_of(path))
        )
        self._waiting[split] = []
