"""Weights divided among ranks: the same training as on one rank, stopped and taken up on any."""

import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from cartok.core.checkpoint import load_model, load_state
from cartok.core.config import dict_of
from cartok.core.run import read_log
from cartok.data.token_writer import TokenWriter
from cartok.data.tokens import TokenManifest
from cartok.data.views import View
from cartok.recipes.prior import toy

CLOSE = {"rel": 2e-5, "abs": 2e-5}
"""Sums over a batch, and so gradients, are taken in another order, in float32: what a step adds is
off by some 1e-7 of itself, and AdamW and a dozen steps carry it on."""

SPOILT = (9, 10, 12, 15)
"""Halves of four batches after that of step 4: three are left out, one sends all back to step 3."""


@pytest.fixture(scope="module")
def apart():
    """A function that trains a prior on ranks of its own and gives back how they ended."""
    script = Path(__file__).with_name("ranks_of_priors.py")
    nursery = subprocess.Popen(
        [sys.executable, str(script)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )

    def apart(out, config, ranks=1, **how):
        errand = {"out": str(out), "config": dict_of(config), **how}
        asked = {"errand": errand, "ranks": ranks}
        nursery.stdin.write(json.dumps(asked) + "\n")
        nursery.stdin.flush()
        return json.loads(nursery.stdout.readline())

    yield apart
    nursery.communicate()


@pytest.fixture(scope="module")
def config(tmp_path_factory):
    """A prior without noise, whose tables no two ranks share evenly, on tokens that count up."""
    tokens = tmp_path_factory.mktemp("ranks") / "tokens"
    manifest = TokenManifest(
        tokenizer_digest="t", codebook_size=17, grid=(2, 4), classes=("a", "b"), source="none",
        picture_digests={"train": "d"}, view=View(size=16), kind="center",
    )  # fmt: skip
    writer = TokenWriter(tokens, manifest)
    for split, num in (("train", 64), ("val", 16)):
        first = torch.randint(17, (num, 1, 1), generator=torch.Generator().manual_seed(num))
        writer.add(split, (first + torch.arange(8)) % 17, torch.arange(num) % 2)
    writer.finish()
    run = toy()
    return replace(
        run, tokens=str(tokens), class_dropout=0.0, token_dropout=0.0,
        transformer=replace(run.transformer, dropout=0.0), z_loss=1e-4,
        weights="divided", recompute=True,
        loop=replace(
            run.loop, steps=9, batch=8, accumulate=2, ema=0.75, save_every=3,
            on_non_finite="recover",
        ),
        evaluations=(replace(run.evaluations[0], every=3),),
    )  # fmt: skip


@pytest.fixture(scope="module")
def alone(apart, config, tmp_path_factory):
    """The run folder of a training on one rank that was never stopped."""
    folder = tmp_path_factory.mktemp("ranks") / "alone"
    assert apart(folder, config, spoilt=SPOILT) == [0]
    return folder


@pytest.fixture(scope="module")
def divided(apart, config, tmp_path_factory):
    """The same on two ranks."""
    folder = tmp_path_factory.mktemp("ranks") / "divided"
    assert apart(folder, config, ranks=2, spoilt=SPOILT) == [0, 0]
    return folder


def lines_of(folder):
    """A run's log, less what the clock decides; what was not finite is -1."""
    return [
        {k: -1.0 if v is None else v for k, v in line.items() if not k.startswith("speed/")}
        for line in read_log(folder)
    ]


def assert_trained_alike(one, other):
    """Losses, gradients, evaluations, states and published models."""
    lines = lines_of(one)
    assert [line["step"] for line in lines] == [1, 2, 3, 3, 4, 4, 5, 6, 6, 7, 8, 9, 9]
    for line, expected in zip(lines_of(other), lines, strict=True):
        assert line == pytest.approx(expected, **CLOSE)
    ends = [json.loads((folder / "ended.json").read_text()) for folder in (one, other)]
    assert ends[0]["counts"] == ends[1]["counts"] == {"skips": 3, "rollbacks": 1}
    assert ends[0]["nats"] == pytest.approx(ends[1]["nats"], **CLOSE)
    found, wanted = (load_state(folder / "checkpoints").tensors for folder in (one, other))
    assert found.keys() == wanted.keys()
    for name in found.keys() - {"random/cpu"}:
        torch.testing.assert_close(found[name], wanted[name], rtol=1e-3, atol=1e-4)
    models = [load_model(folder / "model", kind="prior").tensors for folder in (one, other)]
    assert models[0].keys() == models[1].keys()
    for name, weight in models[0].items():
        torch.testing.assert_close(weight, models[1][name], rtol=1e-3, atol=1e-4)


def test_two_ranks_that_divide_the_weights_train_like_one_that_has_them_all(alone, divided):
    assert_trained_alike(divided, alone)
    eighths = [f"validation/nats_in_stretch_{number}" for number in range(1, 9)]
    assert all(name in lines_of(alone)[-1] for name in eighths)
    losses = [line.get("next_token/cross_entropy", -1.0) for line in lines_of(alone)]
    assert 0 < losses[-2] < 0.95 * losses[0]  # there was something to learn


def test_each_rank_stores_its_share_of_weights_moments_and_means(divided):
    state = divided / "checkpoints" / "step-00000009"
    shares = [load_file(state / f"state-0000{rank}-of-00002.safetensors") for rank in (1, 2)]
    assert not list(state.glob("state.safetensors"))
    rows = json.loads((state / "state.json").read_text())["rows"]
    whole = load_state(divided / "checkpoints").tensors
    assert {name.split("/")[0] for name in rows} == {"module", "optimizer", "average"}
    assert rows["average/prior/token_embedding.weight"] == [9, 8]
    for name, counts in rows.items():
        assert [len(share[name]) for share in shares] == counts
        assert torch.equal(torch.cat([share[name] for share in shares]), whole[name])
        assert max(counts) - min(counts) <= 1
    assert shares[1].keys() == rows.keys()
    left = {name.split("/")[-1] for name in whole.keys() - rows.keys()}
    assert left == {"cpu", "step"}


def test_a_training_killed_on_two_ranks_then_on_one_ends_like_one_that_was_not(
    apart, config, divided, tmp_path
):
    """The order of the data goes on where it was, and so do moments, means and the log."""
    folder = tmp_path / "killed"
    assert apart(folder, config, ranks=2, spoilt=SPOILT, kill=4) == [-9, -9]
    assert load_state(folder / "checkpoints").step == 3
    assert apart(folder, config, ranks=1, spoilt=SPOILT, kill=7) == [-9]
    assert load_state(folder / "checkpoints").step == 6
    assert apart(folder, config, ranks=2, spoilt=SPOILT) == [0, 0]
    assert_trained_alike(folder, divided)


def test_muon_moves_divided_matrices_as_it_moves_whole_ones(apart, config, tmp_path):
    """Its products are bfloat16, where sums in another order leave a hundredth, not a millionth."""
    loop = replace(config.loop, steps=6, on_non_finite="stop")
    config = replace(config, matrices="muon", loop=loop)
    alone, folder = tmp_path / "alone", tmp_path / "killed"
    assert apart(alone, config) == [0]
    assert apart(folder, config, ranks=2, kill=4) == [-9, -9]
    assert apart(folder, config, ranks=1) == [0]
    lines = lines_of(alone)
    assert {"gradient/prior", "gradient/matrices", "rate/matrices"} <= lines[0].keys()
    assert lines_of(folder)[0] == pytest.approx(lines[0], **CLOSE)  # nothing has moved
    for line, expected in zip(lines_of(folder), lines, strict=True):
        assert line == pytest.approx(expected, rel=0.02)
