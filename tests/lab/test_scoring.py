"""What ``cartok score`` makes of two sources: presets and their mutations, names, receipts."""

import importlib.util
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

from cartok.core.errors import UserError
from cartok.core.progress import Progress
from cartok.data.arrays import Statistics
from cartok.frozen import DinoJudge, Weights
from cartok.lab import scoring
from cartok.lab.scoring import ScoreConfig, run_score
from cartok.metrics import numbers, presets
from cartok.metrics.clean_resize import cleanly_resized
from cartok.metrics.density_coverage import density_coverage
from cartok.metrics.features import content_hash, projection
from cartok.metrics.frechet import frechet_distance, frechet_of_gaussians
from cartok.metrics.frechet_estimate import frechet_estimate
from cartok.metrics.gaussian import Gaussian, gaussian_of
from cartok.metrics.inception_score import inception_score_of_logits
from cartok.metrics.kernel import kernel_distance
from cartok.metrics.manifolds import manifolds
from cartok.metrics.numbers import METRICS
from cartok.metrics.precision_recall import precision_recall
from cartok.metrics.presets import PRESETS
from cartok.metrics.score import difference, interval_of, read_scores
from cartok.metrics.sides import STORED_COUNT

_TOYS = Path(__file__).with_name("scoring_toys.py")
_SPEC = importlib.util.spec_from_file_location(_TOYS.stem, _TOYS)
toys = importlib.util.module_from_spec(_SPEC)
_SPEC.loader.exec_module(toys)

ADM = toys.ADM
png = toys.png
inception = toys.inception
install = toys.install
kept = toys.kept
lpips = toys.lpips
npz = toys.npz
pictures = toys.pictures
pixels_of_rows = toys.pixels_of_rows
PUBLISHED = toys.PUBLISHED
QUIET = toys.QUIET
rows = toys.rows
scored = toys.scored
SmallInception = toys.SmallInception
sources = toys.sources
stored = toys.stored
values = toys.values


# ------------------------------------------------------------------ presets, and their mutations


def the_adm_protocol(sources, rows, stored):
    """Bytes as they are; stored statistics, reference pictures for the rest; IS in order, k = 3."""
    found = values(scored(sources, preset="adm-imagenet256"))
    ours, theirs = (SmallInception()(pixels_of_rows(side)) for side in
                    (rows.generated, rows.reference))  # fmt: skip
    known = {
        kind: Gaussian(torch.from_numpy(s.mean), torch.from_numpy(s.cov), STORED_COUNT)
        for kind, s in stored.items()
    }
    assert found["fid"] == pytest.approx(
        frechet_of_gaussians(gaussian_of(ours.pool), known["pool"]), rel=1e-4
    )
    assert found["sfid"] == pytest.approx(
        frechet_of_gaussians(gaussian_of(ours.spatial), known["spatial"]), rel=1e-4
    )
    assert found["kid"] == pytest.approx(kernel_distance(ours.pool, theirs.pool).value, rel=1e-4)
    assert found["is"] == pytest.approx(inception_score_of_logits(ours.logits, 5000).value)
    shares = precision_recall(ours.pool, theirs.pool, 3)
    assert shares.precision != shares.recall  # else swapped sides would not show
    assert (found["precision"], found["recall"]) == (shares.precision, shares.recall)
    covered = density_coverage(ours.pool, theirs.pool, 5)
    assert (found["density"], found["coverage"]) == (covered.density, covered.coverage)


def test_shares_come_with_their_errors_and_neighbours(inception, sources):
    found = scored(sources, preset="adm-imagenet256").scores
    for name, k in (("precision", 3), ("recall", 3), ("density", 5), ("coverage", 5)):
        low, high = interval_of(found[name])
        assert 0 <= low < found[name].value <= high
        assert found[name].receipt["k"] == k


def test_the_adm_protocol_is_that_of_its_definitions(inception, sources, rows, stored):
    the_adm_protocol(sources, rows, stored)
    shown = torch.cat(inception.seen)
    assert torch.equal(shown, torch.cat([*map(pixels_of_rows, (rows.generated, rows.reference))]))


def in_place(monkeypatch, name, **changes):
    monkeypatch.setitem(presets.PRESETS, name, replace(PRESETS[name], **changes))


def swapped(monkeypatch):
    monkeypatch.setattr(numbers, "manifolds", lambda a, b, *ks: manifolds(b, a, *ks))


def shuffled(monkeypatch):
    def score(rows, split, shuffle_seed=0):
        return inception_score_of_logits(rows, 20, shuffle_seed)

    monkeypatch.setattr(numbers, "inception_score_of_logits", score)


MUTATIONS = {
    "antialiased resize in place of none": lambda m: in_place(m, ADM, resize="clean"),
    "statistics of the reference pictures": lambda m: in_place(m, ADM, statistics="computed"),
    "another neighbour": lambda m: in_place(m, ADM, k=4),
    "another neighbour for coverage": lambda m: in_place(m, ADM, coverage_k=3),
    "other splits": lambda m: in_place(m, ADM, split=12),
    "shuffled splits": shuffled,
    "swapped sides": swapped,
    "spatial features for pooled ones": lambda m: m.setitem(
        METRICS, "fd", replace(METRICS["fd"], reads="spatial")
    ),
}


@pytest.mark.parametrize("what", MUTATIONS)
def test_a_changed_protocol_fails_the_check_that_it_passes(
    monkeypatch, inception, sources, rows, stored, what
):
    MUTATIONS[what](monkeypatch)
    with pytest.raises(AssertionError):
        the_adm_protocol(sources, rows, stored)


def test_splits_are_taken_in_order_and_a_class_by_class_order_is_told(
    monkeypatch, inception, sources, rows
):
    in_place(monkeypatch, ADM, split=18)
    found = scored(sources, preset=ADM)
    logits = SmallInception()(pixels_of_rows(rows.generated)).logits
    in_order = inception_score_of_logits(logits, 18)
    assert found.scores["is"].value == pytest.approx(in_order.value)
    assert inception_score_of_logits(logits, 18, shuffle_seed=0).value > 1.1 * in_order.value
    assert any(note.startswith("is would be") and "class by class" in note for note in found.notes)
    low, high = interval_of(found.scores["is"])
    reach = 6.313752 * in_order.spread  # Student's, of one degree of freedom
    assert (low, high) == pytest.approx((max(1, in_order.value - reach), in_order.value + reach))


def photographs(folder, count, seed):
    """Larger than 512 pixels on the short side, wider than high, and not of one size."""
    folder.mkdir()
    for index, rows in enumerate(pictures(count, seed, 1024)):
        wide = Image.fromarray(rows[: 560 + 8 * (index % 3)])
        wide.save(folder / f"{index:03d}.png", compress_level=1)
    return folder


def adms_crop(picture):
    """Independently: boxes of 2 x 2 by means, bicubic to 256 on the short side, central cut."""
    rows = np.asarray(picture).astype(float)
    while min(rows.shape[:2]) >= 512:
        height, width = (length // 2 * 2 for length in rows.shape[:2])
        rows = rows[:height, :width].reshape(height // 2, 2, width // 2, 2, 3).mean((1, 3))
        rows = np.floor(rows + 0.5)
    small = Image.fromarray(rows.astype(np.uint8))
    scale = 256 / min(small.size)
    small = small.resize([round(side * scale) for side in small.size], Image.Resampling.BICUBIC)
    left, top = (small.width - 256) // 2, (small.height - 256) // 2
    return np.asarray(small)[top : top + 256, left : left + 256]


def the_rfid_protocol(inception, sources, folder):
    """Reconstructions as they are, photographs cut as the ADM programs do, one with the other."""
    inception.seen.clear()
    found = scored(sources, preset="in1k-val-centercrop", paired=True)
    cut = np.stack([adms_crop(Image.open(path)) for path in sorted(folder.iterdir())])
    shown = torch.cat(inception.seen)[-len(cut) :].permute(0, 2, 3, 1).numpy()
    assert abs(shown.astype(int) - cut).max() <= 1
    assert {"rfid", "sfid", "kid", "psnr_db", "ssim", "ms_ssim", "lpips"} == {*found.scores}
    assert found.scores["rfid"].receipt["what"] == "rfd"
    assert found.scores["psnr_db"].receipt["network"] == "none"
    assert found.scores["lpips"].receipt["network_sha256"] == "def456"
    assert found.scores["lpips"].receipt["precision"] == "float32"
    assert found.scores["psnr_db"].receipt["precision"] == "float64"


def test_rfid_cuts_photographs_as_the_adm_programs_do_and_no_other_crop_passes(
    monkeypatch, inception, lpips, tmp_path
):
    monkeypatch.setattr(presets, "PRESETS", dict(PRESETS))
    generated = npz(tmp_path / "generated.npz", pictures(9, 3))
    folder = photographs(tmp_path / "photographs", 9, 4)
    slow = replace(PRESETS["in1k-val-centercrop"], metrics=("fd", "sfd", "kd"))
    monkeypatch.setitem(presets.PRESETS, slow.name, slow)
    the_rfid_protocol(inception, (generated, str(folder)), folder)
    monkeypatch.setitem(presets.PRESETS, slow.name, replace(slow, reference_crop="square"))
    with pytest.raises(AssertionError):
        the_rfid_protocol(inception, (generated, str(folder)), folder)


def test_clean_resizes_each_channel_in_floats_before_the_network(inception, sources, rows):
    scored(sources, preset="clean")
    shown = torch.cat(inception.seen)
    assert shown.shape[1:] == (3, 299, 299)
    channel = Image.fromarray(rows.generated[7, :, :, 2].astype(np.float32))
    wanted = np.asarray(channel.resize((299, 299), Image.Resampling.BICUBIC)).clip(0, 255)
    np.testing.assert_allclose(shown[7, 2].numpy(), wanted, atol=3e-5)
    assert not torch.equal(shown, shown.round())
    assert torch.equal(cleanly_resized(pixels_of_rows(rows.generated[7:8])), shown[7:8])


def test_own_data_brings_squares_of_both_sides_to_one_size(inception, tmp_path):
    folder = photographs(tmp_path / "photographs", 14, 1)
    generated = npz(tmp_path / "g.npz", pictures(14, 0, 64))
    found = scored((generated, str(folder)), preset="own-data")
    assert {tuple(shown.shape[2:]) for shown in inception.seen} == {(64, 64)}
    assert found.scores["fid"].receipt["picture_size"] == [64, 64]
    scored((generated, str(folder)), preset="own-data", size=48)
    assert inception.seen[-1].shape[2:] == (48, 48)


# ------------------------------------------------------------------ names and receipts


def test_published_names_are_for_published_weights_alone(monkeypatch, inception, sources):
    assert set(scored(sources, preset=ADM).scores) == PUBLISHED
    install(monkeypatch, source="")  # a file of one's own, or random numbers
    own = set(scored(sources, preset=ADM).scores)
    assert not own & PUBLISHED
    assert {"fd_own", "sfd_own", "kd_own", "is_own", "precision_own", "coverage_own"} <= own


class SmallDino(DinoJudge):
    """Of the interface of DINOv2's class token, with the features of ``SmallInception``."""

    def __init__(self, source):
        nn.Module.__init__(self)
        self.weights, self.size = Weights("dinov2-large", "file", "abc456", source), 224
        self.network = SimpleNamespace(embed_dim=6)

    def forward(self, image):
        return SmallInception()((image * 127.5 + 127.5).round()).pool


def test_scores_on_dinov2_bear_its_name_and_take_the_neighbours_of_dgm_eval(monkeypatch, sources):
    monkeypatch.setattr(scoring.frozen, "dino_judge_of", lambda path: SmallDino("an address"))
    found = scored(sources, preset="dinov2").scores
    names = {"fd", "fd_infinity", "kd", "precision", "recall", "density", "coverage"}
    assert {name.replace("_dinov2", "", 1) for name in found} == names
    assert all("_dinov2" in name for name in found)
    assert {found[f"{name}_dinov2"].receipt["k"] for name in ("recall", "coverage")} == {5}
    assert found["kd_dinov2"].receipt["network_sha256"] == "abc456"
    monkeypatch.setattr(scoring.frozen, "dino_judge_of", lambda path: SmallDino(""))
    assert "fd_dinov2_own" in scored(sources, preset="dinov2").scores


def test_few_pictures_are_scored_in_a_projection_under_another_name(
    monkeypatch, rows, stored, tmp_path
):
    install(monkeypatch, dim=300)
    generated, reference = pictures(290, 1, 8), pictures(280, 2, 8)
    sources = npz(tmp_path / "g.npz", generated), npz(tmp_path / "r.npz", reference)
    with pytest.raises(UserError, match=r"more than 300 pictures .* has 280; .* --indicative"):
        scored(sources, preset="own-data")
    found = scored(sources, preset="own-data", indicative=True).scores
    assert not {"fid", "rfid", "sfid"} & set(found)
    ours, theirs = (SmallInception(dim=300)(pixels_of_rows(side)).pool.double() for side in
                    (generated, reference))  # fmt: skip
    matrix = projection(300, 64, 0)
    assert found["fid64"].value == pytest.approx(
        frechet_distance(ours @ matrix, theirs @ matrix), rel=1e-4
    )
    assert found["fid64"].receipt["indicative"] is True
    assert found["fid64"].receipt["projection"] == {"dim": 64, "seed": 0}


def test_stored_statistics_are_projected_as_features_are(monkeypatch, tmp_path):
    network = install(monkeypatch, dim=70)
    in_place(monkeypatch, ADM, side=8)
    generated, reference = pictures(290, 1, 8), pictures(300, 2, 8)
    known = gaussian_of(network(pixels_of_rows(reference)).pool)
    statistics = {"pool": Statistics(known.mean.numpy(), known.cov.numpy())}
    sources = npz(tmp_path / "g.npz", generated), npz(tmp_path / "r.npz", reference, statistics)
    by_statistics = scored(sources, preset=ADM, indicative=True).scores["fid64"]
    by_pictures = scored(sources, preset="own-data", indicative=True).scores["fid64"]
    assert by_statistics.value == pytest.approx(by_pictures.value, rel=1e-6)


def test_every_number_carries_its_whole_receipt(inception, sources, rows):
    found = scored(sources, preset=ADM, seed=3).scores
    for name, score in found.items():
        receipt = score.receipt
        assert receipt["metric"] == name
        assert receipt["preset"] == ADM
        assert receipt["generated"] == content_hash(pixels_of_rows(rows.generated))
        assert receipt["generated_count"] == 36
        assert receipt["crop"] == "as given"
        assert receipt["rounding"].startswith("bytes: ")
        assert receipt["seed"] == 3
        assert receipt["precision"] == "float32"
        assert (receipt["network"], receipt["network_sha256"]) == ("inception", "abc123")
        assert receipt["cartok"]
    pictures_hash = content_hash(pixels_of_rows(rows.reference))
    assert found["precision"].receipt["reference"] == pictures_hash
    assert found["precision"].receipt["reference_count"] == 30
    assert found["fid"].receipt["reference"] == found["sfid"].receipt["reference"] != pictures_hash
    assert found["fid"].receipt["reference_count"] == "as stored"
    assert found["is"].receipt["reference"] == "none"


def test_a_share_of_none_or_all_claims_no_error(inception, sources, tmp_path):
    """Else two numbers that hang on one picture each would differ "not by chance"."""
    far = npz(tmp_path / "far.npz", 255 - pictures(30, 3, 256, spread=5) // 8)
    found = scored((far, sources[1]), preset="own-data").scores
    for name in ("precision", "recall", "density", "coverage"):
        assert found[name].value == 0
        assert interval_of(found[name]) is None
        assert difference(found[name], replace(found[name], value=1 / 30)).interval is None


def test_fid_has_its_error_and_its_limit(inception, rows, tmp_path):
    sources = npz(tmp_path / "g.npz", rows.generated), npz(tmp_path / "r.npz", rows.reference)
    found = scored(sources, preset="own-data", size=64).scores
    ours, theirs = (
        SmallInception()(torch.cat(list(source.pixels("square", 64)))).pool
        for source in map(scoring.open_source, sources)
    )
    estimate = frechet_estimate(ours, theirs)
    assert found["fid"].value == pytest.approx(estimate.value, rel=1e-3)
    assert found["fid_infinity"].value == pytest.approx(estimate.at_infinity, rel=1e-3)
    assert found["fid"].receipt["standard_error"] == pytest.approx(
        estimate.standard_error, rel=1e-2
    )
    assert found["fid"].receipt["interval"] == pytest.approx([*estimate.interval], rel=1e-2)


def test_too_few_for_an_error_is_said(inception, tmp_path):
    sources = npz(tmp_path / "g.npz", pictures(20, 0)), npz(tmp_path / "r.npz", pictures(20, 1))
    found = scored(sources, preset="own-data")
    assert "fid" in found.scores
    assert "fid_infinity" not in found.scores
    for name in ("fid", "sfid"):  # as the numbers are called
        assert any(note.startswith(f"{name} has no error and no limit") for note in found.notes)
    assert any("below 10,000 numbers are indicative" in note for note in found.notes)


def test_a_reference_of_statistics_alone_gives_what_they_allow(
    inception, sources, stored, tmp_path
):
    members = {"mu": stored["pool"].mean, "sigma": stored["pool"].cov,
               "mu_s": stored["spatial"].mean, "sigma_s": stored["spatial"].cov}  # fmt: skip
    np.savez(tmp_path / "alone.npz", **members)
    found = scored((sources[0], str(tmp_path / "alone.npz")), preset=ADM)
    assert {name.removesuffix("_infinity") for name in found.scores} == {"fid", "sfid", "is"}
    assert sum("without pictures" in note for note in found.notes) == 2
    assert values(found)["fid"] == values(scored(sources, preset=ADM))["fid"]


def test_no_number_of_workers_changes_a_number(inception, tmp_path):
    folder = photographs(tmp_path / "photographs", 14, 1)
    generated = npz(tmp_path / "g.npz", pictures(140, 0, 64))
    found = [scored((generated, str(folder)), preset="own-data", workers=n) for n in (0, 1, 3)]
    assert found[0].scores == found[1].scores == found[2].scores
    with pytest.raises(ValueError, match="--workers is at least 0, but got -1"):
        ScoreConfig(workers=-1)


def test_numbers_are_written_before_a_page_that_fails(inception, sources, monkeypatch, tmp_path):
    def fail(*_):
        raise OSError("no space left")

    monkeypatch.setattr(scoring, "write_page", fail)
    files = tmp_path / "scores.json", None, tmp_path / "page"
    with pytest.raises(OSError, match="no space left"):
        run_score(*sources, ScoreConfig(preset="own-data", cache=False), "cpu", QUIET, *files)
    assert "kid" in read_scores(files[0])


def test_sides_of_two_sizes_have_a_page(inception, sources, tmp_path):
    small = npz(tmp_path / "small.npz", pictures(30, 1, 64))
    config = ScoreConfig(preset="clean", cache=False)
    run_score(sources[0], small, config, "cpu", QUIET, page=tmp_path / "page")
    with Image.open(tmp_path / "page/pictures/nearest.png") as sheet:
        assert sheet.width >= 8 * 256  # two samples a row, each with three neighbours


class Heard:
    """Progress that keeps what it is told."""

    parts_vanish = False

    def __init__(self):
        self.ticks = []

    def say(self, text):
        pass

    def open(self, name, total):
        self.total = total

    def tick(self, name, done, words):
        assert done <= self.total
        self.ticks.append((name, done, words))

    def advance(self, name, by, words):
        pass

    def close(self, name, is_done):
        pass


def test_a_second_reading_says_what_it_is_for(inception, sources):
    heard = []
    for _ in range(2):
        sink = Heard()
        run_score(*sources, ScoreConfig(preset=ADM), "cpu", Progress(sink=sink))
        heard.append([tick for tick in sink.ticks if tick[0].startswith("generated")])
    assert heard == [[("generated pictures", 36, words)] for words in ("seeing", "naming")]
