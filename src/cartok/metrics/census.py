"""Pictures counted, measured and hashed while something else reads them."""

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass, field

import numpy as np
import torch

from cartok.core.errors import UserError
from cartok.core.parallel import World
from cartok.core.shapes import Pixels
from cartok.metrics.features import Pictures, hash_of_pictures, picture_hashes, pixel_batches

START = 16
"""Hex digits of a name that the first picture gives."""


@dataclass
class Census:
    """Pictures of one size by the hash of each, in their order."""

    hashes: list[bytes] = field(default_factory=list)
    size: tuple[int, int] = (0, 0)
    """Height, width; zeros until the first came."""

    @property
    def name(self) -> str:
        """Stands for the bytes and the order of the pictures; begins with what the first gives."""
        start = self.hashes[0].hex()[:START] if self.hashes else ""
        whole = hashlib.sha256(repr(self.size).encode() + b"".join(self.hashes)).hexdigest()
        return start + whole

    @property
    def hash(self) -> str:
        """``content_hash`` of the pictures, whatever their order."""
        return hash_of_pictures(self.hashes, self.size)

    def add(self, pixels: Pixels) -> None:
        """Takes pictures of the size that those before had.

        Raises:
            UserError: they have another.
        """
        size = (pixels.shape[2], pixels.shape[3])
        self.size = one_size({size, self.size} if self.hashes else {size})
        self.hashes.extend(picture_hashes(pixels))

    def of(self, pictures: Pictures) -> Iterator[Pixels]:
        """The pictures in batches, each taken on its way.

        Raises:
            UserError: something is not a batch of RGB pictures, or their sizes differ.
        """
        for pixels in pixel_batches(pictures):
            self.add(pixels)
            yield pixels

    def of_all(self, world: World) -> "Census":
        """That of all ranks' pictures, one rank's after the other's, on every rank.

        Raises:
            UserError: there is no picture, or their sizes differ.
        """
        hashes = np.frombuffer(b"".join(self.hashes), np.uint8).reshape(-1, 32)
        parts = world.parts(torch.from_numpy(hashes.copy()))
        sizes = world.gather(torch.tensor([self.size], device=world.device)).tolist()
        found = [row.tobytes() for part in parts for row in part.numpy()]
        if not found:
            raise UserError("features need at least one picture, but none came")
        return Census(found, one_size({(height, width) for height, width in sizes if height}))


def one_size(sizes: set[tuple[int, int]]) -> tuple[int, int]:
    """The only one of the sizes.

    Raises:
        UserError: there are several.
    """
    if len(sizes) > 1:
        raise UserError(f"pictures of a set have one size, but these have {sorted(sizes)}; crop")
    (size,) = sizes
    return size
