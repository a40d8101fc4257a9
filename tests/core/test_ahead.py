"""The next batch is fetched while a GPU works; on a CPU, when it is asked for."""

from types import SimpleNamespace

import pytest
import torch

from cartok.core import ahead, loop
from cartok.core.ahead import Ahead, arriving, sent

CPU, GPU = torch.device("cpu"), torch.device("cuda")


@pytest.fixture
def clock(monkeypatch):
    """Goes on only as a stream of numbers is read."""
    made = SimpleNamespace(now=0.0)
    monkeypatch.setattr(ahead, "time", SimpleNamespace(monotonic=lambda: made.now))
    return made


def numbers(drawn, clock=None):
    """Counts up, noting in ``drawn`` what was asked for; each takes a second."""
    for number in range(4):
        if clock is not None:
            clock.now += 1
        drawn.append(number)
        yield number
    raise OSError("the disk is gone")


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


def test_an_error_waits_until_the_batch_is_wanted(through):
    """The step under way has all it needs; and a training that ends here never hears of it."""
    stream = Ahead(numbers([]), GPU)
    for step in range(4):
        assert stream.take() == step
        stream.fetch()
    for _ in range(2):
        with pytest.raises(OSError, match="the disk is gone"):
            stream.take()
        stream.fetch()


def test_waiting_counts_only_where_nothing_was_computed(through, clock):
    stream = Ahead(numbers([], clock), GPU)
    stream.take()
    assert (stream.stall(), stream.stall()) == (1, 0)
    stream.fetch()
    assert stream.stall() == (1 if through else 0)


def test_waiting_counts_on_a_cpu(clock):
    stream = Ahead(numbers([], clock), CPU)
    stream.take()
    stream.fetch()
    assert stream.stall() == 1


def test_what_is_sent_to_a_cpu_is_there():
    tensor = torch.arange(3)
    assert sent(tensor, CPU) is tensor


# ------------------------------------------------------------------ in the loop


def fetch_ahead(monkeypatch):
    """Makes the loop fetch ahead, though it trains on a CPU."""
    work = SimpleNamespace(query=lambda: True)
    monkeypatch.setattr(ahead, "_everything_asked_for", lambda: work)
    monkeypatch.setattr(loop, "Ahead", lambda stream, device: Ahead(stream, GPU))


LOOPS = {
    "plain": ({}, {}),
    "in parts": ({"accumulate": 2}, {}),
    "with batches left out": ({"on_non_finite": "recover"}, {"spoilt": (9, 21)}),
}


@pytest.mark.parametrize("name", LOOPS)
def test_a_training_that_fetches_ahead_is_the_training(name, toy, tmp_path, monkeypatch):
    changes, spoilt = LOOPS[name]
    settings = toy.LOOP | {"best": ""} | changes
    plain, _, _ = toy.train(toy.Errand(str(tmp_path / "plain"), settings, spoilt))
    fetch_ahead(monkeypatch)
    fetching, _, _ = toy.train(toy.Errand(str(tmp_path / "ahead"), settings, spoilt))
    assert toy.same(toy.weights_of(fetching), toy.weights_of(plain))
    share = 4 // settings.get("accumulate", 1)
    assert fetching.seen == [*plain.seen, *(plain.seen[-1] + 1 + i for i in range(share))]


def test_a_step_is_finished_though_the_next_batch_fails_and_the_training_goes_on_from_there(
    toy, tmp_path, monkeypatch
):
    settings = toy.LOOP | {"best": ""}
    whole, _, _ = toy.train(toy.Errand(str(tmp_path / "whole"), settings))
    fetch_ahead(monkeypatch)
    batches = toy.ToyJob.batches

    def failing(self, start):
        for number, batch in enumerate(batches(self, start)):
            if number == 6:
                raise OSError("the disk is gone")
            yield batch

    with monkeypatch.context() as broken:
        broken.setattr(toy.ToyJob, "batches", failing)
        with pytest.raises(OSError, match="the disk is gone"):
            toy.train(toy.Errand(str(tmp_path / "ahead"), settings))
    assert [path.name for path in (tmp_path / "ahead" / "checkpoints").iterdir()] == [
        "step-00000006"
    ]
    job, _, _ = toy.train(toy.Errand(str(tmp_path / "ahead"), settings, resume=True))
    assert toy.same(toy.weights_of(job), toy.weights_of(whole))


def test_what_arrives_on_the_host_is_what_was_sent():
    tensor = torch.arange(6).view(2, 3)
    assert torch.equal(arriving(tensor)(), tensor)
