"""Batches of pictures: endless and exactly resumable for training, in order for everything else.

A batch depends on (seed, position) alone: not on the number of workers, not on where the run
was interrupted. Ranks share one global order.
"""

import multiprocessing
import signal
import sys
import threading
import warnings
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace
from functools import cached_property, partial
from itertools import count, islice
from typing import Any, TypeVar

import torch
from jaxtyping import Integer, UInt8
from PIL.Image import Image as Picture
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from cartok.core.ahead import sent
from cartok.core.errors import UserError
from cartok.core.shapes import Image, Labels, Pixels, image_of_pixels
from cartok.data.order import Order, Sample, picture_generator
from cartok.data.pictures import Pictures
from cartok.data.views import (
    Kind,
    Square,
    View,
    center_view,
    num_views,
    train_view,
    views_of,
)

T = TypeVar("T")
B = TypeVar("B")


@dataclass(frozen=True, eq=False)
class Batch:
    """Pictures with their labels, their indices and their places in the order.

    ``indices`` are those of the pictures really shown: an unreadable one is replaced by another.
    Pictures are bytes until ``image`` is asked for: a quarter to send, and quick to turn.
    """

    pixels: Pixels
    labels: Labels
    indices: Integer[Tensor, " batch"]
    positions: Integer[Tensor, " batch"]

    @cached_property
    def image(self) -> Image:
        """The pictures in [-1, 1], where the bytes are."""
        return image_of_pixels(self.pixels)

    def on(self, device: torch.device) -> "Batch":
        """The pictures there; the rest, which few ask for, stays."""
        return replace(self, pixels=sent(self.pixels, device))

    def pin_memory(self) -> "Batch":
        """The pictures where a GPU can fetch them while it computes; called by torch's loader."""
        return replace(self, pixels=self.pixels.pin_memory())


@dataclass(frozen=True, eq=False)
class ViewBatch:
    """Fixed views of some pictures, as bytes, without those ``lost``, which cannot be decoded."""

    pixels: UInt8[Tensor, "batch view 3 height width"]
    labels: Labels
    lost: tuple[int, ...]
    """Their indices."""

    def pin_memory(self) -> "ViewBatch":
        """The pictures where a GPU can fetch them while it computes; called by torch's loader."""
        return replace(self, pixels=self.pixels.pin_memory())


def image_batches(
    pictures: Pictures,
    view: View,
    *,
    batch: int,
    seed: int,
    start: int,
    augment: bool,
    workers: int = 0,
    pinned: bool = False,
    rank: int = 0,
    world_size: int = 1,
) -> Iterator[Batch]:
    """Endless batches of ``batch`` pictures for this rank, from position ``start``.

    ``start`` counts the pictures that all ranks have drawn before. With ``augment`` the view is
    random by (seed, epoch, index), otherwise central. ``workers`` processes decode ahead, two
    batches each; 0 decodes here. ``pinned`` puts what they send where a GPU fetches it fastest.

    Raises:
        UserError: a worker process died, or more than 1 % of the pictures cannot be decoded.
    """
    order = Order(len(pictures), seed=seed, start=start, rank=rank, world_size=world_size)
    make = partial(_batch_of, pictures, view, seed if augment else None)
    requests = (order.take(batch) for _ in count())
    return _made(make, requests, pictures, workers, pinned)


def view_batches(
    pictures: Pictures,
    view: View,
    kind: Kind,
    wanted: Iterable[range],
    *,
    workers: int = 0,
    pinned: bool = False,
) -> Iterator[ViewBatch]:
    """Fixed views of pictures, a batch for each range of indices, in their order.

    ``workers`` and ``pinned`` are those of ``image_batches``.

    Raises:
        UserError: a worker process died, or more than 1 % of the pictures cannot be decoded.
    """
    make = partial(_views_of, pictures, view, kind)
    return _made(make, wanted, pictures, workers, pinned)


def all_images(pictures: Pictures, view: View, batch: int) -> Iterator[Batch]:
    """Every readable picture once, in order, by its central view; batches may be smaller.

    A picture that cannot be decoded is left out (``Pictures.broken`` names it), not replaced as in
    training: a stand-in would be counted twice.
    """
    samples = (Sample(index, 0, index) for index in range(len(pictures)))
    while some := list(islice(samples, batch)):
        found = _batch_of(pictures, view, None, some)
        own = found.indices == found.positions
        if own.all():
            yield found
        elif own.any():
            yield Batch(
                found.pixels[own], found.labels[own], found.indices[own], found.positions[own]
            )


_DEATHS = ("DataLoader worker", "Pin memory thread exited")
"""How torch begins to say that a worker died; with ``pinned``, what read from it dies of that."""


class _Maker(Dataset):
    """Makes batches where the loader's workers can."""

    def __init__(self, make: Callable[[Any], Any]):
        self._make = make

    def __getitem__(self, index: Any) -> Any:
        # A raised error would reach the caller wrapped in a worker's traceback.
        try:
            return self._make(index)
        except UserError as error:
            return error


def _batch_of(pictures: Pictures, view: View, seed: int | None, samples: list[Sample]) -> Batch:
    """Pictures of samples; without a seed by their central views."""
    indices, squares = [], []
    for sample in samples:
        loaded = pictures.load(sample.index)
        indices.append(loaded.index)
        squares.append(_square(loaded.picture, view, seed, sample))
    return Batch(
        pixels=torch.stack(squares),
        labels=torch.from_numpy(pictures.labels[indices]),
        indices=torch.tensor(indices),
        positions=torch.tensor([sample.position for sample in samples]),
    )


def _square(picture: Picture, view: View, seed: int | None, sample: Sample) -> Square:
    if seed is None:
        return center_view(picture, view)
    return train_view(picture, view, picture_generator(seed, sample.epoch, sample.index))


def _views_of(pictures: Pictures, view: View, kind: Kind, wanted: range) -> ViewBatch:
    loaded = [item for index in wanted if (item := pictures.load(index)).index == index]
    indices = [item.index for item in loaded]
    squares = [views_of(item.picture, view, kind) for item in loaded]
    none = torch.empty(0, num_views(kind), 3, view.size, view.size, dtype=torch.uint8)
    return ViewBatch(
        pixels=torch.stack(squares) if squares else none,
        labels=torch.from_numpy(pictures.labels[indices]),
        lost=tuple(sorted({*wanted} - {*indices})),
    )


def _made(
    make: Callable[[T], B], requests: Iterable[T], pictures: Pictures, workers: int, pinned: bool
) -> Iterator[B]:
    """What is made of each request, in their order, here or by workers."""
    if not workers:
        return map(make, requests)
    if _context() == "fork":
        pictures.keep_small()
    return _from_workers(_Maker(make), iter(requests), workers, pinned)


def _from_workers(
    maker: _Maker, requests: Iterator[Any], workers: int, pinned: bool
) -> Iterator[Any]:
    loader = DataLoader(
        maker,
        sampler=requests,
        batch_size=None,
        num_workers=workers,
        pin_memory=pinned,
        multiprocessing_context=_context(),
        # Its own, so that making the loader draws nothing from the global generator.
        generator=torch.Generator().manual_seed(0),
    )
    batches = _started(loader)
    try:
        for result in batches:
            if isinstance(result, UserError):
                raise result
            yield result
    except (RuntimeError, EOFError, ConnectionError, FileNotFoundError) as error:
        raise _explained(error) from error
    finally:
        # Ends the workers now; kept alive by a traceback, they would be waited for in vain.
        del batches


def _started(loader: DataLoader) -> Iterator[Any]:
    """Starts the workers, without two side effects that torch and Python have on that occasion."""
    is_main = threading.current_thread() is threading.main_thread()
    handler = signal.getsignal(signal.SIGCHLD) if is_main and hasattr(signal, "SIGCHLD") else None
    with warnings.catch_warnings():
        # Python 3.12 and newer warn of every fork of a process with threads.
        warnings.simplefilter("ignore", DeprecationWarning)
        batches = iter(loader)
    if handler is not None:
        # torch's handler raises in whatever code runs when a worker dies, be it in the middle of
        # a checkpoint. Without it the death is noticed when the next batch is asked for.
        signal.signal(signal.SIGCHLD, handler)
    return batches


def _context() -> str:
    """Forked workers share the pictures held in memory; elsewhere each gets a copy."""
    if sys.platform == "linux" and "fork" in multiprocessing.get_all_start_methods():
        return "fork"
    return "spawn"


def _explained(error: Exception) -> Exception:
    """The user's error if a worker died: torch says so, or its last batch cannot be fetched."""
    if isinstance(error, RuntimeError) and not str(error).startswith(_DEATHS):
        return error
    reason = (str(error) or type(error).__name__).splitlines()[0]
    return UserError(
        f"data workers must live, but one died ({reason}), often for want of memory; "
        "use fewer workers, or 0"
    )
