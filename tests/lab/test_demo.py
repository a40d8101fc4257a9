import json
import pickle
import re
from dataclasses import replace
from types import SimpleNamespace
from unittest.mock import Mock

import numpy as np
import pytest
import torch
from PIL import Image

from cartok.core.errors import UserError
from cartok.core.parallel import World
from cartok.core.progress import Progress
from cartok.data.batches import all_images
from cartok.data.images import open_pictures
from cartok.lab import demo as demo_module
from cartok.lab import evaluations
from cartok.lab.arm import Arm
from cartok.lab.arm_scores import redrawn_scores
from cartok.lab.demo import DemoConfig, inputs_of, recipes_for, run_demo
from cartok.lab.evaluations import some_images
from cartok.lab.inputs import ArmInputs
from cartok.lab.probe import ProbeConfig
from cartok.lab.stages import Launch

pytestmark = pytest.mark.usefixtures("coarse_look")

KEYS = {
    "psnr_db", "rfd", "gfd", "code_usage", "code_perplexity", "next_latent_r2",
    "probe_r2_quantised", "prior_nats_per_token", "prior_bits_per_image", "seconds",
    "code_dimension", "redrawn_fd", "redrawn_kd", "redrawn_psnr_db", "redrawn_kept",
    "unigram_bits", "position_bits", "code_skew", "bits_given_left", "bits_given_above",
    "embedding_plane",
}  # fmt: skip


def one_after_the_other(tasks, progress):
    """``run_together`` in this process: what is sent to others must still survive the sending."""
    for task in tasks.values():
        function, arguments = pickle.loads(pickle.dumps(task))
        function(*arguments, progress)


@pytest.fixture(scope="module")
def demo(tmp_path_factory, demo_pictures):
    """The demo on few pictures, with ten steps a training, short probes and a coarse look."""
    out = tmp_path_factory.mktemp("runs") / "demo"
    config = DemoConfig(data=str(demo_pictures), minutes=0.01)
    short = replace(ProbeConfig(), steps=3)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(demo_module, "PROBE", short)
        patch.setattr(evaluations, "ProbeConfig", lambda: short)
        patch.setattr(demo_module, "run_together", one_after_the_other)
        run_demo(config, Launch(out=out, device="cpu"), Progress())
    return out


def summary_of(demo):
    return json.loads((demo / "summary.json").read_text())


@pytest.mark.slow
def test_the_summary_gives_every_number_a_unit_and_a_receipt(demo):
    summary = summary_of(demo)
    for name in ("baseline", "causal"):
        assert set(summary[name]) >= KEYS
        for score in summary[name].values():
            assert isinstance(score["value"], int | float)
            assert score["unit"]
            assert isinstance(score["receipt"], dict)
    assert summary["causal"]["rfd"]["receipt"]["indicative"] is True


@pytest.mark.slow
def test_too_few_redrawn_pictures_are_compared_pair_by_pair_alone(demo, tmp_path):
    inputs = Mock(spec=ArmInputs, device="cpu", yardstick=SimpleNamespace(held=40))
    arm = Arm("causal", demo / "causal", tmp_path, inputs, Progress())
    scores = redrawn_scores(arm, "prior", seed=0)
    assert set(scores) == {"redrawn_psnr_db", "redrawn_kept"}
    assert scores["redrawn_kept"]["receipt"]["pictures"] == 40
    assert 0 < scores["redrawn_psnr_db"]["value"] < 60


@pytest.mark.slow
def test_both_arms_have_equal_compute_and_the_causal_one_fewer_steps(demo):
    records = {
        name: json.loads((demo / name / "tokenizer" / "record.json").read_text())
        for name in ("baseline", "causal")
    }
    base, causal = records["baseline"], records["causal"]
    assert causal["steps"] < base["steps"]
    assert causal["flops"] <= base["flops"]
    one_more = causal["flops"] / causal["steps"] * (causal["steps"] + 1)
    assert one_more > base["flops"]
    assert base["pictures_digest"] == causal["pictures_digest"]
    different = {key for key in base["config"] if base["config"][key] != causal["config"][key]}
    assert different == {"causal"}
    assert base["config"]["causal"] | {"weight": 1.0} == causal["config"]["causal"]


@pytest.mark.slow
def test_the_page_holds_the_numbers_of_the_summary_and_needs_no_other_file(demo):
    page = (demo / "report.html").read_text()
    shown = {float(text) for text in re.findall(r'data-value="([^"]+)"', page)}
    summary = summary_of(demo)
    for name in ("baseline", "causal"):
        for key in KEYS:
            assert summary[name][key]["value"] in shown
    assert not re.search(r'(src|href)="(?!data:|#|https://arxiv\.org)', page)


@pytest.mark.slow
def test_pictures_of_inputs_reconstructions_and_samples_are_written(demo):
    names = ("inputs", "baseline-reconstructions", "causal-reconstructions", "baseline-samples",
             "causal-samples")  # fmt: skip
    for name in names:
        with Image.open(demo / "pictures" / f"{name}.png") as picture:
            assert picture.width > 300


@pytest.mark.slow
def test_a_second_call_with_resume_does_no_training_again(demo, demo_pictures):
    before = summary_of(demo)
    config = DemoConfig(data=str(demo_pictures), minutes=0.01)
    run_demo(config, Launch(out=demo, device="cpu", resume=True), Progress())
    after = summary_of(demo)
    assert after == before


@pytest.mark.slow
def test_another_demo_is_not_mixed_into_a_folder(demo, demo_pictures):
    with pytest.raises(UserError, match="give --resume to go on"):
        run_demo(DemoConfig(), Launch(out=demo, device="cpu"), Progress())
    with pytest.raises(UserError, match="equal demo"):
        run_demo(DemoConfig(seed=7), Launch(out=demo, device="cpu", resume=True), Progress())


def test_a_folder_that_is_no_demo_is_never_cleared(tmp_path):
    (tmp_path / "thesis.tex").write_text("years of work")
    with pytest.raises(UserError, match="no demo"):
        run_demo(DemoConfig(), Launch(out=tmp_path, device="cpu", overwrite=True), Progress())
    assert (tmp_path / "thesis.tex").read_text() == "years of work"


@pytest.mark.parametrize("size", [32, 48, 64])
def test_larger_pictures_get_fewer_steps_so_that_a_training_costs_the_same(size):
    usual, sized = recipes_for(DemoConfig(), 32), recipes_for(DemoConfig(), size)
    assert sized.baseline.view.size == size
    assert sized.baseline.loop.steps <= usual.baseline.loop.steps
    assert size % sized.baseline.model.codec.factor == 0
    assert sized.prior.loop.steps <= usual.prior.loop.steps


def test_minutes_scale_every_training():
    usual, double = recipes_for(DemoConfig(), 32), recipes_for(DemoConfig(minutes=8.0), 32)
    assert double.causal.loop.steps == 2 * usual.causal.loop.steps
    assert double.prior.loop.steps == 2 * usual.prior.loop.steps


def test_too_few_pictures_are_refused_before_anything_is_trained(tmp_path, small_pictures):
    out = tmp_path / "demo"
    with pytest.raises(UserError, match="32 px"):
        run_demo(DemoConfig(data=str(small_pictures)), Launch(out=out, device="cpu"), Progress())
    assert not out.exists()


def test_every_class_is_among_the_pictures_that_are_scored():
    """Data sets come class by class: the first 576 of 640 crops would miss a photograph."""
    recipes = recipes_for(DemoConfig(), 32)
    held = open_pictures("photos", "val", size=32)
    at = np.linspace(0, len(held) - 1, 576).round().astype(int)
    assert set(held.labels[at].tolist()) == set(range(10))
    assert torch.equal(
        some_images(held, recipes.baseline.view, 576),
        torch.cat([b.image for b in all_images(held.subset(at), recipes.baseline.view, 64)]),
    )


def test_few_pictures_are_scored_by_several_random_crops_of_each(tmp_path, demo_pictures):
    few = open_pictures(str(demo_pictures), "val", size=32).subset(np.arange(40))
    many = open_pictures(str(demo_pictures), "train", size=32)
    recipes = recipes_for(DemoConfig(), 32)
    inputs = inputs_of(recipes, many, few, World(), "cpu")
    assert len(inputs.held_image) == 576
    assert len(inputs.held_image.flatten(1).unique(dim=0)) > 500
    assert "random" in inputs.held_features.crop
    assert inputs.held_features.crop == inputs.train_features.crop


def test_a_handful_of_pictures_is_refused_with_the_number_needed(demo_pictures):
    pictures = open_pictures(str(demo_pictures), "val", size=32)
    with pytest.raises(UserError, match="32 pictures or more on each side, but there are 513"):
        inputs_of(recipes_for(DemoConfig(), 32), pictures, pictures.subset(np.arange(9)), World(),
                  "cpu")  # fmt: skip
