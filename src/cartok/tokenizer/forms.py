"""The forms of the regulariser: what the paper leaves open, field by field, and what goes together.

The four forms of the paper's table 4 are

    l2 before quantisation    the defaults
    l2 after quantisation     reads="codes", target="codes"
    cross-entropy after it    reads="codes", loss="ce", weight=0.03
    near to LARP              that, with scheduled_sampling above 0 and a codebook on the sphere
                              that draws its codes (``VQConfig.temperature``)
"""

import math
from typing import Literal

from cartok.core.config import config
from cartok.layers import TransformerConfig
from cartok.tokenizer.order import Order


@config
class CausalConfig:
    """The regulariser; defaults are the paper's, or the likeliest reading where it is silent."""

    weight: float = 4.0
    """Lambda. 0 leaves the encoder alone: switching the contribution off is this one number."""
    anneal_steps: int = 1000
    """Steps over which the weight rises from 0."""
    anneal: Literal["linear", "cosine"] = "linear"
    """The shape of the rise; not stated."""
    watch: bool = True
    """At weight 0, still train the predictor on detached latents, as the arm to compare with."""
    transformer: TransformerConfig = TransformerConfig(width=1024, depth=2, heads=16)
    """Depth 2 is the paper's; the width is not stated (1024 costs 3.2 % of a step, 1280 5.1 %)."""
    weight_decay: float = 0.1
    """Of the predictor's own AdamW; its rate and betas are the codec's at every step."""
    space: Literal["lookup", "projected", "encoder"] = "lookup"
    """Which latents: as they enter the look-up, before normalisation, or the encoder's output."""
    reads: Literal["latents", "codes", "noisy"] = "latents"
    """What the predictor sees: the latents, straight-through codes, or latents with noise of the
    quantisation's size, one size for all channels even where their steps differ (FSQ of unequal
    levels). The paper reads latents; the other two leave no room to hide the next latent where the
    codebook drops it."""
    target: Literal["latents", "detached", "codes"] = "latents"
    """What it predicts: the latents, so that they are pulled as well; the same without a pull; or
    the straight-through codes, whose pull goes to the latents."""
    loss: Literal["l2", "cosine", "ce", "rate"] = "l2"
    """ce: cross-entropy of the next token, whatever ``target``. A token has no gradient, so the
    encoder feels it through what is read alone. rate: nats a channel of the next latent under a
    Gaussian whose deviation is predicted, too, one a cell; the latents read and the one predicted
    have noise of the quantisation's size, as where rate is traded for distortion in compression
    (Balle et al. 2017). l2 is its case of one deviation for all cells, and pulls hardest where
    pictures surprise most. It reads 'noisy'. Where latents have a free scale, half the log of their
    variance, with its gradient, is taken off."""
    reduction: Literal["mean", "sum", "norm"] = "mean"
    """Of l2 over channels: mean or sum of squares, or the root of the sum (as one summary of the
    paper writes it); over batch and positions always the mean."""
    start: Literal["skip", "learned"] = "skip"
    """Position 0: not predicted, or predicted from a learned start vector."""
    scale: Literal["auto", "none", "variance", "live"] = "auto"
    """What l2 is divided by, since the weight means nothing where latents have a free scale: the
    target's variance over what one process sees at once, with its gradient (live) or without it
    (variance); auto: live off the unit sphere, none on it. A detached target has no gradient, so
    auto is variance then.

    So auto departs from dividing by a detached variance, which takes the scale out of the loss but
    not out of its gradient: where the prediction follows the latents' scale c, d log loss / d log c
    is 2 for none and variance, 0 for live, whose loss is 1 - R2. The smaller free latents are, the
    harder variance pulls them to nothing: in 100 steps of causal-toy with FSQ, reading latents,
    theirs fell from .2 to 1e-4 and left one token in use, where live kept .2 and 11 tokens; those
    of LFQ and of residual codes shrank alike."""
    order: Order = "raster"
    """In which order cells follow each other. Nothing but the places it has read tells the
    predictor which cell comes next, as in the prior."""
    scheduled_sampling: float = 0.0
    """Share of the inputs that are replaced by the predictor's own, detached predictions of them,
    from a first pass over the true ones (two-pass scheduled sampling); in training alone."""
    twin: bool = True
    """Train the control that ``of_twin`` describes beside the predictor. Where the predictor itself
    guesses latents from codes by l2, it is its own control, and there is no second."""
    twin_transformer: TransformerConfig = TransformerConfig(width=256, depth=2, heads=4)

    def __post_init__(self):
        if min(self.weight, self.anneal_steps, self.weight_decay) < 0:
            raise ValueError(
                f"weight, anneal_steps and weight_decay must not be negative: {self.weight:g}, "
                f"{self.anneal_steps}, {self.weight_decay:g}"
            )
        if not 0 <= self.scheduled_sampling < 1:
            raise ValueError(f"scheduled_sampling lies in [0, 1): {self.scheduled_sampling:g}")
        if self.twin_transformer.dropout:
            raise ValueError("the twin draws nothing, so twin_transformer.dropout must be 0")
        if fault := self._contradiction:
            raise ValueError(fault)

    @property
    def _contradiction(self) -> str:
        """Why two fields do not go together; '' if they all do."""
        about_codes = {
            f"reads '{self.reads}'": self.reads != "latents",
            "target 'codes'": self.target == "codes",
            "scheduled_sampling of loss 'ce'": self.loss == "ce" and self.scheduled_sampling > 0,
        }
        asked = [what for what, is_so in about_codes.items() if is_so]
        if asked and self.space != "lookup":
            return (
                f"{asked[0]} puts codes beside the latents that enter the look-up; "
                f"space must then be 'lookup', not '{self.space}'"
            )
        if self.loss != "l2" and self.reduction != "mean":
            return f"reduction '{self.reduction}' is of loss 'l2'; take it back to 'mean'"
        if self.loss != "l2" and self.scale in ("variance", "live"):
            return f"scale '{self.scale}' is of loss 'l2'; take it back to 'auto'"
        if self.loss == "rate" and (self.reads != "noisy" or self.target != "latents"):
            return "loss 'rate' is of noisy latents; set reads to 'noisy' and target to 'latents'"
        if self.loss == "rate" and self.scheduled_sampling:
            return "loss 'rate' predicts deviations, too; take scheduled_sampling back to 0"
        if self.loss == "ce" and self.target != "latents":
            return f"loss 'ce' predicts tokens, not '{self.target}'; take target back to 'latents'"
        if self.target == "detached" and self.scale == "live":
            return "scale 'live' has no gradient if the target is detached; set it to 'variance'"
        return ""

    def weight_at(self, step: int) -> float:
        """Lambda at a step, counted from 0."""
        share = min(1.0, step / self.anneal_steps if self.anneal_steps else 1.0)
        if self.anneal == "cosine":
            share = 0.5 * (1 - math.cos(math.pi * share))
        return self.weight * share

    @property
    def is_used(self) -> bool:
        """True if a predictor exists: it regularises, or it watches."""
        return self.weight > 0 or self.watch

    @property
    def has_twin(self) -> bool:
        """True if a twin exists; one that guesses latents from codes by l2 would be its own."""
        is_one = self.reads == "codes" and self.target != "codes" and self.loss == "l2"
        return self.twin and self.is_used and not is_one

    @property
    def of_twin(self) -> "CausalConfig":
        """A second predictor that sees what the prior will see, as the control of the first.

        It guesses the latents of the look-up from the codes before, moves nothing but itself, and
        is trained in every run. Where the first one's R2 rises with lambda and the twin's does not,
        the next latent is hidden below the quantisation step.
        """
        return CausalConfig(
            weight=0.0, reads="codes", transformer=self.twin_transformer, start=self.start,
            order=self.order, weight_decay=self.weight_decay, twin=False,
        )  # fmt: skip
