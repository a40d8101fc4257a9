"""A study: many arms, some at once; what is recorded already is not run again.

DIR/
  study.json                    every run with its scores, and each arm's means over seeds; alone,
                                it is all that a study needs to go on elsewhere
  arms/NAME-sSEED-DIGEST/       one run: an arm with one seed
    arm.json                    how it ended: finished with scores, or failed and why
    tokenizer-scores.json 2x64-scores.json   what is measured already, should it be stopped
    tokenizer/ tokens/ 2x64/    its stages; a folder for each prior
  pictures/                     reconstructions and samples
"""

import os
import time
import traceback
from dataclasses import replace
from itertools import cycle
from pathlib import Path
from typing import Any

import torch

from cartok.core.config import config
from cartok.core.errors import UserError
from cartok.core.files import finite, read_json, write_json, write_text
from cartok.core.parallel import World, gpus_of, see_one_gpu
from cartok.core.progress import Progress
from cartok.core.run import provenance, read_log
from cartok.data.images import open_splits
from cartok.lab.arm import Arm, score_of
from cartok.lab.arm_stages import run_stage_one, run_stage_two, seconds_of
from cartok.lab.inputs import ArmInputs, Scores, arm_inputs
from cartok.lab.means import LOSSES, ArmMeans, arm_means, mean_over_sizes
from cartok.lab.records import (
    FILE,
    StudyRun,
    new_record,
    record_of,
    runs_of,
    why_none_counts,
    write_summary,
)
from cartok.lab.stages import Splits
from cartok.lab.together import Task, run_together
from cartok.recipes.arms import StudyConfig, names_of

AT_ONCE_ON_GPU = 4
"""On each: a small training leaves most of a GPU idle."""


@config
class StudyLaunch:
    """Where a study goes and how it is run; no part of its config."""

    out: Path
    device: str = "auto"
    at_once: int = 0
    """Arms at once, dealt out to all visible GPUs; 0: one a core, or four on each GPU."""
    retry: bool = False
    """Run again what failed before."""
    arms: tuple[str, ...] = ()
    """Names of those to run now, while others wait; all, if none is given."""

    def __post_init__(self):
        if self.at_once < 0:
            raise ValueError(f"at_once must not be negative, but is {self.at_once}")


def run_study(study: StudyConfig, launch: StudyLaunch, progress: Progress) -> list[ArmMeans]:
    """Runs what is not recorded yet; writes ``study.json``; every arm's means.

    A run that fails is recorded with its reason, and the others go on. A study that was killed goes
    on when it is started again.

    Raises:
        UserError: the folder holds something else; there is no arm of a name; there are too few
            pictures; a process died.
        SystemExit: the study was asked to stop; what was training has saved.
    """
    out, world = launch.out.resolve(), World.join(launch.device)
    refuse_folder(study, out)
    runs = runs_of(study, launch.arms)
    waiting = [run for run in runs if _must_run(record_of(run, out), launch.retry)]
    progress.say(f"{len(runs)} runs, {len(runs) - len(waiting)} of them recorded already")
    if apart := why_none_counts(study, out):
        progress.say(apart)
    if waiting:
        yard = study.yardstick
        progress.say(f"looking at {yard.reference + yard.held:,} pictures to score against")
        with progress.stage("pictures to score against", 1) as tick:
            inputs = _inputs(study, world, launch.device)
            tick(1, "")
        write_summary(study, out, world)
        gpus = gpus_of(launch.device, world)
        at_once = launch.at_once or _at_once(world, gpus)
        _run_all(study, waiting, out, inputs, gpus, at_once, progress)
    summary = write_summary(study, out)
    if summary["earlier"]:
        progress.say(
            f"{len(summary['earlier'])} recorded runs are not of this study's arms or seeds; they "
            "are kept in study.json, but not shown"
        )
    for warning in summary["warnings"]:
        progress.say(f"warning: {warning}")
    return arm_means(summary["runs"])


def _must_run(record: dict[str, Any], retry: bool) -> bool:
    return record["status"] == "waiting" or (retry and record["status"] == "failed")


def refuse_folder(study: StudyConfig, out: Path) -> None:
    """Refuses what holds something else than this study.

    Raises:
        UserError: says what.
    """
    if out.exists() and not out.is_dir():
        raise UserError(f"--out is a folder to write to, but {out} is a file; name another")
    if not out.is_dir() or not any(out.iterdir()):
        return
    if not (out / FILE).exists():
        raise UserError(f"{out} holds files but no study (no {FILE}); name another folder")
    if (name := read_json(out / FILE, "a study").get("name")) != study.name:
        raise UserError(f"{out} holds the study '{name}', not '{study.name}'; name another folder")


def _inputs(study: StudyConfig, world: World, device: str) -> ArmInputs:
    base = study.arms[0].tokenizer
    splits = open_splits(base.data, size=base.view.size)
    inputs = arm_inputs(base.view, splits["train"], splits["val"], world, device, study.yardstick)
    seen = max(prior.loop.steps * prior.loop.batch for prior in study.priors)
    return replace(inputs, most_tokenised=max(inputs.most_tokenised, seen))


def _at_once(world: World, gpus: list[int]) -> int:
    if world.device.type == "cpu":
        return os.cpu_count() or 1
    return AT_ONCE_ON_GPU * max(1, len(gpus))


def _run_all(
    study: StudyConfig, runs: list[StudyRun], out: Path, inputs: ArmInputs, gpus: list[int],
    at_once: int, progress: Progress,
) -> None:  # fmt: skip
    """Deals the runs out to so many processes; one at once needs no other process."""
    hands = [runs[start::at_once] for start in range(min(at_once, len(runs)))]
    if len(hands) == 1:
        _run_in_turn(study, runs, out, inputs, progress)
        return
    tasks: dict[str, Task] = {
        f"process {i}": (_run_on, (gpu, study, hand, out, inputs))
        for i, (hand, gpu) in enumerate(zip(hands, cycle(gpus or [None]), strict=False))
    }
    try:
        run_together(tasks, progress)
    except UserError:
        raise UserError(
            "the processes of a study must live, but one died, often for want of memory; the same "
            "command goes on, with a smaller --at-once if need be"
        ) from None


def _run_on(
    gpu: int | None, study: StudyConfig, runs: list[StudyRun], out: Path, inputs: ArmInputs,
    progress: Progress,
) -> None:  # fmt: skip
    """In a process of its own, which sees no other GPU."""
    if gpu is not None:
        see_one_gpu(gpu)
    _run_in_turn(study, runs, out, inputs, progress)


def _run_in_turn(
    study: StudyConfig, runs: list[StudyRun], out: Path, inputs: ArmInputs, progress: Progress
) -> None:
    base = runs[0].tokenizer  # all have its pictures
    splits = open_splits(base.data, size=base.view.size)
    for run in runs:
        _run(run, out, inputs, splits, progress)
        write_summary(study, out)  # a machine may be taken away at any time


def _run(run: StudyRun, out: Path, inputs: ArmInputs, splits: Splits, progress: Progress) -> None:
    """Runs one and records how it ended."""
    folder = run.folder(out)
    try:
        arm = Arm(run.title, folder, out / "pictures", inputs, progress, splits)
        scores = _scores(run, arm)
        made_by = provenance(World.join(inputs.device))
        record = new_record(run, "finished", scores=scores, provenance=made_by)
    except Exception as error:  # whatever it is, the other arms can still be compared
        reason = " ".join(str(error).split())
        if not isinstance(error, UserError):
            reason = f"{type(error).__name__}: {reason}"
            write_text(folder / "traceback.txt", traceback.format_exc())
        progress.say(f"{run.title} failed: {reason}")
        record = new_record(run, "failed", reason=reason)
    write_json(folder / "arm.json", finite(record))


def _scores(run: StudyRun, arm: Arm) -> Scores:
    """Trains and scores everything: a prior's scores by size, and their means over the sizes."""
    started = time.monotonic()
    scores = run_stage_one(arm, run.tokenizer) | _final_losses(arm)
    flops = scores["tokenizer_steps"]["receipt"]["flops"]
    scores["tokenizer_flops"] = score_of(flops, "FLOPs")
    by_size = {}
    for size, prior in zip(names_of(run.priors), run.priors, strict=True):
        by_size[size] = run_stage_two(arm, prior, size)
        record = read_json(arm.folder / size / "record.json", "a record")
        by_size[size]["prior_flops"] = score_of(record["flops"], "FLOPs", steps=record["steps"])
    for key in next(iter(by_size.values())):
        scores[key] = mean_over_sizes([found[key] for found in by_size.values()])
        if len(by_size) > 1:
            scores |= {f"{key}/{size}": found[key] for size, found in by_size.items()}
    trainings = ("tokenizer", *by_size)
    seconds = seconds_of(arm, trainings, time.monotonic() - started)
    return scores | arm.inputs.floor | {"seconds": seconds}


def _final_losses(arm: Arm) -> Scores:
    """The codec's terms, unweighted, as means over the last tenth of the log."""
    lines = [line for line in read_log(arm.folder / "tokenizer") if "codec/pixel_l2" in line]
    last = lines[-max(1, len(lines) // 10) :]
    return {
        f"loss_{name}": score_of(
            torch.tensor([line[f"codec/{name}"] for line in last]).mean().item(),
            "unweighted", steps=[line["step"] for line in last], split="train",
        )
        for name in LOSSES
        if f"codec/{name}" in last[0]
    }  # fmt: skip
