"""The report page of a demo, a study, a score or of runs: one HTML file, complete by itself.

It reads ``summary.json``, ``study.json``, ``scores.json``, ``record.json`` and pictures; what it
computes is differences, means, counts and one sum.
"""

import itertools
import json
import shlex
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined

from cartok.core.errors import UserError
from cartok.core.files import read_json, write_text
from cartok.scaling.claim import claims_of, claims_tables, pairs_of
from cartok.scaling.code_figures import DRAWN, demo_code_figures
from cartok.scaling.figures import demo_figures, run_figures
from cartok.scaling.grid import at_longest, is_grid
from cartok.scaling.measures import ARMS, GROUPS, OTHERS, rows_of
from cartok.scaling.numbers import shown, signed, span
from cartok.scaling.orders import orders_of
from cartok.scaling.scores import (
    SHEETS,
    cells_of,
    manifold_figure,
    rows_of_scores,
    shared_of,
    warnings_of,
)
from cartok.scaling.sheets import demo_sheets, embedded, study_sheets
from cartok.scaling.study import (
    COLUMNS,
    check_study,
    learning_figures,
    priors_of,
    rows_of_study,
    study_figures,
    unfinished,
)
from cartok.scaling.study_file import read_study
from cartok.scaling.tradeoff import tradeoff_of
from cartok.scaling.verdict import gaming_sentence, verdict_of
from cartok.scaling.why import why_of

TRIED = {
    "tokens": "tokens/image", "codes": "codes", "code_usage": "share of codes used",
    "psnr_db": "PSNR, dB", "rfd": "rFD", "prior_bits_per_image": "bits/image", "gfd": "gFD",
    "floor": "floor",
}  # fmt: skip
"""Columns of a comparison of tokenizers, by score."""


def write_report(folder: str | Path) -> Path:
    """Writes ``report.html`` into the folder of a demo, a study, a score, or of runs; its path.

    Raises:
        UserError: the folder holds none of their files, or one that cannot be read.
    """
    folder = Path(folder)
    is_study = (folder / "study.json").is_file()
    is_score = (folder / "scores.json").is_file()
    is_trial = (folder / "trial.json").is_file()
    records = {} if is_study or is_score or is_trial else _records(folder)
    if is_study:
        page = _study_page(folder / "study.json")
    elif is_score:
        page = _score_page(folder)
    elif is_trial:
        page = _trial_page(folder)
    elif (folder / "summary.json").is_file():
        page = _demo_page(folder, _read_summary(folder / "summary.json"), records)
    elif records:
        page = _runs_page(folder, records)
    else:
        raise UserError(
            "a report is made of summary.json, study.json, scores.json, trial.json or "
            "record.json, but "
            f"{folder} holds none; give the folder of a demo, a study, a score, or of runs that "
            "have ended"
        )
    write_text(folder / "report.html", page)
    return folder / "report.html"


def closing_table(summary: dict[str, Any]) -> list[tuple[str, str, str, str]]:
    """Every number of a demo as (name, baseline, causal, unit), as the page and a terminal show."""
    return [
        (row.measure.name, row.text("baseline"), row.text("causal"), row.unit)
        for row in rows_of(summary).values()
    ]


def _read_summary(path: Path) -> dict[str, Any]:
    """A demo's summary, checked as far as a page needs it."""
    summary = read_json(path, "a demo's summary")
    arms = {arm: summary.get(arm) for arm in ARMS} if isinstance(summary, dict) else {}
    if not arms or not all(isinstance(arm, dict) for arm in arms.values()):
        raise UserError(f"a summary holds 'baseline' and 'causal', but {path} lacks one; rerun it")
    for name, arm in arms.items():
        for key, score in arm.items():
            if not isinstance(score, dict) or not isinstance(score.get("value"), int | float):
                raise UserError(
                    f"every number of a summary is a value with a unit, but '{name}.{key}' of "
                    f"{path} is {str(score)[:80]!r}; rerun the demo"
                )
    return summary


def _demo_page(folder: Path, summary: dict[str, Any], records: dict[str, dict]) -> str:
    rows, about = rows_of(summary), summary.get("about", {})
    return _environment().get_template("demo.html.jinja").render(
        warnings=summary.get("warnings", []),
        about=_without_folders(about),
        rows=rows,
        groups=[*GROUPS, OTHERS],
        verdict=verdict_of(rows, about),
        gaming=gaming_sentence(rows),
        pictures=demo_sheets(folder / "pictures"),
        figures=demo_figures(rows, records),
        codes=demo_code_figures(summary),
        drawn=[*DRAWN],
        command=_command(about),
    )  # fmt: skip


def _runs_page(folder: Path, records: dict[str, dict]) -> str:
    return _environment().get_template("runs.html.jinja").render(
        title=folder.resolve().name,
        runs=[_run(name, record) for name, record in records.items()],
        score_names=sorted({name for record in records.values() for name in _scores(record)}),
        figures=run_figures(records),
    )  # fmt: skip


def _study_page(path: Path) -> str:
    whole = check_study(read_study(path), str(path))
    prior, study = at_longest(whole) if is_grid(whole) else ("", whole)
    large, orders = orders_of(study)
    return _environment().get_template("study.html.jinja").render(
        title=study["name"],
        prior=prior,
        unfinished=unfinished(whole),
        tradeoff=tradeoff_of(whole) if is_grid(whole) else None,
        rows=rows_of_study(study),
        columns=list(COLUMNS.values()),
        warnings=study["warnings"],
        claims=claims_tables(claims_of(study) + pairs_of(study)),
        large=large,
        orders=orders,
        figures=study_figures(study),
        learning=learning_figures(study),
        why=why_of(study),
        sheets=study_sheets(whole, path.parent / "pictures", prior),
        about=_trained_on(whole) | whole["provenance"] | _made_on(whole["runs"]),
        yardstick=study["config"].get("yardstick", {}),
    )  # fmt: skip


def _score_page(folder: Path) -> str:
    path = folder / "scores.json"
    cells = cells_of(read_json(path, "scores"), str(path))
    shared = shared_of(cells)
    counts = (shared.get("generated_count", "?"), shared.get("reference_count", "?"))
    sheets = [
        (heading, words, embedded(folder / "pictures" / f"{name}.png"))
        for name, (heading, words) in SHEETS.items()
        if (folder / "pictures" / f"{name}.png").is_file()
    ]
    return _environment().get_template("score.html.jinja").render(
        title=folder.resolve().name,
        lead=f"{counts[0]} pictures against {counts[1]}, by the protocol "
        f"{shared.get('preset', 'of a study')}.",
        warnings=warnings_of(cells),
        rows=rows_of_scores(cells),
        figure=manifold_figure(cells),
        sheets=sheets,
        shared=shared,
    )  # fmt: skip


def _trial_page(folder: Path) -> str:
    path = folder / "trial.json"
    trial = read_json(path, "a comparison of tokenizers")
    arms = {
        arm: cells_of(scores, str(path)) for arm, scores in trial.get("scores", {}).items()
    }  # fmt: skip
    pictures = {
        heading: [
            (arm, embedded(sheet))
            for arm in arms
            if (sheet := folder / "pictures" / f"{arm}-{name}.png").is_file()
        ]
        for name, heading in (("reconstructions", "Reconstructions"), ("samples", "Samples"))
    }
    config = trial.get("config", {})
    about = {"pictures": Path(str(config.get("data", ""))).name, "pixels": config.get("size", 0)}
    return _environment().get_template("trial.html.jinja").render(
        title=folder.resolve().name,
        arms=arms,
        columns={key: name for key, name in TRIED.items() if all(key in c for c in arms.values())},
        pictures={heading: shown for heading, shown in pictures.items() if shown},
        about=about | config.get("yardstick", {}) | trial.get("provenance", {}),
    )  # fmt: skip


def _trained_on(study: dict[str, Any]) -> dict[str, str]:
    """Pictures and trainings in words."""
    arms, priors = study["config"].get("arms", ()), study["config"].get("priors", ())
    if not arms or not priors:
        return {}
    run, steps = arms[0]["tokenizer"], [prior["loop"]["steps"] for prior in priors]
    named = zip(priors_of(study), steps, strict=True)
    return {
        "pictures": f"{Path(run['data']).name}, {run['view']['size']} pixels",
        "tokenizer": f"{run['loop']['steps']:,} steps (first arm)",
        "priors": "; ".join(f"{name}, {number:,} steps" for name, number in named),
    }


def _made_on(runs: list[dict[str, Any]]) -> dict[str, list[str]]:
    """What made the runs, where they say so: several machines and commits may have had a part."""
    made = [run["provenance"] for run in runs if run.get("provenance")]
    keys = ("device", "torch", "commit") if made else ()
    return {key: sorted({str(one.get(key, "")) for one in made} - {""}) for key in keys}


def _run(name: str, record: dict[str, Any]) -> dict[str, Any]:
    """A record's row; what it lacks is ``None``."""
    parameters = record.get("parameters")
    if isinstance(parameters, dict):
        parameters = sum(parameters.values())
    return {
        "name": name,
        "kind": record.get("kind", ""),
        "parameters": parameters,
        "scores": _scores(record),
        **{key: record.get(key) for key in ("steps", "flops", "seconds", "peak_memory_bytes")},
        "provenance": record.get("provenance", {}),
        "digest": record.get("digest", ""),
    }


def _scores(record: dict[str, Any]) -> dict[str, dict[str, Any]]:
    return record.get("scores") or {}


def _records(folder: Path) -> dict[str, dict[str, Any]]:
    """Records below a folder, by the path of their run; a run's own record is named as it is."""
    found = {}
    for path in sorted(folder.rglob("record.json")):
        record = read_json(path, "a run's record")
        if not isinstance(record, dict) or not isinstance(record.get("curves", {}), dict):
            raise UserError(f"a record is what a run wrote when it ended, but {path} is not")
        name = path.parent.relative_to(folder).as_posix()
        found[folder.resolve().name if name == "." else name] = record
    return found


def _without_folders(about: dict[str, Any], there: str = "") -> dict[str, Any]:
    """``about`` with ``there`` for the folders of an absolute path, which may name a person."""
    data = Path(str(about.get("data", "")))
    return about | {"data": there + data.name} if data.is_absolute() else about


def _command(about: dict[str, Any]) -> str:
    """What repeats a demo, typed where a local folder of pictures lies."""
    told = _without_folders(about, "./")
    options = [(f"--{name}", str(told[name])) for name in ("data", "seed", "minutes")
               if name in told]  # fmt: skip
    return shlex.join(["cartok", "demo", *itertools.chain(*options)])


def _environment() -> Environment:
    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent / "page"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {"shown": shown, "signed": signed, "span": span,
                            "exact": json.dumps, "plain": _plain}  # fmt: skip
    return environment


def _plain(value: Any) -> str:
    """Any JSON value in words."""
    if isinstance(value, list) and all(isinstance(item, str) for item in value):
        return ", ".join(value)
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
