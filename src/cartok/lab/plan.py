"""What a study's runs will cost, counted before any of them is started."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from cartok.core.parallel import World
from cartok.data.images import open_splits
from cartok.data.pictures import Pictures
from cartok.lab.records import StudyRun, records_of, runs_of
from cartok.prior.model import PriorConfig, flops_per_token
from cartok.recipes.arms import StudyConfig
from cartok.scaling.numbers import aligned, shown
from cartok.tokenizer.train import TokenizerJob


@dataclass(frozen=True)
class Cost:
    """Of one run; nothing but the trainings is counted."""

    steps: int
    """Of the tokenizer, with those taken off that its regulariser costs."""
    tokenizer_flops: float
    prior_flops: float
    """Of all its priors."""


def plan_of(study: StudyConfig, out: Path, arms: tuple[str, ...] = ()) -> str:
    """A table of the runs, one seed after the other, with the sums of all and of those left.

    Raises:
        UserError: the study has no arm of a name.
    """
    base = study.arms[0].tokenizer
    pictures = open_splits(base.data, size=base.view.size)["train"]
    runs = runs_of(study, arms)
    by_arm = {run.arm: run for run in runs}  # of any seed: they cost the same
    jobs: dict[str, TokenizerJob] = {}
    for run in by_arm.values():
        jobs[run.made_from] = jobs.get(run.made_from) or job_of(run, pictures)
    cost_by_arm = {name: cost_of(run, jobs[run.made_from]) for name, run in by_arm.items()}
    costs = [cost_by_arm[run.arm] for run in runs]
    rows = [["run", "state", "tokenizer steps", "tokenizer FLOPs", "priors FLOPs"]]
    records = records_of(runs, out.resolve())
    for run, cost, record in zip(runs, costs, records, strict=True):
        rows.append([run.title, record["status"], *_cells(cost)])
    every = list(zip(runs, costs, strict=True))
    left = [pair for pair, record in zip(every, records, strict=True) if _is_left(record)]
    rows.append([f"all {len(every)} runs", "", *_cells(_total(every))])
    return aligned([*rows, [f"{len(left)} to be run", "", *_cells(_total(left))]])


def _is_left(record: dict[str, Any]) -> bool:
    return record["status"] != "finished"


def _total(runs: list[tuple[StudyRun, Cost]]) -> Cost:
    """Of several runs; a tokenizer that they share is trained once."""
    tokenizers = {run.made_from: cost for run, cost in runs}.values()
    return Cost(
        sum(cost.steps for cost in tokenizers),
        sum((cost.tokenizer_flops for cost in tokenizers), 0.0),
        sum((cost.prior_flops for _, cost in runs), 0.0),
    )


def job_of(run: StudyRun, pictures: Pictures) -> TokenizerJob:
    """The training of a run's tokenizer, in shapes alone."""
    with torch.random.fork_rng([]):  # a job seeds its networks, even those without numbers
        return TokenizerJob(run.tokenizer, pictures, World(device=torch.device("meta")))


def cost_of(run: StudyRun, job: TokenizerJob) -> Cost:
    """What the record of a run will say; ``job`` trains its tokenizer."""
    flops = job.flops.of(job.steps, run.tokenizer.losses) * run.tokenizer.loop.batch
    size = run.pixels or run.tokenizer.view.size
    priors = 0.0
    for prior in run.priors:
        shape = PriorConfig(
            transformer=prior.transformer,
            codebook_size=job.tokenizer.codebook_size,
            grid=job.tokenizer.grid_of(size, size),
            num_classes=job.pictures.num_classes,
        )
        seen = prior.loop.steps * prior.loop.batch * shape.num_tokens
        priors += 3.0 * flops_per_token(shape) * seen
    return Cost(job.steps, flops, priors)


def _cells(cost: Cost) -> list[str]:
    return [shown(cost.steps), shown(cost.tokenizer_flops), shown(cost.prior_flops)]
