"""Writes token folders: shards one by one, each whole or absent, and last of all the manifest.

Every shard says in its header what it was made of, so a writing that was killed goes on with those
that are there. Shard number n may be written before or after any other.
"""

import dataclasses
import os
import re
import weakref
from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np

from cartok.core.config import dict_of
from cartok.core.errors import UserError
from cartok.core.files import write_json
from cartok.core.shapes import Labels
from cartok.data.shard import (
    ShardStamp,
    content_of,
    read_shard,
    sha256_of,
    within,
    write_shard,
)
from cartok.data.tokens import MANIFEST, Split, TokenManifest, TokenShard, ViewTokens, made_from

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None

_UINT16_CODES = 1 << 16
_SHARD = re.compile(r"(train|val)-\d{5}\.safetensors")


class TokenWriter:
    """Writes a token folder: ``write`` shards, or ``add`` pictures in order, then ``finish``.

    Each shard appears whole or not at all; without ``finish`` the folder counts as unfinished. With
    ``resume`` shards that an earlier try wrote are taken up by ``has``.

    Raises:
        UserError: the folder already holds finished tokens, or another process writes into it.
    """

    def __init__(self, folder: Path, manifest: TokenManifest, *, resume: bool = False):
        if (folder / MANIFEST).exists():
            raise UserError(
                f"a token folder is written once, but {folder} is finished; "
                "name another folder or delete it"
            )
        folder.mkdir(parents=True, exist_ok=True)
        self._let_go = weakref.finalize(self, _held(folder))
        for path in filter(is_half_written, folder.iterdir()):
            path.unlink()
        self._folder = folder
        self._manifest = manifest
        self._made_from = made_from(dict_of(manifest))
        self._resume = resume
        self._shards: dict[tuple[Split, int], TokenShard] = {}

    def has(self, split: Split, number: int, pictures: range) -> bool:
        """Whether an earlier try has written this shard, of these pictures; it is then kept.

        One that is damaged counts as missing, and so does one without all its pictures: they may be
        read by now, and those that cannot be must be counted and named again. Pictures that are
        files count as equal by name and size.

        Raises:
            UserError: it was made by another tokenizer, or of other pictures, views or sizes.
        """
        path = self._folder / _name(split, number)
        if not self._resume or not path.is_file():
            return False
        try:
            tokens, labels, stamp = read_shard(path)
        except UserError:
            return False
        if stamp is None or stamp.content != content_of(tokens, labels):
            return False
        if stamp.made_from != self._made_from:
            raise UserError(
                f"--resume goes on with equal tokens, but {path} was made by another tokenizer, in "
                "another precision, or of other pictures, classes, views or sizes; "
                "give --overwrite to start again"
            )
        if range(stamp.first, stamp.stop) != pictures:
            raise UserError(
                f"--resume goes on with equal tokens, but {path} holds pictures {stamp.first} to "
                f"{stamp.stop - 1} of its split instead of {pictures.start} to "
                f"{pictures.stop - 1}; give --overwrite to start again"
            )
        if stamp.lost:
            return False
        self._shards[split, number] = _entry(path, split, len(labels))
        return True

    def write(
        self,
        split: Split,
        number: int,
        tokens: ViewTokens,
        labels: Labels,
        lost: tuple[int, ...] = (),
        *,
        pictures: range,
    ) -> None:
        """Writes a whole shard: ``pictures`` of the split, but for those ``lost``.

        Raises:
            ValueError: views, positions, counts or values are not those of the manifest.
        """
        values = self._checked(tokens)
        num = len(pictures) - len(lost)
        if len(values) != num:
            raise ValueError(
                f"a shard has a row for each of its {num} pictures, but got {len(values)}"
            )
        arrays = {"tokens": values, "labels": labels.int().cpu().numpy()}
        stamp = ShardStamp(
            made_from=self._made_from,
            first=pictures.start,
            stop=pictures.stop,
            lost=lost,
            content=content_of(**arrays),
        )
        path = self._folder / _name(split, number)
        write_shard(path, **arrays, stamp=stamp)
        self._shards[split, number] = _entry(path, split, len(values))

    def add(self, split: Split, tokens: ViewTokens, labels: Labels) -> None:
        """Writes the next pictures of a split as its next shard.

        Raises:
            ValueError: as ``write``.
        """
        before = [shard.num for (other, _), shard in self._shards.items() if other == split]
        pictures = range(sum(before), sum(before) + len(labels))
        self.write(split, len(before), tokens, labels, pictures=pictures)

    def finish(self) -> TokenManifest:
        """Writes the manifest, last of all."""
        finished = dataclasses.replace(
            self._manifest, shards=tuple(self._shards[key] for key in sorted(self._shards))
        )
        write_json(self._folder / MANIFEST, dict_of(finished))
        self._let_go()
        return finished

    def _checked(self, tokens: ViewTokens) -> np.ndarray:
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
        return values.astype(np.uint16 if about.codebook_size <= _UINT16_CODES else np.int32)


def _held(folder: Path) -> Callable[[], None]:
    """Holds a folder for one writer, until what is returned is called; where there are locks."""
    if fcntl is None:
        return lambda: None
    opened = os.open(folder, os.O_RDONLY)
    try:
        fcntl.flock(opened, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(opened)
        raise UserError(
            f"one process writes a token folder, but another is writing {folder}; wait for it, or "
            "name another folder"
        ) from None
    except OSError:
        pass  # a disk that knows no locks
    return partial(os.close, opened)


def is_shard(path: Path) -> bool:
    """Whether a file is called as a shard is."""
    return _SHARD.fullmatch(path.name) is not None


def is_half_written(path: Path) -> bool:
    """Whether a kill has left a shard or a manifest here before it was whole."""
    name = path.name.removeprefix(".").split(".part")[0].rsplit(".", 1)[0]
    is_ours = name == MANIFEST or _SHARD.fullmatch(name) is not None
    return is_ours and path.name.startswith(".") and path.name.endswith(".part")


def _name(split: Split, number: int) -> str:
    return f"{split}-{number:05d}.safetensors"


def _entry(path: Path, split: Split, num: int) -> TokenShard:
    return TokenShard(name=path.name, split=split, num=num, sha256=sha256_of(path))
