import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from cartok.tokenizer.order import in_order, in_raster_order, on_grid, order_of

ORDERS = ["raster", "columns", "snake", "spiral", "random"]
SIDES = st.integers(1, 9)

# Of 3 rows and 4 columns:   0  1  2  3
#                            4  5  6  7
#                            8  9 10 11
BY_HAND = {
    "raster": [0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11],
    "columns": [0, 4, 8, 1, 5, 9, 2, 6, 10, 3, 7, 11],
    "snake": [0, 1, 2, 3, 7, 6, 5, 4, 8, 9, 10, 11],
    "spiral": [0, 1, 2, 3, 7, 11, 10, 9, 8, 4, 5, 6],
}


@given(st.sampled_from(ORDERS), SIDES, SIDES)
def test_every_order_takes_each_cell_once(name, rows, cols):
    assert sorted(order_of(name, rows, cols).tolist()) == list(range(rows * cols))


@given(SIDES, SIDES)
def test_raster_is_the_identity(rows, cols):
    assert order_of("raster", rows, cols).tolist() == list(range(rows * cols))


@pytest.mark.parametrize("name", BY_HAND)
def test_an_order_is_the_one_drawn_by_hand(name):
    assert order_of(name, 3, 4).tolist() == BY_HAND[name]


@given(st.sampled_from(["snake", "spiral"]), SIDES, SIDES)
def test_snake_and_spiral_go_from_a_cell_to_its_neighbour(name, rows, cols):
    order = order_of(name, rows, cols)
    steps = (order // cols).diff().abs() + (order % cols).diff().abs()
    assert (steps == 1).all()


def test_the_random_order_is_the_same_in_every_run_and_draws_nothing():
    torch.manual_seed(1)
    first, state = order_of("random", 4, 4), torch.get_rng_state()
    torch.manual_seed(2)
    assert torch.equal(order_of("random", 4, 4), first)
    torch.manual_seed(1)
    assert torch.equal(torch.get_rng_state(), state)
    assert first.tolist() != list(range(16))


def test_raster_order_is_left_to_right_then_top_to_bottom():
    latents = torch.tensor([[[[0.0, 1, 2], [3, 4, 5]], [[0.0, 10, 20], [30, 40, 50]]]])
    assert in_raster_order(latents)[0].tolist() == [[k, 10 * k] for k in range(6)]


@given(st.sampled_from(ORDERS), SIDES, SIDES)
def test_a_sequence_goes_back_onto_its_grid(name, rows, cols):
    latents, order = torch.randn(2, 3, rows, cols), order_of(name, rows, cols)
    vectors = in_order(latents, order)
    assert torch.equal(vectors, in_raster_order(latents)[:, order])
    assert torch.equal(on_grid(vectors, order, rows, cols), latents)
