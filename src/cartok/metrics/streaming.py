"""A stream of pictures through Inception: a batch of them, and a few thousand rows, in memory.

Of several ranks each sees its share of the pictures; what they saw is put together in the order of
the pictures.
"""

import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from itertools import accumulate
from pathlib import Path

import torch
from torch import Tensor

from cartok.core.ahead import arriving, sent
from cartok.core.errors import UserError, warn
from cartok.core.parallel import World
from cartok.core.progress import Tick, unseen
from cartok.core.shapes import Features, Pixels
from cartok.frozen.inception_v3 import Inception, InceptionFeatures
from cartok.metrics.activations import (
    Activations,
    Key,
    Kind,
    Resize,
    has_begun_alike,
    keep,
    read_kept,
)
from cartok.metrics.census import Census
from cartok.metrics.clean_resize import cleanly_resized
from cartok.metrics.features import Pictures, pixel_batches
from cartok.metrics.gaussian import ROWS_AT_ONCE, Moments, joined, joined_over_ranks, moments_of
from cartok.metrics.row_file import RowFile

MOMENTS: tuple[Kind, ...] = ("pool", "spatial")
"""The kinds that Frechet distances are of."""


def activations_of(
    pictures: Pictures,
    network: Inception,
    *,
    kinds: tuple[Kind, ...] = ("pool", "logits"),
    resize: Resize = "network",
    folder: Path | None = None,
    name: str = "",
    batch: int | None = None,
    world: World | None = None,
    tick: Tick = unseen,
) -> Activations:
    """What the network says of a set of pictures, from its file in ``folder`` if there is one.

    ``kinds`` are the rows that scores will need: 8 kB a picture for ``pool`` or ``spatial``, 4 for
    ``logits``; without any only moments are left. ``batch`` is how many pictures the network sees
    at once; None means 8 on a CPU, 256 elsewhere, if they come in batches of so many. ``resize`` is
    who brings them to its size; hash and name are those of the pictures before.

    Without a folder nothing is looked up or kept. With one, pictures whose first has been seen
    before are read to name them by their bytes and, if they are new all the same, once more. A
    ``name`` spares the first reading: it has to stand for the pictures' bytes, their order, and all
    that was done to them.

    Each of several ranks gives its own share of the pictures: see ``share_of``. Rows are whole on
    the main rank alone. A file counts only if every rank finds it. ``tick`` is told how many
    pictures of this rank were named, or seen.

    Raises:
        UserError: there is no picture, something is not a batch of RGB pictures, their sizes
            differ, or a feature is not finite; or pictures that are read twice are an iterator.
    """
    world, how = world or World(), _How(network, kinds, resize, batch, tick)
    if folder is None:
        return _seen_by_all(pictures, how, world, name)
    if not name and isinstance(pictures, Iterator):
        raise UserError(
            "pictures whose features are kept are read twice, but an iterator can be read only "
            "once; pass a list, a data set or a tensor, or name the pictures"
        )
    if name or _may_be_kept(pictures, how, folder, world):
        key = Key.of(name or _census_of(pictures, world, tick).name, network, resize)
        found = read_kept(folder, key, kinds)
        if not world.any(found is None) and found is not None:
            if world.is_main:
                path = folder / key.file
                warn(f"{key.network} saw these {found.count:,} pictures before: {path}")
            return found
    found = _seen_by_all(pictures, how, world, name)
    if world.is_main:
        keep(folder, found)
    return found


def share_of(count: int, world: World) -> range:
    """Which of ``count`` pictures a rank is to see; one rank's after the other's, they are all."""
    return range(count * world.rank // world.size, count * (world.rank + 1) // world.size)


@dataclass(frozen=True)
class _How:
    """The arguments of ``activations_of`` that say how pictures are seen."""

    network: Inception
    kinds: tuple[Kind, ...]
    resize: Resize
    batch: int | None
    tick: Tick


@dataclass
class _Seen:
    """What a rank has seen of its share so far."""

    files: dict[Kind, RowFile]
    moments: dict[Kind, Moments] = field(default_factory=dict)
    census: Census = field(default_factory=Census)
    waiting: list[InceptionFeatures] = field(default_factory=list)
    sent_off: dict[Kind, Callable[[], Tensor]] = field(default_factory=dict)
    written: int = 0

    @classmethod
    def of(cls, pictures: Pictures, how: _How) -> "_Seen":
        """Sends pictures through the network; hashes a batch while a GPU is at work on it."""
        network, device = how.network, how.network.classes.device
        seen = cls({kind: _file_of(network.widths[kind]) for kind in how.kinds})
        for kind in MOMENTS:
            seen.moments[kind] = moments_of(torch.empty(0, network.widths[kind], device=device))
        batch = how.batch or (8 if device.type == "cpu" else 256)
        for pixels in pixel_batches(pictures):
            for part in pixels.split(batch):
                seen.waiting.append(_shown(part, how, device, batch))
                seen.census.add(part)
                if sum(len(features.pool) for features in seen.waiting) >= ROWS_AT_ONCE:
                    seen.settle()
            how.tick(len(seen.census.hashes), "seeing")
        seen.settle()
        seen.write()
        return seen

    def settle(self) -> None:
        """Adds to moments what waits, and sends it off; writes what was sent off before."""
        self.write()
        if not self.waiting:
            return
        together = InceptionFeatures(*map(torch.cat, zip(*self.waiting, strict=True)))
        for kind in MOMENTS:
            self.moments[kind] = joined([self.moments[kind], moments_of(getattr(together, kind))])
        self.sent_off = {kind: arriving(getattr(together, kind)) for kind in self.files}
        self.waiting.clear()

    def write(self) -> None:
        """Puts into files what was sent off: a GPU has long had other work by now."""
        rows = {kind: arrived() for kind, arrived in self.sent_off.items()}
        for kind, part in rows.items():
            self.files[kind].write(part, at=self.written)
        self.written += len(next(iter(rows.values()), ()))
        self.sent_off.clear()


def _shown(part: Pixels, how: _How, device: torch.device, batch: int) -> InceptionFeatures:
    """What the network says of some pictures; a GPU always sees as many, the first ones again.

    It tries out kernels for every new number, which takes seconds.
    """
    count = len(part)
    if device.type == "cuda" and count < batch:
        part = part[torch.arange(batch) % count]
    there = sent(part, device)
    found = how.network(cleanly_resized(there) if how.resize == "clean" else there)
    return InceptionFeatures(*(rows[:count] for rows in found))


def _seen_by_all(pictures: Pictures, how: _How, world: World, name: str) -> Activations:
    mine = world.together(lambda: _Seen.of(pictures, how))
    census = mine.census.of_all(world)
    pool, spatial = (joined_over_ranks(mine.moments[kind], world) for kind in MOMENTS)
    return Activations(
        key=Key.of(name or census.name, how.network, how.resize),
        hash=census.hash,
        picture_size=census.size,
        pool=pool.to("cpu"),
        spatial=spatial.to("cpu"),
        kept={kind: _rows_of_all(file.mapped(), world) for kind, file in mine.files.items()},
    )


def _may_be_kept(pictures: Pictures, how: _How, folder: Path, world: World) -> bool:
    """Whether kept ones begin with the main rank's first picture; yes if that rank has none."""

    def look() -> bool:
        first = Census()
        for pixels in pixel_batches(pictures) if world.is_main else ():
            first.add(pixels[:1])
            return has_begun_alike(folder, Key.of(first.name, how.network, how.resize))
        return world.is_main

    return world.any(world.together(look))


def _census_of(pictures: Pictures, world: World, tick: Tick) -> Census:
    census = Census()

    def read() -> None:
        for _ in census.of(pictures):
            tick(len(census.hashes), "naming")

    world.together(read)
    return census.of_all(world)


def _rows_of_all(mine: Features, world: World) -> Features:
    """The rows of all ranks, in order, on the main one; on the others, their own."""
    if world.size == 1:
        return mine
    counts = world.gather(torch.tensor([len(mine)], device=world.device)).tolist()
    file, firsts = _file_of(mine.shape[1]), [0, *accumulate(counts)]
    for begin in range(0, max(counts), ROWS_AT_ONCE):
        parts = world.parts(mine[begin : begin + ROWS_AT_ONCE])
        for first, part in zip(firsts, parts if world.is_main else (), strict=False):
            file.write(part, at=first + begin)
    return file.mapped() if world.is_main else mine


def _file_of(width: int) -> RowFile:
    return RowFile(Path(tempfile.gettempdir()), width)
