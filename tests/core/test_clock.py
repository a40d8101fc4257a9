import sys
from types import SimpleNamespace

import pytest
import torch

from cartok.core.clock import Clock


@pytest.fixture
def meter(monkeypatch):
    """Stands where NVIDIA's library does, for a card that has spent so many millijoules."""
    card = SimpleNamespace(spent=5_000)
    library = SimpleNamespace(
        nvmlInit=lambda: None,
        nvmlDeviceGetHandleByUUID=lambda name: name,
        nvmlDeviceGetTotalEnergyConsumption=lambda handle: card.spent,
    )
    monkeypatch.setitem(sys.modules, "pynvml", library)
    monkeypatch.setattr(
        torch.cuda, "get_device_properties", lambda device: SimpleNamespace(uuid="7a")
    )
    return card


def test_a_clock_counts_on_from_what_an_earlier_try_had_taken(meter):
    first = Clock(torch.device("cuda"))
    first.seconds, first.stalled = 3.0, 1.5
    meter.spent += 7_000
    taken = first.to_json()
    assert taken == {"seconds": 3.0, "stalled": 1.5, "joules": 7.0}
    meter.spent += 100_000  # of somebody else, between the tries
    second = Clock(torch.device("cuda"))
    second.go_on(taken)
    meter.spent += 1_000
    with second.running():
        pass
    assert second.joules == 8.0
    assert 3.0 < second.seconds < 4.0
    assert second.stall_share == pytest.approx(0.5, rel=0.3)


def test_joules_are_unknown_where_a_device_or_an_earlier_try_does_not_say(meter):
    assert Clock(torch.device("cpu")).joules is None
    clock = Clock(torch.device("cuda"))
    clock.go_on({"seconds": 1.0, "stalled": 0.0})
    assert clock.joules is None
    sys.modules["pynvml"].nvmlInit = lambda: 1 / 0
    assert Clock(torch.device("cuda")).joules is None
