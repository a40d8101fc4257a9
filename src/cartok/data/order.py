"""The order in which samples come: a function of (seed, position), so it resumes exactly.

A position counts the samples drawn so far by all ranks together. Epoch ``e`` is a seeded
permutation of all samples, and a batch may cross from one epoch into the next, so nothing is
dropped. Ranks take every ``world_size``-th position: the order as a whole never depends on how
many there are. This module knows neither pictures nor tokens.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache

import numpy as np

# Numpy pads seeds with zeros, so (5, 1) and (5, 1, 0) would be one stream; a first word that
# names the use keeps the streams apart.
_ORDER, _CHOICE, _PICTURE = 1, 2, 3


@dataclass(frozen=True, slots=True)
class Sample:
    """One draw: the ``position`` in the global order, its ``epoch``, the ``index`` of the item."""

    position: int
    epoch: int
    index: int


def sample_at(position: int, num: int, seed: int) -> Sample:
    """The sample that comes at a position when ``num`` items are shuffled anew each epoch."""
    epoch, place = divmod(position, num)
    return Sample(position, epoch, int(_permutation(num, seed, epoch)[place]))


class Order(Iterator[Sample]):
    """The endless samples of one rank, from position ``start + rank`` in steps of ``world_size``.

    ``start`` is the number of samples that all ranks have drawn before. Ranks that advance
    together cover the positions from ``start`` without gap or overlap.
    """

    def __init__(self, num: int, *, seed: int, start: int = 0, rank: int = 0, world_size: int = 1):
        if num < 1:
            raise ValueError(f"an order needs at least one item, but got {num}")
        if not 0 <= rank < world_size:
            raise ValueError(f"rank is 0 to world_size - 1, but got {rank} of {world_size}")
        if start < 0 or seed < 0:
            raise ValueError(f"seed and start are not negative, but got {seed} and {start}")
        self.num = num
        self.seed = seed
        self._position = start + rank
        self._stride = world_size

    def __next__(self) -> Sample:
        sample = sample_at(self._position, self.num, self.seed)
        self._position += self._stride
        return sample

    def take(self, count: int) -> list[Sample]:
        """The next ``count`` samples of this rank, at least one; moves on past them."""
        if count < 1:
            raise ValueError(f"a batch has at least one sample, but got {count}")
        return [next(self) for _ in range(count)]


def picture_generator(seed: int, epoch: int, index: int) -> np.random.Generator:
    """The randomness of one picture in one epoch, whoever draws it and after whatever else."""
    return np.random.default_rng((_PICTURE, seed, epoch, index))


def choice_at(sample: Sample, num: int, seed: int, choices: int) -> int:
    """One of ``range(choices)`` for a sample: a function of (seed, epoch, index)."""
    return int(_choices(num, seed, sample.epoch, choices)[sample.index])


# Two epochs: a batch can cross from one into the next, and prefetching runs a little ahead.
@lru_cache(maxsize=4)
def _permutation(num: int, seed: int, epoch: int) -> np.ndarray:
    return np.random.default_rng((_ORDER, seed, epoch)).permutation(num)


@lru_cache(maxsize=4)
def _choices(num: int, seed: int, epoch: int, choices: int) -> np.ndarray:
    return np.random.default_rng((_CHOICE, seed, epoch)).integers(choices, size=num)
