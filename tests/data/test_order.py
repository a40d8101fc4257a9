from itertools import islice

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from cartok.data.order import Order, choice_at, picture_generator, sample_at

NUMS = st.integers(1, 40)
SEEDS = st.integers(0, 2**32 - 1)


def indices_of(samples):
    return [sample.index for sample in samples]


@given(num=NUMS, seed=SEEDS, epoch=st.integers(0, 5))
def test_an_epoch_shows_every_item_once(num, seed, epoch):
    samples = [sample_at(epoch * num + place, num, seed) for place in range(num)]
    assert sorted(indices_of(samples)) == list(range(num))
    assert {sample.epoch for sample in samples} == {epoch}


@given(num=NUMS, seed=SEEDS, start=st.integers(0, 200))
def test_a_resumed_order_equals_an_uninterrupted_one(num, seed, start):
    whole = list(islice(Order(num, seed=seed), start + 10))
    assert list(islice(Order(num, seed=seed, start=start), 10)) == whole[start:]


@given(num=NUMS, seed=SEEDS, start=st.integers(0, 50), world_size=st.sampled_from([1, 2, 4]))
def test_ranks_interleave_to_the_same_global_order(num, seed, start, world_size):
    ranks = [
        Order(num, seed=seed, start=start, rank=rank, world_size=world_size).take(8)
        for rank in range(world_size)
    ]
    interleaved = [sample for group in zip(*ranks, strict=True) for sample in group]
    assert interleaved == Order(num, seed=seed, start=start).take(8 * world_size)


def test_epochs_and_seeds_differ():
    epochs = np.array(indices_of(Order(50, seed=0).take(100))).reshape(2, 50)
    assert (epochs[0] != epochs[1]).any()
    assert indices_of(Order(50, seed=1).take(50)) != epochs[0].tolist()


def test_a_picture_draws_the_same_whatever_was_drawn_before():
    first = picture_generator(3, 1, 4).random(4)
    picture_generator(3, 1, 5).random(100)
    assert (picture_generator(3, 1, 4).random(4) == first).all()


def test_trailing_zeros_of_a_seed_do_not_repeat_a_stream():
    streams = [picture_generator(5, 1, 0), picture_generator(5, 0, 0), picture_generator(0, 5, 0)]
    assert len({stream.random() for stream in streams}) == 3


def test_a_batch_of_nothing_is_refused():
    with pytest.raises(ValueError, match="at least one sample"):
        Order(5, seed=0).take(0)


def test_every_choice_comes_in_the_end():
    samples = Order(20, seed=0).take(400)
    assert {choice_at(sample, 20, 0, 3) for sample in samples} == {0, 1, 2}


@pytest.mark.parametrize(
    ("arguments", "rule"),
    [
        ({"num": 0, "seed": 0}, "at least one item"),
        ({"num": 5, "seed": 0, "rank": 2, "world_size": 2}, "rank is 0 to"),
        ({"num": 5, "seed": -1}, "not negative"),
    ],
)
def test_impossible_orders_are_refused(arguments, rule):
    with pytest.raises(ValueError, match=rule):
        Order(**arguments)
