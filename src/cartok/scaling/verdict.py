"""What a comparison bears, in sentences made from its numbers: never more than its intervals do."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from cartok.scaling.measures import Cell, Row, shown, signed, span

SEED_SPREAD_PERCENT = 3.0
"""How far two seeds of one recipe may differ in prior loss (a first scratch trial: two seeds of
one baseline were 3 % apart in bits a picture)."""

NO_CLAIM = "no difference can be claimed"


@dataclass(frozen=True)
class Verdict:
    """One line, and what stands behind it."""

    headline: str
    sentences: list[str]


def verdict_of(rows: list[Row], about: dict[str, Any]) -> Verdict:
    """Judges prediction, reconstruction and generation, then says what was not tested."""
    by_key = {row.key: row for row in rows}
    parts = [
        *_prediction(by_key),
        *_distance(by_key.get("rfd"), "Reconstructions", "their originals"),
        *_distance(by_key.get("gfd"), "Samples", "the training pictures"),
        _scope(by_key, about),
        *_indicative(rows),
    ]
    return Verdict(_headline(by_key), parts)


def _headline(rows: dict[str, Row]) -> str:
    prior, samples = rows.get("prior_nats_per_token"), rows.get("gfd")
    first = {
        "lower": "The regularised tokens were easier to predict",
        "higher": "The regularised tokens were harder to predict",
        "alike": "The regularised tokens were about as hard to predict",
        "": "How predictable the tokens are was not measured",
    }[_prior_moved(prior)]
    return first + {
        True: "; whether samples became better cannot be told.",
        False: f"; this run's samples came out {_side(samples, 'better', 'worse')} by gFD.",
        None: "; samples were not compared.",
    }[samples.overlaps if samples else None]


def _prior_moved(row: Row | None) -> str:
    if row is None or row.percent is None:
        return ""
    if abs(row.percent) < SEED_SPREAD_PERCENT:
        return "alike"
    return _side(row, "lower", "higher")


def _prediction(rows: dict[str, Row]) -> Iterator[str]:
    row = rows.get("prior_nats_per_token")
    moved = _prior_moved(row)
    if not moved:
        return
    numbers = f"{shown(row.causal.value)} nats a token against {shown(row.baseline.value)}"
    verb = {"lower": "fell", "higher": "rose", "alike": "hardly moved"}[moved]
    text = f"Prior loss {verb}: {numbers} without the regulariser ({signed(row.percent)}%). "
    spread = f"the {SEED_SPREAD_PERCENT:.0f}% by which two seeds of one recipe may differ"
    if moved == "alike":
        yield f"{text}That is less than {spread}, so {NO_CLAIM}."
        return
    yield f"{text}That is more than {spread}, but this is one seed."
    diversity = rows.get("code_perplexity")
    poorer = diversity and (diversity.percent or 0) < -SEED_SPREAD_PERCENT
    if moved == "lower" and poorer:
        yield (
            f"Part of that comes cheap: the codes became less diverse (perplexity "
            f"{shown(diversity.causal.value)} against {shown(diversity.baseline.value)}), and "
            "tokens that say less are easier to predict."
        )


def _distance(row: Row | None, what: str, to_what: str) -> Iterator[str]:
    """One sentence on a distance with intervals."""
    if row is None:
        return
    if row.difference is None:
        yield f"{what}: {row.measure.name} does not compare ({', '.join(row.obstacles)})."
        return
    a, b = row.baseline, row.causal
    numbers = f"{row.measure.name} {_with_span(b)} against {_with_span(a)}"
    if row.overlaps is None:
        yield f"{what}: {numbers}; without intervals {NO_CLAIM}."
    elif row.overlaps:
        yield f"{what}: {numbers}. The intervals overlap, so {NO_CLAIM}."
    else:
        side = _side(row, "closer to", "farther from")
        yield (
            f"{what} came out {side} {to_what}: {numbers}. The intervals lie apart, so this holds "
            "for these two trainings; another seed may differ."
        )


def _scope(rows: dict[str, Row], about: dict[str, Any]) -> str:
    steps, seconds = rows.get("tokenizer_steps"), rows.get("seconds")
    facts = ["one seed"]
    if steps and steps.baseline:
        facts.append(f"{shown(steps.baseline.value)} tokenizer steps")
    if seconds and seconds.baseline and seconds.causal:
        minutes = (seconds.baseline.value + seconds.causal.value) / 60
        facts.append(f"{shown(float(f'{minutes:.2g}'))} minutes")
    if "size" in about:
        facts.append(f"pictures of {about['size']} pixels")
    return (
        f"What it does not show: this is {', '.join(facts)}. The paper takes 400,000 steps at 256 "
        "pixels, days on eight GPUs, and far larger priors; nothing here confirms or refutes it."
    )


def _indicative(rows: list[Row]) -> Iterator[str]:
    marked = [row for row in rows for cell in (row.causal,) if cell and _is_indicative(cell)]
    if not marked:
        return
    names = ", ".join(row.measure.name for row in marked)
    receipt = marked[0].causal.receipt
    counts = [receipt.get("generated_count"), receipt.get("reference_count")]
    seen = f" ({counts[0]:,} pictures against {counts[1]:,} for {marked[0].measure.name})"
    yield (
        f"Indicative only: {names} rest on few pictures{seen if all(counts) else ''} and on "
        "another network than FID; compare them within this page alone."
    )


def _is_indicative(cell: Cell) -> bool:
    return bool(cell.receipt.get("indicative"))


def _with_span(cell: Cell) -> str:
    return shown(cell.value) + (f" {span(cell.interval)}" if cell.interval else "")


def _side(row: Row, lower: str, higher: str) -> str:
    return lower if row.difference < 0 else higher
