"""Recipes of studies: many small trainings, each study a question of the paper's.

The base is the demo's recipe, so that an arm takes minutes; its numbers are not the paper's. Those
of ``search`` are larger, for a GPU.
"""

from dataclasses import replace
from typing import Any

from cartok.prior.train import PriorRun
from cartok.recipes import grids, search, table_of
from cartok.recipes import tokenizer as tokenizers
from cartok.recipes.arms import StudyArm, StudyConfig, with_quantizer
from cartok.recipes.prior import demo as demo_prior
from cartok.tokenizer.quantize.binary import BSQConfig, LFQConfig
from cartok.tokenizer.quantize.fsq import FSQConfig
from cartok.tokenizer.quantize.residual import ResidualVQConfig

PAPER_WEIGHT = 4.0


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
        StudyArm(name=f"{name}-{form}", tokenizer=with_quantizer(run, quantizer))
        for name, quantizer in kinds.items()
        for form, run in (("baseline", tokenizers.without_causal(causal)), ("causal", causal))
    ]
    return _study("quantizers", *arms)


def _drawing(arm: StudyArm, name: str) -> StudyArm:
    """An arm whose codes are drawn, at LARP's own temperature (its larp_tokenizer.yaml)."""
    drawing = replace(arm.tokenizer.model.quantizer, temperature=0.03)
    return StudyArm(name=name, tokenizer=with_quantizer(arm.tokenizer, drawing))


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


STUDIES = table_of(
    loss_forms, weights, layers, reads, orders, quantizers, search.cifar_search,
    search.cifar_literal, search.cifar_dimensions, search.cifar_claim, search.tiny_claim,
    search.tiny_forms, grids.demo, grids.cifar_tradeoff,
)  # fmt: skip
