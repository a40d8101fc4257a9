"""Tasks for ``test_together``: in a module of its own, so that another process can import it."""

import os
import signal
import threading
import time

from cartok.core.errors import UserError
from cartok.lab.together import taken


def count_to(limit, path, progress):
    with progress.stage(path.name, limit) as tick:
        for done in range(1, limit + 1):
            tick(done, "")
    path.write_text(str(limit))


def refuse(progress):
    raise UserError("pictures must be square, but these are round; cut them")


def crash(progress):
    raise RuntimeError("a bug")


def wait_for_sigterm(path, progress):
    """Saves and leaves by ``SystemExit``, as a stage does that was asked to stop."""
    asked = threading.Event()
    signal.signal(signal.SIGTERM, lambda number, frame: asked.set())
    progress.say("ready")
    asked.wait(60)
    path.write_text("saved")
    raise SystemExit(0)


def take_all(things, turns, folder, progress):
    """Leaves a file for each thing that this process took up; "slow" lasts until all are there."""
    for thing in taken(things, turns):
        path = folder / thing
        path.write_text(path.read_text() + "again" if path.exists() else str(os.getpid()))
        started = time.monotonic()
        while thing == "slow" and len(list(folder.iterdir())) < len(things):
            assert time.monotonic() - started < 60
            time.sleep(0.02)
