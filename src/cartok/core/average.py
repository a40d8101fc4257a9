"""Running means of weights: what is evaluated and published when a config asks for them."""

from collections.abc import Generator, Mapping
from contextlib import contextmanager

import torch
from torch import Tensor

from cartok.core.job import Job
from cartok.core.parallel import divided_as


class Average:
    """Running means of weights; with decay 0, the weights themselves."""

    def __init__(self, job: Job, decay: float):
        self._decay = decay
        self._live = {
            f"{name}/{key}": value
            for name in (job.averaged if decay else ())
            for key, value in job.modules[name].state_dict().items()
        }
        self.tensors = {name: value.detach().clone() for name, value in self._live.items()}

    @torch.no_grad()
    def follow(self) -> None:
        """Moves the means one step towards the live weights."""
        for name, mean in self.tensors.items():
            if mean.is_floating_point():
                mean.lerp_(self._live[name].detach(), 1 - self._decay)
            else:
                mean.copy_(self._live[name])

    @torch.no_grad()
    def put_in(self) -> None:
        """Replaces the live weights by their means, for good."""
        for name, mean in self.tensors.items():
            self._live[name].copy_(mean)

    @contextmanager
    def instead(self) -> Generator[None]:
        """The averaged weights in the live modules' place, while the body runs."""
        kept = {name: value.detach().clone() for name, value in self._live.items()}
        self.put_in()
        try:
            yield
        finally:
            with torch.no_grad():
                for name, value in kept.items():
                    self._live[name].copy_(value)

    @torch.no_grad()
    def restore(self, tensors: Mapping[str, Tensor]) -> None:
        """Takes up the means of an earlier run."""
        for name, mean in self.tensors.items():
            mean.copy_(divided_as(mean, tensors[name]))
