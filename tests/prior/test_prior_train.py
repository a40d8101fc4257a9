"""The prior's training job: compiled or not, its losses are the same."""

from dataclasses import replace

import pytest
import torch
from torch import nn

from cartok.core.config import config_of, dict_of
from cartok.core.errors import UserError
from cartok.core.loop import fit
from cartok.core.parallel import World
from cartok.core.run import Run, read_log
from cartok.data.tokens import TokenManifest, TokenWriter, open_tokens
from cartok.data.views import View
from cartok.prior.train import PriorJob, PriorRun, nats_per_position
from cartok.recipes.prior import toy


@pytest.fixture
def shards(tmp_path):
    """Tokens that count up from a random one, so that there is something to learn."""
    manifest = TokenManifest(
        tokenizer_digest="t", codebook_size=16, grid=(2, 4), classes=("a", "b"), source="none",
        picture_digests={"train": "d"}, view=View(size=16), kind="center",
    )  # fmt: skip
    writer = TokenWriter(tmp_path / "tokens", manifest)
    first = torch.randint(16, (64, 1, 1), generator=torch.Generator().manual_seed(0))
    writer.add("train", (first + torch.arange(8)) % 16, torch.arange(64) % 2)
    writer.finish()
    return open_tokens(tmp_path / "tokens", "train")


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:The .grad attribute:UserWarning")  # torch reads it itself
def test_a_compiled_prior_trains_as_a_plain_one_does(shards, tmp_path, monkeypatch):
    """Traced and differentiated as on a GPU; what is traced then runs as it is."""
    plain = nn.Module.compile
    monkeypatch.setattr(nn.Module, "compile", lambda self: plain(self, backend="aot_eager"))

    def train(asked: bool) -> tuple[list[dict[str, float]], torch.Tensor]:
        run = toy()
        loop = replace(run.loop, steps=3, batch=8, log_every=1)
        run = replace(run, compile=asked, loop=loop)
        job = PriorJob(run, shards, World())
        fit(job, loop, Run.open(tmp_path / str(asked), run, kind="prior"))
        return read_log(tmp_path / str(asked)), nats_per_position(
            job.prior, shards, 9, torch.device("cpu"), batch=4
        )

    (mine, my_nats), (wanted, their_nats) = train(True), train(False)
    torch.compiler.reset()
    for line, other in zip(mine, wanted, strict=True):
        losses = {k: v for k, v in other.items() if not k.startswith("speed/")}
        assert {k: line[k] for k in losses} == pytest.approx(losses, rel=1e-4, abs=1e-6)
    torch.testing.assert_close(my_nats, their_nats, rtol=1e-4, atol=1e-6)


def test_a_prior_that_recomputes_its_layers_trains_the_same_to_the_last_digit(shards, tmp_path):
    """With all its noise: dropout is computed again as it was."""

    def losses(recompute: bool) -> list[dict[str, float]]:
        run = toy()
        assert run.transformer.dropout > 0
        run = replace(run, recompute=recompute, loop=replace(run.loop, steps=5, batch=8))
        out = tmp_path / str(recompute)
        fit(PriorJob(run, shards, World()), run.loop, Run.open(out, run, kind="prior"))
        lines = [dict(line) for line in read_log(out)]
        return [{k: v for k, v in line.items() if "speed/" not in k} for line in lines]

    mine = losses(True)
    assert mine == losses(False)
    assert len(mine) == 5


def test_muon_moves_the_layers_matrices_and_adamw_all_else(shards, tmp_path):
    run = replace(toy(), matrices="muon")
    job = PriorJob(run, shards, World())
    (phase,) = job.phases
    adamw, muon = ({id(p) for p in mover.parameters} for mover in phase.movers)
    names = {name for name, weight in job.prior.named_parameters() if id(weight) in muon}
    ends = ("attention.qkv", "attention.out", "feed.gate_up", "feed.down")
    assert names == {f"transformer.blocks.{n}.{end}.weight" for n in range(2) for end in ends}
    assert not adamw & muon
    assert adamw | muon == {id(weight) for weight in job.prior.parameters()}
    fit(job, run.loop, Run.open(tmp_path / "run", run, kind="prior"))
    losses = [line["next_token/cross_entropy"] for line in read_log(tmp_path / "run")]
    assert losses[-1] < 0.9 * losses[0]


def test_muon_refuses_to_divide_a_matrix_of_fewer_rows_than_ranks(shards, monkeypatch):
    monkeypatch.setattr(World, "shard", lambda self, module, *how, **more: module)
    run = replace(toy(), matrices="muon", weights="divided")
    with pytest.raises(UserError, match="the width is 32 on 33 ranks; give --weights copied"):
        PriorJob(run, shards, World(size=33))


def test_the_z_loss_is_logged_and_minimised(shards, tmp_path):
    def totals(weight: float) -> list[float]:
        run = toy()
        run = replace(run, z_loss=weight, loop=replace(run.loop, steps=20, log_every=1))
        out = tmp_path / str(weight)
        fit(PriorJob(run, shards, World()), run.loop, Run.open(out, run, kind="prior"))
        return [line["next_token/z"] for line in read_log(out) if "next_token/z" in line]

    weak, strong = totals(1e-9), totals(1.0)
    assert len(weak) == len(strong) == 20
    assert strong[-1] < 0.6 * weak[-1]
    assert totals(0.0) == []


def test_a_config_stored_before_compiling_was_a_choice_means_plain():
    stored = dict_of(replace(toy(), compile=True))
    del stored["compile"]
    assert config_of(PriorRun, stored) == toy()
