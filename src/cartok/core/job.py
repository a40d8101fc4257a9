"""What a training is made of: a job is a list of phases, a phase moves modules by an objective."""

from collections.abc import Callable, Hashable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, Protocol, runtime_checkable

import torch
from torch import Tensor, nn

from cartok.core.config import config, nearest
from cartok.core.errors import UserError
from cartok.core.precision import Precision
from cartok.core.trackers import TrackerName


@config
class LoopConfig:
    """How long and how often."""

    steps: int
    batch: int
    """Samples per optimizer step, over all ranks and all parts of an accumulation."""
    accumulate: int = 1
    """Parts a batch is computed in; the step is the same, the memory less."""
    precision: Precision = "fp32"
    ema: float = 0.0
    """Decay of the running mean of the weights that is evaluated and published; 0: none."""
    log_every: int = 50
    save_every: int = 1000
    replay: bool = False
    """On a single GPU: record a step's kernels as one CUDA graph and replay it. For small models,
    whose kernels run faster than they are launched; memory for one more step's activations."""
    on_non_finite: Literal["stop", "recover"] = "stop"
    """What follows a loss or a gradient that is NaN or infinite; it never moves a weight. recover:
    skip the batch, at most 3 between two scheduled checkpoints; then go back to the newest, once;
    stop."""
    best: str = ""
    """An evaluation's value, lower is better, whose best checkpoint is kept beside the newest."""
    trackers: tuple[TrackerName, ...] = ("tensorboard",)

    def __post_init__(self):
        counts = {"steps": self.steps, "batch": self.batch, "accumulate": self.accumulate,
                  "log_every": self.log_every, "save_every": self.save_every}  # fmt: skip
        for name, value in counts.items():
            if value < 1:
                raise ValueError(f"{name} must be at least 1, but is {value}")
        if self.batch % self.accumulate:
            raise ValueError(f"batch {self.batch} must be a multiple of {self.accumulate} parts")
        if not 0 <= self.ema < 1:
            raise ValueError(f"ema must be in [0, 1), but is {self.ema}")


@config
class EvaluationConfig:
    """A recipe names its evaluations; who runs it brings the functions."""

    name: str
    every: int = 1000
    """Steps; each is taken at the end as well."""
    num: int = 512
    """Pictures or sequences it looks at."""

    def __post_init__(self):
        if self.every < 1 or self.num < 1:
            raise ValueError(f"every and num must be at least 1: {self.every}, {self.num}")


@dataclass(frozen=True)
class Terms:
    """An objective, term by term: what is minimised is the weighted sum."""

    losses: dict[str, Tensor]
    weights: dict[str, float]
    watched: dict[str, Tensor] = field(default_factory=dict)
    """Logged beside the losses, never minimised."""

    @property
    def total(self) -> Tensor:
        """The weighted sum, in float32; a term of weight 0 takes no part."""
        active = [self.weights[k] * v.float() for k, v in self.losses.items() if self.weights[k]]
        return torch.stack(active).sum()


@dataclass(frozen=True)
class Mover:
    """A module and what moves it, or those parameters of it that its optimizer was given.

    Any torch optimizer that needs no closure.
    """

    name: str
    module: nn.Module
    optimizer: torch.optim.Optimizer
    rate: Callable[[int], float]
    """Learning rate of a step, counted from 0."""
    clip: float = 0.0
    """Largest gradient norm; 0: not clipped."""

    @property
    def parameters(self) -> list[nn.Parameter]:
        """The parameters that move, in the module's order."""
        moved = {id(p) for group in self.optimizer.param_groups for p in group["params"]}
        return [p for p in self.module.parameters() if id(p) in moved and p.requires_grad]


@dataclass(frozen=True)
class Phase:
    """A part of every step with an objective of its own; gradients reach only its movers."""

    name: str
    movers: tuple[Mover, ...]
    objective: Callable[[Any, int], Terms]
    active: Callable[[int], bool] = lambda step: True
    """Whether the phase takes part in a step."""


@runtime_checkable  # for the checks that run in tests
class Job(Protocol):
    """What ``fit`` trains."""

    @property
    def modules(self) -> Mapping[str, nn.Module]:
        """Everything with state, by name; all of it is saved."""
        ...

    @property
    def averaged(self) -> tuple[str, ...]:
        """Names of the modules whose weights have a running mean, if the config asks for one."""
        ...

    @property
    def phases(self) -> tuple[Phase, ...]:
        """What happens in a step, in order."""
        ...

    def batches(self, start: int) -> Iterator[Any]:
        """Endless parts of batches for this rank, from the ``start``-th sample of all on."""
        ...

    def prepare(self, batch: Any, step: int) -> Any:
        """The forward computation all phases share."""
        ...

    def fixed_at(self, step: int) -> Hashable:
        """All that ``prepare`` and the objectives of active phases take from the step's number.

        While it stays equal, a recording of one step may stand for another.
        """
        ...

    def after_step(self, outcomes: list[Any], step: int) -> None:
        """Whatever follows the optimizers, such as reviving dead codes."""
        ...


@dataclass(frozen=True)
class Evaluation:
    """Numbers to take every so many steps, and once at the end."""

    name: str
    every: int
    measure: Callable[[int], dict[str, float]]


def refuse_unfit(config: LoopConfig, evaluations: tuple[Evaluation, ...], ranks: int) -> None:
    """Refuses, before a training starts, a config that does not go with what it is given.

    Raises:
        UserError: the ranks cannot share a batch, or ``best`` names no evaluation.
    """
    if config.batch % (config.accumulate * ranks):
        raise UserError(
            f"a batch is shared evenly, but {config.batch} samples are no multiple of "
            f"{config.accumulate} parts x {ranks} ranks; change loop.batch"
        )
    names = [evaluation.name for evaluation in evaluations]
    if config.best and config.best.split("/")[0] not in names:
        raise UserError(
            f"loop.best is a value of an evaluation, as in NAME/VALUE, but '{config.best}' is "
            f"not: the evaluations are {', '.join(names) or 'none'}"
        )


def refuse_unmeasured(config: LoopConfig, taken: list[str], values: list[str]) -> None:
    """Refuses, when its evaluation is first taken, a ``best`` that is none of its values.

    Raises:
        UserError: names the nearest value.
    """
    if config.best.split("/")[0] in taken and config.best not in values:
        raise UserError(
            f"loop.best is a value of an evaluation, but '{config.best}' is not; "
            f"{nearest(config.best, values)}"
        )


class NonFiniteError(UserError):
    """A loss or a gradient was NaN or infinite; the weights have not moved."""
