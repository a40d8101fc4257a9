"""Recipes of stage 1. A pair differs in one number, the weight of the causal term."""

from dataclasses import replace

from cartok.core.job import EvaluationConfig, LoopConfig
from cartok.core.optim import OptimConfig
from cartok.data.views import View
from cartok.layers import TransformerConfig
from cartok.recipes import table_of
from cartok.tokenizer.alignment import AlignmentConfig
from cartok.tokenizer.causal import CausalConfig
from cartok.tokenizer.codec import CodecConfig
from cartok.tokenizer.critic import CriticConfig
from cartok.tokenizer.losses import LossConfig
from cartok.tokenizer.model import TokenizerConfig
from cartok.tokenizer.quantize.vq import VQConfig
from cartok.tokenizer.train import TokenizerRun


def causal_16k() -> TokenizerRun:
    """The paper's CRT tokenizer: 256 px, f=16, 256 tokens of 16,384 codes, 400k steps or fewer.

    Every number is the paper's (section 3, A.1). Where it is silent: crops of .8 to 1 and flips,
    clipping at 1, bfloat16 and no averaged weights as in LlamaGen; a hinge critic at a constant
    weight, which its plotted losses are those of; batch norm in it; what the regulariser reads and
    predicts: see ``CausalConfig``. Eight A100 took 3 days; LPIPS downloads VGG16 once (553 MB), or
    takes ``--losses.perceptual-weights FILE``; ``--losses.perceptual-network effnet-lite2`` needs
    nothing.
    """
    every = 10_000
    return TokenizerRun(
        data="",
        view=View(size=256, min_scale=0.8, flip=True),
        losses=LossConfig(
            perceptual_network="lpips-vgg", critic=CriticConfig(norm="batch")
        ),
        loop=LoopConfig(
            steps=400_000, batch=128, precision="bf16", log_every=100, save_every=5_000,
            on_non_finite="recover",
        ),
        compile=True,
        evaluations=(
            EvaluationConfig(name="reconstruction", every=every, num=5_000),
            EvaluationConfig(name="pictures", every=every, num=16),
            EvaluationConfig(name="probe", every=5 * every, num=2_000),
        ),
        workers=8,
    )  # fmt: skip


def baseline_16k() -> TokenizerRun:
    """The paper's baseline: as causal-16k without the regulariser, 400k steps."""
    return without_causal(causal_16k())


def causal_opt() -> TokenizerRun:
    """The paper's best: 256 px, f=16, 256 tokens of 131,072 codes, twice the decoder, 800k steps.

    How the decoder is doubled is not stated: here 8 blocks a level for 3, 86M parameters for 42M.
    800k steps are those of the CRT tokenizer itself, so none are taken off.
    """
    run = _with_codes(causal_16k(), 131_072)
    codec = replace(run.model.codec, decoder_blocks=8)
    return replace(
        run,
        model=replace(run.model, codec=codec),
        loop=replace(run.loop, steps=800_000),
        equal_compute=False,
    )


def baseline_opt() -> TokenizerRun:
    """What the paper does not show: as causal-opt without the regulariser."""
    return without_causal(causal_opt())


def baseline_1k() -> TokenizerRun:
    """The paper's small codebook: as baseline-16k with 1,024 codes."""
    return _with_codes(baseline_16k(), 1_024)


def baseline_131k() -> TokenizerRun:
    """The paper's large codebook: as baseline-16k with 131,072 codes."""
    return _with_codes(baseline_16k(), 131_072)


def causal_16k_400() -> TokenizerRun:
    """Trained at its own resolution: 320 px, f=16, 400 tokens of 16,384 codes (paper, Table 3).

    The paper's usual 400 tokens need no training: ``cartok extract --size 320`` of causal-16k.
    """
    return _at(causal_16k(), 320)


def baseline_16k_400() -> TokenizerRun:
    """As causal-16k-400 without the regulariser."""
    return without_causal(causal_16k_400())


def causal_16k_576() -> TokenizerRun:
    """Trained at its own resolution: 384 px, f=16, 576 tokens of 16,384 codes (paper, Table 3).

    The paper's usual 576 tokens need no training: ``cartok extract --size 384`` of causal-16k.
    """
    return _at(causal_16k(), 384)


def baseline_16k_576() -> TokenizerRun:
    """As causal-16k-576 without the regulariser."""
    return without_causal(causal_16k_576())


def causal_lsun() -> TokenizerRun:
    """One class of LSUN: 256 px, f=16, 256 tokens of 16,384 codes; as causal-16k (paper, 5c).

    The paper trains one on each of cats (1.66M pictures), horses (2.0M) and bedrooms (3.02M): give
    ``--data`` a flat folder of one. Fewer held-out pictures are looked at, since LSUN has 300.
    """
    run = causal_16k()
    evaluations = tuple(replace(e, num=min(e.num, 300)) for e in run.evaluations)
    return replace(run, evaluations=evaluations)


def baseline_lsun() -> TokenizerRun:
    """As causal-lsun without the regulariser."""
    return without_causal(causal_lsun())


def dino_critic_16k() -> TokenizerRun:
    """As causal-16k with a critic that judges by DINOv2's features; no part of the paper."""
    run = causal_16k()
    critic = replace(run.losses.critic, kind="dino", lecam=0.001, warm=2_000)
    return replace(run, losses=replace(run.losses, critic=critic))


def aligned_16k() -> TokenizerRun:
    """As causal-16k with latents aligned to DINOv2's features; no part of the paper."""
    run = causal_16k()
    alignment = AlignmentConfig(weight=0.5)
    return replace(run, losses=replace(run.losses, alignment=alignment))


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
            twin_transformer=TransformerConfig(width=32, depth=1, heads=1, hidden_multiple=32),
        ),
        # The perceptual network hardly sees colour, which hundreds of steps must get right, too.
        losses=LossConfig(pixel_l1=1.0, commitment=1.0, critic=CriticConfig(weight=0.0)),
        optim=optim,
        loop=LoopConfig(steps=700, batch=16, log_every=10, save_every=250),
        evaluations=(
            EvaluationConfig(name="reconstruction", every=350, num=256),
            EvaluationConfig(name="probe", every=700, num=256),
        ),
    )


def baseline_demo() -> TokenizerRun:
    """The demo's baseline: as causal-demo without the regulariser."""
    return without_causal(causal_demo())


def causal_toy() -> TokenizerRun:
    """Seconds, for tests, whose pictures mean nothing: 16 px, f=4, 16 tokens of 32 codes."""
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
            twin_transformer=TransformerConfig(width=16, depth=1, heads=2, hidden_multiple=16),
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


def _with_codes(run: TokenizerRun, codebook_size: int) -> TokenizerRun:
    quantizer = replace(run.model.quantizer, codebook_size=codebook_size)
    return replace(run, model=replace(run.model, quantizer=quantizer))


def _at(run: TokenizerRun, size: int) -> TokenizerRun:
    return replace(run, view=replace(run.view, size=size))


TOKENIZERS = table_of(
    causal_16k, baseline_16k, causal_opt, baseline_opt, baseline_1k, baseline_131k,
    causal_16k_400, baseline_16k_400, causal_16k_576, baseline_16k_576, causal_lsun, baseline_lsun,
    dino_critic_16k, aligned_16k, causal_demo, baseline_demo, causal_toy, baseline_toy,
)  # fmt: skip
