"""A collection of pictures of one split: read by index, labelled, counted, named by a digest."""

import hashlib
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import chain

import numpy as np
from jaxtyping import Int
from PIL import Image

from cartok.core.errors import UserError
from cartok.data.stores import Store, reason_of, rgb_of

MAX_FAULTY_SHARE = 0.01
"""The share of a collection that may be unreadable or too small before reading it stops."""

CROPS = (32, 48, 64)
"""The crops that ``largest_crop`` chooses from, in pixels."""

# Decoded pictures are kept when each side is at most 64 px and all fit in 1 GiB: that covers
# CIFAR-10 (150 MB) and fifty thousand pictures of 64 px (590 MB).
_CACHE_SIDE, _CACHE_BYTES = 64, 1 << 30


@dataclass(frozen=True, slots=True)
class Fault:
    """A picture that cannot be used: its name and a short reason."""

    name: str
    reason: str


@dataclass(frozen=True, slots=True)
class Loaded:
    """A decoded picture and the index it really has: see ``Pictures.load``."""

    index: int
    picture: Image.Image


@dataclass(eq=False)
class Pictures:
    """Pictures of one split; ``open_pictures`` makes it.

    ``rows`` are rows of the store; everything else is by index, 0 to ``len - 1``. ``classes`` is
    empty and ``labels`` zero when the collection has no classes. ``sizes`` are width and height
    in pixels; ``stored_modes`` are the modes before conversion to RGB. ``skipped`` names what was
    left out when opening. ``digest`` names the content: labels and what
    ``Store.signature_of`` says, which of files in a folder is their name and size.
    """

    store: Store
    rows: Int[np.ndarray, " index"]
    labels: Int[np.ndarray, " index"]
    classes: tuple[str, ...]
    sizes: Int[np.ndarray, "index 2"]
    stored_modes: Sequence[str]
    skipped: list[Fault]
    digest: str
    keeps: bool = True
    """Whether small ones stay in memory once they are decoded, for the next time they are read."""
    _cache: dict[int, np.ndarray] = field(default_factory=dict, repr=False)
    _broken: dict[int, Fault] = field(default_factory=dict, repr=False)

    def __post_init__(self):
        self._keeps = self.keeps and self._is_small()

    def __len__(self) -> int:
        return len(self.rows)

    @property
    def num_classes(self) -> int:
        """The number of classes; 0 without classes."""
        return len(self.classes)

    @property
    def short_sides(self) -> Int[np.ndarray, " index"]:
        """The shorter of width and height of each picture, in pixels."""
        return self.sizes.min(axis=1)

    @property
    def modes(self) -> dict[str, int]:
        """How many pictures have each mode before conversion to RGB, most frequent first."""
        return dict(Counter(self.stored_modes).most_common())

    @property
    def broken(self) -> list[Fault]:
        """The pictures whose pixels could not be decoded so far, in this process; by index."""
        return [self._broken[index] for index in self.broken_indices]

    @property
    def broken_indices(self) -> list[int]:
        """The indices of ``broken``."""
        return sorted(self._broken)

    def name_of(self, index: int) -> str:
        """A name by which a person finds the picture."""
        return self.store.name_of(int(self.rows[index]))

    def read(self, index: int) -> Image.Image:
        """The picture in RGB; the next readable one in place of one that cannot be decoded."""
        return self.load(index).picture

    def load(self, index: int) -> Loaded:
        """The picture in RGB with its index, which a label must follow.

        A picture that cannot be decoded is counted in ``broken`` and replaced by the next
        readable one, so every process replaces it alike.

        Raises:
            UserError: more than 1 % of the collection cannot be decoded.
        """
        if not 0 <= index < len(self):
            raise IndexError(f"an index is 0 to {len(self) - 1}, but got {index}")
        for candidate in chain(range(index, len(self)), range(index)):
            found = self.attempt(candidate)
            if not isinstance(found, Fault):
                return Loaded(candidate, found)
            self.count_broken(candidate, found)
        raise AssertionError("the 1 % rule stops before every picture is broken")

    def attempt(self, index: int) -> Image.Image | Fault:
        """The picture in RGB, or why it cannot be decoded; counts nothing, so threads may call."""
        if index in self._broken:
            return self._broken[index]
        try:
            return self._decode(index)
        except Exception as error:  # decoders fail in any way; each means a broken picture
            return Fault(self.name_of(index), reason_of(error))

    def count_broken(self, index: int, fault: Fault) -> None:
        """Takes note of a picture that cannot be decoded.

        Raises:
            UserError: more than 1 % of the collection cannot be decoded.
        """
        if index not in self._broken:
            self._broken[index] = fault
            stop_if_many([*self.skipped, *self.broken], len(self) + len(self.skipped))

    def keep_small(self) -> None:
        """Decodes now what would be kept when it is first read: workers forked later share it."""
        if self._keeps:
            for index in range(len(self)):
                self.load(index)

    def subset(self, indices: Int[np.ndarray, " chosen"]) -> "Pictures":
        """Some of the pictures, in the order given, as a collection with a digest of its own."""
        chosen = hashlib.sha256(self.digest.encode() + indices.astype("<i8").tobytes())
        return Pictures(
            store=self.store,
            rows=self.rows[indices],
            labels=self.labels[indices],
            classes=self.classes,
            sizes=self.sizes[indices],
            stored_modes=[self.stored_modes[index] for index in indices],
            skipped=self.skipped,
            keeps=self.keeps,
            digest=chosen.hexdigest()[:16],
        )

    def _decode(self, index: int) -> Image.Image:
        if index in self._cache:
            return Image.fromarray(self._cache[index])
        with self.store.open(int(self.rows[index])) as encoded:
            picture = rgb_of(encoded)
        if self._keeps:
            self._cache[index] = np.asarray(picture)
        return picture

    def _is_small(self) -> bool:
        num_bytes = 3 * int(self.sizes.astype(np.int64).prod(axis=1).sum())
        return int(self.sizes.max(initial=0)) <= _CACHE_SIDE and num_bytes <= _CACHE_BYTES


def stop_if_many(faults: list[Fault], total: int) -> None:
    """Raises when more than 1 % of the files are faulty, naming the first ten.

    Raises:
        UserError: more than ``MAX_FAULTY_SHARE`` of ``total`` are faulty.
    """
    if len(faults) <= MAX_FAULTY_SHARE * total:
        return
    named = ", ".join(f"{fault.name} ({fault.reason})" for fault in faults[:10])
    more = f" and {len(faults) - 10} more" if len(faults) > 10 else ""
    raise UserError(
        f"at most 1 % of the files may be unreadable, but {len(faults)} of {total} are: "
        f"{named}{more}; repair or remove them"
    )


def largest_crop(pictures: Pictures) -> int:
    """The largest of 32, 48 and 64 px that at least 99 % of the short sides hold.

    Raises:
        UserError: not even 32 px is held.
    """
    fitting = [crop for crop in CROPS if crop_fits(pictures.short_sides, crop)]
    if not fitting:
        raise UserError(_too_small(pictures.short_sides, CROPS[0]))
    return fitting[-1]


def crop_fits(short_sides: Int[np.ndarray, " index"], crop: int) -> bool:
    """Whether at most 1 % of the short sides are below the crop."""
    return int((short_sides < crop).sum()) <= MAX_FAULTY_SHARE * len(short_sides)


def stop_if_small(short_sides: Int[np.ndarray, " index"], crop: int) -> None:
    """Raises when more than 1 % of the short sides are below the crop, naming a crop that fits.

    Raises:
        UserError: ``crop_fits`` is false.
    """
    if not crop_fits(short_sides, crop):
        raise UserError(_too_small(short_sides, crop))


def _too_small(short_sides: np.ndarray, crop: int) -> str:
    smaller = [size for size in CROPS if size < crop and crop_fits(short_sides, size)]
    remedy = "use larger pictures"
    if smaller:
        remedy = f"use a crop of {smaller[-1]} px or less, or larger pictures"
    below = int((short_sides < crop).sum())
    return (
        f"99 % of the short sides must hold the crop of {crop} px, "
        f"but {below} of {len(short_sides)} do not; {remedy}"
    )
