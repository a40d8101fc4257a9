"""The guidance of a trained prior: what is tried, what is compared with what, what is said."""

import json
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from cartok.__main__ import main
from cartok.core.config import ConfigError
from cartok.core.errors import UserError
from cartok.core.progress import Progress
from cartok.data.pictures import Pictures
from cartok.data.stores import PixelStore
from cartok.data.views import View
from cartok.lab import guidance as guidance_module
from cartok.lab.guidance import SCAN_SEED, GuideConfig, run_guide
from cartok.metrics.score import Score
from cartok.metrics.suite import Featurised
from cartok.prior.model import Prior, PriorConfig
from cartok.recipes.prior import toy
from cartok.recipes.tokenizer import causal_toy
from cartok.sampling.sampler import Sampler
from cartok.tokenizer.model import Tokenizer

BRIGHTEST = 200
"""Pictures are grey: 0 to this."""


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    """An untrained tokenizer and priors: of four classes, one of which it never saw, and of none.

    Pictures are 8 px a side.
    """
    folder = tmp_path_factory.mktemp("models")
    torch.manual_seed(0)
    tokenizer = Tokenizer(causal_toy().model)
    tokenizer.save(folder / "tokenizer")
    for name, num_classes, grid in (
        ("prior", 4, (2, 2)),
        ("plain", 0, (2, 2)),
        ("wide", 4, (2, 3)),
    ):
        config = PriorConfig(
            transformer=toy().transformer, codebook_size=tokenizer.codebook_size, grid=grid,
            num_classes=num_classes,
        )  # fmt: skip
        unseen = (2,) if num_classes else ()
        Prior(config, tokenizer_digest=tokenizer.digest, unseen=unseen).save(folder / name)
    return folder


@pytest.fixture
def bench(monkeypatch):
    """Where samples are as bright as their guidance says, and features are the brightness.

    Returns what was drawn, what was featurised, and what was scored.
    """
    seen = {"drawn": [], "featurised": [], "scored": []}

    def pictures(num):
        shade = np.linspace(0, BRIGHTEST, num).astype(np.uint8)
        pixels = np.broadcast_to(shade[:, None, None, None], (num, 8, 8, 3))
        rows, labels = np.arange(num), np.zeros(num, np.int64)
        return Pictures(PixelStore(pixels, [str(row) for row in rows]), rows, labels, (),
                        np.full((num, 2), 8), ["RGB"] * num, [], digest="d")  # fmt: skip

    def sample(self, labels, seed, guidance, *, first_index, **options):
        seen["drawn"].append((seed, guidance, first_index, labels.tolist(), options))
        places = torch.arange(first_index, first_index + len(labels)) / 511
        light = (BRIGHTEST * places + 40 * (guidance - 2)) / 127.5 - 1
        return light[:, None, None, None].expand(-1, 3, 8, 8)

    def featurise(batches, *, size, crop, device):
        light = torch.cat([batch.float().mean((1, 2, 3)) for batch in batches])[:, None]
        seen["featurised"].append(light)
        name = str(len(seen["featurised"]))
        return Featurised(light, name, (8, 8), crop, "eye", "0", size, "float32")

    def score(generated, reference, **options):
        seen["scored"].append((generated.features, reference.features))
        return {"kd_effnet": Score(0.5, "units", {"generated": generated.hash})}

    monkeypatch.setattr(Sampler, "sample", sample)
    monkeypatch.setattr(guidance_module, "featurise", featurise)
    monkeypatch.setattr(guidance_module, "score_pictures", score)
    monkeypatch.setattr(
        guidance_module, "open_pictures", lambda source, split, size: pictures(int(source))
    )
    return seen


def guided(models, prior="prior", data="1200", **options):
    options = {"num": 512, "batch": 200} | options
    return run_guide(str(models / prior), str(models / "tokenizer"), data, GuideConfig(**options),
                     "cpu", Progress())  # fmt: skip


def test_the_guidance_whose_samples_come_nearest_is_taken(models, bench):
    found = guided(models)
    assert list(found.tried) == [1.5, 1.75, 2.0, 2.25]
    assert found.guidance == 2.0
    assert found.guidance == min(found.tried, key=lambda g: found.tried[g].value)
    assert not found.is_at_end


@pytest.mark.parametrize(("guidances", "at_end"), [((2.0, 3.0), True), ((1.0, 2.0, 3.0), False)])
def test_the_end_of_a_scan_is_known(models, bench, guidances, at_end):
    assert guided(models, guidances=guidances).is_at_end == at_end


def test_what_is_scored_had_no_part_in_the_choice(models, bench):
    guided(models, seed=3)
    seeds = {(seed, guidance) for seed, guidance, *_ in bench["drawn"]}
    tried = {(SCAN_SEED + 3, guidance) for guidance in (1.5, 1.75, 2.0, 2.25)}
    assert seeds == tried | {(3, 2.0)}
    scanned, reference = bench["featurised"][:2]
    assert len(scanned) == len(reference) == 512
    (scored,) = bench["scored"]
    assert torch.equal(scored[1], reference)
    # Both are spread over all training pictures, and no picture is in both.
    one, other = (
        part.subset(np.arange(len(part))).rows
        for part in guidance_module._two_parts(
            guidance_module.open_pictures("1200", "train", 8), 512
        )
    )
    assert not {*one} & {*other}
    for rows in (one, other):
        assert rows.min() <= 1
        assert rows.max() >= 1198


def test_samples_are_balanced_over_the_classes_trained_on_and_drawn_as_asked(models, bench):
    guided(models, temperature=0.5, top_k=7, first_index=10)
    one = [entry for entry in bench["drawn"] if entry[1] == 1.5]
    labels = [label for entry in one for label in entry[3]]
    assert np.bincount(labels, minlength=4).tolist() == [171, 171, 0, 170]
    assert [entry[2] for entry in one] == [10, 210, 410]
    assert all((entry[4]["temperature"], entry[4]["top_k"]) == (0.5, 7) for entry in one)


def test_every_number_has_its_receipt(models, bench):
    found = json.loads(json.dumps(guided(models).to_json()))
    assert found["guidance"] == 2.0
    assert found["config"]["num"] == 512
    for entry in found["tried"]:
        receipt = entry["receipt"]
        assert receipt["guidance"] == entry["guidance"]
        assert receipt["reference"] == "1"
        assert receipt["generated_count"] == receipt["reference_count"] == 512
        assert {"network_sha256", "crop", "size", "precision"} <= {*receipt}
    assert found["scores"]["kd_effnet"]["receipt"]["generated"] == "7"


def test_training_pictures_are_seen_as_the_tokenizer_was_trained_on_them(
    models, bench, monkeypatch
):
    """Of pictures that were cut and not scaled: what is compared is cut too."""
    views, all_images = [], guidance_module.all_images
    trained = SimpleNamespace(data="1200", view=View(size=16, resize=False))
    monkeypatch.setattr(guidance_module, "trained_with", lambda source: trained)
    monkeypatch.setattr(
        guidance_module,
        "all_images",
        lambda pictures, view, batch: views.append(view) or all_images(pictures, view, batch),
    )
    found = guided(models, data="").to_json()
    assert views == [View(size=8, resize=False)] * 2
    for entry in found["tried"]:
        assert entry["receipt"]["crop"] == "central 8 px at the picture's own scale"
        assert "reference: as in the data" in entry["receipt"]["class_shares"]


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"prior": "plain"}, "this one is unconditional"),
        ({"prior": "wide"}, "draws 2 rows of 3 tokens"),
        ({"data": "1023"}, "1023 in all; give more pictures"),
        ({"data": ""}, "does not say its pictures; give --data"),
    ],
)
def test_what_cannot_be_guided_is_refused_before_anything_is_drawn(models, bench, options, said):
    with pytest.raises(UserError, match=said) as caught:
        guided(models, **options)
    assert "\n" not in str(caught.value)
    assert not bench["drawn"]


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"guidances": (1.5,)}, "two or more"),
        ({"guidances": (1.5, 1.5)}, "different"),
        ({"guidances": (0.0, 1.5)}, "above 0"),
        ({"guidance": 2.0}, "guidances names what is tried"),
        ({"seed": 2**64 - 2**32}, "seed is below"),
        ({"num": 511}, "num is 512 or more"),
        ({"network_size": 64}, "96 or 224"),
        ({"temperature": -1.0}, "temperature is 0"),
    ],
)
def test_impossible_scans_are_refused(options, said):
    with pytest.raises(ConfigError, match=said):
        GuideConfig(**options)


def test_the_verb_prints_the_curve_and_says_when_its_end_is_nearest(
    models, bench, tmp_path, capsys
):
    arguments = ["guide", str(models / "prior"), "--tokenizer", str(models / "tokenizer"),
                 "--data", "1200", "--num", "512", "--device", "cpu"]  # fmt: skip
    path = tmp_path / "guidance.json"
    assert main([*arguments, "--json", str(path)]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines[1:5]] == ["1.5", "1.75", "2", "2.25"]
    assert [line.endswith("nearest") for line in lines[1:5]] == [False, False, True, False]
    assert lines[-1].startswith("kd_effnet")
    assert not any("lies at the end" in line for line in lines)
    assert json.loads(path.read_text())["guidance"] == 2.0
    assert main([*arguments, "--guidances", "1", "1.25", "1.5"]) == 0
    assert "1.5 lies at the end of what was tried" in capsys.readouterr().out
