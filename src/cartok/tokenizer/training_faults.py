"""Names what is wrong with a tokenizer's training, and what to change, from its numbers alone.

The sibling of ``doctor.py``, which looks at codes and latents.
"""

from collections.abc import Mapping, Sequence
from statistics import median

from cartok.tokenizer.findings import Curve, Finding, early, late, span_of

DEAD = 1e-8
"""Of a gradient's norm. AdamW adds as much to what it divides by, so that less moves nothing."""
EXPLODED = 100.0
"""Growth of a gradient's norm. Healthy ones change by ten over a run, critic and warm-up and all.
"""
CLIPPED = 10.0
"""Norm over the clip, all the time. Clipped a little at every step is how such trainings go."""
WON_HINGE, WON_ACCURACY = 0.1, 0.95
"""The critic's: at chance the hinge is 1 (or .5 where it is weighted so) and stays there for
thousands of healthy steps; near 0 every verdict is right by a margin and it has nothing to teach.
"""
DROWNED = 10.0
"""The critic's term over what ties pictures down; in healthy runs they are alike in size."""
WRECKED, WORSE = 1.5, 1.2
"""Rise of the reconstruction loss from before the critic to the end; a tenth is its usual price."""
UNMOVED, DIVERGED = 0.95, 1.5
"""The reconstruction loss at the end over that at the start, and over the least it has been."""
STALLED, WAITING = 0.1, 0.02
"""Shares of the time spent waiting for pictures: a tenth of a GPU's bill; more than noise."""
HIGHEST_RATE = 0.02
"""Of AdamW, which moves every weight by about as much a step. Recipes take 1e-4 to 3e-3."""
LONGEST_SILENCE = 600.0
"""Seconds without a line in the log: ten minutes cover an evaluation or a slow start."""


def rate_too_high(rate: float) -> list[Finding]:
    """Finds a rate at which AdamW throws weights about, whatever else goes wrong for it."""
    if rate <= HIGHEST_RATE:
        return []
    return [Finding(
        "learning rate too high", "fault", f"optim.lr is {rate:g}",
        "AdamW moves every weight by about that much a step, so nothing that was learned stays; "
        "other faults may come of it",
        "set optim.lr to 1e-4 to 3e-3 first",
    )]  # fmt: skip


def dead_gradients(norms: Mapping[str, Curve]) -> list[Finding]:
    """Finds what gets no gradient, by itself, against its beginning or against the others."""
    ends = {name: late(curve) for name, curve in norms.items()}
    found = []
    for name, curve in norms.items():
        scale = max(1.0, early(curve), *ends.values())
        if ends[name] < DEAD * scale:
            found.append(Finding(
                "dead gradient", "fault", f"the gradient norm of '{name}' went {span_of(curve)}",
                "nothing moves it: it is frozen, detached or starved",
                "raise what reaches it (losses.pixel_l2, losses.perceptual and losses.commitment "
                "the encoder, losses.codebook the codes), or unfreeze it",
            ))  # fmt: skip
    return found


def exploding_gradients(norms: Mapping[str, Curve], clip: float) -> list[Finding]:
    """Finds gradients that grow without end, or that are far above ``clip`` at all times."""
    found = []
    for name, curve in norms.items():
        alive = [value for _, value in curve[: len(curve) // 2] if value > DEAD]
        now, before = median(value for _, value in curve[-5:]), median(alive or [0.0])
        if before and now > EXPLODED * before:
            found.append(Finding(
                "exploding gradient", "fault",
                f"the gradient norm of '{name}' is {now:.3g} at step {curve[-1][0]}, after "
                f"{before:.3g} in the first half",
                "the training is leaving the ground; the next thing may be NaN",
                "lower optim.lr, warm up longer (optim.warmup_steps), or set optim.clip to 1",
            ))  # fmt: skip
        elif clip and min(value for _, value in curve) > clip and late(curve) > CLIPPED * clip:
            found.append(Finding(
                "always clipped", "watch",
                f"the gradient norm of '{name}' is {late(curve):.3g} at the end and was never "
                f"below the clip of {clip:g}",
                "one term is much larger than the rest and decides every step",
                "lower the largest weight of its loss (the codec's losses.critic.weight and "
                "causal.weight are the usual ones), or raise optim.clip",
            ))  # fmt: skip
    return found


def critic_wins(hinge: Curve, accuracy: Curve) -> list[Finding]:
    """Finds a critic that is always right, once the codec hears it; either curve may be empty.

    A hinge at chance is no fault: it stays there in the paper's runs (figure 12).
    """
    numbers = []
    if hinge:
        numbers.append((late(hinge) < WON_HINGE, f"its hinge is {late(hinge):.2g}"))
    if accuracy:
        share = late(accuracy)
        numbers.append((share > WON_ACCURACY, f"{share:.0%} of its verdicts are right"))
    if not numbers or not all(is_won for is_won, _ in numbers):
        return []
    return [Finding(
        "critic dominance", "fault",
        f"{' and '.join(words for _, words in numbers)} (step {(hinge or accuracy)[-1][0]})",
        "the critic tells reconstructions from photographs at sight, so its gradient says nothing",
        "lower losses.critic.channels or losses.critic.layers, or raise losses.critic.start",
    )]  # fmt: skip


def critic_drowns(critic: Curve, reconstruction: Curve) -> list[Finding]:
    """Finds a critic's term, weighted, that dwarfs the weighted terms that tie pictures down."""
    loudness, rest = late([(step, abs(value)) for step, value in critic]), late(reconstruction)
    if loudness <= DROWNED * rest:
        return []
    return [Finding(
        "critic dominance", "fault",
        f"the critic's term is {loudness:.3g} against {rest:.3g} of the reconstruction (step "
        f"{critic[-1][0]})",
        "pictures please the critic, not the photograph they are of",
        "lower losses.critic.weight",
    )]  # fmt: skip


def critic_wrecks(reconstruction: Curve, start: int, ramp: int) -> list[Finding]:
    """Finds a reconstruction that got worse when the critic set in and did not recover."""
    before = [point for point in reconstruction if point[0] <= start][-10:]
    after = [point for point in reconstruction if point[0] > start + ramp]
    if min(len(before), len(after)) < 3:
        return []
    calm, end = median(value for _, value in before), late(after)
    if end <= WORSE * calm:
        return []
    return [Finding(
        "critic dominance", "fault" if end > WRECKED * calm else "watch",
        f"the reconstruction loss was {calm:.3g} before the critic set in at step {start} and is "
        f"{end:.3g} at step {after[-1][0]}",
        "the critic costs more picture than it gives",
        "lower losses.critic.weight, raise losses.critic.ramp, or let the critic learn before it "
        "is heard (losses.critic.warm)",
    )]  # fmt: skip


def reconstruction_trend(reconstruction: Curve, starts_anew: bool = True) -> list[Finding]:
    """Finds a reconstruction that never got better, or got worse again.

    One that starts from trained weights may have nothing left to gain.
    """
    tenth = len(reconstruction) // 10
    parts = [reconstruction[at : at + tenth] for at in range(0, len(reconstruction), tenth)]
    least, step = min((median(value for _, value in part), part[-1][0]) for part in parts)
    if late(reconstruction) > DIVERGED * least:
        return [Finding(
            "divergence", "fault",
            f"the reconstruction loss was {least:.3g} at step {step} and is "
            f"{late(reconstruction):.3g} at step {reconstruction[-1][0]}",
            "the training is undoing what it had learned",
            "lower optim.lr, or warm up longer (optim.warmup_steps)",
        )]  # fmt: skip
    if starts_anew and late(reconstruction) > UNMOVED * early(reconstruction):
        return [Finding(
            "plateau", "fault", f"the reconstruction loss went {span_of(reconstruction)}",
            "pictures are no better than at the start",
            "change optim.lr (tenfold either way), and lower causal.weight and "
            "losses.critic.weight",
        )]  # fmt: skip
    return []


def stalled_loader(share: float, workers: int) -> list[Finding]:
    """Finds a training that waits for its pictures."""
    if share <= WAITING:
        return []
    return [Finding(
        "stalled loader", "fault" if share > STALLED else "watch",
        f"{share:.0%} of the time went in waiting for pictures, with {workers} workers",
        "the device idles meanwhile",
        "raise workers, or bring the pictures to about view.size before the training",
    )]  # fmt: skip


def not_finite(step: int, culprits: Sequence[str], policy: str) -> list[Finding]:
    """Tells of a loss or a gradient that stopped the run."""
    names = " and ".join(f"'{name}'" for name in culprits) or "a loss or a gradient"
    return [Finding(
        "non-finite stop", "fault", f"{names} was not finite at step {step} (policy {policy})",
        "the run ended before that step moved a weight; the newest checkpoint is whole",
        "read fault.md in the run's folder; lower optim.lr, set optim.clip to 1, loop.precision to "
        "fp32 or loop.on_non_finite to recover",
    )]  # fmt: skip


def recoveries(skips: int, rollbacks: int) -> list[Finding]:
    """Tells of steps that were not finite in a run that went on."""
    if not skips and not rollbacks:
        return []
    return [Finding(
        "non-finite steps", "watch",
        f"{skips} batches were skipped and {rollbacks} times the run went back to a checkpoint",
        "a loss or a gradient was not finite; the log has null where",
        "lower optim.lr, or set optim.clip to 1",
    )]  # fmt: skip


def interruption(
    step: int, steps: int, silence: float, interval: float, saved: int, command: str
) -> list[Finding]:
    """Finds a run without an end whose log is silent, for ``silence`` seconds of ``interval`` each.

    ``saved`` is the step of the newest checkpoint, 0 if there is none.
    """
    if silence <= max(LONGEST_SILENCE, 10 * interval):
        return []
    return [Finding(
        "interrupted run", "fault",
        f"the log ends at step {step} of at most {steps} and has been silent for "
        f"{silence / 60:.0f} minutes",
        f"the process was stopped or killed; it goes on from step {saved}",
        f"run: {command}" + ("" if saved else "; and lower loop.save_every"),
    )]  # fmt: skip
