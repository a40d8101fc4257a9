"""Two processes that each see half the pictures end with one codebook, that of a single one."""

import json
import socket
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from cartok.core.config import dict_of
from cartok.core.loop import fit
from cartok.core.parallel import World
from cartok.core.run import Run
from cartok.recipes.tokenizer import causal_toy
from cartok.tokenizer.quantize.binary import BSQConfig, LFQConfig
from cartok.tokenizer.quantize.fsq import FSQConfig
from cartok.tokenizer.quantize.kinds import KINDS
from cartok.tokenizer.quantize.residual import ResidualVQConfig
from cartok.tokenizer.quantize.vq import VQConfig
from cartok.tokenizer.train import TokenizerJob, TokenizerRun

TWO_RANKS = Path(__file__).with_name("two_ranks.py")
SMALL = {"codebook_size": 32, "dim": 4}
QUANTIZERS = {kind: KINDS[kind][0]() for kind in KINDS} | {
    "vq": VQConfig(**SMALL, revive_after=2),
    "kmeans": VQConfig(**SMALL, init="kmeans", gradient="rotation"),
    "ema": VQConfig(**SMALL, codebook="ema", decay=0.8, init="kmeans", revive_after=2),
    "fsq": FSQConfig(levels=(5, 4, 3)),
    "lfq": LFQConfig(bits=5),
    "bsq": BSQConfig(bits=5),
    "residual": ResidualVQConfig(codebook_size=8, dim=4, revive_after=2),
    "drawn": VQConfig(**SMALL, codebook="ema", temperature=0.1),
}
# The batch's entropy is that of what one process sees; and ranks draw codes of their own.
ALONE = {"lfq", "bsq", "drawn"}


def toy(name: str) -> TokenizerRun:
    """Four steps of causal-toy without critic and regulariser.

    Off the sphere that divides by the variance of the latents that one process sees.
    """
    run = causal_toy()
    return replace(
        run,
        equal_compute=False,
        causal=replace(run.causal, weight=0.0, watch=False),
        losses=replace(run.losses, critic=replace(run.losses.critic, weight=0.0)),
        model=replace(run.model, quantizer=QUANTIZERS[name]),
        loop=replace(run.loop, steps=4),
    )


@pytest.fixture(scope="module")
def two_ranks(picture_folder, tmp_path_factory):
    """What both ranks of a training in two processes end with, by quantizer."""
    out = tmp_path_factory.mktemp("quantizers-on-ranks")
    for name in QUANTIZERS:
        (out / f"{name}.json").write_text(json.dumps(dict_of(toy(name))))
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    configs = [str(out / f"{name}.json") for name in QUANTIZERS]
    done = subprocess.run(
        [sys.executable, str(TWO_RANKS), str(picture_folder), str(port), str(out), *configs],
        capture_output=True, text=True, timeout=280, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-2000:]
    return {
        name: [load_file(out / f"{name}-{rank}.safetensors") for rank in range(2)]
        for name in QUANTIZERS
    }


@pytest.mark.slow
@pytest.mark.parametrize("name", QUANTIZERS)
def test_both_ranks_hold_the_same_codebook_to_the_last_bit(two_ranks, name):
    one, other = two_ranks[name]
    assert one.keys() == other.keys()
    assert not [key for key, value in one.items() if not torch.equal(other[key], value)]


@pytest.mark.slow
@pytest.mark.parametrize("name", [name for name in QUANTIZERS if name not in ALONE])
def test_two_ranks_quantize_like_one_process_with_the_whole_batch(
    two_ranks, name, pictures, tmp_path
):
    job = TokenizerJob(toy(name), pictures, World())
    fit(job, job.config.loop, Run.open(tmp_path / "run", job.config, kind="tokenizer"))
    found = two_ranks[name][0]
    for key, value in job.tokenizer.state_dict().items():
        # A key's bias changes no attention: its gradient is rounding alone, which Adam scales up.
        limit = 1e-3 if key.endswith("qkv.bias") else 3e-5
        assert (found[f"tokenizer/{key}"] - value).abs().max() <= limit, key
