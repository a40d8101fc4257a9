"""Where encoded pictures lie, and how any picture becomes RGB bytes.

A store knows rows and nothing of classes, splits or crops. Its rows may be broken: ``open``
then raises whatever the decoder raises.
"""

import hashlib
import io
from abc import ABC, abstractmethod
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa
from jaxtyping import UInt8
from PIL import Image, ImageOps, UnidentifiedImageError

PixelRows = UInt8[np.ndarray, "row height width 3"]
"""Decoded pictures in memory, RGB."""


class Store(ABC):
    """Encoded pictures by row."""

    @abstractmethod
    def __len__(self) -> int:
        """The number of rows, readable or not."""

    @abstractmethod
    def open(self, row: int) -> Image.Image:
        """The picture with only its header read."""

    @abstractmethod
    def name_of(self, row: int) -> str:
        """A name by which a person finds the row."""

    @abstractmethod
    def content_of(self, row: int, limit: int | None = None) -> bytes:
        """The stored bytes, or their first ``limit``."""

    @abstractmethod
    def signature_of(self, row: int) -> str:
        """A name for the content that is cheap to find: it changes when the picture does."""


class FolderStore(Store):
    """Files below a folder."""

    def __init__(self, root: Path, names: Sequence[str]):
        self.root = root
        self.names = names

    def __len__(self) -> int:
        return len(self.names)

    def open(self, row: int) -> Image.Image:
        """The picture with only its header read."""
        return Image.open(self.root / self.names[row])

    def name_of(self, row: int) -> str:
        """The path below the folder."""
        return self.names[row]

    def content_of(self, row: int, limit: int | None = None) -> bytes:
        """The file's bytes, or their first ``limit``."""
        with open(self.root / self.names[row], "rb") as file:
            return file.read(-1 if limit is None else limit)

    def signature_of(self, row: int) -> str:
        """Path and size: reading millions of files to name them would cost more than training."""
        return f"{self.names[row]}:{(self.root / self.names[row]).stat().st_size}"


class RowStore(Store):
    """Rows of Arrow tables whose cells are bytes, or Hugging Face's ``{bytes, path}``."""

    def __init__(self, cells: pa.ChunkedArray, origins: Sequence[tuple[str, int]]):
        self.cells = cells
        self._names = [name for name, _ in origins]
        self._starts = np.cumsum([0, *(count for _, count in origins)])

    def __len__(self) -> int:
        return len(self.cells)

    def open(self, row: int) -> Image.Image:
        """The picture with only its header read."""
        return Image.open(io.BytesIO(self.content_of(row)))

    def name_of(self, row: int) -> str:
        """The file (or split) and the row in it."""
        part = int(np.searchsorted(self._starts, row, side="right")) - 1
        return f"{self._names[part]}:{row - self._starts[part]}"

    def content_of(self, row: int, limit: int | None = None) -> bytes:
        """The picture's bytes, or their first ``limit``; follows ``path`` where bytes are null."""
        cell = self.cells[row].as_py()
        if isinstance(cell, dict):
            cell = cell["bytes"] or Path(cell["path"]).read_bytes()
        return cell[:limit]

    def signature_of(self, row: int) -> str:
        """A hash of the bytes."""
        return content_key(self, row)


class PixelStore(Store):
    """Pictures of one size, decoded in memory."""

    def __init__(self, pixels: PixelRows, names: Sequence[str]):
        self.pixels = pixels
        self.names = names

    def __len__(self) -> int:
        return len(self.pixels)

    def open(self, row: int) -> Image.Image:
        """The picture."""
        return Image.fromarray(self.pixels[row])

    def name_of(self, row: int) -> str:
        """The name given when the store was made."""
        return self.names[row]

    def content_of(self, row: int, limit: int | None = None) -> bytes:
        """The pixels, or their first ``limit`` bytes."""
        return self.pixels[row].tobytes()[:limit]

    def signature_of(self, row: int) -> str:
        """A hash of the pixels."""
        return content_key(self, row)


def content_key(store: Store, row: int) -> str:
    """A hash of the first 64 KiB of a picture's bytes: equal pictures have equal keys.

    The converse fails only for files that differ after 64 KiB, which may share a key without
    harm; reading no further keeps opening a large folder cheap.
    """
    return hashlib.blake2b(store.content_of(row, 1 << 16), digest_size=8).hexdigest()


def rgb_of(picture: Image.Image) -> Image.Image:
    """The picture as 8-bit RGB, upright; alpha is laid on white, 16 bits are divided by 257.

    Raises:
        ValueError: the mode has no fixed range (floating point) or no known conversion.
    """
    ImageOps.exif_transpose(picture, in_place=True)
    if picture.mode == "F":
        raise ValueError("a floating point picture has no fixed range")
    if picture.mode.startswith("I"):
        grey = (np.asarray(picture).clip(0, 65535) / 257).round().astype(np.uint8)
        picture = Image.fromarray(grey)
    if picture.has_transparency_data:
        picture = picture.convert("RGBA")
        white = Image.new("RGBA", picture.size, "white")
        picture = Image.alpha_composite(white, picture)
    return picture.convert("RGB")


def reason_of(error: Exception) -> str:
    """One short line on why a picture could not be read."""
    if isinstance(error, UnidentifiedImageError):
        return "not a picture"
    return (str(error) or type(error).__name__).splitlines()[0]
