"""What ``cartok score`` does with two sources: presets, receipts, refusals, and their mutations."""

import io
import json
import tarfile
import zipfile
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

from cartok.__main__ import main
from cartok.core.errors import UserError
from cartok.core.progress import Progress
from cartok.data.arrays import Statistics, read_statistics, write_npz
from cartok.frozen import DinoJudge, Weights
from cartok.frozen.inception_v3 import Inception, InceptionFeatures
from cartok.lab import scoring
from cartok.lab.scoring import ScoreConfig, run_score
from cartok.metrics import numbers, presets, protocol
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

QUIET = Progress()
PUBLISHED = {"precision", "recall", "density", "coverage", "fid", "fid_infinity", "sfid",
             "sfid_infinity", "kid", "is"}  # fmt: skip


class SmallInception(Inception):
    """Of Inception's interface, with few features; remembers what it was shown."""

    def __init__(self, dim=6, source="an address"):
        nn.Module.__init__(self)
        self.weights, self.tf32 = Weights("inception", "file", "abc123", source), False
        self.widths = {"pool": dim, "spatial": 5, "logits": 4}
        self.register_buffer("classes", torch.zeros(1))
        self.seen = []

    def forward(self, pixels):
        self.seen.append(pixels.clone())
        generator = torch.Generator().manual_seed(0)
        cells = torch.nn.functional.adaptive_avg_pool2d(pixels.float(), 4).flatten(1) / 64 - 2
        random = torch.randn(cells.shape[1], sum(self.widths.values()), generator=generator)
        return InceptionFeatures(*(cells @ random).split([*self.widths.values()], 1))


@pytest.fixture(autouse=True)
def kept(monkeypatch, tmp_path):
    """The folder that keeps features, which is nobody else's."""
    monkeypatch.setattr(scoring, "default_folder", lambda: tmp_path / "kept")
    return tmp_path / "kept"


def install(monkeypatch, **options):
    network = SmallInception(**options)
    monkeypatch.setattr(scoring.frozen, "inception", lambda path=None: network)
    return network


@pytest.fixture
def inception(monkeypatch):
    return install(monkeypatch)


def pictures(count, seed, size=256, spread=60):
    """Of 8 x 8 flat squares, so that they are quick to draw and to encode."""
    generator = np.random.default_rng(seed)
    shade = generator.normal(128, 30, (count, 1, 1, 3))
    small = shade + generator.normal(0, spread, (count, 8, 8, 3))
    small = small.clip(0, 255).astype(np.uint8)
    return small.repeat(size // 8, 1).repeat(size // 8, 2)


def pixels_of_rows(rows):
    return torch.from_numpy(rows).permute(0, 3, 1, 2).contiguous()


def npz(path, rows, statistics=None):
    write_npz(path, [pixels_of_rows(rows)], len(rows), statistics)
    return str(path)


@pytest.fixture(scope="module")
def rows():
    """Generated pictures in the order of two classes, and fewer reference pictures."""
    some = pictures(36, 0)
    some[18:] = 255 - some[18:] // 3
    return SimpleNamespace(generated=some, reference=pictures(30, 1, spread=40))


@pytest.fixture(scope="module")
def stored():
    """Statistics of neither."""
    generator = np.random.default_rng(5)
    mixed = {"pool": generator.normal(size=(6, 6)), "spatial": generator.normal(size=(5, 5))}
    return {k: Statistics(np.ones(len(m)), m @ m.T + np.eye(len(m))) for k, m in mixed.items()}


@pytest.fixture
def sources(rows, stored, tmp_path):
    return (
        npz(tmp_path / "generated.npz", rows.generated),
        npz(tmp_path / "reference.npz", rows.reference, stored),
    )


def scored(sources, cache=False, **config):
    return run_score(*sources, ScoreConfig(cache=cache, **config), "cpu", QUIET)


def values(found):
    return {name: score.value for name, score in found.scores.items()}


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
ADM = "adm-imagenet256"


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


class SmallLpips:
    """Of LPIPS's interface: the mean absolute difference."""

    weights = Weights("vgg16", "file", "def456", "an address")

    def to(self, device):
        return self

    def __call__(self, image, target):
        return (image - target).abs().mean((1, 2, 3))


@pytest.fixture
def lpips(monkeypatch):
    monkeypatch.setattr(scoring.frozen, "teacher", lambda name, *paths: SmallLpips())


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


# ------------------------------------------------------------------ containers


def png(rows):
    buffer = io.BytesIO()
    Image.fromarray(rows).save(buffer, format="PNG", compress_level=1)
    return buffer.getvalue()


def in_zip(path, rows):
    with zipfile.ZipFile(path, "w") as archive:
        for index, picture in enumerate(rows):
            archive.writestr(f"{index:04d}.png", png(picture))
    return str(path)


def in_tar(path, rows):
    with tarfile.open(path, "w") as archive:
        for index, picture in enumerate(rows):
            info = tarfile.TarInfo(f"{index:04d}.png")
            info.size = len(png(picture))
            archive.addfile(info, io.BytesIO(png(picture)))
    return str(path)


def in_classes(path, rows):
    for index, picture in enumerate(rows):
        (path / f"{index % 3}").mkdir(parents=True, exist_ok=True)
        (path / f"{index % 3}" / f"{index:04d}.png").write_bytes(png(picture))
    return str(path)


def test_the_same_pictures_in_any_container_give_the_same_scores(inception, tmp_path):
    ours, theirs = pictures(40, 0, 64), pictures(40, 1, 64)
    reference = npz(tmp_path / "r.npz", theirs)
    wanted = scored((npz(tmp_path / "g.npz", ours), reference), preset="own-data").scores
    for held in (
        in_zip(tmp_path / "g.zip", ours),
        in_tar(tmp_path / "g.tar", ours),
        in_classes(tmp_path / "g", ours),
    ):
        assert scored((held, reference), preset="own-data").scores == wanted


def test_what_is_written_as_npz_scores_as_what_it_was_written_from(inception, sources, tmp_path):
    run_score(*sources, ScoreConfig(preset=ADM), "cpu", QUIET, npz=tmp_path / "again.npz")
    assert set(read_statistics(tmp_path / "again.npz")) == {"pool", "spatial"}
    again = (sources[1], str(tmp_path / "again.npz"))
    stored, computed = (
        scored(again, preset=preset).scores["fid"].value for preset in (ADM, "own-data")
    )
    assert stored == pytest.approx(computed, rel=1e-6)


# ------------------------------------------------------------------ kept features


def test_a_second_scoring_asks_the_network_nothing_and_gives_the_same_scores(
    inception, sources, caplog
):
    first = scored(sources, cache=True, preset=ADM)
    assert sum(map(len, inception.seen)) == 36 + 30
    inception.seen.clear()
    assert not caplog.messages
    again = scored(sources, cache=True, preset=ADM)
    assert not inception.seen
    assert again == first == scored(sources, preset=ADM)
    assert [message.split(":")[0] for message in caplog.messages] == [
        "inception saw these 36 pictures before", "inception saw these 30 pictures before"
    ]  # fmt: skip


def test_pictures_that_are_resized_before_the_network_share_nothing_with_others(
    inception, sources, kept
):
    plain, clean = (scored(sources, cache=True, preset=name) for name in ("own-data", "clean"))
    assert sum(map(len, inception.seen)) == 2 * (36 + 30)
    assert len([*kept.iterdir()]) == 4
    assert plain.scores["kid"].value != clean.scores["kid"].value
    assert plain.scores["kid"].receipt["generated"] == clean.scores["kid"].receipt["generated"]
    inception.seen.clear()
    assert scored(sources, cache=True, preset="clean") == clean
    assert not inception.seen


def test_presets_that_show_the_network_the_same_pictures_share_them(inception, sources):
    scored(sources, cache=True, preset=ADM)
    inception.seen.clear()
    assert scored(sources, cache=True, preset="own-data") == scored(sources, preset="own-data")
    assert sum(map(len, inception.seen)) == 36 + 30  # of the second alone


@pytest.mark.parametrize("arguments", [[], ["--no-cache"]])
def test_features_are_kept_unless_the_verb_is_told_not_to(
    monkeypatch, sources, kept, capsys, arguments
):
    install(monkeypatch)
    assert main(["score", *sources, "--preset", ADM, *arguments]) == 0
    assert capsys.readouterr().out.startswith("warning: 30 pictures on one side")
    assert (len([*kept.iterdir()]) if kept.exists() else 0) == (0 if arguments else 2)


def test_a_damaged_file_is_told_and_its_pictures_seen_anew(inception, sources, kept, caplog):
    first = scored(sources, cache=True, preset=ADM)
    for path in kept.iterdir():
        content = bytearray(path.read_bytes())
        content[-9] ^= 1
        path.write_bytes(content)
    inception.seen.clear()
    assert scored(sources, cache=True, preset=ADM) == first
    assert sum(map(len, inception.seen)) == 36 + 30
    assert sum("(damaged); it will be written anew" in line for line in caplog.messages) == 2


# ------------------------------------------------------------------ pairs


def test_pairs_are_compared_in_order_and_small_pictures_go_without_what_they_are_too_small_for(
    inception, lpips, tmp_path
):
    rows = pictures(30, 0, 64)
    sources = npz(tmp_path / "g.npz", rows), in_zip(tmp_path / "r.zip", rows)
    found = scored(sources, preset="own-data", paired=True)
    assert found.scores["ssim"].value == pytest.approx(1)
    assert found.scores["lpips"].value == 0
    assert "ms_ssim" not in found.scores
    assert any(note.startswith("ms_ssim is left out: it needs 161") for note in found.notes)
    turned = npz(tmp_path / "g.npz", rows[::-1].copy()), sources[1]
    other = scored(turned, preset="own-data", paired=True).scores
    assert other["ssim"].value < 0.9
    assert other["rfid"].value == pytest.approx(found.scores["rfid"].value, abs=1e-6)


@pytest.mark.parametrize(
    ("option", "words"),
    [("--lpips-vgg", "vgg16-397923af.pth must have"), ("--lpips-heads", "vgg.pth must have")],
)
def test_files_for_lpips_are_held_to_their_hashes(
    inception, sources, tmp_path, capsys, option, words
):
    (tmp_path / "mine.pth").write_bytes(b"another")
    arguments = ["--preset", "own-data", "--paired", option, str(tmp_path / "mine.pth")]
    assert main(["score", sources[0], sources[0], *arguments]) == 2
    error = capsys.readouterr().err
    assert words in error
    assert str(tmp_path / "mine.pth") in error


def test_pairs_of_other_numbers_are_refused(inception, lpips, sources):
    with pytest.raises(UserError, match="there are 36 pictures and 30 references"):
        scored(sources, preset="own-data", paired=True)


def test_pairs_with_a_gap_are_refused(inception, lpips, tmp_path):
    for side in ("a", "b"):
        in_classes(tmp_path / side, pictures(210, 0, 8))
    (tmp_path / "b/0/0003.png").write_bytes(b"broken")
    with pytest.raises(UserError, match=r"pairs need every picture, but 0/0003.png"):
        scored((str(tmp_path / "a"), str(tmp_path / "b")), preset="own-data", paired=True)


# ------------------------------------------------------------------ refusals


def test_pictures_of_another_size_than_the_presets_are_refused(inception, sources, tmp_path):
    path = npz(tmp_path / "small.npz", pictures(4, 0, 64))
    with pytest.raises(UserError, match="at 256 x 256 pixels, but one is 64 x 64"):
        scored((path, sources[1]), preset=ADM)


def test_a_preset_of_stored_statistics_refuses_a_reference_without(inception, tmp_path):
    path = npz(tmp_path / "g.npz", pictures(8, 0))
    with pytest.raises(UserError, match="takes mu and sigma from the reference's npz"):
        scored((path, path), preset=ADM)


def unread(monkeypatch):
    monkeypatch.setattr(scoring, "_side", lambda *_: pytest.fail("pictures were read"))


def test_a_reference_that_a_preset_cannot_use_is_refused_before_any_picture_is_read(
    monkeypatch, sources, stored, tmp_path
):
    unread(monkeypatch)
    with pytest.raises(UserError, match="takes mu and sigma from the reference's npz"):
        scored((sources[0], sources[0]), preset=ADM)
    np.savez(tmp_path / "pool.npz", mu=stored["pool"].mean, sigma=stored["pool"].cov)
    alone = sources[0], str(tmp_path / "pool.npz")
    with pytest.raises(UserError, match="statistics of spatial features from the reference's npz"):
        scored(alone, preset=ADM)
    for preset in ("effnet", "own-data", "clean", "in1k-val-centercrop", "dinov2"):
        with pytest.raises(UserError, match=f"{preset} compares with the reference's pictures"):
            scored(alone, preset=preset)


def test_a_size_is_refused_where_pictures_are_taken_as_they_are(inception, sources):
    with pytest.raises(UserError, match="--size is for presets that cut squares"):
        scored(sources, preset=ADM, size=128)


def test_an_unknown_preset_names_the_nearest(sources):
    with pytest.raises(UserError, match="no preset 'own'; did you mean 'own-data'"):
        scored(sources, preset="own")


def test_other_modes_are_counted_in_a_line_and_in_the_receipt(inception, sources, tmp_path):
    for index, rows in enumerate(pictures(24, 0, 64)):
        mode = ["RGB", "L", "RGBA"][index % 3]
        (tmp_path / "g").mkdir(exist_ok=True)
        Image.fromarray(rows).convert(mode).save(tmp_path / f"g/{index:02d}.png")
    found = scored((str(tmp_path / "g"), sources[1]), preset="own-data")
    counts = {"L": 8, "RGBA": 8}
    assert found.scores["kid"].receipt["converted"] == {"generated": counts, "reference": {}}
    assert any("converted to RGB, alpha on white: 8 of mode L, 8 of mode RGBA" in note
               for note in found.notes)  # fmt: skip


# ------------------------------------------------------------------ the verb


def test_the_offline_preset_scores_without_a_download_and_compares_by_files(tmp_path, capsys):
    rows = pictures(520, 0, 32), pictures(520, 1, 32), pictures(520, 2, 32)
    paths = [npz(tmp_path / f"{index}.npz", side) for index, side in enumerate(rows)]
    size = ["--network-size", "32"]
    assert main(["score", paths[0], paths[2], *size, "--json", str(tmp_path / "a.json")]) == 0
    assert main(["score", paths[1], paths[2], *size, "--json", str(tmp_path / "b.json")]) == 0
    printed = capsys.readouterr().out
    for name in ("fd_effnet64", "fd_effnet64_infinity", "kd_effnet", "precision_effnet",
                 "recall_effnet", "density_effnet", "coverage_effnet"):  # fmt: skip
        assert printed.count(f"{name} ") == 2
    compare = ["score", "--compare", str(tmp_path / "a.json"), str(tmp_path / "b.json")]
    assert main(compare) == 0
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 7
    assert lines[0].startswith("fd_effnet64 ")
    less = json.loads((tmp_path / "b.json").read_text())
    del less["kd_effnet"]
    (tmp_path / "c.json").write_text(json.dumps(less))
    assert main(["score", "--compare", str(tmp_path / "a.json"), str(tmp_path / "c.json")]) == 0
    assert capsys.readouterr().out.endswith(f"in {tmp_path / 'a.json'} alone: kd_effnet\n")
    other = (tmp_path / "b.json").read_text().replace('"what": "gfd"', '"what": "rfd"')
    (tmp_path / "b.json").write_text(other)
    assert main(compare) == 2
    error = capsys.readouterr().err
    assert "fd_effnet64 differs in what (gfd against rfd)" in error
    assert error.count("\n") == 1


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ([], "cartok score GENERATED REFERENCE"),
        (["a"], "cartok score GENERATED REFERENCE"),
        (["--compare", "a.json"], "--compare takes two files"),
        (["a", "b", "--compare", "a.json", "b.json"], "two files of scores and nothing else"),
        (["--compare", "none.json", "b.json"], "there is no such file"),
    ],
)
def test_a_mistyped_score_is_refused(arguments, words, capsys, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    assert main(["score", *arguments]) == 2
    assert words in capsys.readouterr().err


def test_without_the_weights_a_preset_says_so_before_any_picture_is_read(
    monkeypatch, sources, capsys
):
    def missing(path=None):
        raise UserError("inception needs a file; fetch it by hand")

    monkeypatch.setattr(scoring.frozen, "inception", missing)
    unread(monkeypatch)
    assert main(["score", *sources, "--preset", ADM]) == 2
    assert capsys.readouterr().err == "cartok: inception needs a file; fetch it by hand\n"


def test_presets_are_listed_with_the_recipes(capsys):
    assert main(["recipes"]) == 0
    printed = capsys.readouterr().out
    for preset in PRESETS.values():
        assert f"  {preset.name:<19} {preset.summary}" in printed
        assert set(preset.metrics) | set(preset.indicative_metrics) <= set(METRICS)
        assert set(preset.pair_metrics) - {"lpips"} <= set(scoring.PAIR_METRICS)
    assert protocol.FIRM_FROM == 10_000
