"""What torch.compile fuses, and, without fusing it, that it can read all of that."""

from dataclasses import replace

import pytest
import torch
from torch import nn

from cartok.core.config import config_of, dict_of
from cartok.core.loop import fit
from cartok.core.parallel import World
from cartok.core.run import Run, read_log
from cartok.recipes.tokenizer import causal_16k, causal_toy
from cartok.tokenizer.blocks import GridAttention
from cartok.tokenizer.train import TokenizerJob, TokenizerRun


@pytest.fixture
def compiled(monkeypatch):
    """The modules whose compilation was asked for."""
    found: list[nn.Module] = []
    monkeypatch.setattr(nn.Module, "compile", lambda self, *args, **kw: found.append(self))
    return found


def attention_of(parts):
    return [part for part in parts.tokenizer.modules() if isinstance(part, GridAttention)]


def test_everything_is_compiled_but_the_quantizer_and_what_the_codec_has_kernels_for(
    compiled, pictures
):
    run = causal_toy()
    losses = replace(run.losses, perceptual=1.0)
    parts = TokenizerJob(replace(run, losses=losses, compile=True), pictures, World()).parts
    layers = [block for net in (parts.causal, parts.twin) for block in net.transformer.blocks]
    others = [parts.critic, parts.perceptual]
    assert compiled == [*layers, *attention_of(parts), *others]
    assert len(attention_of(parts)) == 4
    assert None not in others


def test_what_a_recipe_leaves_out_is_not_compiled(compiled, pictures):
    run = causal_toy()
    critic = replace(run.losses.critic, weight=0.0)
    run = replace(run, causal=replace(run.causal, weight=0.0, watch=False), compile=True)
    run = replace(run, losses=replace(run.losses, critic=critic))
    assert compiled == attention_of(TokenizerJob(run, pictures, World()).parts)


def test_nothing_is_compiled_unless_asked(compiled, pictures):
    TokenizerJob(causal_toy(), pictures, World())
    assert compiled == []


def test_to_compile_changes_neither_the_start_nor_the_names_of_weights(compiled, pictures):
    plain, other = (
        TokenizerJob(replace(causal_toy(), compile=asked), pictures, World())
        for asked in (False, True)
    )
    assert plain.flops == other.flops
    for name, module in plain.modules.items():
        mine, theirs = module.state_dict(), other.modules[name].state_dict()
        assert mine.keys() == theirs.keys()
        assert all(torch.equal(mine[key], theirs[key]) for key in mine)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:The .grad attribute:UserWarning")  # torch reads it itself
def test_compiled_parts_train_as_plain_ones_do(pictures, tmp_path, monkeypatch):
    """Traced and differentiated as on a GPU; what is traced then runs as it is."""
    plain = nn.Module.compile
    monkeypatch.setattr(nn.Module, "compile", lambda self: plain(self, backend="aot_eager"))
    run = causal_toy()
    critic = replace(run.losses.critic, start=0, ramp=0, weighting="adaptive", lecam=0.1)
    run = replace(run, losses=replace(run.losses, critic=critic), equal_compute=False)

    def train(asked: bool) -> list[dict[str, float]]:
        config = replace(run, compile=asked, loop=replace(run.loop, steps=3))
        folder = tmp_path / str(asked)
        job = TokenizerJob(config, pictures, World())
        fit(job, config.loop, Run.open(folder, config, kind="tokenizer"))
        return read_log(folder)

    torch.compiler.reset()
    for mine, wanted in zip(train(True), train(False), strict=True):
        losses = {k: v for k, v in wanted.items() if not k.startswith("speed/")}
        assert {k: mine[k] for k in losses} == pytest.approx(losses, rel=1e-3, abs=1e-5)


@pytest.mark.parametrize(
    "change", [{"compile": True}, {"recompute_levels": 3}, {"start_from": "runs/a"}]
)
def test_the_fields_of_scale_survive_a_file(change):
    run = replace(causal_toy(), **change)
    assert config_of(TokenizerRun, dict_of(run)) == run != causal_toy()


def test_a_config_stored_before_there_were_those_fields_means_their_defaults():
    stored = dict_of(causal_16k())
    assert stored.pop("compile")
    del stored["recompute_levels"], stored["start_from"], stored["trains"]
    assert config_of(TokenizerRun, stored) == replace(causal_16k(), compile=False)
