"""A study: many arms, some at once; what is recorded already is not run again.

DIR/
  study.json                    every run with its scores, and a grid's laws; alone, it is all that
                                a study needs to go on elsewhere (form: ``scaling.study_file``)
  tokenizers/NAME-sSEED-DIGEST/ a tokenizer, for all runs that are made from it
    tokenizer/                  its training
    32px-DIGEST/                tokens/ at a size of pictures, and tokenizer-scores.json
  arms/NAME-sSEED-DIGEST/       one run: an arm with one seed, and all its priors or one
    arm.json                    how it ended: finished with scores, or failed and why
    2x64/ 2x64-scores.json      a prior, and what is measured already, should it be stopped
  pictures/                     reconstructions and samples
"""

import os
import re
from collections.abc import Callable, Iterable
from dataclasses import replace
from itertools import chain, cycle
from pathlib import Path
from typing import Any

from cartok.core.config import config
from cartok.core.errors import UserError
from cartok.core.parallel import World, gpus_of, see_one_gpu
from cartok.core.progress import Progress
from cartok.data.images import open_splits
from cartok.lab.cluster import Call, Where, call_elsewhere, options_of
from cartok.lab.inputs import MANY, ArmInputs, arm_inputs
from cartok.lab.records import (
    FILE,
    StudyRun,
    pictures_seen,
    records_of,
    runs_of,
    why_none_counts,
    write_summary,
)
from cartok.lab.study_work import (
    WHOLE,
    counted,
    forget_failures,
    prepare_in_turn,
    run_in_turn,
)
from cartok.lab.together import Task, Turns, new_turns, run_together, taken
from cartok.recipes.arms import StudyConfig
from cartok.scaling.means import ArmMeans, arm_means
from cartok.scaling.study_file import read_study

Work = Callable[[StudyConfig, Iterable[StudyRun], Path, ArmInputs, Progress], None]

_PARTS = ("arms", "tokenizers")
_OF_A_RUN = re.compile(r".+-s\d+-[0-9a-f]{16}")  # NAME-sSEED-DIGEST

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
    on: Where = "here"
    """This machine, or others that see the folder under the same path: a job for every run."""
    options: tuple[str, ...] = ()
    """NAME=VALUE for what starts jobs there; see ``cluster.Options``."""

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
    known = zip(runs, records_of(runs, out), strict=True)
    waiting = [run for run, record in known if _must_run(record, launch.retry)]
    forget_failures(waiting, out)
    progress.say(f"{len(runs)} runs, {len(runs) - len(waiting)} of them recorded already")
    if apart := why_none_counts(study, out):
        progress.say(apart)
    if waiting and launch.on != "here":
        write_summary(study, out, world)
        with progress.table(WHOLE, _work_of(waiting)):
            _run_elsewhere(study, waiting, out, launch, progress)
    elif waiting:
        yard = study.yardstick
        progress.say(f"looking at {yard.reference + yard.held:,} pictures to score against")
        with progress.stage("pictures to score against", 1) as tick:
            inputs = _inputs(study, world, launch.device)
            tick(1, "")
        if inputs.has_few:
            progress.say(
                f"there are fewer than {MANY:,} pictures for training or validation, so several "
                "crops of each are scored; intervals take them for pictures of their own, and are "
                "too narrow"
            )
        write_summary(study, out, world)
        gpus = gpus_of(launch.device, world)
        at_once = launch.at_once or _at_once(world, gpus)
        with progress.table(WHOLE, _work_of(waiting)):
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


def _run_elsewhere(
    study: StudyConfig, runs: list[StudyRun], out: Path, launch: StudyLaunch, progress: Progress
) -> None:
    """First tokenizers that are shared, then runs."""
    options = options_of(launch.options)

    def calls(work: Work, groups: list[list[StudyRun]]) -> list[Call]:
        return [(work_elsewhere, (work, study, group, out, launch.device)) for group in groups]

    def ended(index: int) -> None:
        progress.advance(WHOLE, runs[index].work, counted(records_of(runs, out)))

    progress.say(f"jobs go to {launch.on}; they are cancelled when this process ends")
    call_elsewhere(launch.on, calls(prepare_in_turn, _shared_by_many(runs)), options, out)
    each = calls(run_in_turn, [[run] for run in runs])
    call_elsewhere(launch.on, each, options, out, ended)


def work_elsewhere(
    work: Work, study: StudyConfig, runs: list[StudyRun], out: Path, device: str
) -> None:
    """In a job of its own, which looks at the pictures to score against by itself."""
    work(study, runs, out, _inputs(study, World.join(device), device), Progress())


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
        if any(_OF_A_RUN.fullmatch(path.name) for part in _PARTS for path in out.glob(f"{part}/*")):
            return  # a study whose file was lost goes on from what its runs recorded
        raise UserError(f"{out} holds files but no study (no {FILE}); name another folder")
    if (name := read_study(out / FILE)["name"]) != study.name:
        raise UserError(f"{out} holds the study '{name}', not '{study.name}'; name another folder")


def _inputs(study: StudyConfig, world: World, device: str) -> ArmInputs:
    base = study.arms[0].tokenizer
    splits = open_splits(base.data, size=base.view.size)
    inputs = arm_inputs(
        base.view, splits["train"], splits["val"], world, device, study.yardstick,
        sizes=[arm.pixels for arm in study.arms],
    )  # fmt: skip
    seen = pictures_seen(study)
    return replace(inputs, most_tokenised=max(inputs.most_tokenised, seen) if seen else 0)


def _at_once(world: World, gpus: list[int]) -> int:
    if world.device.type == "cpu":
        return os.cpu_count() or 1
    return AT_ONCE_ON_GPU * max(1, len(gpus))


def _run_all(
    study: StudyConfig, runs: list[StudyRun], out: Path, inputs: ArmInputs, gpus: list[int],
    at_once: int, progress: Progress,
) -> None:  # fmt: skip
    """So many processes do the runs, after the tokenizers that several share."""
    if shared := _shared_by_many(runs):
        _deal(prepare_in_turn, study, shared, at_once, out, inputs, gpus, progress)
    _deal(run_in_turn, study, [[run] for run in runs], at_once, out, inputs, gpus, progress)


def _work_of(runs: list[StudyRun]) -> int:
    return sum(run.work for run in runs)


def _shared_by_many(runs: list[StudyRun]) -> list[list[StudyRun]]:
    """For each tokenizer that several runs are made from, a run of every size."""
    made_from: dict[str, list[StudyRun]] = {}
    for run in runs:
        made_from.setdefault(run.made_from, []).append(run)
    return [
        list({run.pixels: run for run in reversed(group)}.values())
        for group in made_from.values()
        if len(group) > 1
    ]


def _deal(
    work: Work, study: StudyConfig, groups: list[list[StudyRun]], at_once: int, out: Path,
    inputs: ArmInputs, gpus: list[int], progress: Progress,
) -> None:  # fmt: skip
    """Processes that take up one group after the other; a single one is this process."""
    groups = in_turn(groups)
    if (num := min(at_once, len(groups))) == 1:
        work(study, chain(*groups), out, inputs, progress)
        return
    turns = new_turns()
    tasks: dict[str, Task] = {
        f"process {i}": (_work_on, (gpu, work, study, groups, turns, out, inputs))
        for i, gpu in zip(range(num), cycle(gpus or [None]), strict=False)
    }
    try:
        run_together(tasks, progress)
    except UserError:
        raise UserError(
            "the processes of a study must live, but one died, often for want of memory; the same "
            "command goes on, with a smaller --at-once if need be"
        ) from None


def in_turn(groups: list[list[StudyRun]]) -> list[list[StudyRun]]:
    """The order in which groups are taken up: one seed after the other, the longest first."""
    return sorted(groups, key=lambda group: (group[0].seed, -_work_of(group)))


def _work_on(
    gpu: int | None, work: Work, study: StudyConfig, groups: list[list[StudyRun]], turns: Turns,
    out: Path, inputs: ArmInputs, progress: Progress,
) -> None:  # fmt: skip
    """In a process of its own, which sees no other GPU."""
    if gpu is not None:
        see_one_gpu(gpu)
    work(study, chain.from_iterable(taken(groups, turns)), out, inputs, progress)
