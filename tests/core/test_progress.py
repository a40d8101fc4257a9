import io
from queue import Queue

import pytest
from rich.console import Console

from cartok.core import progress as progress_module
from cartok.core.progress import Progress, QueueSink


def console(terminal=False):
    return Console(file=io.StringIO(), force_terminal=terminal, width=80)


def test_lines_come_now_and_then_and_at_the_end(monkeypatch):
    clock = iter([0.0, 5.0, 16.0, 20.0, 40.0, 41.5])
    monkeypatch.setattr(progress_module.time, "monotonic", lambda: next(clock))
    shown = console()
    with Progress(shown).stage("prior", 8) as tick:
        for done in (1, 4, 5, 8):
            tick(done, "loss 2.5")
    assert shown.file.getvalue().splitlines() == [
        "prior: 4/8, 16 s left loss 2.5",
        "prior: 8/8, 0 s left loss 2.5",
        "prior: took 41.5 s",
    ]


def test_a_stage_that_fails_is_not_called_done():
    shown = console()
    with pytest.raises(RuntimeError), Progress(shown).stage("prior", 8):
        raise RuntimeError
    assert "done" not in shown.file.getvalue()


def test_a_bar_shows_the_last_words_and_lets_a_failure_through():
    shown = console(terminal=True)

    def fail():
        with Progress(shown).stage("prior", 8) as tick:
            tick(3, "loss [2.5]")
            raise RuntimeError

    with pytest.raises(RuntimeError):
        fail()
    assert "3/8" in shown.file.getvalue()
    assert "loss [2.5]" in shown.file.getvalue()


def test_without_a_console_nothing_is_shown(capsys):
    progress = Progress()
    progress.say("hello")
    with progress.stage("prior", 8) as tick:
        tick(8, "loss 2.5")
    assert capsys.readouterr() == ("", "")


@pytest.mark.parametrize(
    "text", ["skipped [red]/a.png", "[/data/cats] is empty", "[a", "x" * 300, "runs/1 2.5"]
)
@pytest.mark.parametrize("terminal", [False, True])
def test_a_line_is_said_as_it_is(text, terminal):
    """Names of files are no markup, and a long line stays one."""
    shown = console(terminal)
    Progress(shown).say(text)
    assert shown.file.getvalue() == text + "\n"


def test_a_whole_is_told_in_shares_as_its_parts_end(monkeypatch):
    clock = iter([0.0, 120.0, 120.0])
    monkeypatch.setattr(progress_module.time, "monotonic", lambda: next(clock))
    shown = console()
    progress = Progress(shown)
    with progress.table("all runs", 400):
        progress.advance("all runs", 100, "1 of 4 runs")
    assert shown.file.getvalue().splitlines() == [
        "all runs: 25%, 6 min left 1 of 4 runs",
        "all runs: took 120.0 s",
    ]


def test_of_a_whole_only_the_parts_at_work_are_shown():
    progress = Progress(console(terminal=True))
    with progress.table("all runs", 400):
        for part in range(50):
            with progress.stage(f"run {part}", 10) as tick:
                tick(3, "")
                bars = progress._sink._bars
                assert [task.description for task in bars.tasks] == ["all runs", f"run {part}"]
        progress.advance("all runs", 100, "50 of 200 runs")
        (whole,) = bars.tasks
        assert (whole.percentage, whole.fields["words"]) == (25, "50 of 200 runs")
    shown = progress._sink._console.file.getvalue()
    assert "25 %" in shown


def test_another_process_tells_of_a_whole_through_its_queue():
    queue = Queue()
    QueueSink(queue).advance("all runs", 100, "1 of 4 runs")
    shown = console()
    progress = Progress(shown)
    with progress.table("all runs", 400):
        progress.relay(queue, lambda: True)
    assert "25%" in shown.file.getvalue()
