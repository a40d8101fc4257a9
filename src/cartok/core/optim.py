"""Optimizers and learning-rate schedules, as the recipes state them."""

import math
from collections.abc import Callable, Iterable
from typing import Literal

import torch
from torch import nn

from cartok.core.config import config


@config
class OptimConfig:
    """AdamW with a linear warm-up; the defaults are the tokenizer's (paper, A.1)."""

    lr: float = 1e-4
    betas: tuple[float, float] = (0.9, 0.95)
    weight_decay: float = 0.0
    warmup_steps: int = 3000
    warmup_from: float = 1e-5
    """Learning rate of the first step."""
    schedule: Literal["constant", "cosine"] = "constant"
    """After the warm-up; cosine ends at 0."""
    clip: float = 1.0
    """Largest gradient norm; 0: not clipped."""

    def __post_init__(self):
        if self.lr <= 0:
            raise ValueError(f"lr must be above 0, but is {self.lr}")
        if not 0 <= self.warmup_from <= self.lr:
            raise ValueError(
                f"warmup_from must be in [0, lr], but is {self.warmup_from} with lr {self.lr}"
            )
        if not all(0 <= beta < 1 for beta in self.betas):
            raise ValueError(f"betas must be in [0, 1), but are {self.betas}")
        if self.warmup_steps < 0 or self.clip < 0 or self.weight_decay < 0:
            raise ValueError("warmup_steps, clip and weight_decay must not be negative")


def rate_of(config: OptimConfig, steps: int) -> Callable[[int], float]:
    """The learning rate as a function of the step, counted from 0, in a training of ``steps``."""

    def rate(step: int) -> float:
        if step < config.warmup_steps:
            share = step / config.warmup_steps
            return config.warmup_from + (config.lr - config.warmup_from) * share
        if config.schedule == "constant":
            return config.lr
        share = (step - config.warmup_steps) / max(1, steps - config.warmup_steps)
        return config.lr * 0.5 * (1 + math.cos(math.pi * min(1.0, share)))

    return rate


def adamw_of(config: OptimConfig, parameters: Iterable[nn.Parameter]) -> torch.optim.AdamW:
    """AdamW whose weight decay acts on matrices and kernels, not on gains, biases and scalars."""
    parameters = [p for p in parameters if p.requires_grad]
    groups = [
        {"params": [p for p in parameters if p.ndim > 1], "weight_decay": config.weight_decay},
        {"params": [p for p in parameters if p.ndim <= 1], "weight_decay": 0.0},
    ]
    groups = [group for group in groups if group["params"]]
    fused = bool(parameters) and all(p.is_cuda for p in parameters)
    return torch.optim.AdamW(groups, lr=config.lr, betas=config.betas, fused=fused)


def muon_of(config: OptimConfig, matrices: Iterable[nn.Parameter]) -> torch.optim.Muon:
    """Muon: momentum of 0.95 whose singular values are all brought near 1, for hidden matrices.

    The step's size is AdamW's for a matrix of any shape, so rate and decay can be AdamW's too
    (Liu et al. 2025, Muon is Scalable for LLM Training); ``betas`` play no part.
    """
    return torch.optim.Muon(
        [p for p in matrices if p.requires_grad],
        lr=config.lr,
        weight_decay=config.weight_decay,
        adjust_lr_fn="match_rms_adamw",
    )
