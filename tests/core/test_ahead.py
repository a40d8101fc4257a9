"""The next batch is fetched while a GPU works; on a CPU, when it is asked for."""

import time
from types import SimpleNamespace

import pytest
import torch

from cartok.core import ahead
from cartok.core.ahead import Ahead

CPU, GPU = torch.device("cpu"), torch.device("cuda")


def numbers(drawn, seconds=0.0):
    """Counts up, noting in ``drawn`` what was asked for; each takes so long."""
    for number in range(100):
        time.sleep(seconds)
        drawn.append(number)
        yield number


@pytest.fixture(params=[True, False], ids=["work is through", "work goes on"])
def through(request, monkeypatch):
    event = SimpleNamespace(query=lambda: request.param)
    monkeypatch.setattr(ahead, "_everything_asked_for", lambda: event)
    return request.param


def test_a_cpu_draws_a_batch_when_it_takes_it():
    drawn = []
    stream = Ahead(numbers(drawn), CPU)
    for step in range(3):
        assert stream.take() == step
        stream.fetch()
        assert drawn == list(range(step + 1))


def test_a_gpu_is_one_batch_ahead_and_gets_them_in_order(through):
    drawn = []
    stream = Ahead(numbers(drawn), GPU)
    for step in range(3):
        assert stream.take() == step
        stream.fetch()
        stream.fetch()
        assert drawn == list(range(step + 2))


def test_waiting_counts_only_where_nothing_was_computed(through):
    stream = Ahead(numbers([], seconds=0.02), GPU)
    stream.take()
    assert stream.stall() >= 0.02
    assert stream.stall() == 0
    stream.fetch()
    stalled = stream.stall()
    assert (stalled >= 0.02) == through
    assert through or stalled == 0


def test_waiting_counts_on_a_cpu():
    stream = Ahead(numbers([], seconds=0.02), CPU)
    stream.take()
    stream.fetch()
    assert stream.stall() >= 0.02
