"""The search on CIFAR-10, which form of the regulariser helps over which baseline; and its claims.

Made for a GPU: 32 px at f=2, or 64 at f=4, so 256 tokens, as many as the paper has; a tokenizer of
10k steps and a prior of 5M parameters, each in minutes. Give ``--data`` CIFAR-10, and tiny-claim
Tiny ImageNet; other pictures of these sizes will do.
"""

from dataclasses import replace
from typing import Any

from cartok.core.job import EvaluationConfig, LoopConfig
from cartok.core.optim import OptimConfig
from cartok.data.views import View
from cartok.layers import TransformerConfig
from cartok.prior.train import PriorRun
from cartok.recipes.arms import StudyArm, StudyConfig, with_quantizer
from cartok.recipes.prior import small as small_prior
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
    guidances=(1.0, 1.5, 1.75, 2.0, 2.5, 3.0), scan_samples=4_096, size=224,
)  # fmt: skip
"""A guidance for each prior, then 10,000 samples; the judge sees pictures in full."""

_QUICK = replace(YARDSTICK, drawn_in="bf16")
"""Of studies whose samples would take a third of their time otherwise."""

CLAIM_SEED = 5
"""The first seed of a claim: those before it chose the form."""


def cifar_search() -> StudyConfig:
    """Which form of the regulariser helps, over the best baseline (32 px, for a GPU).

    Each arm is the first with one thing changed, of the regulariser or of the baseline; and some
    again with another number of codes or with a critic. ``wide`` is a predictor of four times the
    FLOPs.
    """
    base = _tokenizer()
    baselines = {
        "base": base,
        "codes-128": with_codes(base, 128),
        "codes-256": with_codes(base, 256),
        "codes-1024": with_codes(base, 1024),
        "beta-.25": _losses(base, commitment=0.25),
        "beta-4": _losses(base, commitment=4.0),
        "lr-1.6e-3": _faster(base),
        "steps-20k": replace(base, loop=replace(base.loop, steps=20_000)),
        "critic": _losses(base, critic=_CRITIC),
    }
    rate = _rate(base)
    wide = TransformerConfig(width=192, depth=2, heads=6, hidden_multiple=32)
    forms = {
        "latents-1": literal(base, weight=1.0),
        "latents-4": literal(base),
        "reads-codes-.5": _causal(base, reads="codes", weight=0.5),
        "noisy-.5": _causal(base, reads="noisy", weight=0.5),
        "noisy-1": _causal(base, reads="noisy", weight=1.0),
        "noisy-2": _causal(base, reads="noisy", weight=2.0),
        "noisy-1-detached": _causal(base, reads="noisy", weight=1.0, target="detached"),
        "rate-.02": _rate(base, weight=0.02),
        "rate-.05": rate,
        "rate-.1": _rate(base, weight=0.1),
        "rate-.2": _rate(base, weight=0.2),
        "rate-.05-wide": _causal(rate, transformer=wide),
        "rate-.05-codes-256": with_codes(rate, 256),
        "rate-.05-codes-1024": with_codes(rate, 1024),
        "rate-.05-critic": _losses(rate, critic=_CRITIC),
    }
    return _study("cifar-search", baselines | forms)


def cifar_literal() -> StudyConfig:
    """The paper's form beside fewer codes and a stronger commitment, five seeds (32 px)."""
    base = _tokenizer()
    arms = {
        "codes-512": base,
        "codes-256": with_codes(base, 256),
        "beta-4": _losses(base, commitment=4.0),
        "latents-4": literal(base),
    }
    return _study("cifar-literal", arms, seeds=5)


def cifar_dimensions() -> StudyConfig:
    """Codes of few dimensions, with the paper's form and without, two seeds (32 px, for a GPU).

    Strong commitment and the paper's form both lower the number of dimensions that codes spread
    over; here it is set. In a trial the paper's form also shrank latents into a cap of the sphere,
    which ``live`` arms do not reward: their loss is 1 - R2, and .5 of it about 4 of the squared
    error. At the learning rate that the search found better.
    """
    base = _faster(_tokenizer())
    arms = {"codes-256": with_codes(base, 256)}
    for dim in (8, 5, 4, 3):
        arms[f"dim-{dim}"] = _dims(base, dim)
        arms[f"dim-{dim}-latents-4"] = literal(_dims(base, dim))
    arms["beta-4"] = _losses(base, commitment=4.0)
    arms["lr-3.2e-3"] = _rated(base, 3.2e-3)
    for dim in (8, 4):
        arms[f"dim-{dim}-live-.5"] = _causal(literal(_dims(base, dim), weight=0.5), scale="live")
    arms["dim-4-rate-.05"] = _rate(_dims(base, 4))
    arms["dim-4-codes-256"] = with_codes(_dims(base, 4), 256)
    arms["dim-4-codes-1024"] = with_codes(_dims(base, 4), 1024)
    return _study("cifar-dimensions", arms, seeds=2)


def cifar_claim() -> StudyConfig:
    """The chosen form and the baseline's curve, five seeds (32 px, for a GPU)."""
    return _claim("cifar-claim", _faster(_tokenizer()), (128, 256, 512), (small_prior(),), seeds=5)


def tiny_claim() -> StudyConfig:
    """The same form on 64 pixels at f=4, three seeds, priors of two sizes (for a GPU)."""
    large = TransformerConfig(width=384, depth=8, heads=6, dropout=0.1)
    priors = (small_prior(), replace(small_prior(), transformer=large))
    codes = (64, 512, 1024)
    return _claim("tiny-claim", _tiny_tokenizer(), codes, priors, seeds=3, held=5_000)


def tiny_forms() -> StudyConfig:
    """Weaker weights, the rate, and a critic, on 64 pixels at f=4 (for a GPU).

    There the paper's form with lambda 4 loses reconstruction that its tokens do not win back, and
    a critic is what the paper has beside it.
    """
    base = with_codes(_tiny_tokenizer(), 1024)
    critic = _losses(base, critic=_CRITIC)
    arms = {
        "base": base,
        "latents-.25": literal(base, weight=0.25),
        "latents-1": literal(base, weight=1.0),
        "rate-.05": _rate(base),
        "critic": critic,
        "critic-latents-1": literal(critic, weight=1.0),
        "critic-latents-4": literal(critic),
    }
    return _study("tiny-forms", arms, yardstick=replace(_QUICK, held=5_000))


def _claim(
    name: str, base: TokenizerRun, codes: tuple[int, ...], priors: tuple[PriorRun, ...],
    seeds: int, held: int = 10_000,
) -> StudyConfig:  # fmt: skip
    """Baselines of several codebook sizes, and the chosen form at the largest.

    The regulariser costs some reconstruction, and so do fewer codes: a curve to read it against,
    which is to reach further than the form does.
    """
    arms = {f"codes-{number}": with_codes(base, number) for number in codes}
    arms[f"causal-{codes[-1]}"] = _chosen(with_codes(base, codes[-1]))
    yardstick = replace(_QUICK, held=held)
    return _study(
        name, arms, priors=priors, seeds=seeds, first_seed=CLAIM_SEED,
        yardstick=yardstick,
    )  # fmt: skip


def _study(
    name: str, arms: dict[str, TokenizerRun], *, priors: tuple[PriorRun, ...] = (), seeds: int = 1,
    first_seed: int = 0, yardstick: Yardstick = YARDSTICK,
) -> StudyConfig:  # fmt: skip
    """Without priors, arms are followed by the small one."""
    made = tuple(StudyArm(name=arm, tokenizer=run) for arm, run in arms.items())
    return StudyConfig(
        name=name, arms=made, priors=priors or (small_prior(),), seeds=seeds, first_seed=first_seed,
        yardstick=yardstick,
    )  # fmt: skip


def _chosen(run: TokenizerRun) -> TokenizerRun:
    """The form that goes into the claims; provisional until cifar-dimensions has run."""
    return literal(run)


def literal(run: TokenizerRun, weight: float = 4.0) -> TokenizerRun:
    """The paper's own form (section 4.1), which reads latents."""
    return _causal(run, reads="latents", weight=weight)


def _rate(run: TokenizerRun, weight: float = 0.05) -> TokenizerRun:
    """Nats of noisy latents under the predictor's Gaussian."""
    return _causal(run, reads="noisy", loss="rate", weight=weight)


_CRITIC = CriticConfig(weight=0.5, start=3_000, ramp=200)


def _tokenizer() -> TokenizerRun:
    """The baseline; without a critic, the perceptual term at full weight."""
    return TokenizerRun(
        data="photos",
        view=View(size=32, min_scale=1.0, flip=True),
        model=TokenizerConfig(
            codec=CodecConfig(
                channels=64, multipliers=(1, 2), encoder_blocks=1, decoder_blocks=1,
                latent_channels=128,
            ),
            quantizer=VQConfig(codebook_size=512, revive_after=100),
        ),
        causal=CausalConfig(
            weight=0.0,
            anneal_steps=100,  # each weight is a step that no graph replays
            watch=False,  # a probe measures every arm alike when it has ended
            twin=False,
            transformer=TransformerConfig(width=96, depth=2, heads=3, hidden_multiple=32),
        ),
        losses=LossConfig(pixel_l1=1.0, commitment=1.0, critic=CriticConfig(weight=0.0)),
        optim=OptimConfig(lr=8e-4, warmup_steps=500, warmup_from=1e-5, schedule="cosine"),
        loop=LoopConfig(
            steps=10_000, batch=128, precision="bf16", log_every=100, save_every=5_000,
            replay=True, trackers=(),
        ),
        compile=True,
        evaluations=(EvaluationConfig(name="reconstruction", every=5_000, num=1_000),),
        workers=2,
    )  # fmt: skip


def _tiny_tokenizer() -> TokenizerRun:
    """The baseline for 64 pixels."""
    return replace(
        coarse_tokenizer(), view=View(size=64, min_scale=0.8, flip=True), workers=4,
    )  # fmt: skip


def coarse_tokenizer() -> TokenizerRun:
    """The baseline at f=4: halved once more, by a stem that stacks pixels; wider (32 px)."""
    base = _faster(_tokenizer())
    codec = replace(base.model.codec, channels=96, stem=2)
    return replace(base, model=replace(base.model, codec=codec))


def _faster(run: TokenizerRun) -> TokenizerRun:
    """At the learning rate that did better in the search."""
    return _rated(run, 1.6e-3)


def _rated(run: TokenizerRun, rate: float) -> TokenizerRun:
    return replace(run, optim=replace(run.optim, lr=rate))


def _losses(run: TokenizerRun, **changes: Any) -> TokenizerRun:
    return replace(run, losses=replace(run.losses, **changes))


def with_codes(run: TokenizerRun, number: int) -> TokenizerRun:
    """The run with a codebook of another size."""
    return _quantizer(run, codebook_size=number)


def _dims(run: TokenizerRun, number: int) -> TokenizerRun:
    return _quantizer(run, dim=number)


def _quantizer(run: TokenizerRun, **changes: Any) -> TokenizerRun:
    assert isinstance(run.model.quantizer, VQConfig)
    return with_quantizer(run, replace(run.model.quantizer, **changes))


def _causal(run: TokenizerRun, **changes: Any) -> TokenizerRun:
    return replace(run, causal=replace(run.causal, **changes))
