import pytest
import torch
from torch import nn

from cartok.core.config import ConfigError
from cartok.core.errors import UserError
from cartok.core.job import EvaluationConfig, Job, LoopConfig, Mover, NonFiniteError, Phase, Terms


@pytest.mark.parametrize(
    ("field", "value"),
    [("steps", 0), ("batch", 0), ("accumulate", 0), ("log_every", 0), ("save_every", -1)],
)
def test_counts_below_one_are_refused(field, value):
    with pytest.raises(ConfigError, match=f"{field} must be at least 1, but is {value}"):
        LoopConfig(**{"steps": 1, "batch": 1} | {field: value})


def test_a_batch_that_does_not_fall_into_equal_parts_is_refused():
    with pytest.raises(ConfigError, match="batch 8 must be a multiple of 3 parts"):
        LoopConfig(steps=1, batch=8, accumulate=3)


@pytest.mark.parametrize("ema", [-0.1, 1.0, 2.0])
def test_a_decay_outside_its_range_is_refused(ema):
    with pytest.raises(ConfigError, match="ema must be in"):
        LoopConfig(steps=1, batch=1, ema=ema)


@pytest.mark.parametrize("change", [{"precision": "fp16"}, {"trackers": ("mlflow",)}])
def test_an_unknown_precision_or_tracker_is_refused(change):
    with pytest.raises(ConfigError):
        LoopConfig(steps=1, batch=1, **change)


@pytest.mark.parametrize("change", [{"every": 0}, {"num": 0}])
def test_an_evaluation_of_nothing_is_refused(change):
    with pytest.raises(ConfigError, match="must be at least 1"):
        EvaluationConfig(name="psnr", **change)


def test_the_total_is_the_weighted_sum_of_the_terms():
    losses = {"a": torch.tensor(2.0), "b": torch.tensor(3.0), "c": torch.tensor(float("nan"))}
    terms = Terms(losses, {"a": 0.5, "b": -1.0, "c": 0.0}, {"seen": torch.tensor(7.0)})
    assert terms.total.item() == -2.0


def test_the_total_is_float32_and_carries_the_gradient():
    loss = torch.tensor(2.0, dtype=torch.bfloat16, requires_grad=True)
    total = Terms({"a": loss}, {"a": 0.25}).total
    total.backward()
    assert total.dtype == torch.float32
    assert loss.grad.item() == 0.25


def test_a_mover_moves_what_wants_a_gradient():
    module = nn.Linear(2, 2)
    module.bias.requires_grad = False
    mover = Mover("net", module, torch.optim.SGD(module.parameters(), lr=1.0), lambda step: 1.0)
    assert [p is module.weight for p in mover.parameters] == [True]
    assert mover.clip == 0.0


def test_a_phase_takes_part_in_every_step_unless_told_otherwise():
    assert Phase("one", (), lambda outcome, step: Terms({}, {})).active(12345)


def test_the_toy_is_a_job(toy):
    config = toy.ToyConfig(loop=LoopConfig(steps=1, batch=1))
    assert isinstance(toy.ToyJob(config), Job)


def test_a_loss_that_is_not_finite_is_told_like_any_mistake_the_user_can_mend():
    assert issubclass(NonFiniteError, UserError)
