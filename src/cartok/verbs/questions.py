"""The verbs that ask something of what is there: pictures, recipes, models and runs."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated

import tyro

from cartok.core.errors import UserError
from cartok.verbs.arguments import First, Flat, parse, progress_bar
from cartok.verbs.scores import print_scores


def inspect(arguments: list[str]) -> None:
    """Describes pictures or tokens and shows some."""
    from cartok.lab.token_survey import holds_tokens

    @dataclass(frozen=True)
    class Inspect:
        """What a data set or a folder of tokens holds, and a sheet of pictures.

        Of pictures: counts, sizes, classes, modes, duplicates and broken files. Of tokens: what
        their stamp says, counts, how codes are used, entropies; the sheet shows some beside what
        they were made of, if their tokenizer is known.
        """

        data: First[str]
        """'photos', a folder or parquet of pictures, 'hub:owner/name', or a folder of tokens."""
        sheet: Annotated[Path, tyro.conf.arg(aliases=["--out"])] = Path("contact-sheet.png")
        """Where the sheet goes; a PNG that is there is replaced."""
        num: int = 64
        """Pictures on it; of tokens, half of them sources where those can be read."""
        tokenizer: str = ""
        """Of tokens: the one that made them; looked for beside them, if nothing is given."""

    chosen = parse(Inspect, arguments, "inspect")
    if holds_tokens(chosen.data):
        _inspect_tokens(Path(chosen.data), chosen.sheet, chosen.num, chosen.tokenizer)
        return
    if chosen.tokenizer:
        raise UserError(
            f"--tokenizer decodes tokens, but {chosen.data} is no folder of them; leave it away"
        )
    _inspect_pictures(chosen.data, chosen.sheet, chosen.num)


def _inspect_pictures(data: str, sheet: Path, num: int) -> None:
    from cartok.data.survey import check_sheet, contact_sheet, describe, survey

    check_sheet(sheet, num)
    found = survey(data, progress_bar())
    print(describe(found))
    contact_sheet(found.pictures, sheet, num=num)
    print(f"contact sheet: {sheet}")


def _inspect_tokens(folder: Path, sheet: Path, num: int, source: str) -> None:
    from cartok.data.survey import check_sheet
    from cartok.lab.evaluations import save_png
    from cartok.lab.token_survey import (
        describe_tokens,
        sheet_of_tokens,
        survey_tokens,
        tokenizer_of,
    )

    check_sheet(sheet, num)
    found = survey_tokens(folder)
    print(describe_tokens(found), flush=True)
    tokenizer = tokenizer_of(folder, found.manifest, source)
    if tokenizer is None:
        print("no sheet: their tokenizer is not beside the tokens; name it by --tokenizer")
        return
    shown = sheet_of_tokens(found, tokenizer, num)
    save_png(shown.picture, sheet)
    print(f"{sheet}: {shown.words}")


def recipes(arguments: list[str]) -> None:
    """Lists the recipes, and the presets of scores."""
    from cartok.metrics.presets import PRESETS
    from cartok.recipes.prior import PRIORS
    from cartok.recipes.study import STUDIES
    from cartok.recipes.tokenizer import TOKENIZERS

    @dataclass(frozen=True)
    class Recipes:
        """Every recipe and every preset of scores, one line each."""

    parse(Recipes, arguments, "recipes")
    tables = {"train-tokenizer": TOKENIZERS, "train-prior": PRIORS, "study run": STUDIES}
    for verb, table in tables.items():
        print(f"cartok {verb} {'NAME' if verb == 'study run' else 'RECIPE'}")
        for recipe in table.values():
            print(f"  {recipe.name:<16} {recipe.summary}")
    print("cartok score GENERATED REFERENCE --preset NAME")
    for preset in PRESETS.values():
        print(f"  {preset.name:<19} {preset.summary}")


def sample(arguments: list[str]) -> None:
    """Draws pictures."""
    from cartok.lab.pictures import EditConfig, SampleConfig, run_sample

    @dataclass(frozen=True)
    class Sample:
        """A prior and its tokenizer to new pictures."""

        prior: str
        """A run, a model folder, or a model of the hub."""
        tokenizer: str
        """The one whose tokens the prior was trained on."""
        out: Path
        """A new or empty folder."""
        picture: Annotated[str, tyro.conf.arg(name="from", metavar="FILE")] = ""
        """A picture of which a part stays while the rest is drawn."""
        keep: str = "top"
        """What stays of it: top, bottom, left, right, centre or border. Only what lies above a
        token, or to its left in the same row, is seen when it is drawn."""
        keep_share: float = 0.5
        """How far across the picture that reaches."""
        config: Annotated[SampleConfig, Flat] = field(default_factory=SampleConfig)
        device: str = "auto"
        """auto, cpu, cuda, cuda:N or mps."""
        overwrite: bool = False
        """Replace samples that are there."""

    chosen = parse(Sample, arguments, "sample")
    edit = None
    if chosen.picture:
        edit = EditConfig(picture=chosen.picture, keep=chosen.keep, keep_share=chosen.keep_share)
    page = run_sample(
        chosen.prior, chosen.tokenizer, chosen.config, chosen.out, chosen.device, progress_bar(),
        edit=edit, overwrite=chosen.overwrite,
    )  # fmt: skip
    print(page)


def guide(arguments: list[str]) -> None:
    """Finds the guidance that suits a prior."""
    from cartok.core.files import refuse_unwritable, write_json
    from cartok.lab.guidance import GuideConfig, run_guide

    @dataclass(frozen=True)
    class Guide:
        """Samples at several guidances against training pictures, and the nearest one's score."""

        prior: First[str]
        """A run, a model folder, or a model of the hub."""
        tokenizer: str
        """The one whose tokens the prior was trained on."""
        data: str = ""
        """Pictures; those the tokenizer was trained on, if it is a run and nothing is given."""
        config: Annotated[GuideConfig, Flat] = field(default_factory=GuideConfig)
        device: str = "auto"
        """auto, cpu, cuda, cuda:N or mps."""
        json: Annotated[Path | None, tyro.conf.arg(metavar="FILE")] = None
        """Also write every number with its receipt to this file."""

    chosen = parse(Guide, arguments, "guide")
    if chosen.json is not None:
        refuse_unwritable(chosen.json)
    found = run_guide(
        chosen.prior, chosen.tokenizer, chosen.data, chosen.config, chosen.device, progress_bar()
    )
    if chosen.json is not None:
        write_json(chosen.json, found.to_json())
    print("guidance     distance")
    for guidance, score in found.tried.items():
        mark = "  nearest" if guidance == found.guidance else ""
        print(f"{guidance:<12g} {score.value:.6g}{mark}")
    if found.is_at_end:
        print(f"{found.guidance:g} lies at the end of what was tried; widen --guidances beyond it")
    print(f"other samples at {found.guidance:g} against other training pictures:")
    print_scores(found.scores)


def doctor(arguments: list[str]) -> int:
    """Says what is wrong with a stage-1 run; returns the exit code."""
    from cartok.core.files import refuse_unwritable, write_json
    from cartok.lab.diagnosis import describe, diagnose

    @dataclass(frozen=True)
    class Doctor:
        """What is wrong with a tokenizer's run, and what to change. Loads no weights.

        Ends with 0 if there is no fault, with 1 if there is one; what is to be watched is none.
        """

        run: First[Path]
        """Of a tokenizer, finished or not; or a demo's folder."""
        baseline: Annotated[Path | None, tyro.conf.arg(metavar="RUN")] = None
        """A run without the regulariser to compare with: equal but for causal.weight 0."""
        json: Annotated[Path | None, tyro.conf.arg(metavar="FILE")] = None
        """Also write what was looked at and found to this file."""

    chosen = parse(Doctor, arguments, "doctor")
    if chosen.json is not None:
        refuse_unwritable(chosen.json)
    found = diagnose(chosen.run, chosen.baseline)
    for diagnosis in found:
        print(describe(diagnosis))
    is_healthy = all(diagnosis.is_healthy for diagnosis in found)
    if chosen.json is not None:
        runs = [diagnosis.to_json() for diagnosis in found]
        write_json(chosen.json, {"is_healthy": is_healthy, "runs": runs})
    return 0 if is_healthy else 1


def report(arguments: list[str]) -> None:
    """Writes a page."""
    from cartok.scaling.report import write_report

    @dataclass(frozen=True)
    class Report:
        """A page for a demo's folder, a study's, a run, or a folder of runs."""

        folder: First[Path]

    print(write_report(parse(Report, arguments, "report").folder))


def plan(arguments: list[str]) -> None:
    """Says what to train under a budget."""
    from cartok.core.files import refuse_unwritable, write_json
    from cartok.scaling.numbers import aligned
    from cartok.scaling.plan_config import prior_config, tokens_of
    from cartok.scaling.planner import plan_under, rows_of, sentences_of
    from cartok.scaling.study import check_study
    from cartok.scaling.study_file import read_study

    @dataclass(frozen=True)
    class Plan:
        """The tokenizer, prior and steps that a grid study's laws find best under a budget.

        Needs no GPU, and nothing of the study but its study.json.
        """

        study: Annotated[Path, tyro.conf.Positional, tyro.conf.arg(metavar="DIR")]
        """A grid study's, such as that of cartok study run cifar-tradeoff."""
        budget: str
        """For the prior's training: 3e18flop, 3e18paper (the paper's axes), or 2gpuh."""
        device_flops: Annotated[float | None, tyro.conf.arg(metavar="FLOAT")] = None
        """What the device does in a second, measured; that of the study, if nothing is given."""
        json: Annotated[Path | None, tyro.conf.arg(metavar="FILE")] = None
        """Also write the plan to this file."""
        prior: Annotated[Path | None, tyro.conf.arg(metavar="FILE")] = None
        """Also write the config of the prior that it recommends, for cartok train-prior."""

    chosen = parse(Plan, arguments, "plan")
    for file in (chosen.json, chosen.prior):
        if file is not None:
            refuse_unwritable(file)
    path = chosen.study / "study.json"
    found = check_study(read_study(path), str(path))
    made = plan_under(found, chosen.budget, chosen.device_flops)
    if chosen.json is not None:
        write_json(chosen.json, made.to_json())
    print(f"{aligned(rows_of(made))}\n")
    for sentence in sentences_of(made):
        print(sentence)
    if chosen.prior is None:
        print("For the config of that prior give --prior FILE.")
        return
    write_json(chosen.prior, prior_config(found, made.best))
    tokens = tokens_of(found, made.best, chosen.study)
    if tokens is None:
        print(f"{chosen.study} does not hold the tokens of {made.best.arm}; the study makes them.")
    print(f"cartok train-prior --config {chosen.prior} --tokens {tokens or 'TOKENS'} --out RUN")
