"""Names what is wrong with a tokenizer, and what to change, from its numbers alone.

Every fault is a function that returns what it found. A curve has ``LEAST_POINTS`` or more; who
asks sees to that. Which file or log line a number comes from is not known here:
``lab/diagnosis.py`` reads a run's folder and asks. What goes wrong with a training, rather than
with codes and latents, is in ``training_faults.py``.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import median
from typing import Any, Literal

Curve = Sequence[tuple[int, float]]
"""A logged value: steps and what it was at each."""
Severity = Literal["watch", "fault"]

LEAST_POINTS = 30
"""Logged points below which it is too early to say: a tenth, at either end, must hold three for one
odd batch not to decide."""
IDLE_CODES, RARE_CODES = 0.1, 0.5
"""Shares of the codes within reach: below the first a codebook has collapsed, below the second most
of it is idle. Healthy runs use .8 and more."""
LEAST_PERPLEXITY = 4.0
"""Codes that carry under two bits a token; collapsed runs have 1 to 2."""
COARSE = 0.5
"""Share of the latents' variance that quantisation drops: .02 to .2 in healthy runs, .4 at the
start; at 1 the codes' mean says as much as the codes."""
LEAST_VARIANCE = 1e-4
"""On the unit sphere of 8 channels healthy latents vary by .06 to .12; collapsed ones by 1e-5."""
SHRUNK = 0.5
"""Share of an earlier, or of the twin's, variance. Healthy regularised runs kept .6 and more."""
HIDDEN_R2 = 0.1
"""Rise of R² from latents, over the weight-0 twin, beyond which codes must follow
(a first scratch trial at 3,000 steps saw .29 to .95 from latents with worse samples)."""
HIDDEN_GAP = 0.3
"""R² from latents less R² from codes, in one run. In trials: .08 without the regulariser, .13 to
.20 where codes followed, .35 and .42 where the next latent was hidden."""
OVERWHELMING, NEGLIGIBLE = 0.9, 1e-3
"""The regulariser's share of the gradient at the latents: little else is felt; or it is not."""


@dataclass(frozen=True)
class Finding:
    """One thing that is wrong, in words."""

    fault: str
    """Its name."""
    severity: Severity
    """A fault spoils the result; what is to be watched may."""
    seen: str
    """The numbers, with their steps."""
    means: str
    change: str
    """What to do, with the names of the config's fields."""

    @property
    def line(self) -> str:
        """All of it in one line."""
        return f"{self.fault}: {self.seen}; {self.means}; {self.change}"


@dataclass(frozen=True)
class Measures:
    """How predictable a trained tokenizer's latents are, measured alike for every arm."""

    latent_variance: float
    r2_latents: float
    """R² of a fresh probe that reads latents."""
    r2_codes: float
    """R² of a fresh probe that reads codes."""


def measures_of(scores: Mapping[str, Any]) -> Measures:
    """An arm's measures, of its scores by name."""
    return Measures(
        latent_variance=scores["latent_variance"]["value"],
        r2_latents=scores["next_latent_r2"]["value"],
        r2_codes=scores["probe_r2_quantised"]["value"],
    )


def early(curve: Curve) -> float:
    """The median of the first tenth, of ten points at most."""
    return median(value for _, value in curve[: max(1, min(10, len(curve) // 10))])


def late(curve: Curve) -> float:
    """The median of the last tenth."""
    return median(value for _, value in curve[-max(1, len(curve) // 10) :])


def span_of(curve: Curve) -> str:
    """Where a curve came from and went to, in words."""
    start, end = curve[0][0], curve[-1][0]
    return f"from {early(curve):.3g} (step {start}) to {late(curve):.3g} (step {end})"


def collapse_of(usage: float | None, perplexity: float | None, variance: float | None) -> list[str]:
    """Warnings about a codebook or latents that carry too little.

    ``usage`` is the share of codes that occur, ``perplexity`` that of the codes, ``variance`` the
    latents'; one that was not measured is ``None`` and raises no warning.
    """
    found = code_collapse(usage, perplexity) + latent_collapse(variance)
    return [finding.line for finding in found if finding.severity == "fault"]


def gaming_of(measures: Measures, twin: Measures) -> list[str]:
    """Warnings that the regulariser was won without helping, against its weight-0 twin.

    The twin has the same data, codebook and probe budget.
    """
    found = shrunk_beside_twin(measures.latent_variance, twin.latent_variance)
    found += hidden_beside_twin(measures, twin)
    return [finding.line for finding in found]


def code_collapse(
    usage: float | None, perplexity: float | None, reachable: float = 1.0
) -> list[Finding]:
    """Finds a codebook of which little is used; ``reachable`` of it occurs if tokens are even.

    Fewer tokens than codes were looked at in a small evaluation or batch: not all can occur.
    """
    change = (
        "set model.quantizer.revive_after to some tens of steps, lower optim.lr, or take fewer "
        "codes (model.quantizer.codebook_size)"
    )
    means = "tokens say little, and a prior that predicts them well has learned little"
    if usage is not None and usage < RARE_CODES * reachable:
        worst = usage < IDLE_CODES * reachable
        seen = f"only {usage:.1%} of the codes occur"
        seen += f", of {reachable:.1%} that could" if reachable < 0.995 else ""
        fault, severity = ("codebook collapse", "fault") if worst else ("idle codes", "watch")
        return [Finding(fault, severity, seen, means, change)]
    if perplexity is not None and perplexity < LEAST_PERPLEXITY:
        seen = f"the codes used are as few as {perplexity:.1f} equal ones"
        return [Finding("codebook collapse", "fault", seen, means, change)]
    return []


def coarse_codes(quantisation: Curve, variance: Curve, weight: float) -> list[Finding]:
    """Finds codes that are far from the latents they stand for; ``weight``: what pulls them near.

    Zero if no loss moves codes and none is revived.
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
    return [Finding(
        "coarse codes", "watch",
        f"quantisation drops {dropped:.0%} of the latents' variance (step {quantisation[-1][0]})",
        "codes are far from the latents they stand for, as when they get no gradient",
        "raise losses.codebook and losses.commitment, or model.quantizer.codebook_size",
    )]  # fmt: skip


def latent_collapse(variance: float | None) -> list[Finding]:
    """Finds latents that are the same for all pictures."""
    if variance is None or variance >= LEAST_VARIANCE:
        return []
    return [Finding(
        "latent collapse", "fault", f"latents vary by {variance:.1e} only",
        "all pictures look alike to the encoder",
        "lower causal.weight; without it, lower optim.lr",
    )]  # fmt: skip


def latent_shrinkage(variance: Curve) -> list[Finding]:
    """Finds latents that shrank while the regulariser was on."""
    if late(variance) >= SHRUNK * early(variance):
        return []
    return [_shrinkage(
        f"the latents' variance fell {span_of(variance)}",
        "see whether it falls in a run of causal.weight 0, too (--baseline RUN); if not, ",
    )]  # fmt: skip


def shrunk_beside_twin(variance: float, twin: float) -> list[Finding]:
    """Finds latents that vary less than those of a run without the regulariser."""
    if variance >= SHRUNK * twin:
        return []
    return [_shrinkage(
        f"the latents' variance is {variance:.3g} against {twin:.3g} without the regulariser"
    )]  # fmt: skip


def hidden_prediction(r2_latents: float, r2_codes: float) -> list[Finding]:
    """Finds a regulariser that is won below the quantisation step, in one run's own numbers."""
    if r2_latents - r2_codes <= HIDDEN_GAP:
        return []
    return [_hiding(
        f"R² of the next latent is {r2_latents:.2f} from latents but {max(r2_codes, 0):.2f} from "
        "codes, which are all the prior sees",
        "fault" if r2_codes < 0.5 * r2_latents else "watch",
    )]  # fmt: skip


def hidden_beside_twin(measures: Measures, twin: Measures) -> list[Finding]:
    """Finds a regulariser whose gain, over a run without it, is not in the codes."""
    gain, passed_on = measures.r2_latents - twin.r2_latents, measures.r2_codes - twin.r2_codes
    if gain <= HIDDEN_R2 or passed_on >= 0.25 * gain:
        return []
    return [_hiding(
        f"R² of the next latent rose by {gain:.2f} from latents but by {passed_on:.2f} from codes, "
        "which are all the prior sees"
    )]  # fmt: skip


def error_below_quantisation(error: Curve, quantisation: Curve) -> list[Finding]:
    """Hints at hiding where nothing was learned from codes; smooth latents do the same."""
    if late(error) >= late(quantisation):
        return []
    return [Finding(
        "hidden prediction", "watch",
        f"the next latent is missed by {late(error):.2g}, less than the quantisation's "
        f"{late(quantisation):.2g} (step {error[-1][0]})",
        "a hint, no proof, that it is hidden below the quantisation step",
        "measure R² from codes: add 'probe' to evaluations, or compare with a run of causal.weight "
        "0",
    )]  # fmt: skip


def regulariser_share(share: Curve) -> list[Finding]:
    """Finds a regulariser that is all the encoder feels, or that it does not feel.

    Exactly 0 says that the share could not be taken, as in a compiled graph.
    """
    felt = late(share)
    seen = f"the regulariser's share of the gradient at the latents is {felt:.2g} at the end"
    if felt > OVERWHELMING:
        against = " and works against the rest" if felt > 1 else ""
        return [Finding(
            "overwhelming regulariser", "fault", seen,
            f"the encoder hears little else{against}: it gives up pictures to be predictable",
            "lower causal.weight, or raise causal.anneal_steps",
        )]  # fmt: skip
    if 0 < felt < NEGLIGIBLE:
        return [Finding(
            "negligible regulariser", "watch", seen, "the run is as good as one without it",
            "raise causal.weight",
        )]  # fmt: skip
    return []


def _shrinkage(seen: str, change: str = "") -> Finding:
    return Finding(
        "latent shrinkage", "fault", seen, "small latents are predicted with small errors",
        f"{change}lower causal.weight, or set causal.scale to live",
    )  # fmt: skip


def _hiding(seen: str, severity: Severity = "fault") -> Finding:
    return Finding(
        "hidden prediction", severity, seen,
        "the encoder hides the next latent below the quantisation step",
        "set causal.reads to codes or noisy, or lower causal.weight",
    )  # fmt: skip
