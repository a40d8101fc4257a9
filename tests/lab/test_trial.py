"""Tokenizers are compared by the same small prior, whoever trained them."""

import json
from dataclasses import replace

import pytest
import torch

from cartok.__main__ import main
from cartok.core.errors import UserError
from cartok.core.progress import Progress
from cartok.lab import inputs
from cartok.lab import trial as trial_module
from cartok.lab.probe import ProbeConfig
from cartok.lab.trial import TrialConfig, run_trial, usual_trial
from cartok.metrics import numbers
from cartok.recipes.prior import small, toy
from cartok.recipes.tokenizer import causal_toy
from cartok.recipes.yardstick import Yardstick
from cartok.scaling.report import write_report
from cartok.tokenizer.model import Tokenizer


@pytest.fixture(scope="module")
def tokenizers(tmp_path_factory):
    """Two that nobody trained, in model folders."""
    folder = tmp_path_factory.mktemp("tokenizers")
    for seed, name in enumerate(("first", "second")):
        torch.manual_seed(seed)
        Tokenizer(causal_toy().model).save(folder / name / "tokenizer")
    return folder


@pytest.fixture(scope="module")
def tried(tokenizers, few_pictures, coarse_look, tmp_path_factory):
    """A trial of both, and what it asked for."""
    out = tmp_path_factory.mktemp("trial") / "out"
    asked = TrialConfig(
        data=str(few_pictures), size=16, prior=toy(), yardstick=Yardstick(samples=512)
    )
    sources = [str(tokenizers / "first" / "tokenizer"), f"other={tokenizers}/second/tokenizer"]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(numbers, "BOOTSTRAPS", 3)
        patch.setattr(inputs, "ProbeConfig", lambda: ProbeConfig(steps=5))  # else half a minute
        found = run_trial(sources, asked, out, "cpu", Progress())
    return out, asked, sources, found


def test_every_tokenizer_has_reconstruction_bits_and_samples_scored(tried):
    _, _, _, found = tried
    assert list(found) == ["first", "other"]
    for scores in found.values():
        assert {"rfd", "psnr_db", "code_usage", "prior_bits_per_image", "gfd"} <= set(scores)
        assert scores["tokens"]["value"] == 16
        nats = scores["prior_nats_per_token"]
        assert len(nats["receipt"]["per_position"]) == 16
        assert nats["value"] == pytest.approx(sum(nats["receipt"]["per_position"]) / 16)


def test_all_are_put_to_the_same(tried):
    _, _, _, found = tried
    first, other = (found[name]["gfd"]["receipt"] for name in found)
    assert first["reference"] == other["reference"]
    assert first["generated_count"] == other["generated_count"] == 512
    assert found["first"]["floor"] == found["other"]["floor"]
    digests = {scores["codes"]["receipt"]["digest"] for scores in found.values()}
    assert len(digests) == 2


def test_what_is_written_is_what_is_told(tried):
    out, _, _, found = tried
    written = json.loads((out / "trial.json").read_text())
    assert written["scores"] == json.loads(json.dumps(found))
    assert list(written["sources"]) == ["first", "other"]
    assert (out / "pictures" / "first-reconstructions.png").exists()


def test_a_trial_goes_on_and_makes_nothing_twice(tried, monkeypatch):
    out, asked, sources, found = tried
    monkeypatch.setattr(trial_module, "run_extract", None)
    monkeypatch.setattr(trial_module, "tokenizer_scores", None)
    again = run_trial(sources, asked, out, "cpu", Progress())
    assert {n: s["gfd"] for n, s in again.items()} == {n: s["gfd"] for n, s in found.items()}


def test_other_options_in_the_same_folder_are_refused(tried):
    out, asked, sources, _ = tried
    with pytest.raises(UserError, match="size was 16 there and is 32 now"):
        run_trial(sources, replace(asked, size=32), out, "cpu", Progress())


def test_every_source_is_opened_before_anything_is_trained_on_the_first(tried, tmp_path):
    _, asked, sources, _ = tried
    with pytest.raises(UserError, match="nowhere"):
        run_trial([*sources, "nowhere"], asked, tmp_path / "out", "cpu", Progress())
    assert not (tmp_path / "out").exists()


def test_a_page_shows_every_tokenizer(tried):
    out, _, _, found = tried
    page = write_report(out).read_text()
    for name, scores in found.items():
        value = json.dumps(scores["gfd"]["value"])
        assert f'data-arm="{name}" data-key="gfd" data-value="{value}"' in page
    assert page.count("data:image/png") == 4  # reconstructions and samples of both


def test_another_tokenizer_under_a_name_is_refused(tried, tokenizers):
    out, asked, _, _ = tried
    with pytest.raises(UserError, match="is another than the one whose tokens"):
        run_trial([f"first={tokenizers}/second/tokenizer"], asked, out, "cpu", Progress())


@pytest.mark.parametrize(
    ("sources", "why"),
    [
        ([], "a tokenizer or more"),
        (["a/x/tokenizer", "b/x"], "two are 'x'; give NAME=b/x"),
        (["pictures=a"], "that of a folder, but is 'pictures'"),
        (["a/b=c"], "that of a folder, but is 'a/b'"),
        (["nowhere"], "give --data and --size"),
    ],
)
def test_names_and_pictures_are_known_before_anything_is_opened(sources, why, tmp_path):
    with pytest.raises(UserError, match=why):
        run_trial(sources, TrialConfig(), tmp_path / "out", "cpu", Progress())
    assert not (tmp_path / "out").exists()


def test_a_gpu_gets_the_studies_prior_and_a_scan_of_guidances():
    trial = usual_trial(on_gpu=True)
    assert trial.prior == small()
    assert len(trial.yardstick.guidances) > 1
    assert usual_trial(on_gpu=False) == TrialConfig()


def test_the_verb_prints_a_row_for_each_tokenizer(tried, monkeypatch, capsys):
    out, _, sources, found = tried
    monkeypatch.setattr(trial_module, "run_trial", lambda *given: found)
    assert main(["probe", *sources, "--out", str(out), "--device", "cpu"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines[1:3]] == ["first", "other"]
    assert "bits/image" in lines[0]
    low, high = found["first"]["gfd"]["receipt"]["bootstrap"]["interval"]
    assert f"[{low:.4g}, {high:.4g}]" in lines[1]
