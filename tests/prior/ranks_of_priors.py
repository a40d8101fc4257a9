"""Trains priors in processes that meet on this machine; the tests run it as a nursery.

It imports torch once. For each line of JSON it reads, it forks the ranks that the line describes
and answers with how they ended, so a test can kill a training for a second or two.
"""

import itertools
import json
import os
import signal
import sys
from functools import partial
from pathlib import Path
from typing import Any

import torch
import torch._dynamo  # both are needed by all that are forked, and loaded once
import torch.distributed.fsdp

from cartok.core.config import config_of
from cartok.core.parallel import World
from cartok.core.run import Run
from cartok.data.tokens import open_tokens
from cartok.lab.evaluations import prior_evaluations
from cartok.prior import model
from cartok.prior.surprise import Surprise, surprise_of_states
from cartok.prior.train import PriorJob, PriorRun, nats_per_position, train_prior

sys.path.append(str(Path(__file__).parents[1]))
from ranks import fork

Errand = dict[str, Any]


def train(errand: Errand) -> None:
    """Trains one prior; the main rank leaves its loss at each position of held-out sequences."""
    world, config = World.join("cpu"), config_of(PriorRun, errand["config"])
    model.surprise_of_states = partial(surprise_of_states, at_once=5 * 17)  # in parts, as on a GPU
    held = open_tokens(Path(config.tokens), "val")
    job = PriorJob(config, open_tokens(Path(config.tokens), "train"), world)
    out = Path(errand["out"])
    run = Run.open(out, config, kind="prior", world=world, resume=True)
    _arm(job, errand)
    outcome = train_prior(job, run, evaluations=prior_evaluations(job, held))
    nats = nats_per_position(job.prior, held, len(held), world.device)
    if world.is_main:
        counts = {"skips": outcome.skips, "rollbacks": outcome.rollbacks}
        ended = {"nats": nats.tolist(), "counts": counts}
        (out / "ended.json").write_text(json.dumps(ended))
    world.leave()


def _arm(job: PriorJob, errand: Errand) -> None:
    """Kills each rank in step ``kill``; spoils parts of batches, as they are drawn, on the last."""
    batches, plain, loop = job.batches, job.prepare, job.config.loop
    drawn = itertools.count()

    def begin(start: int):
        nonlocal drawn
        drawn = itertools.count(start * loop.accumulate // loop.batch)
        return batches(start)

    def prepare(batch, step: int) -> Surprise:
        if step == errand.get("kill"):
            os.kill(os.getpid(), signal.SIGKILL)
        found = plain(batch, step)
        is_spoilt = next(drawn) in errand.get("spoilt", ())
        if is_spoilt and job.world.rank == job.world.size - 1:
            found = found._replace(nats=found.nats * float("nan"))
        return found

    job.batches, job.prepare = begin, prepare


if __name__ == "__main__":
    torch.set_num_threads(1)
    for line in sys.stdin:
        asked = json.loads(line)
        print(json.dumps(fork(asked["ranks"], partial(train, asked["errand"]))), flush=True)
