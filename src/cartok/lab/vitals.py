"""What is looked at in a run: each vital sign with its value, a verdict, and what the doctor finds.

Of what the log lacks nothing is said but that it was not measured.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

from cartok.lab.chart import Chart
from cartok.tokenizer import doctor
from cartok.tokenizer import training_faults as faults
from cartok.tokenizer.code_faults import CodeUse, coarse_codes, code_collapse
from cartok.tokenizer.doctor import Measures
from cartok.tokenizer.findings import LEAST_POINTS, Curve, Finding, late, span_of

Verdict = Literal["fine", "watch", "fault", "not measured", "too early to say"]

_BESIDE = "beside its baseline"

WARM_UP = 60.0
"""Seconds of a training that say little of its loader: files come from a cold disk."""


@dataclass(frozen=True)
class Vital:
    """One thing that was looked at."""

    name: str
    value: str
    verdict: Verdict
    findings: tuple[Finding, ...] = ()


def vitals_of(chart: Chart) -> list[Vital]:
    """Everything that one run tells by itself."""
    looks = (_run, _rate, _reconstruction, _codes, _quantisation, _variance, _prediction, _share,
             _gradients, _critic, _loader)  # fmt: skip
    return [look(chart) for look in looks]


def beside_scores(mine: Measures, its: Measures) -> Vital:
    """An arm beside the one without the regulariser, by the scores of both."""
    found = doctor.shrunk_beside_twin(mine.latent_variance, its.latent_variance)
    found += doctor.hidden_beside_twin(mine, its)
    return _vital(_BESIDE, _against(mine.latent_variance, its.latent_variance), found)


def beside_run(chart: Chart, twin: Chart) -> Vital:
    """A run beside one without the regulariser, by the logs of both, up to the same step."""
    step = min(chart.step, twin.step)
    charts = chart.until(step), twin.until(step)
    curves = [one.curve("codec/latent_variance") for one in charts]
    shorter = min(curves, key=len)
    variances = [late(curve) for curve in curves if shorter]

    def look() -> list[Finding]:
        found = doctor.shrunk_beside_twin(*variances)
        both = [_probed(one) for one in charts]
        if not all(both) and _predict_alike(*charts):
            both = [_own(one) for one in charts]
        if all("codes" in r2 for r2 in both):
            mine, its = (
                Measures(variance, r2["latents"], r2["codes"])
                for variance, r2 in zip(variances, both, strict=True)
            )
            found += doctor.hidden_beside_twin(mine, its)
        return found

    value = f"{_against(*variances)} at step {step}" if shorter else ""
    return _of(_BESIDE, shorter, value, look)


def _against(variance: float, twin: float) -> str:
    return f"latent variance {variance:.3g} against {twin:.3g}"


def _vital(name: str, value: str, findings: list[Finding]) -> Vital:
    worst = {finding.severity for finding in findings}
    verdict = "fault" if "fault" in worst else "watch" if worst else "fine"
    return Vital(name, value, verdict, tuple(findings))


def _of(name: str, curve: Curve, value: str, look: Callable[[], list[Finding]]) -> Vital:
    """A vital that hangs on a curve: it may be missing, or too short to judge."""
    if not curve:
        return Vital(name, "", "not measured")
    if len(curve) < LEAST_POINTS:
        return Vital(name, value, "too early to say")
    return _vital(name, value, look())


def _run(chart: Chart) -> Vital:
    step, steps = chart.step, chart.setting("loop.steps", 0)
    found = faults.recoveries(*(int(chart.last(f"fault/{n}") or 0) for n in ("skips", "rollbacks")))
    if chart.is_stopped:
        stop = chart.fault.get("step", step)
        value = f"stopped at step {stop}"
        found += faults.not_finite(
            stop, chart.fault.get("culprits", []), chart.fault.get("policy", "stop")
        )
    elif chart.record:
        value = f"finished after {chart.record.get('steps', step)} steps"
    else:
        value = f"step {step} of at most {steps}"
        seconds = chart.last("speed/seconds_per_step") or 0.0
        found += faults.interruption(
            step, steps, chart.silence, seconds * chart.setting("loop.log_every", 1),
            chart.saved, f"cartok resume {chart.folder}",
        )  # fmt: skip
    return _vital("run", value, found)


def _rate(chart: Chart) -> Vital:
    rate = chart.setting("optim.lr", 0.0)
    return _vital("learning rate", f"{rate:g}", faults.rate_too_high(rate))


def _reconstruction(chart: Chart) -> Vital:
    curve, full = chart.reconstruction, chart.critic_is_heard_after
    start = chart.setting("losses.critic.start", 0) if full < math.inf else math.inf
    alone = [point for point in curve if point[0] <= start] if start else curve

    def look() -> list[Finding]:
        is_new = not chart.setting("start_from", "")
        found = faults.reconstruction_trend(alone, is_new) if len(alone) >= LEAST_POINTS else []
        if full < math.inf:
            found += faults.critic_wrecks(curve, int(start), int(full - start))
        return found

    return _of("reconstruction loss", curve, span_of(curve) if curve else "", look)


def _codes(chart: Chart) -> Vital:
    pictures = chart.last("reconstruction/num_pictures")
    if pictures is None:  # a batch alone tells how many tokens were counted
        use = _use(chart, "codec/batch", chart.pictures_at_once)
        value = f"{_used(use)} (of a batch)"
        return _of("codes", use.perplexity, value, lambda: code_collapse(use))
    use = _use(chart, "reconstruction/code", pictures)
    return _vital("codes", _used(use), code_collapse(use))


def _use(chart: Chart, name: str, pictures: int | float) -> CodeUse:
    return CodeUse(
        usage=chart.curve(f"{name}_usage"),
        perplexity=chart.curve(f"{name}_perplexity"),
        reachable=chart.reach(pictures),
        warm_up=chart.setting("optim.warmup_steps", 0),
        kind=chart.quantizer_kind,
    )


def _used(use: CodeUse) -> str:
    words = [f"{late(use.usage):.1%} occur"] if use.usage else []
    words += [f"perplexity {late(use.perplexity):.3g}"] if use.perplexity else []
    return ", ".join(words)


def _quantisation(chart: Chart) -> Vital:
    curve = chart.curve("codec/quantisation_mse") or chart.curve("codec/commitment")
    variance = chart.curve("codec/latent_variance")
    if chart.setting("causal.space", "lookup") != "lookup":
        variance = []  # of other latents
    if not variance or doctor.latent_collapse(late(variance)):
        curve = []  # there is nothing to lose
    # Running means and other quantizers that no loss moves log none.
    moves = not chart.curve("codec/codebook") or chart.setting("model.quantizer.revive_after", 0)
    weight = 1.0 if moves else chart.setting("losses.codebook", 1.0)
    return _of(
        "lost in quantisation", curve,
        f"{late(curve) / late(variance):.1%} of the latents' variance" if curve else "",
        lambda: coarse_codes(curve, variance, weight, chart.quantizer_kind),
    )  # fmt: skip


def _variance(chart: Chart) -> Vital:
    curve = chart.curve("codec/latent_variance")

    def look() -> list[Finding]:
        found = doctor.latent_collapse(late(curve), chart.shrinking_pays)
        if not found and chart.setting("causal.weight", 0):
            found = doctor.latent_shrinkage(curve)
        return found

    return _of("latent variance", curve, span_of(curve) if curve else "", look)


def _r2(chart: Chart) -> dict[str, float]:
    """R² of the next latent from latents and from codes: a probe's, else the training's own.

    Only what was measured; ``codes`` never alone.
    """
    return _probed(chart) or _own(chart)


def _probed(chart: Chart) -> dict[str, float]:
    fresh = {name: chart.last(f"probe/r2_{name}") for name in ("latents", "codes")}
    measured = {name: value for name, value in fresh.items() if value is not None}
    return measured if len(measured) == 2 else {}


def _own(chart: Chart) -> dict[str, float]:
    """``codes`` where the predictor guesses what its twin guesses: the look-up's latents."""
    curves = {"latents": chart.curve("codec/next_latent_r2")}
    causal = chart.setting("causal", {})
    is_alike = causal.get("space", "lookup") == "lookup" and causal.get("target") != "codes"
    # Off the sphere the cosine's predictions are given the true length.
    if is_alike and (causal.get("loss", "l2") == "l2" or chart.is_on_sphere):
        curves["codes"] = chart.curve("codec/twin_r2")
    found = {name: late(curve) for name, curve in curves.items() if len(curve) >= LEAST_POINTS}
    return found if "latents" in found else {}


def _predict_alike(chart: Chart, twin: Chart) -> bool:
    """True if the predictors of two runs differ in nothing that their own R² shows."""
    names = ("reads", "target", "loss", "start", "order", "transformer", "twin_transformer")
    return all(chart.setting(f"causal.{n}", "") == twin.setting(f"causal.{n}", "") for n in names)


def _prediction(chart: Chart) -> Vital:
    name, r2 = "R² of the next latent", _r2(chart)
    if not r2:
        verdict = "too early to say" if chart.curve("codec/next_latent_r2") else "not measured"
        return Vital(name, "", verdict)
    reads = chart.setting("causal.reads", "latents")
    error = chart.curve("codec/next_latent_mse")
    size = chart.curve("codec/quantisation_mse") or chart.curve("codec/commitment")
    is_hint = reads == "latents" and chart.setting("causal.space", "lookup") == "lookup"
    found: list[Finding] = []
    variance = chart.curve("codec/latent_variance")
    is_probed = chart.last("probe/r2_latents") is not None
    source = "latents" if is_probed else reads
    if not chart.setting("causal.weight", 0):
        pass  # nothing pulls at the encoder, so it hides nothing
    elif variance and doctor.latent_collapse(late(variance)):
        pass  # there is nothing to hide
    elif "codes" in r2:
        found = doctor.hidden_prediction(r2["latents"], r2["codes"], source, reads)
    elif is_hint and error and size:
        found = doctor.error_below_quantisation(error, size)
    value = f"{r2['latents']:.2f} from {source}"
    value += f", {r2['codes']:.2f} from codes" if "codes" in r2 else ""
    return _vital(name, value, found)


def _share(chart: Chart) -> Vital:
    name = "regulariser's share"
    if not chart.setting("causal.weight", 0):
        return Vital(name, "no regulariser", "fine")
    shares = chart.curve("codec/causal_share")
    if not any(share for _, share in shares):  # in a compiled graph it is not seen, and 0
        return Vital(name, "", "not measured")
    full = chart.setting("causal.anneal_steps", 0)
    curve = [point for point in shares if point[0] > full]
    if not curve:
        return Vital(name, f"not at full weight before step {full}", "too early to say")
    value = f"{late(curve):.2g} of the gradient at the latents"
    return _of(name, curve, value, lambda: doctor.regulariser_share(curve))


def _gradients(chart: Chart) -> Vital:
    norms = {
        name.removeprefix("gradient/"): curve
        for name, curve in chart.curves.items()
        if name.startswith("gradient/")
    }
    long = {name: curve for name, curve in norms.items() if len(curve) >= LEAST_POINTS}
    value = ", ".join(f"{name} {late(curve):.2g}" for name, curve in norms.items())
    longest = max(norms.values(), key=len, default=[])

    def look() -> list[Finding]:
        hinge = chart.curve("critic/hinge")
        is_won = bool(hinge) and late(hinge) < faults.WON_HINGE
        # A critic that is right by a margin everywhere has no gradient, and a line of its own.
        moving = {name: curve for name, curve in long.items() if name != "critic" or not is_won}
        clip = chart.setting("optim.clip", 0.0)
        return faults.dead_gradients(moving) + faults.exploding_gradients(long, clip)

    return _of("gradient norms", longest, value, look)


def _critic(chart: Chart) -> Vital:
    full, name = chart.critic_is_heard_after, "critic"
    if full == math.inf:
        return Vital(name, "no critic", "fine")
    if chart.step <= full:
        return Vital(name, f"not heard in full before step {full:g}", "too early to say")
    hinge, accuracy, term = (
        chart.curve(curve, full) for curve in ("critic/hinge", "critic/accuracy", "codec/critic")
    )
    factors = dict(chart.curve("codec/critic_factor"))
    weight = chart.setting("losses.critic.weight", 0.0)
    heard = [(step, weight * factors.get(step, 1.0) * value) for step, value in term]
    words = [f"hinge {late(hinge):.2g}"] if hinge else []
    words += [f"{late(accuracy):.0%} of its verdicts are right"] if accuracy else []

    def look() -> list[Finding]:
        found = faults.critic_wins(hinge, accuracy)
        if heard and chart.reconstruction:
            found += faults.critic_drowns(heard, chart.reconstruction)
        return found

    return _of(name, hinge or accuracy or term, ", ".join(words), look)


def _loader(chart: Chart) -> Vital:
    curve = chart.curve("speed/stall_share")
    share = curve[-1][1] if curve else 0.0
    workers = chart.setting("workers", 0)
    if curve and chart.step * (chart.last("speed/seconds_per_step") or 0.0) < WARM_UP:
        return Vital("waiting for pictures", f"{share:.1%} of the time", "too early to say")
    return _of(
        "waiting for pictures", curve, f"{share:.1%} of the time",
        lambda: faults.stalled_loader(share, workers),
    )  # fmt: skip
