"""Pictures in archives, read in place: zip files, and tar shards as WebDataset writes them."""

import io
import os
import tarfile
import zipfile
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path, PurePosixPath

import numpy as np
from PIL import Image

from cartok.core.errors import UserError
from cartok.data.folder import tree_listing
from cartok.data.listing import NO_CLASS, Listing, check_classes, split_word, validation_word
from cartok.data.stores import Store, content_key, reason_of

PICTURE_SUFFIXES = (".jpg", ".jpeg", ".png", ".webp", ".bmp", ".gif", ".tif", ".tiff", ".ppm")
"""Of the members of a shard, which are pictures."""


class ZipStore(Store):
    """Members of a zip file."""

    def __init__(self, path: Path, names: Sequence[str]):
        self.path = path
        self.names = names
        self._opened: dict[int, zipfile.ZipFile] = {}

    def __len__(self) -> int:
        return len(self.names)

    def __getstate__(self) -> dict:
        return {**self.__dict__, "_opened": {}}

    def open(self, row: int) -> Image.Image:
        """The picture with only its header read."""
        return Image.open(io.BytesIO(self.content_of(row)))

    def name_of(self, row: int) -> str:
        """The member's path."""
        return self.names[row]

    def content_of(self, row: int, limit: int | None = None) -> bytes:
        """The picture's bytes, or their first ``limit``."""
        with self._zip().open(self.names[row]) as member:
            return member.read(-1 if limit is None else limit)

    def signature_of(self, row: int) -> str:
        """Path, size and checksum, which the archive lists."""
        member = self._zip().getinfo(self.names[row])
        return f"{member.filename}:{member.file_size}:{member.CRC}"

    def _zip(self) -> zipfile.ZipFile:
        """Opened once a process: one that was forked would move the place of its parent."""
        if os.getpid() not in self._opened:
            self._opened = {os.getpid(): zipfile.ZipFile(self.path)}
        return self._opened[os.getpid()]


@dataclass(frozen=True, slots=True)
class Member:
    """A file in a tar archive and where its bytes lie."""

    shard: Path
    name: str
    offset: int
    size: int

    @property
    def key(self) -> str:
        """What the files of one sample of WebDataset share: the path up to the name's first dot."""
        path = PurePosixPath(self.name)
        return str(path.parent / path.name.split(".", 1)[0])

    def read(self, limit: int | None = None) -> bytes:
        """Its bytes, or their first ``limit``."""
        with open(self.shard, "rb") as file:
            file.seek(self.offset)
            return file.read(self.size if limit is None else min(limit, self.size))


class TarStore(Store):
    """Members of tar archives."""

    def __init__(self, members: Sequence[Member]):
        self.members = members

    def __len__(self) -> int:
        return len(self.members)

    def open(self, row: int) -> Image.Image:
        """The picture with only its header read."""
        return Image.open(io.BytesIO(self.content_of(row)))

    def name_of(self, row: int) -> str:
        """The shard and the member's path in it."""
        return f"{self.members[row].shard.name}:{self.members[row].name}"

    def content_of(self, row: int, limit: int | None = None) -> bytes:
        """The picture's bytes, or their first ``limit``."""
        return self.members[row].read(limit)

    def signature_of(self, row: int) -> str:
        """A hash of the bytes."""
        return content_key(self, row)


def zip_listing(path: Path) -> Listing:
    """The listing of a zip of pictures, laid out as a folder would be.

    Raises:
        UserError: it is no zip, it is empty, or its validation folder has other classes.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            names = [info.filename for info in archive.infolist() if not info.is_dir()]
    except (zipfile.BadZipFile, OSError) as error:
        raise UserError(f"{path} is no readable zip: {reason_of(error)}; fetch it again") from error
    shown = sorted(name for name in names if not _is_hidden(name))
    if not shown:
        raise UserError(f"a zip must hold pictures, but {path} is empty; fill it")
    return tree_listing(shown, partial(ZipStore, path))


def tar_listing(shards: Sequence[Path]) -> Listing:
    """The listing of tar shards, in their order: pictures, of the classes that ``.cls`` names.

    Without ``.cls`` the first folder names the class, where there are several. A shard's or its
    folder's name tells the split, as for parquet.

    Raises:
        UserError: a shard is compressed or damaged, a labelled sample has two pictures, or the
            validation shards have other classes.
    """
    words = {split_word(shard.name) or split_word(shard.parent.name) for shard in shards}
    held_word = validation_word(words)
    kept, held = [], []
    for shard in shards:
        word = split_word(shard.name) or split_word(shard.parent.name)
        if word in ("", "train", held_word) or len(words) == 1:
            kept.append(shard)
            held.append(bool(held_word) and word == held_word)
    members = [_members(shard) for shard in kept]
    names = {
        (member.shard, member.key): member.read().decode(errors="replace").strip()
        for part in members
        for member in part
        if member.name.endswith(".cls")
    }
    pictures = [[m for m in part if _is_picture(m.name)] for part in members]
    rows = [member for part in pictures for member in part]
    _refuse_two_pictures(rows, names)
    is_held = np.repeat(held, [len(part) for part in pictures])
    found = [names.get((m.shard, m.key), "") for m in rows] if names else _first_folders(rows)
    labels, classes = _numbered(found, is_held)
    mixed = is_held.any() and not is_held.all()
    return Listing(TarStore(rows), labels, classes, is_held if mixed else None)


def _members(shard: Path) -> list[Member]:
    try:
        with tarfile.open(shard, "r:") as archive:
            return [
                Member(shard, info.name.removeprefix("./"), info.offset_data, info.size)
                for info in archive
                if info.isreg() and not _is_hidden(info.name.removeprefix("./"))
            ]
    except (tarfile.TarError, OSError) as error:
        raise UserError(
            f"{shard} is no readable plain tar: {reason_of(error)}; "
            "take off its compression, or fetch it again"
        ) from error


def _refuse_two_pictures(rows: Sequence[Member], names: dict[tuple[Path, str], str]) -> None:
    counts = Counter((member.shard, member.key) for member in rows)
    double = next((key for key, count in counts.items() if count > 1 and key in names), None)
    if double is not None:
        found = ", ".join(m.name for m in rows if (m.shard, m.key) == double)
        raise UserError(
            f"a labelled sample of a shard holds one picture, but '{double[1]}' of "
            f"{double[0].name} holds {found}; write shards without the others"
        )


def _first_folders(rows: Sequence[Member]) -> list[str]:
    """The first folder of each, or "" for all if it is the same."""
    tops = [top if rest else "" for top, _, rest in (m.name.partition("/") for m in rows)]
    return tops if len(set(tops)) > 1 else [""] * len(tops)


def _numbered(found: Sequence[str], held: np.ndarray) -> tuple[np.ndarray, tuple[str, ...]]:
    train = {name for name, is_held in zip(found, held, strict=True) if name and not is_held}
    valid = {name for name, is_held in zip(found, held, strict=True) if name and is_held}
    if held.any() and not held.all():
        check_classes(train, valid)
    numeric = all(name.isdigit() for name in train | valid)
    classes = sorted(train or valid, key=int if numeric else str)
    numbers = {name: number for number, name in enumerate(classes)}
    labels = [numbers.get(name, NO_CLASS) if classes else 0 for name in found]
    return np.array(labels, dtype=np.int64), tuple(classes)


def _is_picture(name: str) -> bool:
    return PurePosixPath(name).suffix.lower() in PICTURE_SUFFIXES


def _is_hidden(name: str) -> bool:
    """A hidden file, or what macOS adds to archives."""
    return any(part.startswith(".") or part == "__MACOSX" for part in name.split("/"))
