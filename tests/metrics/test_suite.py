import dataclasses

import pytest
import torch

from cartok.core.errors import UserError
from cartok.core.shapes import image_of_pixels
from cartok.metrics import suite
from cartok.metrics.features import content_hash
from cartok.metrics.score import comparable
from cartok.metrics.suite import featurise, score_pictures

SIZE = 32  # the network's input: enough to tell these damages apart


@pytest.fixture(scope="module")
def reference_pixels(photo_crops):
    return photo_crops(512, seed=0)


@pytest.fixture(scope="module")
def reference(reference_pixels):
    return featurise(reference_pixels, size=SIZE)


@pytest.fixture(scope="module")
def others(photo_crops):
    return photo_crops(512, seed=1)


@pytest.fixture(scope="module")
def scores(others, reference):
    return score_pictures(others, reference, size=SIZE)


def blurred(pixels, size):
    return torch.nn.functional.avg_pool2d(
        pixels.float(), size, stride=1, padding=size // 2, count_include_pad=False
    ).byte()


def noised(pixels, deviation):
    noise = torch.randn(pixels.shape, generator=torch.Generator().manual_seed(0))
    return (pixels + deviation * noise).clamp(0, 255).byte()


def test_damage_is_scored_in_the_right_order_by_both_distances(scores, others, reference):
    def values(pixels):
        return {name: s.value for name, s in score_pictures(pixels, reference, size=SIZE).items()}

    like = {name: score.value for name, score in scores.items()}
    soft, blur, noise = (
        values(blurred(others, 3)),
        values(blurred(others, 7)),
        values(noised(others, 60)),
    )
    collapse = values(others[:4].repeat(128, 1, 1, 1))
    for name in ("fd_effnet64", "kd_effnet"):
        assert like[name] < soft[name] < blur[name]
        assert like[name] < noise[name]
        assert like[name] < collapse[name]


def test_like_pictures_are_at_no_kernel_distance(scores):
    score = scores["kd_effnet"]
    assert abs(score.value) < 3 * score.receipt["standard_error"]


def test_every_score_carries_its_whole_receipt(scores, others, reference_pixels):
    assert set(scores) == {"fd_effnet64", "kd_effnet"}
    for name, score in scores.items():
        receipt = score.receipt
        assert receipt["metric"] == name
        assert receipt["reference"] == content_hash(reference_pixels)
        assert receipt["generated"] == content_hash(others)
        assert receipt["reference_count"] == receipt["generated_count"] == 512
        assert receipt["size"] == SIZE
        assert receipt["picture_size"] == [32, 32]
        assert receipt["network"] == "efficientnet-lite0"
        assert receipt["indicative"] is True
    bootstrap = scores["fd_effnet64"].receipt["bootstrap"]
    assert bootstrap["interval"][0] < scores["fd_effnet64"].value < bootstrap["interval"][1]
    assert scores["fd_effnet64"].receipt["projection"] == {"dim": 64, "seed": 0}


def test_a_reference_given_as_features_or_as_batches_gives_the_same_score(
    scores, others, reference_pixels
):
    batches = [image_of_pixels(part) for part in reference_pixels.split(200)]
    again = score_pictures(others, batches, size=SIZE)
    for name, score in scores.items():
        assert again[name].value == pytest.approx(score.value, abs=1e-4)
        assert comparable(again[name], score) == []


def test_scores_at_another_size_do_not_compare(scores, others, reference_pixels):
    other = score_pictures(others, reference_pixels, size=SIZE + 8)
    assert comparable(other["kd_effnet"], scores["kd_effnet"]) == ["size"]


def test_large_sets_are_scored_in_all_dimensions_too(monkeypatch, others, reference):
    monkeypatch.setattr(suite, "FULL_FROM", 512)
    monkeypatch.setattr(suite, "FIRM_FROM", 512)
    reference = dataclasses.replace(reference, features=reference.features[:, :256])
    generated = dataclasses.replace(reference, features=reference.features + 0.01)
    scores = score_pictures(generated, reference, size=SIZE)
    assert scores["fd_effnet"].value == pytest.approx(256 * 0.01**2, rel=0.05)
    assert scores["fd_effnet"].receipt["indicative"] is False


def test_fewer_than_512_pictures_are_refused(others, reference):
    with pytest.raises(UserError, match="512 pictures or more on each side, but one side has 511"):
        score_pictures(others[:511], reference, size=SIZE)


def test_sides_that_were_made_differently_are_refused(reference):
    for field, value in (("crop", "centre"), ("size", 96), ("picture_size", (64, 64))):
        with pytest.raises(UserError, match=f"their {field} differs"):
            score_pictures(dataclasses.replace(reference, **{field: value}), reference, size=SIZE)


def test_pictures_are_refused_beside_features_made_at_another_size(others, reference):
    with pytest.raises(UserError, match="their size differs: 40 against 32"):
        score_pictures(others, reference, size=40)


def test_pictures_of_several_sizes_are_refused(others):
    with pytest.raises(UserError, match="have one size"):
        featurise([others, others[:, :, :16]], size=SIZE)


def test_an_unknown_kind_of_score_is_refused(reference):
    with pytest.raises(UserError, match="one of gfd, rfd, redrawn, floor, but got 'fid'"):
        score_pictures(reference, reference, size=SIZE, what="fid")
