"""A sample that copies a reference picture is found, and one that does not is not."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from cartok.core.errors import UserError
from cartok.metrics import neighbours
from cartok.metrics.nearest import nearest_of


def gaussian(num, seed, width=6):
    return torch.randn(num, width, generator=torch.Generator().manual_seed(seed))


@settings(max_examples=20, deadline=None)
@given(seed=st.integers(0, 99), num=st.integers(2, 9), k=st.integers(1, 3))
def test_the_nearest_are_those_of_all_distances(seed, num, k):
    samples, reference = gaussian(num, seed), gaussian(7, seed + 100)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(neighbours, "BLOCK", 3)  # several blocks each way
        found = nearest_of(samples, reference, k)
    wanted = torch.cdist(samples.double(), reference.double()).topk(k, largest=False)
    assert torch.equal(found.indices, wanted.indices)
    assert torch.allclose(found.squared.sqrt(), wanted.values)


def test_copies_are_closer_than_anything_else_is():
    reference = gaussian(200, 0)
    copies = reference[:50] + 1e-3 * gaussian(50, 1)
    found = nearest_of(copies, reference)
    assert torch.equal(found.indices[:, 0], torch.arange(50))
    assert found.share_closer == 1
    assert found.closer.max() < 0.05


def test_fresh_samples_are_closer_in_about_half_of_the_cases():
    found = nearest_of(gaussian(2000, 2), gaussian(2000, 3))
    assert 0.45 < found.share_closer < 0.55


def test_far_samples_are_closer_in_none():
    assert nearest_of(gaussian(50, 4) + 100, gaussian(200, 5)).share_closer == 0


def test_what_is_repeated_in_the_reference_is_no_copy_of_more_than_itself():
    reference = gaussian(20, 6).repeat(2, 1)
    found = nearest_of(reference[:5] + 0.1, reference)
    assert found.share_closer == 0  # each has a twin at no distance


@pytest.mark.parametrize(("k", "num"), [(0, 5), (5, 5)])
def test_more_neighbours_than_there_are_is_refused(k, num):
    with pytest.raises(UserError, match="fewer than the reference has pictures"):
        nearest_of(gaussian(3, 0), gaussian(num, 1), k)
