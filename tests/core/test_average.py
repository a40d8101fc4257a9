import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from cartok.core.average import Average


class OneModule:
    """Just enough of a job: one averaged module with a count, one that is not averaged."""

    averaged = ("net",)
    phases = ()

    def __init__(self):
        torch.manual_seed(0)
        self.modules = {"net": nn.BatchNorm1d(2).double(), "other": nn.Linear(2, 2)}
        self.net = self.modules["net"]

    def batches(self, start):
        yield from ()

    def prepare(self, batch, step):
        pass

    def fixed_at(self, step):
        return ()

    def after_step(self, outcomes, step):
        pass


@given(st.lists(st.floats(-10, 10), min_size=1, max_size=20), st.floats(0.01, 0.999))
def test_the_average_is_the_sum_of_decayed_weights(values, decay):
    job = OneModule()
    average = Average(job, decay)
    start = job.net.weight.detach().clone()
    for value in values:
        nn.init.constant_(job.net.weight, value)
        average.follow()
    ages = range(len(values) - 1, -1, -1)
    expected = start * decay ** len(values)
    expected += sum((1 - decay) * decay**age * v for age, v in zip(ages, values, strict=True))
    torch.testing.assert_close(average.tensors["net/weight"], expected, rtol=1e-9, atol=1e-9)


def test_counts_follow_and_other_modules_have_no_average():
    job = OneModule()
    average = Average(job, 0.5)
    job.net.num_batches_tracked.fill_(7)
    average.follow()
    assert average.tensors["net/num_batches_tracked"].item() == 7
    assert {name.split("/")[0] for name in average.tensors} == {"net"}


def test_the_live_weights_come_back_bit_for_bit():
    job = OneModule()
    average = Average(job, 0.9)
    nn.init.normal_(job.net.weight)
    average.follow()
    live = job.net.weight.detach().clone()
    with average.instead():
        assert torch.equal(job.net.weight.detach(), average.tensors["net/weight"])
        assert not torch.equal(job.net.weight, live)
    assert torch.equal(job.net.weight, live)
    with pytest.raises(ZeroDivisionError), average.instead():
        1 / 0  # noqa: B018
    assert torch.equal(job.net.weight, live)
    assert job.net.weight.requires_grad


def test_the_mean_can_be_put_in_for_good_and_restored():
    job, other = OneModule(), OneModule()
    average = Average(job, 0.9)
    nn.init.normal_(job.net.weight)
    average.follow()
    again = Average(other, 0.9)
    again.restore(average.tensors)
    again.put_in()
    assert torch.equal(other.net.weight.detach(), average.tensors["net/weight"])
    nn.init.zeros_(other.net.weight)
    assert torch.equal(again.tensors["net/weight"], average.tensors["net/weight"])  # a copy


def test_without_a_decay_the_weights_are_their_own_average():
    job = OneModule()
    average = Average(job, 0.0)
    nn.init.constant_(job.net.weight, 5.0)
    average.follow()
    with average.instead():
        assert torch.equal(job.net.weight, torch.full((2,), 5.0, dtype=torch.float64))
    average.put_in()
    assert average.tensors == {}
    assert torch.equal(job.net.weight, torch.full((2,), 5.0, dtype=torch.float64))
