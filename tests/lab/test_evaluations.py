import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from cartok.lab.evaluations import stretches_of


@given(st.lists(st.floats(0, 10), min_size=1, max_size=80))
def test_stretches_cover_a_sequence_once_and_evenly(nats):
    nats = torch.tensor(nats, dtype=torch.float64)
    found = stretches_of(nats)
    num = min(8, len(nats))
    assert list(found) == [f"nats_in_stretch_{number}" for number in range(1, num + 1)]
    sizes = [len(nats) // num + (number < len(nats) % num) for number in range(num)]
    total = sum(size * mean for size, mean in zip(sizes, found.values(), strict=True))
    assert total == pytest.approx(nats.sum().item(), abs=1e-9)


def test_stretches_follow_the_order_of_the_tokens():
    found = stretches_of(torch.arange(256.0))
    assert list(found.values()) == [15.5 + 32 * number for number in range(8)]
