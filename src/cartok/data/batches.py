"""Batches of pictures: endless and exactly resumable for training, in order for evaluation.

A batch depends on (seed, position) alone: not on the number of workers, not on where the run
was interrupted. Ranks share one global order.
"""

import multiprocessing
import signal
import sys
import threading
import warnings
from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import count, islice

import torch
from jaxtyping import Integer
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from cartok.core.ahead import sent
from cartok.core.errors import UserError
from cartok.core.shapes import Image, Labels, Pixels, image_of_pixels
from cartok.data.order import Order, Sample, picture_generator
from cartok.data.pictures import Pictures
from cartok.data.views import View, center_view, train_view


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
    maker = _Maker(pictures, view, seed if augment else None)
    requests = (order.take(batch) for _ in count())
    if workers:
        if _context() == "fork":
            pictures.keep_small()
        return _from_workers(maker, requests, workers, pinned)
    return map(maker.batch_of, requests)


def all_images(pictures: Pictures, view: View, batch: int) -> Iterator[Batch]:
    """Every readable picture once, in order, by its central view; batches may be smaller.

    A picture that cannot be decoded is left out (``Pictures.broken`` names it), not replaced as in
    training: a stand-in would be counted twice.
    """
    maker = _Maker(pictures, view, None)
    samples = (Sample(index, 0, index) for index in range(len(pictures)))
    while some := list(islice(samples, batch)):
        found = maker.batch_of(some)
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
    """Turns requests, lists of samples, into batches; ``seed`` None means central views."""

    def __init__(self, pictures: Pictures, view: View, seed: int | None):
        self._pictures = pictures
        self._view = view
        self._seed = seed

    def batch_of(self, samples: list[Sample]) -> Batch:
        indices, squares = [], []
        for sample in samples:
            loaded = self._pictures.load(sample.index)
            indices.append(loaded.index)
            squares.append(self._square(loaded.picture, sample))
        return Batch(
            pixels=torch.stack(squares),
            labels=torch.from_numpy(self._pictures.labels[indices]),
            indices=torch.tensor(indices),
            positions=torch.tensor([sample.position for sample in samples]),
        )

    def __getitem__(self, index: list[Sample]) -> Batch | UserError:
        # A raised error would reach the caller wrapped in a worker's traceback.
        try:
            return self.batch_of(index)
        except UserError as error:
            return error

    def _square(self, picture, sample: Sample) -> Tensor:
        if self._seed is None:
            return center_view(picture, self._view)
        generator = picture_generator(self._seed, sample.epoch, sample.index)
        return train_view(picture, self._view, generator)


def _from_workers(
    maker: _Maker, requests: Iterator[list[Sample]], workers: int, pinned: bool
) -> Iterator[Batch]:
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
        while True:
            result = next(batches)
            if isinstance(result, UserError):
                raise result
            yield result
    except (RuntimeError, EOFError, ConnectionError, FileNotFoundError) as error:
        raise _explained(error) from error
    finally:
        # Ends the workers now; kept alive by a traceback, they would be waited for in vain.
        del batches


def _started(loader: DataLoader) -> Iterator[Batch | UserError]:
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
