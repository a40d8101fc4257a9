"""What a comparison bears, in sentences made from its numbers: never more than its intervals do."""

from dataclasses import dataclass
from typing import Any

from cartok.scaling.measures import Row, Rows
from cartok.scaling.numbers import shown

SEED_SPREAD_PERCENT = 5.0
"""How far two runs of one recipe may differ in prior loss: one seed of the demo, rounded otherwise
on two machines, was 4 to 5 % apart in either arm; two seeds of a scratch trial 3 %."""

RECONSTRUCTION, SAMPLES = ("rfd", "rkd"), ("gfd", "gkd")
"""The distance that is judged by, and the one that has to agree where it was measured."""

NO_CLAIM = "no difference can be claimed"


@dataclass(frozen=True)
class Verdict:
    """One line, and what stands behind it."""

    headline: str
    findings: dict[str, str]
    """Sentences by topic."""


def verdict_of(rows: Rows, about: dict[str, Any]) -> Verdict:
    """Judges prediction, reconstruction and generation, then says what was not tested."""
    texts = {
        "Prediction": _prediction(rows),
        "Reconstruction": _distance(rows, *RECONSTRUCTION, "Reconstructions", "the originals"),
        "Samples": _distance(rows, *SAMPLES, "Samples", "the training pictures"),
        "Not shown": _scope(rows, about),
        "Indicative": _indicative(rows),
    }
    return Verdict(_headline(rows), {topic: text for topic, text in texts.items() if text})


def gaming_sentence(rows: Rows) -> str:
    """How far the latents shrank, and how R² moved when read from latents and from codes."""
    parts = []
    if (variance := rows.get("latent_variance")) and variance.percent is not None:
        parts.append(f"the latents' variance moved by {variance.percent_text}")
    for key, source in (("next_latent_r2", "latents"), ("probe_r2_quantised", "codes")):
        if (row := rows.get(key)) and row.difference is not None:
            parts.append(f"R² from {source} by {row.difference:+.2f}".replace("-", "−"))
    return f"From the baseline to the causal arm, {', '.join(parts)}." if parts else ""


def _headline(rows: Rows) -> str:
    first = {
        "lower": "In this run the regularised tokens were easier to predict",
        "higher": "In this run the regularised tokens were harder to predict",
        "alike": "In this run the regularised tokens were about as hard to predict",
        "": "How predictable the tokens are was not measured",
    }[_prior_moved(rows.get("prior_nats_per_token"))]
    ending = {
        "lower": "samples came out better",
        "higher": "samples came out worse",
        "open": "whether samples became better cannot be told",
        "": "whether samples became better was not measured",
    }[_moved_apart(*map(rows.get, SAMPLES))]
    return f"{first}; {ending}."


def _prior_moved(row: Row | None) -> str:
    if row is None or row.percent is None:
        return ""
    if abs(row.percent) < SEED_SPREAD_PERCENT:
        return "alike"
    return row.side


def _prediction(rows: Rows) -> str:
    row = rows.get("prior_nats_per_token")
    moved = _prior_moved(row)
    if row is None or not moved:
        return ""
    verb = {"lower": "fell", "higher": "rose", "alike": "hardly moved"}[moved]
    text = f"The prior's loss {verb}: {_both(row)} {row.unit} ({row.percent_text}). "
    spread = f"the {SEED_SPREAD_PERCENT:.0f}% by which two runs of one recipe may differ"
    if moved == "alike":
        return f"{text}That is less than {spread}, so {NO_CLAIM}."
    text += f"That is more than {spread}, but it is one seed."
    diversity = rows.get("code_perplexity")
    if moved == "lower" and diversity and (diversity.percent or 0) < -SEED_SPREAD_PERCENT:
        text += (
            f" Part of it may come cheap: the codes became less diverse (perplexity "
            f"{_both(diversity)}), and tokens that say less are easier to predict."
        )
    return text


def _moved_apart(row: Row | None, second: Row | None) -> str:
    """Where a distance went beyond its intervals, unless the second one disagrees."""
    if row is None or row.overlaps is None:
        return ""
    if row.overlaps or (second and _disagree(row, second)):
        return "open"
    return row.side


def _disagree(row: Row, second: Row) -> bool:
    return second.overlaps is not None and _outcome(second) != _outcome(row)


def _outcome(row: Row) -> str:
    return "overlap" if row.overlaps else f"lie apart, {row.side}"


def _distance(rows: Rows, key: str, second_key: str, what: str, to_what: str) -> str:
    """What a distance with intervals bears."""
    row, second = rows.get(key), rows.get(second_key)
    if row is None:
        return ""
    if row.difference is None:
        return f"{row.measure.name} does not compare ({', '.join(row.obstacles)})."
    numbers = f"{row.measure.name} ({_both(row)})"
    moved = _moved_apart(row, second)
    if moved == "open" and second and _disagree(row, second):
        return (
            f"By {numbers} the intervals {_outcome(row)}; those of {second.measure.name} "
            f"{_outcome(second)}. The two measures disagree, so {NO_CLAIM}."
        )
    if moved == "open":
        return f"By {numbers} the intervals overlap, so {NO_CLAIM}."
    if not moved:
        return f"By {numbers}: without intervals {NO_CLAIM}."
    side = {"lower": "closer to", "higher": "farther from"}[moved]
    return (
        f"{what} came out {side} {to_what} by {numbers}. The intervals lie apart, so this holds "
        "for these two trainings; another seed may differ."
    )


def _scope(rows: Rows, about: dict[str, Any]) -> str:
    steps, seconds = rows.get("tokenizer_steps"), rows.get("seconds")
    facts = ["one seed"]
    if steps and "baseline" in steps.cells:
        facts.append(f"{shown(steps.cells['baseline'].value)} tokenizer steps")
    if seconds and seconds.total is not None:
        minutes = seconds.total / 60
        length = f"{minutes:.0f}" if minutes >= 10 else f"{minutes:.2g}"
        facts.append(f"{length} minutes of computing")
    if about.get("size"):
        facts.append(f"pictures of {about['size']} pixels")
    return (
        f"This is {', '.join(facts)}. The paper takes 400,000 steps at 256 pixels, days on eight "
        "GPUs, and far larger priors; nothing here confirms or refutes it."
    )


def _indicative(rows: Rows) -> str:
    receipts = {
        row.measure.name: row.cells["causal"].receipt
        for row in rows.values()
        if row.measure.better and "causal" in row.cells
    }
    marked = {name: receipt for name, receipt in receipts.items() if receipt.get("indicative")}
    if not marked:
        return ""
    names = ", ".join(marked)
    last, receipt = marked.popitem()
    counts = [receipt.get("generated_count"), receipt.get("reference_count")]
    seen = f" ({counts[0]:,} against {counts[1]:,} for {last})" if all(counts) else ""
    return (
        f"{names} rest on few pictures{seen} and on another network than FID; compare them within "
        "this page alone."
    )


def _both(row: Row) -> str:
    """Both arms' numbers, with their intervals."""
    return f"causal {row.text('causal')}, baseline {row.text('baseline')}"
