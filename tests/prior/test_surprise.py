"""Surprise in parts is surprise in one, forwards and backwards, in less memory."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn import functional as F

from cartok.core.precision import computing_in
from cartok.prior.surprise import surprise_at, surprise_of_states

CPU = torch.device("cpu")


def case(batch=3, positions=5, codes=11, width=8):
    torch.manual_seed(0)
    states = torch.randn(batch, positions, width, requires_grad=True)
    head = torch.randn(codes, width, requires_grad=True)
    return states, head, torch.randint(codes, (batch, positions))


def gradients(states, head, tokens, at_once, z=0.1):
    found = surprise_of_states(states, head, tokens, at_once)
    objective = found.nats.mean() + z * found.log_total.square().mean()
    return found, torch.autograd.grad(objective, (states, head))


def test_it_is_minus_the_log_of_the_softmax_and_the_log_of_its_total():
    states, head, tokens = case()
    logits = states @ head.T
    found = surprise_at(logits, tokens)
    chance = logits.softmax(-1).gather(-1, tokens[..., None])[..., 0]
    torch.testing.assert_close(found.nats, -chance.log())
    torch.testing.assert_close(found.log_total, logits.exp().sum(-1).log())


def test_it_is_float32_whatever_the_logits_are():
    found = surprise_at(torch.zeros(2, 3, 11, dtype=torch.bfloat16), torch.zeros(2, 3).long())
    assert found.nats.dtype == found.log_total.dtype == torch.float32
    torch.testing.assert_close(found.nats, torch.full((2, 3), 11.0).log())


@settings(max_examples=30, deadline=None)
@given(at_once=st.integers(1, 200), batch=st.integers(1, 4), positions=st.integers(1, 6))
def test_in_parts_it_is_the_same_forwards_and_backwards(at_once, batch, positions):
    states, head, tokens = case(batch, positions)
    wanted, wanted_gradients = gradients(states, head, tokens, 10**9)
    found, found_gradients = gradients(states, head, tokens, at_once)
    torch.testing.assert_close(found, wanted)
    torch.testing.assert_close(found_gradients, wanted_gradients)


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_no_more_logits_exist_at_once_than_were_allowed(precision, monkeypatch):
    sizes, plain = [], F.linear

    def noted(x, weight):
        sizes.append(x.shape[0] * weight.shape[0])
        return plain(x, weight)

    monkeypatch.setattr(F, "linear", noted)
    states, head, tokens = case(batch=4, positions=6)
    with computing_in(precision, CPU):
        gradients(states, head, tokens, at_once=50)
    assert max(sizes) <= 50
    assert sum(sizes) == 2 * 24 * 11  # once forwards, once backwards


@pytest.fixture(scope="module")
def kernels():
    pytest.importorskip("triton")
    script = Path(__file__).with_name("interpreted_surprise.py")
    done = subprocess.run([sys.executable, script], capture_output=True, text=True, check=True)
    return json.loads(done.stdout.splitlines()[-1])


@pytest.mark.parametrize(
    ("logits", "most"),
    [("fewer codes than a tile", 1e-6), ("more codes than a tile", 1e-6), ("large logits", 1e-5),
     ("float16", 2e-3)],
)  # fmt: skip
def test_kernels_give_what_torch_gives(kernels, logits, most):
    assert len(kernels[logits]) == 4
    assert max(kernels[logits].values()) < most
