"""What a person sees while something runs: a bar with time left, or a line now and then.

Stages may overlap, and may run in other processes: those report through a queue that the process
with the console empties.
"""

import time
from collections.abc import Callable, Generator
from contextlib import contextmanager
from queue import Empty
from typing import Any, Protocol, runtime_checkable

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Task,
    TaskID,
    TextColumn,
    TimeRemainingColumn,
)
from rich.progress import Progress as RichProgress
from rich.text import Text

Tick = Callable[[int, str], None]
"""Told how many units are done, and a few words."""


def unseen(done: int, words: str) -> None:
    """Tells nobody."""


SECONDS_BETWEEN_LINES = 15.0
_SECONDS_BETWEEN_MESSAGES = 0.2


@runtime_checkable  # for the checks that run in tests
class Sink(Protocol):
    """Where progress goes."""

    parts_vanish: bool
    """Whether stages are parts of a whole, and are shown while they last alone."""

    def say(self, text: str) -> None:
        """Takes a line."""
        ...

    def open(self, name: str, total: int) -> None:
        """A stage of ``total`` units begins."""
        ...

    def tick(self, name: str, done: int, words: str) -> None:
        """So many of its units are done."""
        ...

    def advance(self, name: str, by: int, words: str) -> None:
        """So many more of its units are done."""
        ...

    def close(self, name: str, is_done: bool) -> None:
        """The stage ends, or has failed."""
        ...


class Progress:
    """Shows stages; quiet when ``console`` is ``None``."""

    def __init__(self, console: Console | None = None, *, sink: Sink | None = None):
        self._sink = sink or _sink_of(console)

    def say(self, text: str) -> None:
        """Prints a line."""
        self._sink.say(text)

    @contextmanager
    def stage(self, name: str, total: int) -> Generator[Tick]:
        """Shows one stage of ``total`` units while the body runs; yields what it reports to."""
        self._sink.open(name, total)
        try:
            yield lambda done, words: self._sink.tick(name, done, words)
        except BaseException:
            self._sink.close(name, False)
            raise
        self._sink.close(name, True)

    @contextmanager
    def table(self, name: str, total: int) -> Generator[None]:
        """Shows a whole of ``total`` units whose parts are stages, which vanish as they end.

        Its units are told by ``advance``, from this process or from those that it relays.
        """
        self._sink.parts_vanish = True
        try:
            with self.stage(name, total):
                yield
        finally:
            self._sink.parts_vanish = False

    def advance(self, name: str, by: int, words: str = "") -> None:
        """So many more units of a whole are done."""
        self._sink.advance(name, by, words)

    def relay(self, queue: Any, is_over: Callable[[], bool]) -> None:
        """Shows what ``QueueSink`` puts into a queue, until ``is_over`` and the queue is empty."""
        while True:
            over = is_over()
            try:
                method, *arguments = queue.get(timeout=0.2)
            except Empty:
                if over:
                    return
                continue
            getattr(self._sink, method)(*arguments)


class QueueSink:
    """Sends progress to another process, a few messages a second."""

    parts_vanish = False

    def __init__(self, queue: Any):
        self._queue = queue
        self._total: dict[str, int] = {}
        self._last = 0.0

    def say(self, text: str) -> None:
        """Sends a line."""
        self._queue.put(("say", text))

    def open(self, name: str, total: int) -> None:
        """Sends the beginning of a stage."""
        self._total[name] = total
        self._queue.put(("open", name, total))

    def tick(self, name: str, done: int, words: str) -> None:
        """Sends how far a stage is, unless that was just sent and there is nothing new to say."""
        now = time.monotonic()
        if words or done >= self._total[name] or now - self._last > _SECONDS_BETWEEN_MESSAGES:
            self._last = now
            self._queue.put(("tick", name, done, words))

    def advance(self, name: str, by: int, words: str) -> None:
        """Sends that more of a whole is done."""
        self._queue.put(("advance", name, by, words))

    def close(self, name: str, is_done: bool) -> None:
        """Sends the end of a stage."""
        self._queue.put(("close", name, is_done))


class _Silent:
    parts_vanish = False

    def say(self, text: str) -> None:
        pass

    def open(self, name: str, total: int) -> None:
        pass

    def tick(self, name: str, done: int, words: str) -> None:
        pass

    def advance(self, name: str, by: int, words: str) -> None:
        pass

    def close(self, name: str, is_done: bool) -> None:
        pass


class _Lines:
    """For logs: a line a stage every quarter of a minute, and at its end."""

    parts_vanish = False

    def __init__(self, console: Console):
        self._console = console
        self._done: dict[str, int] = {}
        self._started: dict[str, float] = {}
        self._last: dict[str, float] = {}
        self._total: dict[str, int] = {}

    def say(self, text: str) -> None:
        # A path may look like rich's markup; a line is one line, however long.
        self._console.print(text, highlight=False, markup=False, soft_wrap=True)

    def open(self, name: str, total: int) -> None:
        self._started[name] = self._last[name] = time.monotonic()
        self._total[name] = total

    def tick(self, name: str, done: int, words: str) -> None:
        now, total = time.monotonic(), self._total[name]
        if done < total and now - self._last[name] < SECONDS_BETWEEN_LINES:
            return
        self._last[name] = now
        left = (now - self._started[name]) / max(done, 1) * (total - done)
        self.say(f"{name}: {done}/{total}, {left:.0f} s left {words}".rstrip())

    def advance(self, name: str, by: int, words: str) -> None:
        self._done[name] = self._done.get(name, 0) + by
        done, total = self._done[name], self._total[name]
        left = (time.monotonic() - self._started[name]) * (total - done) / max(done, 1)
        self.say(f"{name}: {done / total:.0%}, {left / 60:.0f} min left {words}".rstrip())

    def close(self, name: str, is_done: bool) -> None:
        if is_done:
            self.say(f"{name}: took {time.monotonic() - self._started[name]:.1f} s")


class _Done(MofNCompleteColumn):
    """Units done of all; of a whole, whose units are none that a person counts, a share."""

    def render(self, task: Task) -> Text:
        return Text(f"{task.percentage:.0f} %") if task.fields["whole"] else super().render(task)


class _Bars:
    """For terminals: a bar for every stage; they stay when all that are open have ended.

    Parts of a whole do not: of a study with hundreds, those at work are shown, and the whole.
    """

    parts_vanish = False

    def __init__(self, console: Console):
        self._console = console
        self._bars: RichProgress | None = None
        self._tasks: dict[str, TaskID] = {}

    def say(self, text: str) -> None:
        self._console.print(text, highlight=False, markup=False, soft_wrap=True)

    def open(self, name: str, total: int) -> None:
        if self._bars is None:
            self._bars = RichProgress(
                TextColumn("{task.description:<24}", markup=False),
                BarColumn(bar_width=20),
                _Done(),
                TimeRemainingColumn(compact=True, elapsed_when_finished=True),
                TextColumn("{task.fields[words]}", markup=False),
                console=self._console,
            )
            self._bars.start()
        whole = self.parts_vanish and not self._tasks
        self._tasks[name] = self._bars.add_task(name, total=total, words="", whole=whole)

    def tick(self, name: str, done: int, words: str) -> None:
        if self._bars is not None:
            told: dict[str, Any] = {"words": words} if words else {}
            self._bars.update(self._tasks[name], completed=done, **told)

    def advance(self, name: str, by: int, words: str) -> None:
        if self._bars is not None:
            told: dict[str, Any] = {"words": words} if words else {}
            self._bars.update(self._tasks[name], advance=by, **told)

    def close(self, name: str, is_done: bool) -> None:
        task = self._tasks[name]
        del self._tasks[name]
        if self._tasks and self.parts_vanish and self._bars is not None:
            self._bars.remove_task(task)
        if not self._tasks and self._bars is not None:
            self._bars.stop()
            self._bars = None


def _sink_of(console: Console | None) -> Sink:
    if console is None:
        return _Silent()
    return _Bars(console) if console.is_terminal else _Lines(console)
