"""Recipes of studies: many small trainings, each study a question of the paper's.

The base is the demo's recipe, so that an arm takes minutes; its numbers are not the paper's.
"""

import re
from dataclasses import replace
from typing import Any, TypeVar

from cartok.core.config import config
from cartok.core.errors import UserError
from cartok.prior.train import PriorRun
from cartok.recipes import table_of
from cartok.recipes import tokenizer as tokenizers
from cartok.recipes.prior import demo as demo_prior
from cartok.recipes.yardstick import Yardstick
from cartok.tokenizer.quantize.binary import BSQConfig, LFQConfig
from cartok.tokenizer.quantize.fsq import FSQConfig
from cartok.tokenizer.quantize.kinds import QuantizerConfig
from cartok.tokenizer.quantize.residual import ResidualVQConfig
from cartok.tokenizer.quantize.vq import VQConfig
from cartok.tokenizer.train import TokenizerRun

PAPER_WEIGHT = 4.0

R = TypeVar("R", TokenizerRun, PriorRun)


@config
class StudyArm:
    """One tokenizer of a study."""

    name: str
    """Begins the names of its folders."""
    tokenizer: TokenizerRun

    def __post_init__(self):
        if not re.fullmatch(r"[a-z0-9][a-z0-9.-]*", self.name):
            raise ValueError(
                f"an arm's name is small letters, digits, dots and dashes, but is '{self.name}'"
            )


@config
class StudyConfig:
    """Arms that differ in what is asked, each followed by the same priors and scored alike."""

    name: str
    arms: tuple[StudyArm, ...]
    priors: tuple[PriorRun, ...]
    """Sizes that follow every arm; the paper averages over four, 52M to 340M (its Table 4)."""
    seeds: int = 1
    """Every arm runs with the seeds 0 to this less 1, of tokenizer, priors and samples."""
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
        if self.seeds < 1:
            raise ValueError(f"seeds must be at least 1, but are {self.seeds}")


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
    """The same study on other pictures, with other seeds, or with ``scale`` times the steps.

    All that a training counts in steps is scaled, so that each part of it keeps its share; how
    often it is logged, saved and evaluated stays.

    Raises:
        UserError: a number is too small.
    """
    if scale <= 0:
        raise UserError(f"scale multiplies steps, so it must be above 0, but is {scale:g}")
    arms = (replace(arm, tokenizer=_adapted(arm.tokenizer, data, scale)) for arm in study.arms)
    priors = tuple(_in_steps(prior, scale) for prior in study.priors)
    seeds = study.seeds if seeds is None else seeds
    return replace(study, arms=tuple(arms), priors=priors, seeds=seeds)


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
        _with_quantizer(_in_steps(run, scale), quantizer),
        data=data or run.data,
        causal=replace(run.causal, anneal_steps=round(run.causal.anneal_steps * scale)),
        losses=replace(run.losses, critic=critic),
    )


def loss_forms() -> StudyConfig:
    """What the predictor reads and what its loss is (paper, Table 4), and noisy latents.

    The form near to LARP draws its codes, so a baseline that draws them stands beside it.
    """
    likelihood: dict[str, Any] = {"reads": "codes", "loss": "ce", "weight": 0.03}
    return _study(
        "loss-forms",
        _baseline(),
        _paper("l2-before"),
        _paper("l2-after", reads="codes", target="codes"),
        _paper("ce-after", **likelihood),
        _drawing(_baseline(), "drawn-baseline"),
        # The most that LARP replaces (its larp_tokenizer.yaml).
        _drawing(_paper("larp-style", **likelihood, scheduled_sampling=0.5), "larp-style"),
        _arm("noisy"),
    )


def weights() -> StudyConfig:
    """The weight lambda from 0 to 15 (paper, Figures 8 and 12)."""
    grid = (0.0, 0.5, 1.0, 2.0, PAPER_WEIGHT, 8.0, 15.0)
    return _study("weights", *(_paper(f"lambda-{weight:g}", weight=weight) for weight in grid))


def layers() -> StudyConfig:
    """The predictor's layers from 0 to 12, steps taken off for their FLOPs (paper, Figure 8)."""
    net = tokenizers.causal_demo().causal.transformer
    deeper = (
        _paper(f"layers-{depth}", transformer=replace(net, depth=depth))
        for depth in (1, 2, 4, 8, 12)
    )
    return _study("layers", _paper("layers-0", weight=0.0), *deeper)


def reads() -> StudyConfig:
    """What the predictor reads by what it predicts, at the demo's weight."""
    grid = [(reads, target) for reads in ("latents", "codes", "noisy")
            for target in ("latents", "detached", "codes")]  # fmt: skip
    arms = (_arm(f"{reads}-to-{target}", reads=reads, target=target) for reads, target in grid)
    return _study("reads", _baseline(), *arms)


def orders() -> StudyConfig:
    """The predictor's order of cells; priors read in raster order whatever it is."""
    names = ("raster", "columns", "snake", "spiral", "random")
    return _study("orders", _baseline(), *(_arm(name, order=name) for name in names))


def quantizers() -> StudyConfig:
    """Five quantizers of 8 bits a cell, each without and with the regulariser."""
    kinds = {
        "vq": tokenizers.causal_demo().model.quantizer,
        "fsq": FSQConfig(levels=(8, 8, 4)),
        "lfq": LFQConfig(bits=8),
        "bsq": BSQConfig(bits=8),
        "residual": ResidualVQConfig(levels=2, codebook_size=16, revive_after=20),
    }
    causal = tokenizers.causal_demo()
    arms = [
        StudyArm(name=f"{name}-{form}", tokenizer=_with_quantizer(run, quantizer))
        for name, quantizer in kinds.items()
        for form, run in (("baseline", tokenizers.without_causal(causal)), ("causal", causal))
    ]
    return _study("quantizers", *arms)


def _with_quantizer(run: TokenizerRun, quantizer: QuantizerConfig) -> TokenizerRun:
    return replace(run, model=replace(run.model, quantizer=quantizer))


def _drawing(arm: StudyArm, name: str) -> StudyArm:
    """An arm whose codes are drawn, at LARP's own temperature (its larp_tokenizer.yaml)."""
    drawing = replace(arm.tokenizer.model.quantizer, temperature=0.03)
    return StudyArm(name=name, tokenizer=_with_quantizer(arm.tokenizer, drawing))


def _baseline() -> StudyArm:
    return StudyArm(name="baseline", tokenizer=tokenizers.baseline_demo())


def _study(name: str, *arms: StudyArm) -> StudyConfig:
    return StudyConfig(name=name, arms=arms, priors=_priors())


def _priors() -> tuple[PriorRun, ...]:
    large = demo_prior()
    small = replace(large.transformer, width=64, depth=2, heads=2)
    return replace(large, transformer=small), large


def _arm(name: str, **causal: Any) -> StudyArm:
    """The demo's tokenizer with another regulariser."""
    base = tokenizers.causal_demo()
    return StudyArm(name=name, tokenizer=replace(base, causal=replace(base.causal, **causal)))


def _paper(name: str, **causal: Any) -> StudyArm:
    """The demo's tokenizer with the paper's regulariser, but for what is given."""
    return _arm(name, **{"weight": PAPER_WEIGHT, "reads": "latents", **causal})


STUDIES = table_of(loss_forms, weights, layers, reads, orders, quantizers)
