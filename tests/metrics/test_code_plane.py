"""A codebook in the plane: known of lines and squares, and the same however it is turned."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from cartok.metrics.code_plane import mean_colours, plane_of, spread_by_use


def normal(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed)).double()


def turn(seed, dim=5):
    """A random rotation, with a mirror in half of the cases."""
    return torch.linalg.qr(normal(dim, dim, seed=seed)).Q


def test_codes_on_a_line_lie_on_one_direction():
    along = torch.tensor([-3.0, -1.0, 0.0, 2.0])
    direction = torch.arange(1.0, 9.0) / torch.arange(1.0, 9.0).norm()
    plane = plane_of(along[:, None] * direction + 5, torch.tensor([1, 1, 1, 1]), along)
    assert plane is not None
    assert plane.shares == pytest.approx((1.0, 0.0), abs=1e-6)
    assert plane.places[:, 0].tolist() == pytest.approx([-2.5, -0.5, 0.5, 2.5], abs=1e-5)
    assert plane.places[:, 1].abs().max() < 1e-5


def test_shares_are_those_of_the_two_widest_directions():
    """Plus and minus 4, 3 and 2 along three axes: variances 16, 9 and 4 of 29."""
    vectors = torch.cat([torch.diag(torch.tensor([2.0, 4.0, 3.0]))] * 2)
    vectors[3:] *= -1
    plane = plane_of(vectors, torch.ones(6, dtype=torch.long), vectors.sum(1))
    assert plane is not None
    assert plane.shares == pytest.approx((16 / 29, 9 / 29))
    torch.testing.assert_close(plane.places[1], torch.tensor([4.0, 0.0]).double())
    torch.testing.assert_close(plane.places[2], torch.tensor([0.0, 3.0]).double())


def test_a_code_counts_as_often_as_it_is_used():
    vectors, uses = normal(4, 3), torch.tensor([3, 1, 2, 4])
    plane = plane_of(vectors, uses, vectors[:, 0])
    often = plane_of(vectors.repeat_interleave(uses, 0), torch.ones(10).long(),
                     vectors[:, 0].repeat_interleave(uses))  # fmt: skip
    assert plane is not None
    assert often is not None
    assert plane.shares == pytest.approx(often.shares)
    torch.testing.assert_close(plane.places.repeat_interleave(uses, 0), often.places)


@given(st.integers(0, 999))
def test_a_codebook_that_is_turned_mirrored_or_moved_gives_the_same_picture(seed):
    vectors, brightness = normal(9, 5, seed=seed), normal(9, seed=seed + 1)
    uses = torch.arange(1, 10)
    here = plane_of(vectors, uses, brightness)
    there = plane_of(vectors @ turn(seed + 2) + 3, uses, brightness)
    assert here is not None
    assert there is not None
    assert here.shares == pytest.approx(there.shares)
    torch.testing.assert_close(here.places, there.places, atol=1e-6, rtol=1e-6)


@given(st.integers(0, 999))
def test_codes_grow_brighter_to_the_right_and_above(seed):
    vectors, brightness, uses = normal(9, 5, seed=seed), normal(9, seed=seed + 1), torch.arange(9)
    plane = plane_of(vectors, uses + 1, brightness)
    assert plane is not None
    weights = (uses + 1).double() / (uses + 1).sum()
    assert ((weights * (brightness - weights @ brightness)) @ plane.places > 0).all()


def test_where_all_are_equally_bright_the_farthest_code_lies_to_the_right():
    vectors = torch.tensor([[0.0, 1.0], [0.0, 2.0], [0.0, -6.0]])
    plane = plane_of(vectors, torch.tensor([1, 1, 1]), torch.full((3,), 0.5))
    assert plane is not None
    assert plane.places[:, 0].tolist() == pytest.approx([-2.0, -3.0, 5.0])


def test_codes_of_one_channel_lie_on_a_line():
    plane = plane_of(torch.tensor([[1.0], [3.0]]), torch.tensor([2, 2]), torch.tensor([0.0, 1.0]))
    assert plane is not None
    assert plane.shares == pytest.approx((1.0, 0.0))
    assert plane.places.tolist() == [[-1.0, 0.0], [1.0, 0.0]]


def test_one_code_alone_or_one_that_is_not_finite_has_no_plane():
    one = torch.full((3, 4), 0.7)
    assert plane_of(one, torch.tensor([5, 1, 2]), torch.zeros(3)) is None
    one[1, 2] = torch.nan
    assert plane_of(one, torch.tensor([5, 1, 2]), torch.zeros(3)) is None


def test_the_colour_of_a_code_is_that_of_the_pixels_under_it():
    """A picture of 4 x 6 pixels on a grid of 2 x 3: red lower left, half grey upper right."""
    image = torch.full((2, 3, 4, 6), -1.0)
    image[:, 0, 2:, :2] = 1.0
    image[0, :, :2, 4:] = 1.0  # white in the first picture, black in the second
    tokens = torch.zeros(2, 2, 3, dtype=torch.long)
    tokens[:, 1, 0], tokens[:, 0, 2] = 3, 2
    colours = mean_colours(image, tokens, 5)
    assert colours[3].tolist() == [255, 0, 0]
    assert colours[2].tolist() == [127.5] * 3
    assert colours[0].tolist() == [0, 0, 0]
    assert colours[[1, 4]].isnan().all()


@given(st.lists(st.integers(0, 9), min_size=1, max_size=40), st.integers(1, 12))
def test_codes_are_shown_from_the_most_to_the_least_used_and_unused_ones_never(uses, most):
    uses = torch.tensor(uses)
    used = int((uses > 0).sum())
    chosen = spread_by_use(uses, most)
    assert len(chosen) == len(set(chosen.tolist())) == min(most, used)
    shown = uses[chosen].tolist()
    assert shown == sorted(shown, reverse=True)
    assert 0 not in shown
    if shown:
        assert shown[0] == uses.max()
    if len(shown) > 1:
        assert shown[-1] == uses[uses > 0].min()
