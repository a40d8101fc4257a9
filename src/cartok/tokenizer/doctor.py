"""Names what is wrong with a tokenizer in words a person understands, from its numbers alone."""

from dataclasses import dataclass

HIDDEN_R2 = 0.1
"""Rise of R² from latents, over the weight-0 twin, beyond which codes must follow
(a first scratch trial at 3,000 steps saw .29 to .95 from latents with worse samples)."""


@dataclass(frozen=True)
class Measures:
    """How predictable a trained tokenizer's latents are, measured alike for every arm."""

    latent_variance: float
    r2_latents: float
    """R² of a fresh probe that reads latents."""
    r2_codes: float
    """R² of a fresh probe that reads codes."""


def collapse_of(usage: float | None, perplexity: float | None, variance: float | None) -> list[str]:
    """Warnings about a codebook or latents that carry too little.

    ``usage`` is the share of codes that occur, ``perplexity`` that of the codes, ``variance`` the
    latents'; one that was not measured is ``None`` and raises no warning.
    """
    found = []
    if usage is not None and usage < 0.1:
        found.append(
            f"codebook collapse: only {usage:.1%} of the codes occur; train longer, set "
            "model.quantizer.revive_after, or take fewer codes"
        )
    elif perplexity is not None and perplexity < 4:
        found.append(
            f"codebook collapse: the codes used are as few as {perplexity:.1f} equal ones; lower "
            "the learning rate or set model.quantizer.revive_after"
        )
    if variance is not None and variance < 1e-4:
        found.append(
            f"latent collapse: latents vary by {variance:.1e} only; all pictures look alike to "
            "the encoder; lower causal.weight"
        )
    return found


def gaming_of(measures: Measures, twin: Measures) -> list[str]:
    """Warnings that the regulariser was won without helping, against its weight-0 twin.

    The twin has the same data, codebook and probe budget.
    """
    found = []
    if measures.latent_variance < 0.5 * twin.latent_variance:
        found.append(
            f"latent shrinkage: the latents' variance is {measures.latent_variance:.3g} against "
            f"{twin.latent_variance:.3g} without the regulariser; small latents are predicted with "
            "small errors; lower causal.weight"
        )
    gain, passed_on = measures.r2_latents - twin.r2_latents, measures.r2_codes - twin.r2_codes
    if gain > HIDDEN_R2 and passed_on < 0.25 * gain:
        found.append(
            f"hidden prediction: R² of the next latent rose by {gain:.2f} from latents but by "
            f"{passed_on:.2f} from codes, which are all the prior sees; the encoder hides the next "
            "latent below the quantisation step; set causal.reads to codes or noisy"
        )
    return found
