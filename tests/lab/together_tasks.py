"""Tasks for ``test_together``: in a module of its own, so that another process can import it."""

import signal
import threading

from cartok.core.errors import UserError


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
