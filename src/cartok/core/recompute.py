"""Activations that are computed twice rather than kept: less memory for one more pass forward."""

from collections.abc import Callable, Iterable
from functools import partial
from typing import Any

import torch
from torch import nn
from torch.utils.checkpoint import checkpoint


def recompute_in_place(modules: Iterable[nn.Module]) -> None:
    """Of what each computes on the way forward, going back finds only what it was given.

    The rest it computes again, dropout with the noise it had: losses and gradients are the same.
    """
    for module in modules:
        module.forward = partial(_through, module.forward)


def _through(forward: Callable[..., Any], *given: Any) -> Any:
    if not torch.is_grad_enabled():
        return forward(*given)
    return checkpoint(forward, *given, use_reentrant=False)
