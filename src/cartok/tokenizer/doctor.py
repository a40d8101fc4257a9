"""Names what is wrong with a tokenizer, and what to change, from its numbers alone.

Every fault is a function that returns what it found. A curve has ``LEAST_POINTS`` or more; who
asks sees to that. Which file or log line a number comes from is not known here:
``lab/diagnosis.py`` reads a run's folder and asks. What goes wrong with a codebook is in
``code_faults.py``, what with a training in ``training_faults.py``.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from cartok.tokenizer.code_faults import CodeUse, code_collapse
from cartok.tokenizer.findings import Curve, Finding, Severity, early, late, span_of

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


def collapse_of(usage: float | None, perplexity: float | None, variance: float | None) -> list[str]:
    """Warnings about a codebook or latents that carry too little.

    ``usage`` is the share of codes that occur, ``perplexity`` that of the codes, ``variance`` the
    latents'; one that was not measured is ``None`` and raises no warning.
    """
    use = CodeUse(usage=_at_the_end(usage), perplexity=_at_the_end(perplexity))
    found = code_collapse(use) + latent_collapse(variance)
    return [finding.line for finding in found if finding.severity == "fault"]


def gaming_of(measures: Measures, twin: Measures) -> list[str]:
    """Warnings that the regulariser was won without helping, against its weight-0 twin.

    The twin has the same data, codebook and probe budget.
    """
    found = shrunk_beside_twin(measures.latent_variance, twin.latent_variance)
    found += hidden_beside_twin(measures, twin)
    return [finding.line for finding in found]


def latent_collapse(variance: float | None, shrinking_pays: bool = False) -> list[Finding]:
    """Finds latents that are the same for all pictures.

    ``shrinking_pays``: they are off the sphere, and small ones have a small regulariser's loss.
    """
    if variance is None or variance >= LEAST_VARIANCE:
        return []
    change = ", or set causal.scale to live" if shrinking_pays else ""
    return [Finding(
        "latent collapse", "fault", f"latents vary by {variance:.1e} only",
        "all pictures look alike to the encoder",
        f"lower causal.weight{change}; without it, lower optim.lr",
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


def hidden_prediction(
    r2_latents: float, r2_codes: float, source: str = "latents", reads: str = "latents"
) -> list[Finding]:
    """Finds a regulariser that is won below the quantisation step, in one run's own numbers.

    ``source`` is what the higher R² was read from, ``reads`` what the run's predictor reads.
    """
    r2_latents, r2_codes = _predicted(r2_latents), _predicted(r2_codes)
    if r2_latents - r2_codes <= HIDDEN_GAP:
        return []
    return [_hiding(
        f"R² of the next latent is {r2_latents:.2f} from {source} but {r2_codes:.2f} from "
        "codes, which are all the prior sees",
        "fault" if r2_codes < 0.5 * r2_latents else "watch",
        reads,
    )]  # fmt: skip


def hidden_beside_twin(measures: Measures, twin: Measures) -> list[Finding]:
    """Finds a regulariser whose gain, over a run without it, is not in the codes."""
    gain = _predicted(measures.r2_latents) - _predicted(twin.r2_latents)
    passed_on = _predicted(measures.r2_codes) - _predicted(twin.r2_codes)
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


def _at_the_end(value: float | None) -> Curve:
    return [] if value is None else [(0, value)]


def _predicted(r2: float) -> float:
    """The share of variance that is predicted: worse than the mean is none, however much worse."""
    return max(r2, 0.0)


def _shrinkage(seen: str, change: str = "") -> Finding:
    return Finding(
        "latent shrinkage", "fault", seen, "small latents are predicted with small errors",
        f"{change}lower causal.weight, or set causal.scale to live",
    )  # fmt: skip


def _hiding(seen: str, severity: Severity = "fault", reads: str = "latents") -> Finding:
    other = {"latents": "codes or noisy (of causal.space lookup)", "noisy": "codes"}.get(reads)
    reading = f"set causal.reads to {other}, or " if other else ""
    return Finding(
        "hidden prediction", severity, seen,
        "the encoder hides the next latent below the quantisation step",
        f"{reading}lower causal.weight; compare with fewer codes at equal rFD before you keep it",
    )  # fmt: skip
