import copy

import pytest
import torch
from torch import nn

from cartok.core.joined import JoinedBatchNorm, joined


def of_one(norm):
    """The joined batch norm of a world of one."""
    return joined(copy.deepcopy(norm), lambda value: value, 1)


@pytest.fixture(params=[(nn.BatchNorm1d, (5, 6, 7)), (nn.BatchNorm2d, (5, 6, 4, 3))])
def norm_and_batches(request):
    """A batch norm with parameters of its own, and three batches."""
    torch.manual_seed(0)
    kind, shape = request.param
    norm = kind(6)
    nn.init.normal_(norm.weight)
    nn.init.normal_(norm.bias)
    return norm, [torch.randn(shape) * 2 + 1 for _ in range(3)]


def test_over_one_rank_it_is_the_plain_norm(norm_and_batches):
    """Answers, gradients, running statistics, and what it says in evaluation."""
    norm, batches = norm_and_batches
    other = of_one(norm)
    for batch in batches:
        x, y = (batch.clone().requires_grad_() for _ in range(2))
        slope = torch.randn_like(batch)
        for network, given in ((norm, x), (other, y)):
            network.zero_grad()
            answer = network(given)
            answer.backward(slope)
        assert torch.allclose(other(batch), norm(batch), atol=1e-5)
        assert torch.allclose(y.grad, x.grad, atol=1e-5)
        assert torch.allclose(other.weight.grad, norm.weight.grad, rtol=1e-4, atol=1e-5)
        assert torch.allclose(other.bias.grad, norm.bias.grad, rtol=1e-4, atol=1e-5)
    for key, value in norm.state_dict().items():
        assert torch.allclose(other.state_dict()[key].float(), value.float(), atol=1e-5), key
    assert torch.allclose(other.eval()(batches[0]), norm.eval()(batches[0]), atol=1e-6)


def test_its_state_has_the_names_of_the_plain_norm():
    """So a checkpoint goes on on any number of ranks."""
    network = nn.Sequential(
        nn.Conv2d(3, 4, 1), nn.Sequential(nn.BatchNorm2d(4)), nn.GroupNorm(2, 4)
    )
    names = set(network.state_dict())
    other = joined(network, lambda value: value, 2)
    assert set(other.state_dict()) == names
    assert isinstance(other[1][0], JoinedBatchNorm)
    assert isinstance(other[2], nn.GroupNorm)


def test_short_floats_are_added_up_in_long_ones():
    norm = of_one(nn.BatchNorm2d(2))
    x = torch.full((64, 2, 32, 32), 100.0) + torch.randn(64, 2, 32, 32)
    answer = norm(x.bfloat16()).detach()
    assert answer.dtype == torch.bfloat16
    assert answer.float().std() == pytest.approx(1, abs=0.02)
