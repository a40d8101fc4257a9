"""What a process of a study does: it makes tokenizers, then runs, and records how each ended."""

import time
import traceback
from collections import Counter
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from cartok.core.errors import UserError
from cartok.core.files import finite, read_json, write_json, write_text
from cartok.core.parallel import World
from cartok.core.progress import Progress
from cartok.core.run import provenance, read_log
from cartok.data.images import open_splits
from cartok.lab.arm import Arm, score_of
from cartok.lab.arm_stages import run_stage_one, run_stage_two, seconds_of
from cartok.lab.inputs import ArmInputs, Scores
from cartok.lab.means import LOSSES, mean_over_sizes
from cartok.lab.records import StudyRun, new_record, write_summary
from cartok.lab.stages import Splits
from cartok.recipes.arms import StudyConfig, names_of

WHOLE = "all runs"
"""What is shown of a study as a whole."""

FAILED = "failed.txt"
"""Why a tokenizer that several runs are made from is not there."""


def prepare_in_turn(
    study: StudyConfig, runs: Iterable[StudyRun], out: Path, inputs: ArmInputs, progress: Progress
) -> None:
    """Makes tokenizers and tokens; where one fails a note says why, for the runs made from it.

    Raises:
        UserError: the device computes no more; nothing is noted then.
    """
    base = study.arms[0].tokenizer  # all have its pictures
    splits = open_splits(base.data, size=base.view.size)
    for run in runs:
        note = _note_of(run, out)
        arm = arm_of(run, out, inputs, splits, progress)
        name = run.made_from.rpartition("-")[0] + (f"-{run.pixels}px" if run.pixels else "")
        try:
            run_stage_one(replace(arm, name=name), run.tokenizer)
        except Exception as error:
            _refuse_dead_device(error, run, note.parent, inputs.device)
            write_text(note, _reason_of(error, note.parent))


def run_in_turn(
    study: StudyConfig, runs: Iterable[StudyRun], out: Path, inputs: ArmInputs, progress: Progress
) -> None:
    """Does runs, and writes ``study.json`` after each.

    Raises:
        UserError: the device computes no more; nothing is recorded of the run then.
    """
    base = study.arms[0].tokenizer  # all have its pictures
    splits = open_splits(base.data, size=base.view.size)
    for run in runs:
        _run(run, out, inputs, splits, progress)
        summary = write_summary(study, out)  # a machine may be taken away at any time
        progress.advance(WHOLE, run.work, counted(summary["runs"]))


def forget_failures(runs: list[StudyRun], out: Path) -> None:
    """Lets tokenizers that failed in an earlier try be made again."""
    for run in runs:
        _note_of(run, out).unlink(missing_ok=True)


def _note_of(run: StudyRun, out: Path) -> Path:
    return out / "tokenizers" / run.made_from / FAILED


def counted(records: list[dict[str, Any]]) -> str:
    """How many runs have ended how, in words."""
    by = Counter(record["status"] for record in records)
    failed = f", {by['failed']} failed" if by["failed"] else ""
    return f"{by['finished']} of {len(records)} runs{failed}"


def _run(run: StudyRun, out: Path, inputs: ArmInputs, splits: Splits, progress: Progress) -> None:
    """Runs one and records how it ended."""
    folder = run.folder(out)
    try:
        if (note := _note_of(run, out)).exists():
            raise UserError(f"its tokenizer failed: {note.read_text()}")
        scores = _scores(run, arm_of(run, out, inputs, splits, progress))
        made_by = provenance(World.join(inputs.device))
        record = new_record(run, "finished", scores=scores, provenance=made_by)
    except Exception as error:  # whatever it is, the other arms can still be compared
        _refuse_dead_device(error, run, folder, inputs.device)
        reason = _reason_of(error, folder)
        progress.say(f"{run.title} failed: {reason}")
        record = new_record(run, "failed", reason=reason)
    write_json(folder / "arm.json", finite(record))


def computes(device: str) -> bool:
    """Whether a device still does: after some errors of CUDA nothing works in a process any more.

    Such are an illegal access, an assertion in a kernel, and memory that is broken. Memory that is
    full is none. On the CPU no error stays.
    """
    try:
        torch.ones(2, device=World.join(device).device).sum().item()  # which waits for the device
    except torch.OutOfMemoryError:
        return True
    except Exception:  # CUDA's own have no class in common
        return False
    return True


def _refuse_dead_device(error: Exception, run: StudyRun, folder: Path, device: str) -> None:
    """Ends a process whose device is dead: it would soon fail all that waits, one by one."""
    if not computes(device):
        raise UserError(
            f"{run.title} ended and the device computes no more: {_reason_of(error, folder)}; "
            "nothing is recorded of that run, and the same command goes on with it"
        ) from error


def arm_of(run: StudyRun, out: Path, inputs: ArmInputs, splits: Splits, progress: Progress) -> Arm:
    """What a run works on."""
    return Arm(
        run.title, run.folder(out), out / "pictures", inputs, progress, splits,
        pixels=run.pixels, shared=run.shared(out),
    )  # fmt: skip


def _reason_of(error: Exception, folder: Path) -> str:
    """What went wrong, in a line; if it was no user's mistake, the rest goes into the folder."""
    reason = " ".join(str(error).split())
    if isinstance(error, UserError):
        return reason
    write_text(folder / "traceback.txt", traceback.format_exc())
    return f"{type(error).__name__}: {reason}"


def _scores(run: StudyRun, arm: Arm) -> Scores:
    """Trains and scores everything: a prior's scores by size, and their means over the sizes."""
    started = time.monotonic()
    scores = run_stage_one(arm, run.tokenizer) | _final_losses(arm)
    flops = scores["tokenizer_steps"]["receipt"]["flops"]
    scores["tokenizer_flops"] = score_of(flops, "FLOPs")
    by_size = {}
    for size, prior in zip(names_of(run.priors), run.priors, strict=True):
        by_size[size] = run_stage_two(arm, prior, size)
        by_size[size]["prior_flops"] = _cost_of(arm, size)
    for key in next(iter(by_size.values())):
        scores[key] = mean_over_sizes([found[key] for found in by_size.values()])
        if len(by_size) > 1:
            scores |= {f"{key}/{size}": found[key] for size, found in by_size.items()}
    trainings = ("tokenizer", *by_size)
    seconds = seconds_of(arm, trainings, time.monotonic() - started)
    return scores | arm.inputs.floor | {"seconds": seconds}


def _cost_of(arm: Arm, part: str) -> dict[str, Any]:
    """The FLOPs of a prior's training, strictly counted; with what else a law is drawn over."""
    record = read_json(arm.folder / part / "record.json", "a record")
    rows, columns = record["grid"]
    return score_of(
        record["flops"], "FLOPs", steps=record["steps"], pictures=record["samples"],
        parameters=sum(record["parameters"].values()), tokens_per_picture=rows * columns,
        codes=record["codebook_size"], paper_flops=record["paper_flops"],
        seconds=record["seconds"], joules=record["joules"],
        peak_memory_bytes=record["peak_memory_bytes"],
    )  # fmt: skip


def _final_losses(arm: Arm) -> Scores:
    """The codec's terms, unweighted, as means over the last tenth of the log."""
    lines = [line for line in read_log(arm.place("tokenizer")) if "codec/pixel_l2" in line]
    last = lines[-max(1, len(lines) // 10) :]
    return {
        f"loss_{name}": score_of(
            torch.tensor([line[f"codec/{name}"] for line in last]).mean().item(),
            "unweighted", steps=[line["step"] for line in last], split="train",
        )
        for name in LOSSES
        if f"codec/{name}" in last[0]
    }  # fmt: skip
