"""Work that several threads share: what spends its time outside Python's lock.

Decoding, resizing, hashing and copying pictures do; nothing is sent to another process.
"""

import os
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

T = TypeVar("T")
R = TypeVar("R")

MOST = 16


def num_threads(processes: int = 1) -> int:
    """A thread a core where so many processes share the cores; 1 at least, ``MOST`` at most."""
    return max(1, min(MOST, (os.cpu_count() or 1) // processes))


def in_threads(
    function: Callable[[T], R], items: Iterable[T], threads: int | None = None
) -> Iterator[R]:
    """The function's value for every item, in their order, two for each thread ahead.

    Items are drawn here, in order. ``threads`` None means ``num_threads``; 0 computes each value
    here, when it is asked for. What the function raises is raised in its turn.
    """
    threads = num_threads() if threads is None else threads
    if not threads:
        yield from map(function, items)
        return
    pool, running = ThreadPoolExecutor(threads), deque[Future[R]]()
    try:
        for item in items:
            running.append(pool.submit(function, item))
            if len(running) > 2 * threads:
                yield running.popleft().result()
        while running:
            yield running.popleft().result()
    finally:  # also when the reader stops early
        pool.shutdown(cancel_futures=True)
