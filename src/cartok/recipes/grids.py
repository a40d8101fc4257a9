"""Grids that laws are fitted to: tokenizers by sizes of a prior and lengths of its training.

Every length is a training of its own with its own schedule, as the paper's are (section 3): a point
on the way of a longer one would be worse than what that length can reach.
"""

from collections.abc import Sequence
from dataclasses import replace
from itertools import product

from cartok.core.errors import UserError
from cartok.layers import TransformerConfig
from cartok.prior.train import PriorRun
from cartok.recipes.arms import StudyArm, StudyConfig
from cartok.recipes.prior import demo as demo_prior
from cartok.recipes.prior import small as small_prior
from cartok.recipes.search import coarse_tokenizer, literal, with_codes
from cartok.recipes.tokenizer import baseline_demo
from cartok.recipes.yardstick import Yardstick
from cartok.tokenizer.codec import check_size
from cartok.tokenizer.quantize.vq import VQConfig
from cartok.tokenizer.train import TokenizerRun

CODES = 1024
"""Of the tokenizer that is shown more pixels, and of the regularised one."""


def demo() -> StudyConfig:
    """Two codebooks, and one of them at more tokens, by five lengths: minutes on two cores."""
    base = baseline_demo()
    short = replace(
        base,
        view=replace(base.view, size=16),
        loop=replace(base.loop, steps=200, log_every=20, save_every=200),
        optim=replace(base.optim, warmup_steps=20),
        evaluations=(),
    )
    codes = {number: with_codes(short, number) for number in (16, 64)}
    arms = [StudyArm(name=f"codes-{number}", tokenizer=run) for number, run in codes.items()]
    arms.append(StudyArm(name="codes-64-24px", tokenizer=codes[64], pixels=24))
    net = TransformerConfig(width=32, depth=2, heads=2, dropout=0.1, hidden_multiple=32)
    prior = replace(demo_prior(), transformer=net)
    return StudyConfig(
        name="demo", arms=tuple(arms), priors=lengths_of(prior, (20, 40, 80, 160, 320)), apart=True,
    )  # fmt: skip


def cifar_tradeoff() -> StudyConfig:
    """Codebooks, tokens per picture and the regulariser by sizes and lengths (32 px, for a GPU).

    At f=4 a picture of 32 pixels is 64 tokens; of 48 and 64 pixels, 144 and 256 of the same
    tokenizer (paper, Figures 5 and 6).
    """
    base = coarse_tokenizer()
    arms = [
        StudyArm(name=f"codes-{number}", tokenizer=with_codes(base, number))
        for number in (64, 256, CODES, 4096)
    ]
    large = with_codes(base, CODES)
    arms += [
        StudyArm(name=f"codes-{CODES}-{pixels}px", tokenizer=large, pixels=pixels)
        for pixels in (48, 64)
    ]
    arms.append(StudyArm(name=f"causal-{CODES}", tokenizer=literal(large)))
    full = replace(small_prior(), compile=False)
    sizes = full, _narrower(full, width=128, depth=4), _narrower(full, width=64, depth=2)
    lengths = 500, 1_000, 2_000, 4_000, 8_000
    return StudyConfig(
        name="cifar-tradeoff", arms=tuple(arms), seeds=2, apart=True,
        priors=tuple(prior for size in sizes for prior in lengths_of(size, lengths)),
        yardstick=Yardstick(
            samples=10_000, reference=25_000, held=10_000, guidances=(1.0, 1.25, 1.5, 2.0, 2.5),
            scan_samples=2_048, size=224, drawn_in="bf16",
        ),
    )  # fmt: skip


def grid(
    base: TokenizerRun, priors: Sequence[PriorRun], yardstick: Yardstick, *,
    codes: Sequence[int] = (), pixels: Sequence[int] = (), weights: Sequence[float] = (),
    steps: Sequence[int] = (),
) -> StudyConfig:  # fmt: skip
    """Every combination of codebooks, pixels and weights of the causal term, sizes and lengths.

    What is empty stays as ``base`` and ``priors`` have it.

    Raises:
        UserError: a quantizer without a learnt codebook is to have other codes; pixels do not fit
            the tokenizer; a value comes twice, or is negative.
    """
    axes = {"codes": codes, "pixels": pixels, "weights": weights, "steps": steps}
    for name, values in axes.items():
        twice = next((value for value in values if values.count(value) > 1), None)
        if twice is not None:
            raise UserError(f"--{name} are all different, but {twice:g} came twice; give it once")
        if values and min(values) < (0 if name == "weights" else 1):
            raise UserError(f"--{name} are above 0, but {min(values):g} came; leave it out")
    kind = base.model.quantizer.kind
    if codes and not isinstance(base.model.quantizer, VQConfig):
        raise UserError(
            f"--codes are sizes of a codebook that is learnt, but {kind} has none; leave them out, "
            "or take a recipe with vq"
        )
    for side in pixels:
        check_size(side, side, base.model.codec.factor)
    arms = []
    for number, weight, side in product(codes or (0,), weights or (None,), pixels or (0,)):
        run = with_codes(base, number) if number else base
        parts = [f"codes-{number}" if number else kind]
        if weight is not None:
            run = replace(run, causal=replace(run.causal, weight=weight))
            parts.append(f"lambda-{weight:g}")
        shown = 0 if side == base.view.size else side
        parts += [f"{side}px"] if shown else []
        arms.append(StudyArm(name="-".join(parts), tokenizer=run, pixels=shown))
    made = [prior for size in priors for prior in (lengths_of(size, steps) if steps else [size])]
    return StudyConfig(
        name="grid", arms=tuple(arms), priors=tuple(made), apart=True, yardstick=yardstick
    )


def _narrower(prior: PriorRun, width: int, depth: int) -> PriorRun:
    """A smaller size, its learning rate in inverse proportion to its width."""
    net, optim = prior.transformer, prior.optim
    heads, faster = width * net.heads // net.width, net.width / width
    return replace(
        prior,
        transformer=replace(net, width=width, depth=depth, heads=heads),
        optim=replace(optim, lr=optim.lr * faster),
    )


def lengths_of(prior: PriorRun, steps: Sequence[int]) -> tuple[PriorRun, ...]:
    """The training at several lengths, warm-up and evaluations in proportion."""
    share = prior.optim.warmup_steps / prior.loop.steps
    return tuple(
        replace(
            prior,
            optim=replace(prior.optim, warmup_steps=max(1, round(number * share))),
            loop=replace(prior.loop, steps=number),
            evaluations=tuple(replace(e, every=max(1, number // 4)) for e in prior.evaluations),
        )
        for number in steps
    )
