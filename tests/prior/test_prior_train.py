"""The prior's training job: on any tokens, and compiled or not with the same losses."""

import json
from dataclasses import replace

import pytest
import torch
from torch import nn

from cartok.core.config import config_of, dict_of
from cartok.core.errors import UserError
from cartok.core.loop import fit
from cartok.core.parallel import World
from cartok.core.run import Run, read_log
from cartok.data.token_writer import TokenWriter
from cartok.data.tokens import TokenManifest, open_tokens
from cartok.data.views import View
from cartok.prior.model import Prior, PriorConfig
from cartok.prior.train import PriorJob, PriorRun, nats_per_position, train_prior
from cartok.recipes.prior import toy
from cartok.sampling.sampler import Sampler


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


class GridPainter:
    """Stands in for the tokenizer ``t``: a picture is its grid of tokens."""

    digest = "t"

    def image_of(self, tokens):
        return (tokens.float() / 2**18)[:, None].repeat(1, 3, 1, 1)


@pytest.mark.parametrize(
    ("codebook_size", "grid"),
    [(2, (12, 8)), (65_536, (8, 12)), (262_144, (8, 8)), (1_024, (24, 24))],
)
def test_tokens_of_any_codebook_and_grid_are_learned_and_drawn(tmp_path, codebook_size, grid):
    """From shards through a tiny prior and its folder to pictures; few codes are ever seen."""
    num_tokens = grid[0] * grid[1]
    manifest = TokenManifest(
        tokenizer_digest="t", codebook_size=codebook_size, grid=grid, classes=("a", "b"),
        source="none", picture_digests={"train": "d"}, view=View(size=16), kind="center",
    )  # fmt: skip
    writer = TokenWriter(tmp_path / "tokens", manifest)
    top = codebook_size - 1
    tokens = torch.where(torch.arange(num_tokens) % 2 == 0, top, 0).expand(8, 1, -1)
    writer.add("train", tokens, torch.arange(8) % 2)
    writer.finish()
    shards = open_tokens(tmp_path / "tokens", "train")
    assert torch.equal(shards[7], tokens[7])
    run = toy()
    net = replace(run.transformer, width=4, depth=1, heads=1, hidden_multiple=4)
    loop = replace(run.loop, steps=3, batch=1)
    run = replace(run, transformer=net, loop=loop, token_dropout=0.0,
                  optim=replace(run.optim, lr=0.3))  # fmt: skip
    job = PriorJob(run, shards, World())
    before = nats_per_position(job.prior, shards, 1, torch.device("cpu")).mean()
    train_prior(job, Run.open(tmp_path / "run", run, kind="prior"))
    prior = Prior.from_pretrained(tmp_path / "run")
    nats = nats_per_position(prior, shards, 1, torch.device("cpu"))
    assert nats.shape == (num_tokens,)
    assert nats.mean() < before - 0.1
    drawn = Sampler(prior, GridPainter()).sample([1], seed=0)
    assert drawn.shape == (1, 3, *grid)
    found = (drawn * 2**18).round().long()
    assert found.min() >= 0
    assert found.max() <= top


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"tokenizer_digest": "u"}, "their tokenizer is u and the prior's t"),
        ({"codebook_size": 32}, "their codebook size is 32 and the prior's 16"),
        ({"grid": (4, 2)}, r"their grid is \(4, 2\) and the prior's \(2, 4\)"),
        ({"classes": ("a",)}, "their number of classes is 1 and the prior's 2"),
        ({"classes": ("a", "c")}, "their classes is"),
    ],
    ids=lambda value: str(value),
)
def test_tokens_of_another_kind_are_refused_by_a_prior(shards, change, said):
    prior = PriorJob(toy(), shards, World()).prior
    nats_per_position(prior, shards, 2, torch.device("cpu"))
    shards.manifest = replace(shards.manifest, **change)
    with pytest.raises(UserError, match=said) as caught:
        nats_per_position(prior, shards, 2, torch.device("cpu"))
    assert "\n" not in str(caught.value)


def test_a_prior_knows_which_labels_it_was_never_trained_on(tmp_path):
    manifest = TokenManifest(
        tokenizer_digest="t", codebook_size=16, grid=(2, 4), classes=tuple("abcdef"),
        source="none", picture_digests={"train": "d"}, view=View(size=16), kind="center",
    )  # fmt: skip
    writer = TokenWriter(tmp_path / "tokens", manifest)
    writer.add("train", torch.zeros(9, 1, 8, dtype=torch.long), torch.tensor([4, 1, 2] * 3))
    writer.finish()
    prior = PriorJob(toy(), open_tokens(tmp_path / "tokens", "train"), World()).prior
    assert prior.unseen == (0, 3, 5)
    prior.save(tmp_path / "model")
    assert Prior.from_pretrained(tmp_path / "model").unseen == (0, 3, 5)
    path = tmp_path / "model" / "config.json"  # as folders were before it was noted
    stored = json.loads(path.read_text())
    del stored["extra"]["unseen"]
    path.write_text(json.dumps(stored))
    assert Prior.from_pretrained(tmp_path / "model").unseen == ()


@pytest.mark.parametrize("unseen", [(0, 1, 2), (3,), (-1,)])
def test_unseen_labels_that_cannot_be_are_refused(unseen):
    with pytest.raises(UserError, match="some but not all of 0 to 2"):
        Prior(PriorConfig(transformer=toy().transformer, num_classes=3), unseen=unseen)
