"""What a person sees while something runs: a bar with time left, or a line now and then."""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    TextColumn,
    TimeRemainingColumn,
)
from rich.progress import Progress as Bars

Tick = Callable[[int, str], None]
"""Told how many units are done, and a few words."""


class Progress:
    """Shows stages one under another; quiet when ``console`` is ``None``."""

    def __init__(self, console: Console | None = None, seconds_between_lines: float = 15.0):
        self._console = console
        self._seconds = seconds_between_lines

    def say(self, text: str) -> None:
        """Prints a line."""
        if self._console is not None:
            # A path may look like rich's markup; a line is one line, however long.
            self._console.print(text, highlight=False, markup=False, soft_wrap=True)

    @contextmanager
    def stage(self, name: str, total: int) -> Iterator[Tick]:
        """Shows one stage of ``total`` units while the body runs; yields what it reports to."""
        if self._console is None:
            yield lambda done, words: None
        elif self._console.is_terminal:
            yield from self._bar(name, total)
        else:
            yield from self._lines(name, total)

    def _bar(self, name: str, total: int) -> Iterator[Tick]:
        columns = (
            TextColumn("{task.description:<28}", markup=False),
            BarColumn(bar_width=24),
            MofNCompleteColumn(),
            TimeRemainingColumn(compact=True, elapsed_when_finished=True),
            TextColumn("{task.fields[words]}", markup=False),
        )
        with Bars(*columns, console=self._console) as bars:
            task = bars.add_task(name, total=total, words="")
            yield lambda done, words: bars.update(task, completed=done, words=words)

    def _lines(self, name: str, total: int) -> Iterator[Tick]:
        start = last = time.monotonic()

        def tick(done: int, words: str) -> None:
            nonlocal last
            now = time.monotonic()
            if done < total and now - last < self._seconds:
                return
            last = now
            left = (now - start) / max(done, 1) * (total - done)
            self.say(f"{name}: {done}/{total}, {left:.0f} s left {words}".rstrip())

        yield tick
        self.say(f"{name}: done in {time.monotonic() - start:.1f} s")
