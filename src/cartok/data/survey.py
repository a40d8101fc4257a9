"""What a source really holds, every picture decoded: read it before the first training step.

Unlike ``open_pictures`` a survey never stops at broken files; it lists them.
"""

import hashlib
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from jaxtyping import Int
from PIL import Image, ImageDraw, ImageFont

from cartok.core.errors import UserError
from cartok.core.files import staged
from cartok.core.progress import Progress
from cartok.data.images import each_row, headers_of, listing_of, pictures_of
from cartok.data.listing import Listing
from cartok.data.pictures import CROPS, Fault, Pictures, crop_fits
from cartok.data.stores import reason_of, rgb_of

_THUMBNAIL, _CAPTION, _COLUMNS = 96, 14, 8  # pixels, pixels, thumbnails a row
_PNG = b"\x89PNG\r\n\x1a\n"  # how every PNG begins


@dataclass(frozen=True)
class Extent:
    """Smallest, median and largest, in pixels."""

    least: int
    median: int
    most: int

    @classmethod
    def of(cls, values: Int[np.ndarray, " picture"]) -> "Extent":
        """The extent of some sides; zeros when there are none."""
        if not len(values):
            return cls(0, 0, 0)
        return cls(int(values.min()), int(np.median(values)), int(values.max()))


@dataclass(frozen=True)
class Survey:
    """What a source holds.

    ``splits`` counts readable pictures by split ("all" where the source has no splits of its
    own), ``classes`` by class and ``modes`` by mode before conversion. ``duplicates`` are groups
    of names whose bytes are equal, ``shared`` how many of those groups lie on both sides of the
    source's own splits. ``single`` are the classes with one picture. ``crop`` is the largest of
    32, 48 and 64 px that 99 % of the short sides hold, 0 for none. ``pictures`` are those that can
    be decoded, of all splits.
    """

    source: str
    splits: dict[str, int]
    width: Extent
    height: Extent
    short_side: Extent
    classes: dict[str, int]
    modes: dict[str, int]
    duplicates: tuple[tuple[str, ...], ...]
    shared: int
    broken: tuple[Fault, ...]
    single: tuple[str, ...]
    crop: int
    pictures: Pictures


def survey(source: str | Path, progress: Progress | None = None) -> Survey:
    """Decodes and hashes every picture of a source, all splits together; quiet by default.

    Raises:
        UserError: the source does not exist, is empty or is of no known kind.
    """
    listing = listing_of(source)
    headers = headers_of(listing, np.arange(len(listing.store)))
    with (progress or Progress()).stage("pictures", len(headers.rows)) as tick:
        found = each_row(lambda row: _hash_of(listing, row), headers.rows, tick)
    good = np.array([isinstance(result, bytes) for result in found], dtype=bool)
    broken = headers.faults + [result for result in found if isinstance(result, Fault)]
    pictures = pictures_of(listing, headers, good, broken)
    rows, sizes, short_sides = pictures.rows, pictures.sizes, pictures.short_sides
    groups = _groups(rows, [result for result in found if isinstance(result, bytes)])
    fitting = [crop for crop in CROPS if len(rows) and crop_fits(short_sides, crop)]
    classes = _counts(listing, rows)
    return Survey(
        source=str(source),
        splits=_splits(listing, rows),
        width=Extent.of(sizes[:, 0]),
        height=Extent.of(sizes[:, 1]),
        short_side=Extent.of(short_sides),
        classes=classes,
        modes=pictures.modes,
        duplicates=tuple(tuple(map(listing.store.name_of, group)) for group in groups),
        shared=sum(_is_shared(listing, group) for group in groups),
        broken=tuple(broken),
        single=tuple(name for name, count in classes.items() if count == 1),
        crop=max(fitting, default=0),
        pictures=pictures,
    )


def _crop_text(crop: int) -> str:
    if not crop:
        return f"below {CROPS[0]} px: too small"
    return f"{crop} px, of the {', '.join(map(str, CROPS))} that the demo takes"


def describe(found: Survey) -> str:
    """The survey as lines of text, one fact a line; long lists are cut after ten."""
    count = sum(found.splits.values())
    splits = ", ".join(f"{name} {num:,}" for name, num in found.splits.items())
    if "all" in found.splits:
        splits += " (no validation split; training holds a tenth out by content)"
    copies = sum(len(group) - 1 for group in found.duplicates)
    lines = [
        ("source", found.source),
        ("pictures", splits),
        ("width", _extent_text(found.width)),
        ("height", _extent_text(found.height)),
        ("short side", _extent_text(found.short_side)),
        ("largest crop", _crop_text(found.crop)),
        ("modes", ", ".join(f"{mode} {num:,}" for mode, num in found.modes.items())),
        ("classes", classes_text(found.classes)),
        ("one picture", _listed(found.single)),
        (
            "copies",
            f"{copies:,} in {len(found.duplicates):,} groups, {found.shared:,} across splits",
        ),
        *(("", " = ".join(group[:4])) for group in found.duplicates[:10]),
        ("unusable", f"{len(found.broken):,} of {count + len(found.broken):,} files"),
        *(("", f"{fault.name}: {fault.reason}") for fault in found.broken[:10]),
    ]
    return "\n".join(f"{name:<13} {text}".rstrip() for name, text in lines)


def contact_sheet(pictures: Pictures, path: Path, num: int = 64) -> None:
    """Writes a PNG of ``num`` thumbnails, spread evenly over the classes, with their names.

    Small pictures are enlarged without smoothing, so that their pixels can be judged.

    Raises:
        UserError: there are no pictures, or ``check_sheet`` refuses.
    """
    check_sheet(path, num)
    if not len(pictures):
        raise UserError("a contact sheet shows pictures, but none can be read; check the data")
    order = np.argsort(pictures.labels, kind="stable")
    chosen = order[np.linspace(0, len(order) - 1, min(num, len(order))).round().astype(int)]
    rows = -(-len(chosen) // _COLUMNS)
    sheet = Image.new("RGB", (_COLUMNS * _THUMBNAIL, rows * (_THUMBNAIL + _CAPTION)), "white")
    draw, font = ImageDraw.Draw(sheet), ImageFont.load_default(10)
    for place, index in enumerate(chosen):
        loaded = pictures.load(int(index))
        row, column = divmod(place, _COLUMNS)
        left, top = column * _THUMBNAIL, row * (_THUMBNAIL + _CAPTION)
        sheet.paste(_thumbnail(loaded.picture), (left, top))
        name = pictures.classes[pictures.labels[loaded.index]] if pictures.classes else ""
        draw.text((left + 2, top + _THUMBNAIL + 1), name[:16], fill="black", font=font)
    with staged(path) as temporary:
        sheet.save(temporary, format="PNG")


def check_sheet(path: Path, num: int) -> None:
    """Looks, before a long survey, whether a contact sheet of ``num`` pictures may go to a path.

    Raises:
        UserError: ``num`` is below 1, the path lies in no folder, or something is there that is
            no PNG.
    """
    if num < 1:
        raise UserError(f"a contact sheet shows 1 picture or more, but got {num}; ask for more")
    above = next(parent for parent in path.absolute().parents if parent.exists())
    if not above.is_dir():
        raise UserError(f"a contact sheet lies in a folder, but {above} is a file; name another")
    if path.exists() and not _is_png(path):
        raise UserError(f"a contact sheet may replace a PNG, but {path} is none; name another")


def _is_png(path: Path) -> bool:
    if not path.is_file():
        return False
    with open(path, "rb") as file:
        return file.read(len(_PNG)) == _PNG


def _hash_of(listing: Listing, row: int) -> bytes | Fault:
    """A hash of a picture's bytes, if they can be decoded."""
    try:
        with listing.store.open(row) as picture:
            rgb_of(picture)
        return hashlib.sha256(listing.store.content_of(row)).digest()
    except Exception as error:  # decoders fail in any way; each means a broken picture
        return Fault(listing.store.name_of(row), reason_of(error))


def _groups(rows: np.ndarray, hashes: Sequence[bytes]) -> list[list[int]]:
    """Rows of equal content, in groups of two or more."""
    by_hash: dict[bytes, list[int]] = defaultdict(list)
    for row, content in zip(rows.tolist(), hashes, strict=True):
        by_hash[content].append(row)
    return [group for group in by_hash.values() if len(group) > 1]


def _is_shared(listing: Listing, group: Sequence[int]) -> bool:
    return listing.held is not None and len(set(listing.held[list(group)])) > 1


def _splits(listing: Listing, rows: np.ndarray) -> dict[str, int]:
    if listing.held is None:
        return {"all": len(rows)}
    held = int(listing.held[rows].sum())
    return {"train": len(rows) - held, "val": held}


def _counts(listing: Listing, rows: np.ndarray) -> dict[str, int]:
    counts = np.bincount(listing.labels[rows], minlength=len(listing.classes))
    return {name: int(count) for name, count in zip(listing.classes, counts, strict=False)}


def _extent_text(extent: Extent) -> str:
    return f"{extent.least} to {extent.most} px, median {extent.median}"


def classes_text(classes: dict[str, int]) -> str:
    """How many classes, of how many to how many pictures, and the first of them."""
    if not classes:
        return "none (unconditional)"
    named = _listed([f"{name} {count:,}" for name, count in classes.items()])
    return f"{len(classes)}, of {min(classes.values()):,} to {max(classes.values()):,}: {named}"


def _listed(words: Sequence[str]) -> str:
    more = f" and {len(words) - 10} more" if len(words) > 10 else ""
    return ", ".join(words[:10]) + more if words else "none"


def _thumbnail(picture: Image.Image) -> Image.Image:
    scale = _THUMBNAIL / max(picture.size)
    size = (max(1, round(picture.width * scale)), max(1, round(picture.height * scale)))
    smooth = Image.Resampling.NEAREST if scale > 1 else Image.Resampling.LANCZOS
    return picture.resize(size, smooth)
