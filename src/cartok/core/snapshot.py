"""Everything a training goes on from, as named tensors: taken from a job, and put back into it."""

from collections.abc import Iterator, Mapping

import torch
from torch import Tensor, nn

from cartok.core.average import Average
from cartok.core.checkpoint import put_optimizer, put_tensors, tensors_of_optimizer
from cartok.core.job import Job
from cartok.core.parallel import World


def tensors_of_training(job: Job, average: Average, world: World) -> dict[str, Tensor]:
    """Modules, optimizers, running means, and the random states of all ranks."""
    tensors = {f"random/{name}": value for name, value in _random(world).items()}
    for name, module in job.modules.items():
        tensors |= {f"module/{name}/{k}": v for k, v in module.state_dict().items()}
    for mover in (m for phase in job.phases for m in phase.movers):
        state = tensors_of_optimizer(mover.optimizer)
        tensors |= {f"optimizer/{mover.name}/{k}": v for k, v in state.items()}
    return tensors | {f"average/{k}": v for k, v in average.tensors.items()}


def put_training(job: Job, average: Average, world: World, tensors: Mapping[str, Tensor]) -> None:
    """Restores what ``tensors_of_training`` gave, whole or divided, on this number of ranks or not.

    Raises:
        UserError: the weights do not fit a module.
    """
    for name, module in job.modules.items():
        put_tensors(module, _Below(tensors, f"module/{name}/"), f"'{name}'")
    for mover in (m for phase in job.phases for m in phase.movers):
        put_optimizer(mover.optimizer, _Below(tensors, f"optimizer/{mover.name}/"))
    average.restore(_Below(tensors, "average/"))
    _set_random(_Below(tensors, "random/"), world)


class Buffers:
    """What a forward pass moves although no optimizer does, such as a batch norm's statistics."""

    def __init__(self, modules: Mapping[str, nn.Module]):
        self._modules = modules
        self._kept: list[tuple[Tensor, Tensor]] = []

    def keep(self) -> None:
        """Copies the buffers as they are now."""
        found = [buffer for module in self._modules.values() for buffer in module.buffers()]
        self._kept = [(buffer, buffer.detach().clone()) for buffer in found]

    @torch.no_grad()
    def put_back(self) -> None:
        """Makes the buffers what they were when they were last kept."""
        for buffer, copy in self._kept:
            buffer.copy_(copy)


def _random(world: World) -> dict[str, Tensor]:
    """Every rank's random states, a row each."""
    states = {"cpu": torch.get_rng_state()}
    if world.device.type == "cuda":
        states["cuda"] = torch.cuda.get_rng_state(world.device)
    return {k: world.gather(state[None].to(world.device)).cpu() for k, state in states.items()}


def _set_random(states: Mapping[str, Tensor], world: World) -> None:
    for name, rows in states.items():
        if world.rank >= len(rows):
            continue  # a rank that was not there before keeps the state it was seeded with
        state = rows[world.rank].clone()  # torch 2.15 reads a row from its tensor's beginning
        if name == "cpu":
            torch.set_rng_state(state)
        elif world.device.type == name:
            torch.cuda.set_rng_state(state, world.device)


class _Below(Mapping[str, Tensor]):
    """The tensors whose names begin alike, without that; each is read when it is asked for."""

    def __init__(self, tensors: Mapping[str, Tensor], prefix: str):
        self._tensors, self._prefix = tensors, prefix
        self._names = [k.removeprefix(prefix) for k in tensors if k.startswith(prefix)]

    def __getitem__(self, name: str) -> Tensor:
        return self._tensors[self._prefix + name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._names)

    def __len__(self) -> int:
        return len(self._names)
