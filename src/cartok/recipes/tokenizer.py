"""Recipes of stage 1. A pair differs in one number, the weight of the causal term."""

from dataclasses import replace

from cartok.core.job import EvaluationConfig, LoopConfig
from cartok.core.optim import OptimConfig
from cartok.data.views import View
from cartok.layers import TransformerConfig
from cartok.recipes import table_of
from cartok.tokenizer.causal import CausalConfig
from cartok.tokenizer.codec import CodecConfig
from cartok.tokenizer.critic import CriticConfig
from cartok.tokenizer.losses import LossConfig
from cartok.tokenizer.model import TokenizerConfig
from cartok.tokenizer.quantize.vq import VQConfig
from cartok.tokenizer.train import TokenizerRun


def causal_16k() -> TokenizerRun:
    """The paper's CRT tokenizer: 256 px, f=16, 256 tokens of 16,384 codes, 387k steps."""
    every = 10_000
    return TokenizerRun(
        data="",
        view=View(size=256, min_scale=0.8, flip=True),
        losses=LossConfig(critic=CriticConfig(norm="batch")),
        loop=LoopConfig(
            steps=400_000, batch=128, precision="bf16", log_every=100, save_every=5_000
        ),
        evaluations=(
            EvaluationConfig(name="reconstruction", every=every, num=5_000),
            EvaluationConfig(name="pictures", every=every, num=16),
        ),
        workers=8,
    )


def baseline_16k() -> TokenizerRun:
    """The paper's baseline: as causal-16k without the regulariser, 400k steps."""
    return without_causal(causal_16k())


def causal_demo() -> TokenizerRun:
    """The demo's CRT tokenizer: 32 px, f=4, 64 tokens of 256 codes, minutes on a laptop."""
    optim = OptimConfig(lr=3e-3, warmup_steps=50, warmup_from=1e-4, schedule="cosine")
    return TokenizerRun(
        data="photos",
        view=View(size=32, min_scale=1.0, flip=True),
        model=TokenizerConfig(
            codec=CodecConfig(
                channels=32,
                multipliers=(1, 2),
                encoder_blocks=1,
                decoder_blocks=1,
                attention=False,
                latent_channels=64,
                stem=2,
                groups=8,
            ),
            quantizer=VQConfig(codebook_size=256, revive_after=20),
        ),
        causal=CausalConfig(
            weight=1.0,
            anneal_steps=100,
            reads="noisy",
            transformer=TransformerConfig(width=64, depth=2, heads=2, hidden_multiple=32),
        ),
        # The perceptual network hardly sees colour, which hundreds of steps must get right, too.
        losses=LossConfig(pixel_l1=1.0, commitment=1.0, critic=CriticConfig(weight=0.0)),
        optim=optim,
        loop=LoopConfig(steps=700, batch=16, log_every=10, save_every=250),
        evaluations=(EvaluationConfig(name="reconstruction", every=350, num=256),),
    )


def baseline_demo() -> TokenizerRun:
    """The demo's baseline: as causal-demo without the regulariser."""
    return without_causal(causal_demo())


def causal_toy() -> TokenizerRun:
    """Seconds, for tests: 16 px, f=4, 16 tokens of 32 codes, with a critic."""
    # Nothing is taken from the demo: tuning that must not move the golden curve of the tests.
    optim = OptimConfig(lr=2e-3, warmup_steps=2, warmup_from=1e-4, schedule="cosine")
    return TokenizerRun(
        data="photos",
        view=View(size=16, min_scale=1.0, flip=True),
        model=TokenizerConfig(
            codec=CodecConfig(
                channels=8,
                multipliers=(1, 2),
                encoder_blocks=1,
                decoder_blocks=1,
                latent_channels=16,
                stem=2,
                groups=4,
            ),
            quantizer=VQConfig(codebook_size=32, dim=4, revive_after=5),
        ),
        causal=CausalConfig(
            weight=1.0,
            anneal_steps=4,
            reads="noisy",
            transformer=TransformerConfig(width=16, depth=2, heads=2, hidden_multiple=16),
        ),
        losses=LossConfig(
            perceptual=0.0, critic=CriticConfig(channels=8, layers=2, start=6, ramp=4, warm=3)
        ),
        optim=optim,
        loop=LoopConfig(steps=20, batch=8, log_every=1, save_every=10, trackers=()),
        evaluations=(EvaluationConfig(name="reconstruction", every=10, num=16),),
    )


def baseline_toy() -> TokenizerRun:
    """As causal-toy without the regulariser."""
    return without_causal(causal_toy())


def without_causal(run: TokenizerRun) -> TokenizerRun:
    """The same recipe with the contribution switched off: one weight at zero."""
    return replace(run, causal=replace(run.causal, weight=0.0))


TOKENIZERS = table_of(
    causal_16k, baseline_16k, causal_demo, baseline_demo, causal_toy, baseline_toy
)
