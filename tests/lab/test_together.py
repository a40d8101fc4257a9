import importlib
import io
import os
import signal
import threading
import time
from pathlib import Path

import pytest
from rich.console import Console

from cartok.core.errors import UserError
from cartok.core.progress import Progress
from cartok.lab.together import new_turns, run_together


@pytest.fixture(autouse=True)
def tasks(monkeypatch):
    monkeypatch.syspath_prepend(Path(__file__).parent)
    return importlib.import_module("together_tasks")


def shown(tasks):
    console = Console(file=io.StringIO(), width=200)
    return console.file, lambda: run_together(tasks, Progress(console))


def test_tasks_run_side_by_side_and_their_progress_is_shown(tmp_path, tasks):
    one, two = tmp_path / "one", tmp_path / "two"
    file, run = shown({"a": (tasks.count_to, (3, one)), "b": (tasks.count_to, (5, two))})
    run()
    assert (one.read_text(), two.read_text()) == ("3", "5")
    assert "one: 3/3" in file.getvalue()
    assert "two: 5/5" in file.getvalue()


def test_things_go_one_by_one_to_whichever_process_is_free(tmp_path, tasks):
    things, turns = ["slow", *map(str, range(8))], new_turns()
    both = dict.fromkeys("ab", (tasks.take_all, (things, turns, tmp_path)))
    run_together(both, Progress())
    takers = {name: (tmp_path / name).read_text() for name in things}
    assert all(taker.isdigit() for taker in takers.values())  # none was taken twice
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted(things)
    assert len(set(takers.values())) == 2
    assert sum(taker == takers["slow"] for taker in takers.values()) == 1


def test_a_refusal_is_told_and_stops_the_others(tmp_path, tasks):
    saved = tmp_path / "saved"
    file, run = shown({"bad": (tasks.refuse, ()), "good": (tasks.wait_for_sigterm, (saved,))})
    begin = time.monotonic()
    with pytest.raises(UserError, match="bad ended with exit code 2"):
        run()
    assert time.monotonic() - begin < 45
    assert "bad: pictures must be square" in file.getvalue()


def test_a_crash_is_no_success(capfd, tasks):
    _, run = shown({"bad": (tasks.crash, ())})
    with pytest.raises(UserError, match="bad ended with exit code 1"):
        run()
    assert "a bug" in capfd.readouterr().err


def test_a_sigterm_lets_every_task_save_and_ends_without_a_fault(tmp_path, tasks):
    saved = tmp_path / "saved"
    file, run = shown({"a": (tasks.wait_for_sigterm, (saved,))})

    def ask():
        while "ready" not in file.getvalue():
            time.sleep(0.05)
        os.kill(os.getpid(), signal.SIGTERM)

    threading.Thread(target=ask, daemon=True).start()
    with pytest.raises(SystemExit, match="130"):
        run()
    assert saved.read_text() == "saved"
