"""Runs that do not need each other, side by side in processes of one thread each.

The demo's networks are so small that two threads on one of them are slower than one thread on
each: on two cores a tokenizer step takes 90 ms with one thread and 58 ms with two, so two arms
side by side finish earlier than one after the other. And with one thread a run on the CPU gives
the same numbers whatever the number of cores.
"""

import signal
from collections.abc import Callable, Iterator, Sequence
from multiprocessing import get_context
from multiprocessing.process import BaseProcess
from typing import Any, TypeVar

import torch

from cartok.core.errors import STOPPED, UserError
from cartok.core.progress import Progress, QueueSink

Task = tuple[Callable[..., None], tuple[Any, ...]]
"""A function and its arguments, both of which can be pickled; it is given a ``Progress`` last."""

Turns = Any
"""A number that processes share: how many things of a list have been taken up."""

T = TypeVar("T")


def new_turns() -> Turns:
    """For tasks that are started together; it travels among their arguments."""
    return get_context("spawn").Value("i", 0)


def taken(things: Sequence[T], turns: Turns) -> Iterator[T]:
    """What this process gets of things that each go to whichever is free first."""
    while True:
        with turns.get_lock():
            place = turns.value
            turns.value += 1
        if place >= len(things):
            return
        yield things[place]


def run_together(tasks: dict[str, Task], progress: Progress) -> None:
    """Runs tasks at once and shows their progress; all are stopped when one fails.

    A SIGTERM is passed on, so that each saves and ends by itself.

    Raises:
        UserError: a task raised it, or died.
        SystemExit: a task was asked to stop and did.
    """
    context = get_context("spawn")
    queue = context.Queue()
    processes: dict[str, BaseProcess] = {
        name: context.Process(target=_work, args=(name, task, queue), name=name)
        for name, task in tasks.items()
    }
    asked = []

    def pass_on(number: int, frame: Any) -> None:
        asked.append(number)
        _stop(processes)

    before = signal.signal(signal.SIGTERM, pass_on)
    try:
        for process in processes.values():
            if not asked:
                process.start()
        if asked:
            raise SystemExit(STOPPED)
        progress.relay(queue, lambda: _are_over(processes))
    finally:
        _stop(processes)
        for process in processes.values():
            if process.pid is not None:
                process.join()
        signal.signal(signal.SIGTERM, before)
    queue.close()
    if asked:
        raise SystemExit(STOPPED)
    _raise_failures(processes)


_REFUSED = 2


def _work(name: str, task: Task, queue: Any) -> None:
    torch.set_num_threads(1)
    function, arguments = task
    progress = Progress(sink=QueueSink(queue))
    try:
        function(*arguments, progress)
    except UserError as error:
        progress.say(f"{name}: {' '.join(str(error).split())}")
        raise SystemExit(_REFUSED) from None
    except (SystemExit, KeyboardInterrupt):
        raise SystemExit(STOPPED) from None


def _are_over(processes: dict[str, BaseProcess]) -> bool:
    """True when all have ended, or when one has failed, so that the others need not go on."""
    codes = [process.exitcode for process in processes.values()]
    return None not in codes or any(code not in (None, 0, STOPPED) for code in codes)


def _stop(processes: dict[str, BaseProcess]) -> None:
    for process in processes.values():
        if process.pid is not None and process.is_alive():
            process.terminate()


def _raise_failures(processes: dict[str, BaseProcess]) -> None:
    codes = {name: process.exitcode for name, process in processes.items()}
    for name, code in codes.items():
        if code not in (0, STOPPED):
            raise UserError(
                f"{name} ended with exit code {code}; see above, then give --resume to go on"
            )
    if STOPPED in codes.values():
        raise SystemExit(STOPPED)
