"""One file of tokens: its arrays, and in its header a stamp of what they were made of."""

import hashlib
import json
from pathlib import Path
from typing import NamedTuple

import numpy as np
from jaxtyping import Integer
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file

from cartok.core.config import ConfigError, config, config_of, dict_of
from cartok.core.errors import UserError
from cartok.core.files import staged

_STAMP = "cartok"  # the one key of the header: safetensors keeps no order of several


@config
class ShardStamp:
    """What a shard's header says of it."""

    made_from: str
    """Names tokenizer, pictures, view and precision: ``made_from`` of the folder's manifest."""
    first: int
    """Its pictures are those of the split from here"""
    stop: int
    """to before here,"""
    lost: tuple[int, ...]
    """but for these, which could not be decoded."""
    content: str
    """The hash of tokens and labels."""

    @property
    def pictures(self) -> list[int]:
        """The index in the split of each row's picture."""
        lost = set(self.lost)
        return [index for index in range(self.first, self.stop) if index not in lost]


class Shard(NamedTuple):
    """A shard, read."""

    tokens: Integer[np.ndarray, "picture view position"]
    labels: Integer[np.ndarray, " picture"]
    stamp: ShardStamp | None


def read_shard(path: Path) -> Shard:
    """A shard's arrays, memory-mapped, and its stamp, which those of older versions lack.

    Raises:
        UserError: it is no whole token file.
    """
    try:
        with safe_open(path, framework="pt") as file:
            tokens, labels = (file.get_tensor(name).numpy() for name in ("tokens", "labels"))
            text = (file.metadata() or {}).get(_STAMP)
            stamp = None if text is None else config_of(ShardStamp, json.loads(text))
    except (SafetensorError, ConfigError, ValueError) as error:
        raise bad_shard(path, f"is no token file ({error})") from error
    return Shard(tokens, labels, stamp)


def write_shard(path: Path, tokens: np.ndarray, labels: np.ndarray, stamp: ShardStamp) -> None:
    """Writes a shard, whole or not at all; equal input makes equal bytes.

    Raises:
        UserError: the disk is full.
    """
    text = json.dumps(dict_of(stamp), sort_keys=True)
    # safetensors takes an array's memory as it lies, whatever its strides say.
    arrays = {"tokens": np.ascontiguousarray(tokens), "labels": np.ascontiguousarray(labels)}
    with staged(path) as temporary:
        save_file(arrays, temporary, metadata={_STAMP: text})


def content_of(tokens: np.ndarray, labels: np.ndarray) -> str:
    """The hash of a shard's arrays, in hex."""
    content = hashlib.sha256(f"{tokens.dtype} {tokens.shape}".encode())
    for array in (tokens, labels):
        content.update(np.ascontiguousarray(array).data)
    return content.hexdigest()


def sha256_of(path: Path) -> str:
    """The hash of a file's content, in hex."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def within(values: np.ndarray, limit: int) -> bool:
    """Whether all are 0 to ``limit`` - 1."""
    return values.size == 0 or (int(values.min()) >= 0 and int(values.max()) < limit)


def bad_shard(path: Path, fault: str) -> UserError:
    """The refusal of a shard that has this fault."""
    return UserError(
        f"a token shard must be as it was written, but {path} {fault}; extract the tokens again"
    )
