import pytest
import torch
from torch import nn

from cartok.core.average import Average
from cartok.core.errors import UserError
from cartok.core.job import LoopConfig
from cartok.core.parallel import World
from cartok.core.snapshot import Buffers, put_training, tensors_of_training


@pytest.fixture
def make(toy):
    """A function that makes a toy and its average, moved once by a gradient of ones."""

    def make(seed):
        job = toy.ToyJob(toy.ToyConfig(loop=LoopConfig(steps=1, batch=1), seed=seed))
        average = Average(job, 0.5)
        for mover in (mover for phase in job.phases for mover in phase.movers):
            for parameter in mover.parameters:
                parameter.grad = torch.ones_like(parameter)
            mover.optimizer.step()
        average.follow()
        return job, average

    return make


def test_what_is_put_back_is_what_was_taken(toy, make):
    (job, average), (other, others) = make(0), make(1)
    taken = tensors_of_training(job, average, World())
    assert {name.split("/")[0] for name in taken} == {"module", "optimizer", "average", "random"}
    taken = {name: tensor.clone() for name, tensor in taken.items()}
    assert not toy.same(tensors_of_training(other, others, World()), taken)
    noise = torch.rand(3)
    put_training(other, others, World(), taken)
    assert toy.same(tensors_of_training(other, others, World()), taken)
    put_training(job, average, World(), taken)
    assert torch.equal(torch.rand(3), noise)


def test_a_snapshot_of_another_network_is_refused_by_its_name(make):
    job, average = make(0)
    taken = tensors_of_training(job, average, World())
    del taken["module/critic/weight"]
    with pytest.raises(UserError, match="the weights do not fit 'critic'"):
        put_training(job, average, World(), taken)


def test_what_a_forward_pass_moves_is_put_back_to_the_bit():
    norm = nn.BatchNorm1d(3)
    norm(torch.randn(8, 3))
    before = {name: buffer.clone() for name, buffer in norm.named_buffers()}
    buffers = Buffers({"norm": norm})
    buffers.keep()
    norm(torch.full((8, 3), float("nan")))
    assert norm.running_mean.isnan().all()
    buffers.put_back()
    assert all(torch.equal(buffer, before[name]) for name, buffer in norm.named_buffers())


def test_nothing_kept_is_nothing_put_back():
    norm = nn.BatchNorm1d(3)
    norm(torch.randn(8, 3))
    Buffers({"norm": norm}).put_back()
    assert norm.num_batches_tracked == 1
