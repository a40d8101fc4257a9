"""Trains tokenizers in two processes that meet on this machine; the tests run it as a script.

    two_ranks.py PICTURES PORT OUT CONFIG.json ...

imports torch once, forks into both ranks, and leaves each rank's final tensors under OUT.
"""

import json
import os
import signal
import sys
from pathlib import Path

import torch
from safetensors.torch import save_file

from cartok.core.config import config_of
from cartok.core.loop import fit
from cartok.core.parallel import World
from cartok.core.run import Run
from cartok.data.images import open_pictures
from cartok.tokenizer.train import TokenizerJob, TokenizerRun

RANKS = 2


def train_all(pictures: str, out: Path, configs: list[Path]) -> None:
    """Trains every config and writes what each rank ends with."""
    world = World.join("cpu")
    for path in configs:
        config = config_of(TokenizerRun, json.loads(path.read_text()))
        job = TokenizerJob(config, open_pictures(pictures, "train", size=16), world)
        run = Run.open(out / path.stem, config, kind="tokenizer", world=world)
        fit(job, config.loop, run)
        tensors = {
            f"{name}/{key}": value.contiguous()
            for name, module in job.modules.items()
            for key, value in module.state_dict().items()
        }
        save_file(tensors, out / f"{path.stem}-{world.rank}.safetensors")
    world.leave()


def main(pictures: str, port: str, out: str, *configs: str) -> int:
    """Forks the ranks; the exit code is 0 only if all end well, and one that fails ends them."""
    torch.set_num_threads(1)
    # Imports what torch puts off until an optimizer is used, once instead of in both ranks.
    torch.optim.AdamW([torch.zeros(1, requires_grad=True)]).zero_grad()
    children = set()
    for rank in range(RANKS):
        child = os.fork()
        if child == 0:
            os.environ |= {"RANK": str(rank), "WORLD_SIZE": str(RANKS), "LOCAL_RANK": str(rank)}
            os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
            train_all(pictures, Path(out), [Path(path) for path in configs])
            os._exit(0)
        children.add(child)
    while children:
        child, status = os.wait()
        children.discard(child)
        if status:
            for other in children:  # it would wait for the dead one
                os.kill(other, signal.SIGKILL)
            return 1
    return 0


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
