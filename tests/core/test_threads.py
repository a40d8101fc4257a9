"""Threads that work ahead: the same values in the same order, no more of them than allowed."""

import threading
import time

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cartok.core import threads
from cartok.core.threads import MOST, in_threads, num_threads


@settings(max_examples=20)
@given(st.lists(st.integers(), max_size=40), st.integers(0, 5))
def test_values_come_in_the_order_of_their_items(items, count):
    assert list(in_threads(lambda item: 2 * item, items, count)) == [2 * item for item in items]


def test_items_are_drawn_no_further_ahead_than_two_for_each_thread():
    drawn = []
    values = in_threads(lambda item: item, (drawn.append(item) or item for item in range(99)), 3)
    for index in range(9):
        assert next(values) == index
        assert len(drawn) <= index + 1 + 2 * 3


def test_several_are_under_way_at_once():
    meeting = threading.Barrier(3, timeout=20)
    assert len(list(in_threads(lambda item: meeting.wait(), range(3), 3))) == 3


def test_no_thread_outlives_a_reader_that_stops_early():
    before = threading.active_count()
    values = in_threads(time.sleep, [0.0] * 50, 4)
    next(values)
    assert threading.active_count() > before
    values.close()
    assert threading.active_count() == before


@pytest.mark.parametrize("count", [0, 1, 4])
def test_an_error_comes_in_its_turn(count):
    values = in_threads(lambda item: 1 // item, [1, 1, 0, 1], count)
    assert [next(values), next(values)] == [1, 1]
    with pytest.raises(ZeroDivisionError):
        next(values)
    assert next(values, None) is None


def test_processes_share_the_cores(monkeypatch):
    monkeypatch.setattr(threads.os, "cpu_count", lambda: 8)
    assert [num_threads(), num_threads(2), num_threads(16)] == [8, 4, 1]
    monkeypatch.setattr(threads.os, "cpu_count", lambda: 64)
    assert num_threads() == MOST
