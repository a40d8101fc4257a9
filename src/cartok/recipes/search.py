"""Recipes of the search on CIFAR-10: which form of the regulariser helps, over which baseline.

Made for a GPU: 32 px, f=2, 256 tokens, as many as the paper has; a tokenizer of 10k steps and a
prior of 5M parameters, each in minutes. Give ``--data`` CIFAR-10; other pictures of 32 px will do.
"""

from dataclasses import replace
from typing import Any

from cartok.core.job import EvaluationConfig, LoopConfig
from cartok.core.optim import OptimConfig
from cartok.data.views import View
from cartok.layers import TransformerConfig
from cartok.prior.train import PriorRun
from cartok.recipes.arms import StudyArm, StudyConfig
from cartok.recipes.yardstick import Yardstick
from cartok.tokenizer.causal import CausalConfig
from cartok.tokenizer.codec import CodecConfig
from cartok.tokenizer.critic import CriticConfig
from cartok.tokenizer.losses import LossConfig
from cartok.tokenizer.model import TokenizerConfig
from cartok.tokenizer.quantize.vq import VQConfig
from cartok.tokenizer.train import TokenizerRun

YARDSTICK = Yardstick(
    samples=10_000, reference=25_000, held=10_000,
    guidances=(1.0, 1.5, 2.0, 2.5, 3.0, 4.0), scan_samples=2_048, size=224,
)  # fmt: skip
"""A guidance for each prior, then 10,000 samples; the judge sees pictures in full."""


def cifar_baselines() -> StudyConfig:
    """Which baseline is the best: commitment, codes, their update, rate (32 px, for a GPU).

    Each arm is the first with one thing changed.
    """
    base = _tokenizer()
    arms = {
        "base": base,
        "beta-.25": _losses(base, commitment=0.25),
        "beta-2": _losses(base, commitment=2.0),
        "ema": _quantizer(base, codebook="ema"),
        "codes-256": _quantizer(base, codebook_size=256),
        "codes-1024": _quantizer(base, codebook_size=1024),
        "lr-2e-4": replace(base, optim=replace(base.optim, lr=2e-4)),
        "lr-8e-4": replace(base, optim=replace(base.optim, lr=8e-4)),
        "steps-20k": replace(base, loop=replace(base.loop, steps=20_000)),
        "no-l1": _losses(base, pixel_l1=0.0),
    }
    return _study("cifar-baselines", arms)


def cifar_forms() -> StudyConfig:
    """What the predictor reads, its target and weight, over one baseline (32 px, for a GPU)."""
    base = _tokenizer()
    arms = {
        "base": base,
        "latents-4": _causal(base, reads="latents", weight=4.0),
        "latents-1": _causal(base, reads="latents", weight=1.0),
        "noisy-.5": _causal(base, reads="noisy", weight=0.5),
        "noisy-1": _causal(base, reads="noisy", weight=1.0),
        "noisy-2": _causal(base, reads="noisy", weight=2.0),
        "codes-.5": _causal(base, reads="codes", weight=0.5),
        "codes-1": _causal(base, reads="codes", weight=1.0),
        "noisy-1-detached": _causal(base, reads="noisy", weight=1.0, target="detached"),
    }
    return _study("cifar-forms", arms)


def _study(name: str, arms: dict[str, TokenizerRun]) -> StudyConfig:
    made = tuple(StudyArm(name=arm, tokenizer=run) for arm, run in arms.items())
    return StudyConfig(name=name, arms=made, priors=(_prior(),), yardstick=YARDSTICK)


def _tokenizer() -> TokenizerRun:
    """The baseline; without a critic, the perceptual term at full weight."""
    return TokenizerRun(
        data="photos",
        view=View(size=32, min_scale=1.0, flip=True),
        model=TokenizerConfig(
            codec=CodecConfig(
                channels=64, multipliers=(1, 2), encoder_blocks=2, decoder_blocks=2,
                latent_channels=128,
            ),
            quantizer=VQConfig(codebook_size=512, revive_after=100),
        ),
        causal=CausalConfig(
            weight=0.0,
            anneal_steps=500,
            transformer=TransformerConfig(width=256, depth=2, heads=4),
            twin_transformer=TransformerConfig(width=128, depth=1, heads=2),
        ),
        losses=LossConfig(pixel_l1=1.0, commitment=1.0, critic=CriticConfig(weight=0.0)),
        optim=OptimConfig(lr=4e-4, warmup_steps=500, warmup_from=1e-5, schedule="cosine"),
        loop=LoopConfig(
            steps=10_000, batch=128, precision="bf16", log_every=100, save_every=5_000,
            replay=True, trackers=(),
        ),
        evaluations=(EvaluationConfig(name="reconstruction", every=5_000, num=1_000),),
        workers=2,
    )  # fmt: skip


def _prior() -> PriorRun:
    """4.8M parameters; 10k steps."""
    return PriorRun(
        transformer=TransformerConfig(width=256, depth=6, heads=4, dropout=0.1),
        optim=OptimConfig(
            lr=1e-3, warmup_steps=500, warmup_from=1e-5, schedule="cosine", weight_decay=0.05
        ),
        loop=LoopConfig(
            steps=10_000, batch=128, precision="bf16", log_every=100, save_every=5_000,
            replay=True, trackers=(),
        ),
        evaluations=(EvaluationConfig(name="validation", every=1_000, num=1_024),),
    )  # fmt: skip


def _losses(run: TokenizerRun, **changes: Any) -> TokenizerRun:
    return replace(run, losses=replace(run.losses, **changes))


def _quantizer(run: TokenizerRun, **changes: Any) -> TokenizerRun:
    quantizer = replace(run.model.quantizer, **changes)
    return replace(run, model=replace(run.model, quantizer=quantizer))


def _causal(run: TokenizerRun, **changes: Any) -> TokenizerRun:
    return replace(run, causal=replace(run.causal, **changes))
