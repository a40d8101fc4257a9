"""Steps that are replayed are the steps themselves; here with a recording that computes anew.

The double keeps what a CUDA graph keeps: tensors of one place in memory, read and written again.
"""

from dataclasses import dataclass

import pytest
import torch
from torch import Tensor, nn

from cartok.core import capture, loop
from cartok.core.capture import WARM, Computed, Replayed
from cartok.core.job import Terms


class Recomputed:
    """A recording without a GPU: every replay computes, and writes over what the first one gave."""

    made = 0

    def __init__(self, compute, batch, parameters):
        type(self).made += 1
        self._compute, self._batch, self._parameters = compute, capture._copied(batch), parameters
        state = torch.get_rng_state()  # recording draws nothing
        self.computed = self._fresh()
        torch.set_rng_state(state)
        self._gradients = [p.grad for p in parameters]

    def _fresh(self):
        for parameter in self._parameters:
            parameter.grad = None
        return self._compute(self._batch)

    def replay(self, batch):
        for name, value in capture._tensors(batch).items():
            getattr(self._batch, name).copy_(value)
        fresh = self._fresh()
        with torch.no_grad():
            for name, terms in self.computed.terms.items():
                for mine, new in (
                    (terms.losses, fresh.terms[name].losses),
                    (terms.watched, fresh.terms[name].watched),
                ):
                    for key, value in mine.items():
                        value.data.copy_(new[key])
        for parameter, gradient in zip(self._parameters, self._gradients, strict=True):
            if gradient is not None:
                gradient.copy_(parameter.grad)
            parameter.grad = gradient
        return self.computed


@dataclass(frozen=True)
class Numbers:
    values: Tensor
    name: str = "numbers"


@pytest.fixture
def line():
    """A parameter and a computation of its gradient; tells how often it has run."""
    parameter = nn.Parameter(torch.ones(()))
    runs = []

    def compute(batch):
        runs.append(batch.values.sum().item())
        loss = (parameter * batch.values).sum()
        loss.backward()
        return Computed(loss.detach(), {"line": Terms({"loss": loss.detach()}, {"loss": 1.0})})

    return parameter, compute, runs


def test_a_computation_is_recorded_once_the_same_has_been_asked_often_enough(line):
    parameter, compute, _ = line
    made = []

    def record(*args):
        made.append(args)
        return Recomputed(*args)

    replayed = Replayed([parameter], record)
    for number in range(WARM + 3):
        parameter.grad = None
        found = replayed(compute, Numbers(torch.full((2,), float(number))), key="a")
        assert float(found.terms["line"].losses["loss"]) == 2 * number
        assert float(parameter.grad) == 2 * number
        assert len(made) == (number >= WARM)


@pytest.mark.parametrize("other", ["key", "shape", "dtype"])
def test_what_a_recording_cannot_know_makes_a_new_one(line, other):
    parameter, compute, _ = line
    made = []
    replayed = Replayed([parameter], lambda *args: made.append(0) or Recomputed(*args))
    batch, key = Numbers(torch.ones(2)), "a"
    for _ in range(WARM + 2):
        replayed(compute, batch, key)
    if other == "key":
        key = "b"
    else:
        batch = Numbers(torch.ones(3) if other == "shape" else torch.ones(2).double())
    for repeat in range(WARM + 2):
        replayed(compute, batch, key)
        assert len(made) == 1 + (repeat >= WARM)


def test_what_cannot_be_recorded_is_computed_and_said_once(line, caplog):
    parameter, compute, runs = line

    def refuse(*_):
        raise RuntimeError("operation not permitted when stream is capturing\nat some place")

    replayed = Replayed([parameter], refuse)
    for _ in range(WARM + 4):
        replayed(compute, Numbers(torch.ones(2)), key="a")
    assert len(runs) == WARM + 4
    (message,) = caplog.messages
    assert message.endswith(
        "they cannot be recorded: operation not permitted when stream is capturing"
    )


@pytest.fixture
def on_the_cpu(monkeypatch):
    """Recordings that need no GPU; how many have been made is ``Recomputed.made``."""
    monkeypatch.setattr(loop, "records_on", lambda device: True)
    monkeypatch.setattr(capture, "Recording", Recomputed)
    monkeypatch.setattr(Recomputed, "made", 0)


@pytest.mark.parametrize("spoilt", [(), (26, 27)])
@pytest.mark.parametrize("critic_from", [0, 6])
def test_a_replayed_training_is_the_plain_one(toy, on_the_cpu, tmp_path, critic_from, spoilt):
    """To the last bit; also where a phase begins late, and where a batch is skipped."""
    parts = {"critic_from": critic_from, "spoilt": spoilt}
    changes = {"steps": 14, "best": "", "on_non_finite": "recover"}

    def trained(folder, **more):
        errand = toy.Errand(str(tmp_path / folder), toy.LOOP | changes | more, parts)
        return toy.train(errand)[0].trace

    plain = trained("plain")
    assert Recomputed.made == 0
    again = trained("replayed", replay=True)
    assert Recomputed.made == (1 if critic_from == 0 else 2)
    assert len(again) == len(plain) == 15
    for one, other in zip(again, plain, strict=True):
        assert toy.same(one, other)


def test_a_batch_in_parts_and_a_world_of_many_are_not_recorded(toy, on_the_cpu, tmp_path):
    changes = {"steps": 8, "best": "", "replay": True, "accumulate": 2}
    toy.train(toy.Errand(str(tmp_path / "parts"), toy.LOOP | changes, {}))
    assert Recomputed.made == 0
