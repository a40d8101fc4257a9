"""The stages of an arm: a tokenizer, its tokens, a prior, samples, each with its scores."""

import time
from dataclasses import replace
from pathlib import Path
from typing import Any

from cartok.core.errors import STOPPED
from cartok.core.files import read_json, write_json
from cartok.core.progress import Progress
from cartok.lab.arm import Arm, once, score_of
from cartok.lab.arm_scores import prior_scores, redrawn_scores, sample_scores, tokenizer_scores
from cartok.lab.extraction import run_extract
from cartok.lab.inputs import ArmInputs, Scores
from cartok.lab.stages import run_prior, run_tokenizer
from cartok.prior.train import PriorRun
from cartok.tokenizer.train import TokenizerRun


def run_arm(
    name: str, recipe: TokenizerRun, prior_recipe: PriorRun, out: Path, inputs: ArmInputs,
    progress: Progress,
) -> None:  # fmt: skip
    """Runs one arm of one prior into ``out/name`` and ends with ``scores.json``."""
    arm = Arm(name, out / name, out / "pictures", inputs, progress)
    if (arm.folder / "scores.json").exists():
        progress.say(f"{name}: finished already")
        return
    started = time.monotonic()
    scores = run_stage_one(arm, recipe)
    scores |= run_stage_two(arm, prior_recipe, "prior")
    scores |= inputs.floor
    seconds = time.monotonic() - started
    scores["seconds"] = seconds_of(arm, ("tokenizer", "prior"), seconds)
    write_json(arm.folder / "scores.json", scores)


def run_stage_one(arm: Arm, recipe: TokenizerRun) -> Scores:
    """Trains the tokenizer and extracts its tokens; scores reconstruction and predictability.

    Raises:
        SystemExit: the training was asked to stop; it has saved.
    """
    run = run_tokenizer(
        recipe, arm.launch("tokenizer"), arm.progress, f"{arm.name} tokenizer", arm.splits
    )
    _stop_if_interrupted(run.is_finished)
    launch = arm.launch("tokens")
    if not (launch.out / "manifest.json").exists():
        run_extract(
            str(arm.place("tokenizer")), replace(launch, overwrite=True), arm.progress,
            view=replace(recipe.view, size=arm.pixels or recipe.view.size), kind="flip",
            most=arm.inputs.most_tokenised, title=f"{arm.name} tokens", splits=arm.splits,
        )  # fmt: skip
    record = read_json(arm.place("tokenizer") / "record.json", "a record")
    steps = score_of(record["steps"], "steps", flops=record["flops"])
    return once(
        arm.place("tokens").with_name("tokenizer-scores.json"),
        lambda: {"tokenizer_steps": steps} | tokenizer_scores(arm),
    )


def run_stage_two(arm: Arm, recipe: PriorRun, part: str) -> Scores:
    """Trains a prior on the arm's tokens in the folder ``part``; scores it and its samples.

    Raises:
        SystemExit: the training was asked to stop; it has saved.
    """
    config = replace(recipe, tokens=str(arm.place("tokens")))
    run = run_prior(config, arm.launch(part), arm.progress, f"{arm.name} {part}")
    _stop_if_interrupted(run.is_finished)
    return once(
        arm.folder / f"{part}-scores.json",
        lambda: (
            prior_scores(arm, part)
            | redrawn_scores(arm, part, recipe.seed)
            | sample_scores(arm, part, recipe.seed)
        ),
    )


def seconds_of(arm: Arm, trainings: tuple[str, ...], this_try: float) -> dict[str, Any]:
    """Everything the arm took; of earlier tries that were stopped, the trainings alone."""
    records = [read_json(arm.place(part) / "record.json", "a record") for part in trainings]
    trained = sum(record["seconds"] for record in records)
    return score_of(max(this_try, trained), "s", training_seconds=trained)


def _stop_if_interrupted(is_finished: bool) -> None:
    """After a SIGTERM the stage has saved; the same command goes on from there."""
    if not is_finished:
        raise SystemExit(STOPPED)
