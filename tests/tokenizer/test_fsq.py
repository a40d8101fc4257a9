import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from cartok.core.config import ConfigError
from cartok.tokenizer.quantize.fsq import FSQConfig, ScalarQuantizer

some_levels = st.lists(st.integers(3, 9), min_size=1, max_size=4).map(tuple)


@given(levels=some_levels)
def test_each_channel_takes_its_number_of_values_in_equal_steps_up_to_one(levels):
    net = ScalarQuantizer(FSQConfig(levels=levels))
    tokens = torch.arange(net.codebook_size).view(1, 1, -1)
    codes = net.codes_of(tokens)[0, :, 0]
    for channel, num in zip(codes, levels, strict=True):
        values = channel.unique()
        assert len(values) == num
        assert values[0] == -1
        assert values[-1] == (1 if num % 2 else 1 - 1 / (num // 2))
        torch.testing.assert_close(values.diff(), torch.full((num - 1,), 1 / (num // 2)))


@given(levels=some_levels)
def test_zero_is_the_zero_code_and_large_latents_are_the_outermost(levels):
    net = ScalarQuantizer(FSQConfig(levels=levels))
    for value, wanted in ((0.0, 0), (-50.0, -1), (50.0, 1)):
        codes = net(torch.full((1, net.dim, 1, 1), value)).codes.flatten()
        offset = torch.tensor([0.0 if num % 2 or wanted < 1 else 2 / num for num in levels])
        torch.testing.assert_close(codes, wanted - offset)


@pytest.mark.parametrize("levels", [(1000,), (1001,), (1024,), (3, 4096)])
def test_large_latents_are_the_outermost_of_many_levels_too(levels):
    net = ScalarQuantizer(FSQConfig(levels=levels))
    found = net(torch.tensor([-50.0, 50.0]).view(2, 1, 1, 1).expand(2, net.dim, 1, 1))
    assert found.tokens.flatten().tolist() == [0, net.codebook_size - 1]
    torch.testing.assert_close(found.codes, net.codes_of(found.tokens))


def test_the_first_channel_runs_fastest():
    net = ScalarQuantizer(FSQConfig(levels=(5, 4, 3)))
    codes = net.codes_of(torch.tensor([[[0, 1, 5, 20, 59]]]))[0, :, 0].T
    wanted = [[-1, -1, -1], [-0.5, -1, -1], [-1, -0.5, -1], [-1, -1, 0], [1, 0.5, 1]]
    assert codes.tolist() == wanted


def test_the_gradient_is_that_of_the_bound():
    net = ScalarQuantizer(FSQConfig(levels=(5, 8)))
    latents = torch.randn(2, 2, 3, 3, generator=torch.Generator().manual_seed(0)).requires_grad_()
    (found,) = torch.autograd.grad(net(latents).codes.sum(), latents)
    (wanted,) = torch.autograd.grad(net.entering(latents).sum(), latents)
    assert torch.equal(found, wanted)
    assert (found > 0).all()


def test_it_asks_for_no_loss_and_holds_nothing_to_store():
    net = ScalarQuantizer(FSQConfig())
    assert net.codebook_size == 15_360
    assert net(torch.zeros(1, 5, 2, 2)).losses == {}
    assert not net.state_dict()
    assert not list(net.parameters())


@pytest.mark.parametrize("levels", [(), (8, 2), (5, -5), (0,), (300, 300, 300)])
def test_impossible_levels_are_refused_in_one_line(levels):
    with pytest.raises(ConfigError, match="for 2 values take lfq or bsq") as caught:
        FSQConfig(levels=levels)
    assert "\n" not in str(caught.value)
