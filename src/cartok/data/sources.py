"""Pictures in a fixed order, from whatever holds them: what scoring reads, one at a time.

Files of a folder or a zip come in the order of their names, folders left aside: pictures that were
drawn with one class after the other then come as they were drawn, and two sets that are named alike
pair. Shards, tables and arrays come in their own order.
"""

from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Iterable, Iterator
from dataclasses import replace
from itertools import islice
from pathlib import Path, PurePosixPath

import numpy as np
import torch
from PIL import Image

from cartok.core.errors import UserError
from cartok.core.shapes import Pixels
from cartok.core.threads import in_threads
from cartok.data.archives import ZipStore
from cartok.data.arrays import (
    PictureArray,
    Statistics,
    has_pictures,
    picture_array,
    read_statistics,
)
from cartok.data.crops import Crop, Cut, cropped
from cartok.data.images import open_pictures
from cartok.data.pictures import Fault, Pictures
from cartok.data.stores import FolderStore, PixelRows

ARRAYS = (".npy", ".npz")

AT_ONCE = 8
"""Pictures that a thread reads before the next thread's come."""


class Source(ABC):
    """Pictures in a fixed order, any number of times, and what a reader should know of them."""

    statistics: dict[str, Statistics]
    """Stored with the pictures, by the kind of features; often none."""

    @abstractmethod
    def __len__(self) -> int:
        """The number of pictures, readable or not."""

    @abstractmethod
    def cuts(self, crop: Crop, size: int, rows: range, threads: int | None) -> Iterator[Cut]:
        """The readable ones of a range of pictures, cut: see ``pixels``."""

    @property
    @abstractmethod
    def short_side(self) -> int:
        """The shortest side of any picture, in pixels."""

    @property
    def converted(self) -> dict[str, int]:
        """How many were not RGB, by their mode."""
        return {}

    @property
    def skipped(self) -> list[Fault]:
        """What is left out; pictures that do not decode are known once they have been read."""
        return []

    @property
    def broken(self) -> list[int]:
        """The indices of those that did not decode when they were read, in this process."""
        return []

    def count_broken(self, indices: Iterable[int]) -> None:
        """Reads again, and so counts, what did not decode in another process.

        Raises:
            UserError: more than 1 % of all pictures cannot be decoded.
        """
        for index in indices:
            deque(self.cuts("as-given", 0, range(index, index + 1), threads=0), maxlen=0)

    def pixels(
        self, crop: Crop, size: int, batch: int = 64, *,
        rows: range | None = None, threads: int | None = 0,
    ) -> Iterator[Pixels]:  # fmt: skip
        """The pictures cut, in batches; ``size`` as in ``cropped``.

        ``rows`` are those that are read, a range without gaps; None is all. ``threads`` decode and
        cut ahead, as in ``in_threads``; their number changes nothing else.

        Raises:
            UserError: pictures differ in size after the cut.
        """
        cuts = self.cuts(crop, size, range(len(self)) if rows is None else rows, threads)
        while some := list(islice(cuts, batch)):
            shapes = dict.fromkeys(cut.shape for cut in some)
            if len(shapes) > 1:
                sizes = " and ".join(f"{width} x {height}" for _, height, width in [*shapes][:2])
                raise UserError(f"pictures of a set have one size, but these have {sizes}; crop")
            # numpy: torch's threads, done with a copy, wait at full speed beside those that decode.
            yield torch.from_numpy(np.stack([cut.numpy() for cut in some]))


class FileSource(Source):
    """Encoded pictures; more than 1 % that cannot be decoded stop the reading."""

    def __init__(self, pictures: Pictures):
        self.pictures = replace(pictures, keeps=False)
        self.statistics = {}

    def __len__(self) -> int:
        return len(self.pictures)

    def cuts(self, crop: Crop, size: int, rows: range, threads: int | None) -> Iterator[Cut]:
        """The readable ones, cut; the others are counted in their turn."""

        def attempt(index: int) -> tuple[int, Cut | Fault]:
            found = self.pictures.attempt(index)
            return index, found if isinstance(found, Fault) else cropped(found, crop, size)

        def attempts(part: range) -> list[tuple[int, Cut | Fault]]:
            return [attempt(index) for index in part]  # one whole picture in memory at a time

        for part in in_threads(attempts, _parts(rows), threads):
            for index, found in part:
                if isinstance(found, Fault):
                    self.pictures.count_broken(index, found)
                else:
                    yield found

    @property
    def short_side(self) -> int:
        """The shortest side of any picture, in pixels."""
        return int(self.pictures.short_sides.min())

    @property
    def converted(self) -> dict[str, int]:
        """How many were not RGB, by their mode."""
        return {mode: count for mode, count in self.pictures.modes.items() if mode != "RGB"}

    @property
    def skipped(self) -> list[Fault]:
        """What is left out; pictures that do not decode are known once they have been read."""
        return [*self.pictures.skipped, *self.pictures.broken]

    @property
    def broken(self) -> list[int]:
        """The indices of those that did not decode when they were read, in this process."""
        return self.pictures.broken_indices


class ArraySource(Source):
    """Pictures of an array on disk, with the statistics beside it."""

    def __init__(self, array: PictureArray, statistics: dict[str, Statistics]):
        self.array = array
        self.statistics = statistics

    def __len__(self) -> int:
        return len(self.array)

    def cuts(self, crop: Crop, size: int, rows: range, threads: int | None) -> Iterator[Cut]:
        """The pictures, cut."""
        whole = self.array.size == (size, size) or (crop == "as-given" and not size)

        def cuts_of(part: PixelRows) -> list[torch.Tensor]:
            if whole:
                return [*torch.from_numpy(np.array(part.transpose(0, 3, 1, 2), order="C"))]
            return [cropped(Image.fromarray(picture), crop, size) for picture in part]

        for part in in_threads(cuts_of, self.array.rows(rows, AT_ONCE), threads):
            yield from part

    @property
    def short_side(self) -> int:
        """The shorter side of the pictures, in pixels."""
        return min(self.array.size)


class StatisticsSource(Source):
    """Statistics without their pictures."""

    def __init__(self, statistics: dict[str, Statistics]):
        self.statistics = statistics

    def __len__(self) -> int:
        return 0

    def cuts(self, crop: Crop, size: int, rows: range, threads: int | None) -> Iterator[Cut]:
        """There is no picture."""
        return iter(())

    @property
    def short_side(self) -> int:
        """There is no picture."""
        return 0


def open_source(path: str | Path) -> Source:
    """Opens what is to be scored: whatever ``open_pictures`` takes, all splits, or an array.

    Raises:
        UserError: there is nothing of the kind, or it is damaged.
    """
    suffix = Path(path).suffix
    if suffix in ARRAYS:
        path = Path(path)
        if not path.is_file():
            raise UserError(
                f"pictures were expected at {path}, but there is no such file; check it"
            )
        statistics = read_statistics(path) if suffix == ".npz" else {}
        if statistics and not has_pictures(path):
            return StatisticsSource(statistics)
        return ArraySource(picture_array(path), statistics)
    return FileSource(_by_name(open_pictures(path, "all")))


def _parts(rows: range) -> Iterator[range]:
    return (rows[start : start + AT_ONCE] for start in range(0, len(rows), AT_ONCE))


def _by_name(pictures: Pictures) -> Pictures:
    if not isinstance(pictures.store, FolderStore | ZipStore):
        return pictures
    paths = [PurePosixPath(pictures.name_of(index)) for index in range(len(pictures))]
    order = sorted(range(len(paths)), key=lambda index: (paths[index].name, paths[index]))
    return pictures.subset(np.array(order))
