"""A decoder is tuned later; tokens, and priors that learned them, go on as they are."""

import shutil
from dataclasses import replace

import pytest
import torch

from cartok.__main__ import main
from cartok.core.config import ConfigError
from cartok.core.errors import UserError
from cartok.core.loop import fit
from cartok.core.parallel import World
from cartok.core.precision import computing_in
from cartok.core.run import Run, read_log
from cartok.data.batches import all_images
from cartok.data.tokens import open_tokens
from cartok.data.views import View
from cartok.layers import TransformerConfig
from cartok.prior.model import Prior, PriorConfig
from cartok.recipes.tokenizer import baseline_toy, causal_toy
from cartok.sampling.sampler import Sampler
from cartok.tokenizer import setup
from cartok.tokenizer.alignment import AlignmentConfig
from cartok.tokenizer.critic import CriticConfig
from cartok.tokenizer.extract import extract
from cartok.tokenizer.model import Tokenizer, TokenizerConfig
from cartok.tokenizer.quantize.fsq import FSQConfig
from cartok.tokenizer.quantize.vq import VQConfig
from cartok.tokenizer.train import TokenizerJob, TokenizerRun, train_tokenizer

TABLE = VQConfig(codebook_size=32, dim=4, revive_after=1)
QUANTIZERS = {
    "revived": TABLE,
    "moving means": replace(TABLE, codebook="ema", decay=0.5, init="kmeans"),
    "drawn": replace(TABLE, temperature=0.5),
    "scalars": FSQConfig(levels=(5, 4, 3)),
}


def model_of(quantizer=TABLE, **codec) -> TokenizerConfig:
    return TokenizerConfig(codec=replace(causal_toy().model.codec, **codec), quantizer=quantizer)


@pytest.fixture
def kept(tmp_path):
    """A function that makes a tokenizer as some training left it, and its folder."""

    def kept(quantizer=TABLE) -> tuple[Tokenizer, str]:
        torch.manual_seed(7)
        tokenizer = Tokenizer(model_of(quantizer)).eval()
        for name, buffer in tokenizer.quantizer.named_buffers():
            if name == "begun":
                buffer.fill_(1)
        tokenizer.save(tmp_path / "kept" / "model")
        return tokenizer, str(tmp_path / "kept")

    return kept


def tuning(source: str, model: TokenizerConfig | None = None, steps=4, **loop) -> TokenizerRun:
    """causal-toy for the decoder alone: the critic is heard from the second step on."""
    run = causal_toy()
    return replace(
        run,
        start_from=source,
        trains="decoder",
        model=model or model_of(),
        causal=replace(run.causal, weight=0.0, watch=False),
        losses=replace(run.losses, critic=CriticConfig(channels=8, layers=2, start=1, ramp=0)),
        loop=replace(run.loop, steps=steps, save_every=2, **loop),
    )


@pytest.fixture
def tune(pictures, tmp_path):
    """A function that trains a decoder to the end and returns job and run."""

    def tune(config: TokenizerRun, name="tuned", **given) -> tuple[TokenizerJob, Run]:
        run = Run.open(tmp_path / name, config, kind="tokenizer", resume=True)
        job = TokenizerJob(config, pictures, World(), run.checkpoints)
        assert train_tokenizer(job, run, **given).finished
        return job, run

    return tune


def unequal(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> list[str]:
    assert one.keys() == other.keys()
    return [name for name in one if not torch.equal(one[name], other[name])]


@pytest.mark.parametrize("name", QUANTIZERS)
def test_only_the_decoder_moves_and_every_token_stays(kept, tune, pictures, name):
    before, source = kept(QUANTIZERS[name])
    job, run = tune(tuning(source, model_of(QUANTIZERS[name]), ema=0.5, accumulate=2))
    after = Tokenizer.from_pretrained(run.folder)
    moved = unequal(before.state_dict(), after.state_dict())
    assert {part.split(".")[0] for part in moved} == {"project_out", "decoder"}
    decoding = {k for k in before.state_dict() if k.startswith(("project_out.", "decoder."))}
    # A key's bias changes no attention, and gets rounding for a gradient.
    assert {k for k in decoding if not k.endswith("qkv.bias")} <= set(moved)
    (everything,) = all_images(pictures, View(size=16), batch=100)
    tokens = before.tokens_of(everything.image)
    assert torch.equal(after.tokens_of(everything.image), tokens)
    assert not torch.equal(after.image_of(tokens), before.image_of(tokens))
    assert after.digest == before.digest == job.tokenizer.digest
    assert read_log(run.folder)[-1]["codec/critic"] != 0


def test_the_codec_keeps_nothing_of_the_encoder_to_go_back(kept, pictures):
    _, source = kept()
    job = TokenizerJob(tuning(source), pictures, World())
    outcome = job.prepare(next(job.batches(0)), 0)
    assert not outcome.encoded.encoder_output.requires_grad
    assert not outcome.encoded.quantized.codes.requires_grad
    assert outcome.reconstruction.requires_grad
    (mover,) = job.phases[0].movers
    held = {id(p) for group in mover.optimizer.param_groups for p in group["params"]}
    parts = (job.tokenizer.project_out, job.tokenizer.decoder)
    assert held == {id(p) for part in parts for p in part.parameters()}


def test_the_decoder_learns_to_decode_the_tokens_themselves_not_drawn_ones(kept, pictures):
    _, source = kept(QUANTIZERS["drawn"])
    job = TokenizerJob(tuning(source, model_of(QUANTIZERS["drawn"])), pictures, World())
    batch = next(job.batches(0))
    drawn = job.prepare(batch, 0).encoded.quantized.tokens
    assert torch.equal(drawn, job.tokenizer.tokens_of(batch.image))


def test_a_tuned_decoder_lowers_the_pixel_error(kept, tune):
    _, source = kept()
    config = tuning(source, steps=40)
    quiet = replace(config.losses, critic=replace(config.losses.critic, weight=0.0))
    _, run = tune(replace(config, losses=quiet))
    log = [line["codec/pixel_l2"] for line in read_log(run.folder)]
    assert sum(log[-5:]) < 0.9 * sum(log[:5])


def test_a_deeper_decoder_starts_anew_and_reads_the_same_tokens(kept, tune, pictures):
    before, source = kept()
    _, run = tune(tuning(source, model_of(decoder_blocks=3)))
    after = Tokenizer.from_pretrained(run.folder)
    assert after.config.codec.decoder_blocks == 3
    assert unequal(before.encoding_state(), after.encoding_state()) == []
    assert after.digest == before.digest
    (everything,) = all_images(pictures, View(size=16), batch=100)
    tokens = before.tokens_of(everything.image)
    assert torch.equal(after.tokens_of(everything.image), tokens)
    assert after.image_of(tokens).shape == everything.image.shape


def strike(tune, config) -> None:
    """Kills a training in the folder ``struck`` at its third step."""

    def tick(done: int, words: str) -> None:
        if done == 3:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        tune(config, "struck", tick=tick)


def test_a_tuning_that_died_goes_on_to_the_same_end(kept, tune):
    _, source = kept()
    config = tuning(source, steps=6, ema=0.5)
    whole, _ = tune(config)
    strike(tune, config)
    again, _ = tune(config, "struck")
    assert unequal(again.tokenizer.state_dict(), whole.tokenizer.state_dict()) == []


@pytest.mark.parametrize(("trains", "fate"), [("all", "gone"), ("decoder", "trained on")])
def test_a_training_that_died_goes_on_whatever_became_of_where_it_started(
    kept, tune, tmp_path, picture_folder, trains, fate
):
    _, source = kept()
    config = replace(tuning(source), trains=trains, data=str(picture_folder), evaluations=())
    whole, _ = tune(config)
    strike(tune, config)
    shutil.rmtree(source)
    if fate == "trained on":
        Tokenizer(model_of()).save(tmp_path / "kept" / "model")
    assert main(["resume", str(tmp_path / "struck"), "--device", "cpu"]) == 0
    again = Tokenizer.from_pretrained(tmp_path / "struck")
    assert unequal(again.state_dict(), whole.tokenizer.state_dict()) == []


def test_a_training_that_died_before_it_saved_needs_where_it_started(kept, pictures, tmp_path):
    _, source = kept()
    shutil.rmtree(source)
    (tmp_path / "checkpoints").mkdir()
    with pytest.raises(UserError, match="kept does not exist"):
        TokenizerJob(tuning(source), pictures, World(), tmp_path / "checkpoints")


def test_in_bf16_the_decoder_learns_the_tokens_of_float32(kept, pictures):
    _, source = kept()
    job = TokenizerJob(tuning(source, precision="bf16"), pictures, World())
    batch = next(job.batches(0))
    with computing_in("bf16", job.world.device):
        forward = job.prepare(batch, 0)
    assert forward.encoded.projected.dtype == torch.float32
    assert torch.equal(forward.encoded.quantized.tokens, job.tokenizer.tokens_of(batch.image))
    assert forward.reconstruction.dtype == torch.bfloat16


def test_an_encoder_that_moved_all_the_same_is_noticed(kept, pictures):
    _, source = kept()
    job = TokenizerJob(tuning(source), pictures, World())
    setup.assert_still(job.parts)
    with torch.no_grad():
        job.tokenizer.encoder.enter.weight[0, 0, 0, 0] += 1e-6
    with pytest.raises(AssertionError, match=r"but encoder\.enter\.weight has moved"):
        setup.assert_still(job.parts)


# ------------------------------------------------------------------ priors and tokens go on


def test_old_tokens_and_priors_take_the_tuned_decoder_and_no_other_tokenizer(
    kept, tune, pictures, tmp_path
):
    before, source = kept()
    splits = {"train": pictures, "val": pictures}
    extract(before, splits, tmp_path / "old", source="here", view=View(size=16), kind="center")
    shards = open_tokens(tmp_path / "old", "train")
    net = TransformerConfig(width=16, depth=1, heads=2, hidden_multiple=16)
    shape = PriorConfig(transformer=net, codebook_size=32, grid=(4, 4), num_classes=2)
    prior = Prior(shape, tokenizer_digest=shards.manifest.tokenizer_digest)

    after = Tokenizer.from_pretrained(tune(tuning(source))[1].folder)
    mine, tuned = (Sampler(prior, one).sample([0, 1], seed=1) for one in (before, after))
    assert mine.shape == tuned.shape == (2, 3, 16, 16)
    assert not torch.equal(mine, tuned)

    extract(after, splits, tmp_path / "new", source="here", view=View(size=16), kind="center")
    again = open_tokens(tmp_path / "new", "train")
    assert again.manifest.tokenizer_digest == shards.manifest.tokenizer_digest
    assert all(torch.equal(again[index], shards[index]) for index in range(len(shards)))

    run = replace(tuning(source), trains="all")
    job = TokenizerJob(run, pictures, World())
    fit(job, run.loop, Run.open(tmp_path / "all", run, kind="tokenizer"))
    with pytest.raises(UserError, match="tokens made by another tokenizer"):
        Sampler(prior, job.tokenizer)


# ------------------------------------------------------------------ where a training starts


def test_a_whole_training_starts_from_the_weights_it_is_given(kept, pictures):
    before, source = kept()
    job = TokenizerJob(
        replace(baseline_toy(), start_from=source, model=model_of()), pictures, World()
    )
    assert unequal(before.state_dict(), job.tokenizer.state_dict()) == []
    assert all(p.requires_grad for p in job.tokenizer.parameters())
    assert job.parts.still == {}


def test_a_training_may_change_how_a_codebook_learns_but_not_its_shape(kept, pictures):
    _, source = kept()
    run = replace(causal_toy(), start_from=source, model=model_of(replace(TABLE, revive_after=9)))
    assert TokenizerJob(run, pictures, World()).tokenizer.quantizer.config.revive_after == 9


OTHERS = {
    "codec.groups": model_of(groups=2),
    "codec.latent_channels": model_of(latent_channels=8),
    "codec.encoder_blocks": model_of(encoder_blocks=2),
    "codec.attention": model_of(attention=False),
    "project_in.weight": model_of(replace(TABLE, dim=5)),
    "quantizer.table": model_of(FSQConfig(levels=(5, 4, 3, 3))),
    "quantizer.shares": model_of(replace(TABLE, codebook="ema")),
}
TO_THE_BIT = OTHERS | {
    "project_in.weight": model_of(replace(TABLE, normalise=False)),
    "quantizer.table": model_of(replace(TABLE, revive_after=0)),
}
SAID = {"project_in.weight": "quantizer.normalise", "quantizer.table": "quantizer.revive_after",
        "quantizer.shares": "quantizer.codebook"}  # fmt: skip


def refusal_of(run: TokenizerRun, pictures) -> str:
    with pytest.raises(UserError) as refused:
        TokenizerJob(run, pictures, World())
    assert "\n" not in str(refused.value)
    return str(refused.value)


@pytest.mark.parametrize("name", OTHERS)
def test_another_encoder_or_quantizer_is_refused(kept, pictures, name):
    _, source = kept()
    said = refusal_of(replace(causal_toy(), start_from=source, model=OTHERS[name]), pictures)
    assert said == (
        f"start_from needs the encoder and quantizer of this recipe, but {source} has others "
        f"({name}); take its model config"
    )


@pytest.mark.parametrize("name", TO_THE_BIT)
def test_where_tokens_must_stay_every_field_they_depend_on_must(kept, pictures, name):
    """Also those that change no shape: a norm's groups, a quantizer that looks up otherwise."""
    _, source = kept()
    said = refusal_of(tuning(source, TO_THE_BIT[name]), pictures)
    assert f"({SAID.get(name, name)}); take its model config" in said


def test_a_start_that_is_not_there_is_refused(pictures, tmp_path):
    said = refusal_of(tuning(str(tmp_path / "nowhere")), pictures)
    assert "nowhere does not exist" in said


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"start_from": ""}, "start_from must name its tokenizer"),
        ({"causal": causal_toy().causal}, "causal.weight and losses.alignment.weight must be 0"),
        ({"causal": baseline_toy().causal}, "and causal.watch false"),
        (
            {"losses": replace(causal_toy().losses, alignment=AlignmentConfig(weight=1.0))},
            "losses.alignment.weight must be 0",
        ),
    ],
)
def test_what_cannot_be_tuned_alone_is_refused(change, words):
    with pytest.raises(ConfigError, match=words) as refused:
        replace(tuning("somewhere"), **change)
    assert "\n" not in str(refused.value)


# ------------------------------------------------------------------ from the command line


def test_one_command_tunes_a_decoder(kept, picture_folder, tmp_path, monkeypatch, capsys):
    before, source = kept()
    monkeypatch.chdir(tmp_path)
    arguments = ["train-tokenizer", "causal-toy", "--data", str(picture_folder), "--device", "cpu",
                 "--start-from", source, "--trains", "decoder", "--causal.weight", "0",
                 "--causal.no-watch", "--model.quantizer.revive-after", "1", "--loop.steps", "2",
                 "--loop.save-every", "1", "--out", "tuned"]  # fmt: skip
    assert main(arguments) == 0
    assert capsys.readouterr().out.strip().endswith("tuned")
    after = Tokenizer.from_pretrained(tmp_path / "tuned")
    assert after.digest == before.digest
    moved = unequal(before.state_dict(), after.state_dict())
    assert {part.split(".")[0] for part in moved} == {"project_out", "decoder"}
    assert main([*arguments[:-1], "other", "--causal.watch"]) == 2
    assert "causal.watch false" in capsys.readouterr().err
