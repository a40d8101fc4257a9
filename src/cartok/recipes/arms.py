"""What a study is: arms that differ in what is asked, then the same priors, and equal scoring."""

import re
from dataclasses import replace
from typing import TypeVar

from cartok.core.config import config
from cartok.core.errors import UserError
from cartok.prior.train import PriorRun
from cartok.recipes.yardstick import Yardstick
from cartok.tokenizer.quantize.kinds import QuantizerConfig
from cartok.tokenizer.quantize.residual import ResidualVQConfig
from cartok.tokenizer.quantize.vq import VQConfig
from cartok.tokenizer.train import TokenizerRun

R = TypeVar("R", TokenizerRun, PriorRun)


@config
class StudyArm:
    """One tokenizer of a study."""

    name: str
    """Begins the names of its folders."""
    tokenizer: TokenizerRun
    pixels: int = 0
    """Pixels a side at which its tokens are made; 0: those of the tokenizer's training. More give
    more tokens of one tokenizer, and what they decode to is resized before it is scored (paper,
    section 3)."""

    def __post_init__(self):
        if not re.fullmatch(r"[a-z0-9][a-z0-9.-]*", self.name):
            raise ValueError(
                f"an arm's name is small letters, digits, dots and dashes, but is '{self.name}'"
            )
        if self.pixels < 0:
            raise ValueError(f"pixels are 0 (as in training) or more, but are {self.pixels}")


@config
class StudyConfig:
    """Arms that differ in what is asked, each followed by the same priors and scored alike."""

    name: str
    arms: tuple[StudyArm, ...]
    priors: tuple[PriorRun, ...]
    """Sizes that follow every arm; the paper averages over four, 52M to 340M (its Table 4)."""
    seeds: int = 1
    """Every arm runs with so many, of tokenizer, priors and samples."""
    first_seed: int = 0
    """A claim takes others than those by which its arms were chosen."""
    apart: bool = False
    """Every prior is a run with a record of its own: for grids, which grow. Otherwise an arm's
    priors are one run, and its scores their means."""
    yardstick: Yardstick = Yardstick()

    def __post_init__(self):
        names = [arm.name for arm in self.arms]
        if not names or len(set(names)) < len(names):
            raise ValueError(f"a study has arms, no two of one name, but got {names}")
        if len({(arm.tokenizer.data, arm.tokenizer.view) for arm in self.arms}) > 1:
            raise ValueError("arms are scored on the same pictures, so data and view must be equal")
        names = names_of(self.priors)
        if not names or len(set(names)) < len(names):
            raise ValueError(f"priors differ in depth, width or steps, but these are {names}")
        if self.seeds < 1 or self.first_seed < 0:
            raise ValueError(
                "seeds must be at least 1, and first_seed not negative, but they are "
                f"{self.seeds} and {self.first_seed}"
            )


def names_of(priors: tuple[PriorRun, ...]) -> list[str]:
    """Each prior's name in a study: layers x width; with its steps where a size comes twice."""
    sizes = [f"{prior.transformer.depth}x{prior.transformer.width}" for prior in priors]
    return [
        size if sizes.count(size) == 1 else f"{size}-{prior.loop.steps}"
        for size, prior in zip(sizes, priors, strict=True)
    ]


def adapted(
    study: StudyConfig, *, data: str = "", seeds: int | None = None, scale: float = 1.0
) -> StudyConfig:
    """The same study on other pictures, with other seeds, with ``scale`` times the steps.

    All that a training counts in steps is scaled, so that each part of it keeps its share; how
    often it is logged, saved and evaluated stays.

    Raises:
        UserError: a number is too small.
    """
    if seeds is not None and seeds < 1:
        raise UserError(f"seeds are 1 or more, but are {seeds}")
    if scale <= 0:
        raise UserError(f"scale multiplies steps, so it must be above 0, but is {scale:g}")
    made = (replace(arm, tokenizer=_adapted(arm.tokenizer, data, scale)) for arm in study.arms)
    priors = tuple(_in_steps(prior, scale) for prior in study.priors)
    seeds = study.seeds if seeds is None else seeds
    return replace(study, arms=tuple(made), priors=priors, seeds=seeds)


def _in_steps(run: R, scale: float) -> R:
    """A training of either stage with ``scale`` times the steps, and of its warm-up."""
    return replace(
        run,
        loop=replace(run.loop, steps=max(1, round(run.loop.steps * scale))),
        optim=replace(run.optim, warmup_steps=round(run.optim.warmup_steps * scale)),
    )


def _adapted(run: TokenizerRun, data: str, scale: float) -> TokenizerRun:
    critic, quantizer = run.losses.critic, run.model.quantizer
    start, ramp, warm = (round(n * scale) for n in (critic.start, critic.ramp, critic.warm))
    critic = replace(critic, start=start, ramp=ramp, warm=warm)
    if isinstance(quantizer, VQConfig | ResidualVQConfig) and quantizer.revive_after:
        quantizer = replace(quantizer, revive_after=max(1, round(quantizer.revive_after * scale)))
    return replace(
        with_quantizer(_in_steps(run, scale), quantizer),
        data=data or run.data,
        causal=replace(run.causal, anneal_steps=round(run.causal.anneal_steps * scale)),
        losses=replace(run.losses, critic=critic),
    )


def with_quantizer(run: TokenizerRun, quantizer: QuantizerConfig) -> TokenizerRun:
    """The run with another quantizer."""
    return replace(run, model=replace(run.model, quantizer=quantizer))
