"""Names what is wrong with a tokenizer's codebook, and what to change, from its numbers alone."""

from dataclasses import dataclass

from cartok.tokenizer.findings import Curve, Finding, early, late

IDLE_CODES, RARE_CODES = 0.1, 0.5
"""Shares of the codes within reach: below the first a codebook has collapsed, below the second most
of it is idle. Healthy runs use .8 and more."""
TREND = 1.2
"""Rise or fall of what the codebook is used by, from the middle of a run to its end, that is more
than noise."""
LEAST_PERPLEXITY = 4.0
"""Codes that carry under two bits a token; collapsed runs have 1 to 2."""
COARSE = 0.5
"""Share of the latents' variance that quantisation drops: .02 to .2 in healthy runs, .4 at the
start; at 1 the codes' mean says as much as the codes."""


@dataclass(frozen=True)
class _Remedies:
    """What a kind of quantizer's config has, in words that go on."""

    against_disuse: str
    against_distance: str
    number: str
    """The field that makes codes more or fewer."""


_LEARNED = _Remedies(
    "set model.quantizer.revive_after to some tens of steps, ",
    "losses.codebook and losses.commitment, or ", "model.quantizer.codebook_size",
)  # fmt: skip
_BINARY = _Remedies(
    "raise losses.entropy, ", "losses.commitment, or ", "model.quantizer.bits"
)  # fmt: skip
_REMEDIES = {"fsq": _Remedies("", "", "model.quantizer.levels"), "lfq": _BINARY, "bsq": _BINARY}
"""Of the kinds whose codes are not learned."""


@dataclass(frozen=True, kw_only=True)
class CodeUse:
    """How a codebook was used; an empty curve is what was not measured."""

    usage: Curve = ()
    """The share of codes that occur, at every look."""
    perplexity: Curve = ()
    reachable: float = 1.0
    """The share that would occur if as many tokens were even: fewer tokens than codes may have been
    looked at. 0 if nobody knows; then usage says nothing."""
    warm_up: int = 0
    """Steps over which the learning rate rises."""
    kind: str = "vq"
    """The quantizer's."""


def code_collapse(use: CodeUse) -> list[Finding]:
    """Finds a codebook of which little is used, beside what could be."""
    usage, reachable = use.usage, use.reachable
    if usage and late(usage) < RARE_CODES * reachable:
        seen = f"only {late(usage):.1%} of the codes occur"
        seen += f", of {reachable:.1%} that could" if reachable < 0.995 else ""
        seen += _history(usage, "{:.1%}")
        return [_disuse(use, usage, seen, late(usage) < IDLE_CODES * reachable)]
    if use.perplexity and late(use.perplexity) < LEAST_PERPLEXITY:
        seen = f"the codes used are as few as {late(use.perplexity):.1f} equal ones"
        seen += _history(use.perplexity, "{:.1f}")
        return [_disuse(use, use.perplexity, seen, True)]
    return []


def coarse_codes(
    quantisation: Curve, variance: Curve, weight: float, kind: str = "vq"
) -> list[Finding]:
    """Finds codes that are far from the latents they stand for; ``weight``: what pulls them near.

    Zero if no loss moves codes and none is revived. ``kind`` is the quantizer's.
    """
    dropped = late(quantisation) / late(variance) if late(variance) else 0.0
    if not weight:
        return [Finding(
            "dead gradient", "fault", "the codebook's loss has the weight 0 and no code is revived",
            "codes stay where they were drawn; only latents can come to them",
            "raise losses.codebook",
        )]  # fmt: skip
    if dropped <= COARSE:
        return []
    remedies = _REMEDIES.get(kind, _LEARNED)
    return [Finding(
        "coarse codes", "watch",
        f"quantisation drops {dropped:.0%} of the latents' variance (step {quantisation[-1][0]})",
        "codes are far from the latents they stand for, as when they get no gradient",
        f"raise {remedies.against_distance}{remedies.number}",
    )]  # fmt: skip


def _disuse(use: CodeUse, curve: Curve, seen: str, is_little: bool) -> Finding:
    """Of a codebook; one that is in use more and more, or only warms up, has not collapsed."""
    growth, remedies = _growth(curve), _REMEDIES.get(use.kind, _LEARNED)
    means = "tokens say little, and a prior that predicts them well has learned little"
    change = f"{remedies.against_disuse}lower optim.lr, or take fewer codes ({remedies.number})"
    may_be_early = growth > TREND or (growth >= 1 / TREND and curve[-1][0] < use.warm_up)
    if may_be_early:
        why = "ever more codes are in use" if growth > TREND else "the learning rate still rises"
        means = f"{why}, so that it may be a slow start"
        change = f"train on (optim.warmup_steps is {use.warm_up}) and look again; else {change}"
    elif growth < 1 / TREND:
        means = f"ever fewer codes are in use: {means}"
    lasts = is_little and not may_be_early
    fault, severity = ("codebook collapse", "fault") if lasts else ("idle codes", "watch")
    return Finding(fault, severity, seen, means, change)


def _growth(curve: Curve) -> float:
    """The end over the middle; 1 of a single look."""
    middle = late(curve[: (len(curve) + 1) // 2])
    return late(curve) / middle if middle else 1.0


def _history(curve: Curve, form: str) -> str:
    """Where a value of several looks came from, in words."""
    half = curve[: (len(curve) + 1) // 2]
    looks = {half[0][0]: early(half), half[-1][0]: late(half)} if len(curve) > 1 else {}
    words = [f"{form.format(value)} at step {step}" for step, value in looks.items()]
    return f" (step {curve[-1][0]}), after {' and '.join(words)}" if words else ""
