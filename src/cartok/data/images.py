"""Any source of pictures, opened: the photographs, a folder, an archive, parquet, the hub.

Opening reads headers, not pixels. What cannot be used is counted, named and skipped; more than
1 % of it stops. Where a source has no validation split, a tenth of it is held out by content.
"""

import hashlib
from collections import Counter, defaultdict
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal, TypeVar

import numpy as np
from jaxtyping import Bool, Int
from PIL import Image

from cartok.core.errors import UserError
from cartok.core.progress import Tick
from cartok.data.archives import tar_listing, zip_listing
from cartok.data.folder import files_below, folder_listing
from cartok.data.listing import NO_CLASS, Listing
from cartok.data.photos import photo_listing
from cartok.data.pictures import Fault, Pictures, stop_if_many, stop_if_small
from cartok.data.stores import content_key, reason_of
from cartok.data.tables import hub_listing, parquet_listing

Split = Literal["train", "val", "all"]
"""``all`` is every picture, split or not: for scoring and inspecting."""


T = TypeVar("T")

# Threads hide the latency of network disks; pieces keep the queue short for millions of files.
_THREADS, _PIECE = 8, 64


@dataclass(frozen=True, slots=True)
class _Header:
    row: int
    size: tuple[int, int]
    mode: str
    signature: str


@dataclass(frozen=True, eq=False)
class Headers:
    """What the headers of some rows say: one entry a readable row, and the faults of the rest."""

    rows: Int[np.ndarray, " readable"]
    sizes: Int[np.ndarray, "readable 2"]
    modes: list[str]
    signatures: list[str]
    faults: list[Fault]

    @property
    def short_sides(self) -> Int[np.ndarray, " readable"]:
        """The shorter of width and height, in pixels."""
        return self.sizes.min(axis=1)


def open_pictures(source: str | Path, split: Split, *, size: int | None = None) -> Pictures:
    """The pictures of one split of a source.

    A source is ``photos`` (the embedded photographs, as crops of ``size``, 32 by default), a
    folder, a zip, a parquet file or tar shard or a folder of them, or ``hub:owner/name``. With a
    ``size``, pictures whose short side is below it are skipped too.

    Raises:
        UserError: there is nothing to open, or more than 1 % of it cannot be used, or a class
            has a single picture, another has more, and a tenth must be held out.
    """
    listing = listing_of(source, size)
    if split != "all":
        listing = _without_lone_classes(listing)
    headers = _usable_headers(listing, split, source)
    keep = np.ones(len(headers.rows), dtype=bool)
    if listing.held is None and split != "all":
        keep = held_out(listing, headers.rows) == (split == "val")
    return _large_enough(listing, headers, keep, size)


def open_splits(
    source: str | Path, *, size: int | None = None
) -> dict[Literal["train", "val"], Pictures]:
    """Both splits of a source, as ``open_pictures`` opens each, but listed and hashed once.

    Raises:
        UserError: either split cannot be opened; see ``open_pictures``.
    """
    listing = _without_lone_classes(listing_of(source, size))
    splits: tuple[Literal["train", "val"], ...] = ("train", "val")
    if listing.held is not None:
        found = {split: _usable_headers(listing, split, source) for split in splits}
        keep = {split: np.ones(len(found[split].rows), dtype=bool) for split in splits}
    else:
        found = dict.fromkeys(splits, _usable_headers(listing, "all", source))
        held = held_out(listing, found["val"].rows)
        keep = {"train": ~held, "val": held}
    return {split: _large_enough(listing, found[split], keep[split], size) for split in splits}


def listing_of(source: str | Path, size: int | None = None) -> Listing:
    """What a source holds, before any picture is opened; ``size`` matters to ``photos`` alone.

    Raises:
        UserError: the source does not exist, is empty, or is no folder, parquet or hub name.
    """
    if source == "photos":
        return photo_listing(size or 32)
    if str(source).startswith("hub:"):
        return hub_listing(str(source).removeprefix("hub:"))
    path = Path(source)
    if not path.exists():
        raise UserError(
            f"data is 'photos', hub:owner/name, a folder, or a file of parquet, zip or tar, but "
            f"there is no {path}; check the path"
        )
    if path.is_file():
        return _file_listing(path)
    names = files_below(path)
    if not names:
        raise UserError(f"data must hold pictures, but the folder {path} is empty; fill it")
    tables = [path / name for name in names if name.endswith(".parquet")]
    if tables:
        return parquet_listing(tables)
    if all(name.endswith(".tar") for name in names):
        return tar_listing([path / name for name in names])
    return folder_listing(path, names)


def _file_listing(path: Path) -> Listing:
    match path.suffix:
        case ".parquet":
            return parquet_listing([path])
        case ".tar":
            return tar_listing([path])
        case ".zip":
            return zip_listing(path)
    raise UserError(f"a data file is parquet, zip or tar, but got {path}; give its folder")


def headers_of(listing: Listing, rows: Int[np.ndarray, " row"]) -> Headers:
    """Reads the headers of some rows, in their order, and finds out which are readable."""
    found = each_row(lambda row: _header(listing, row), rows)
    good = [header for header in found if isinstance(header, _Header)]
    return Headers(
        rows=np.array([header.row for header in good], dtype=np.int64),
        sizes=np.array([header.size for header in good], dtype=np.int64).reshape(-1, 2),
        modes=[header.mode for header in good],
        signatures=[header.signature for header in good],
        faults=[header for header in found if isinstance(header, Fault)],
    )


def each_row(
    function: Callable[[int], T], rows: Int[np.ndarray, " row"], tick: Tick | None = None
) -> list[T]:
    """The function's value for every row, in their order, found by a few threads.

    ``tick`` is told now and then how many rows are done.
    """
    pieces = [rows[start : start + _PIECE] for start in range(0, len(rows), _PIECE)]
    found: list[T] = []
    Image.init()  # loads every decoder once, before threads race to
    with ThreadPoolExecutor(_THREADS) as pool:
        for part in pool.map(lambda piece: [function(int(row)) for row in piece], pieces):
            found += part
            if tick:
                tick(len(found), "")
    return found


def held_out(listing: Listing, rows: Int[np.ndarray, " row"]) -> Bool[np.ndarray, " row"]:
    """Which rows are held out for validation: a tenth of the different contents.

    Contents are taken in the order of their hashes, so the choice depends on nothing else and
    equal pictures fall on one side; a class never loses its last content.

    Raises:
        UserError: a class has one picture (or copies of one), so it cannot be on both sides.
    """
    classes_of: dict[str, set[int]] = defaultdict(set)
    keys = each_row(lambda row: content_key(listing.store, row), rows)
    for key, label in zip(keys, listing.labels[rows], strict=True):
        classes_of[key].add(int(label))
    left = Counter(label for labels in classes_of.values() for label in labels)
    _refuse_single(listing, left)
    held: set[str] = set()
    for key in sorted(classes_of):
        if len(held) >= max(1, round(len(classes_of) / 10)):
            break
        if all(left[label] > 1 for label in classes_of[key]):
            held.add(key)
            left.subtract(classes_of[key])
    return np.array([key in held for key in keys])


def pictures_of(
    listing: Listing, headers: Headers, keep: Bool[np.ndarray, " readable"], faults: list[Fault]
) -> Pictures:
    """The pictures of the readable rows that are kept; ``faults`` names those that are not."""
    rows = headers.rows[keep]
    labels = listing.labels[rows]
    kept = np.flatnonzero(keep)
    content = hashlib.sha256(repr(listing.classes).encode())
    content.update("\n".join(headers.signatures[i] for i in kept).encode())
    content.update(labels.astype("<i8").tobytes())
    return Pictures(
        store=listing.store,
        rows=rows,
        labels=labels,
        classes=listing.classes,
        sizes=headers.sizes[keep],
        stored_modes=[headers.modes[i] for i in kept],
        skipped=faults,
        digest=content.hexdigest()[:16],
    )


def _without_lone_classes(listing: Listing) -> Listing:
    """Where a tenth must be held out and no class has two pictures, they are no classes."""
    labels = listing.labels[listing.labels != NO_CLASS]
    if listing.held is not None or len(labels) < 2 or np.bincount(labels).max() > 1:
        return listing
    return replace(listing, labels=np.zeros_like(listing.labels), classes=())


def _usable_headers(listing: Listing, split: Split, source: str | Path) -> Headers:
    headers = headers_of(listing, _rows_to_scan(listing, split))
    stop_if_many(headers.faults, len(headers.rows) + len(headers.faults))
    if not len(headers.rows):
        raise UserError(f"data must hold pictures, but {source} has none; check the path")
    return headers


def _large_enough(
    listing: Listing, headers: Headers, keep: np.ndarray, size: int | None
) -> Pictures:
    if size is None:
        return pictures_of(listing, headers, keep, headers.faults)
    stop_if_small(headers.short_sides, size)
    small = keep & (headers.short_sides < size)
    names = [listing.store.name_of(int(row)) for row in headers.rows[small]]
    faults = [Fault(name, f"short side below {size} px") for name in names]
    return pictures_of(listing, headers, keep & ~small, headers.faults + faults)


def _rows_to_scan(listing: Listing, split: Split) -> np.ndarray:
    if split == "all" or listing.held is None:
        return np.arange(len(listing.store))
    return np.flatnonzero(listing.held == (split == "val"))


def _header(listing: Listing, row: int) -> _Header | Fault:
    store = listing.store
    if listing.labels[row] == NO_CLASS:
        return Fault(store.name_of(row), "has no class although others have one")
    try:
        with store.open(row) as picture:
            if picture.mode == "F":
                return Fault(store.name_of(row), "floating point, which has no fixed range")
            return _Header(row, picture.size, picture.mode, store.signature_of(row))
    except Exception as error:  # decoders fail in any way; each means a broken picture
        return Fault(store.name_of(row), reason_of(error))


def _refuse_single(listing: Listing, num_contents: Counter[int]) -> None:
    single = sorted(label for label, count in num_contents.items() if count == 1)
    if not single:
        return
    owner = f"class '{listing.classes[single[0]]}'" if listing.classes else "the whole collection"
    raise UserError(
        f"a class needs two different pictures where a tenth is held out, but {owner} has one "
        f"({len(single)} such); add pictures, remove it, or sort pictures into train/ and val/"
    )
