import hashlib
import io
import sys

import pytest
import torch

from cartok import frozen
from cartok.core.errors import UserError
from cartok.core.shapes import image_of_pixels
from cartok.frozen import inception_v3
from cartok.frozen.inception_v3 import WIDTHS
from cartok.frozen.weights import INCEPTION, Weights


@pytest.fixture(scope="module")
def network():
    return frozen.inception(random_weights=True)


@pytest.fixture(scope="module")
def numbers():
    """The random numbers that stand for published ones, by torch-fidelity's names."""
    return inception_v3._random(inception_v3._unfilled().state_dict())


@pytest.fixture(scope="module")
def theirs(numbers):
    """torch-fidelity's own extractor with the same numbers, as its users call it."""
    from torch_fidelity import FeatureExtractorInceptionV3

    file = io.BytesIO()
    torch.save(numbers, file)
    file.seek(0)
    kinds = ["2048", "logits_unbiased"]
    return FeatureExtractorInceptionV3("of tests", kinds, feature_extractor_weights_path=file)


def pictures(count, height, width, seed=0):
    """Noise, smooth in parts, so that neighbouring pixels matter."""
    generator = torch.Generator().manual_seed(seed)
    pixels = torch.randint(256, (count, 3, height, width), generator=generator, dtype=torch.uint8)
    pixels[:, :, : height // 2] = pixels[:, :, : height // 2, :1] // 2
    return pixels


def spatial_of(theirs, pixels):
    """The seven channels as the ADM evaluator flattens them: rows, columns, channels."""
    found = []
    hook = theirs.Mixed_6d.branch1x1.register_forward_hook(lambda *call: found.append(call[2]))
    theirs(pixels)
    hook.remove()
    maps = found[0].permute(0, 2, 3, 1)[..., :7]
    return maps.reshape(len(pixels), -1)


def apart(ours, reference):
    """The greatest difference, of the greatest value."""
    return ((ours - reference).abs().max() / reference.abs().max()).item()


@pytest.mark.parametrize("size", [(64, 64), (300, 40)])
def test_all_three_outputs_are_those_of_torch_fidelitys_extractor(network, theirs, size):
    pixels = pictures(2, *size)
    pool, logits = theirs(pixels)
    expected = (pool, spatial_of(theirs, pixels), logits)
    found = network(pixels)
    assert [tuple(each.shape) for each in found] == [(2, width) for width in WIDTHS.values()]
    for ours, reference in zip(found, expected, strict=True):
        assert ours.dtype == torch.float32
        assert reference.std() > 0.01
        assert apart(ours, reference) < 1e-5


@pytest.mark.parametrize("size", [(1, 1), (32, 32), (299, 299), (17, 411)])
def test_pictures_are_resized_to_the_bit_as_torch_fidelity_does(size):
    from torch_fidelity.interpolate_compat_tensorflow import (
        interpolate_bilinear_2d_like_tensorflow1x,
    )

    pixels = pictures(2, *size)
    resized = interpolate_bilinear_2d_like_tensorflow1x(
        pixels.float(), size=(299, 299), align_corners=False
    )
    assert torch.equal(inception_v3._prepared(pixels), (resized - 128) / 128)


def test_a_picture_has_the_same_features_in_any_batch(network):
    pixels = pictures(3, 48, 48)
    together = network(pixels)
    for index in range(3):
        for one, all_of_them in zip(network(pixels[[index]]), together, strict=True):
            assert apart(one[0], all_of_them[index]) < 1e-5


def test_brightness_that_was_resized_before_is_taken_as_it_is(network):
    pixels = pictures(1, 299, 299)
    for one, other in zip(network(pixels.float()), network(pixels), strict=True):
        assert torch.equal(one, other)
    assert not torch.equal(network(pixels + 0.4).pool, network(pixels).pool)


def test_autocast_and_gradients_around_it_change_nothing(network):
    pixels = pictures(1, 48, 48)
    with torch.autocast("cpu", torch.bfloat16):
        cast = network(pixels)
    for one, other in zip(cast, network(pixels), strict=True):
        assert torch.equal(one, other)
        assert not one.requires_grad


def test_random_weights_are_the_same_every_time_and_say_what_they_are(network):
    torch.manual_seed(5)
    again = frozen.inception(random_weights=True)
    pixels = pictures(1, 32, 32)
    assert torch.equal(network(pixels).pool, again(pixels).pool)
    assert network.weights.name == "inception-random"
    assert network.weights.sha256 != INCEPTION.sha256


def test_a_tf32_network_says_so():
    precisions = [
        frozen.inception(random_weights=True, tf32=tf32).precision for tf32 in (False, True)
    ]
    assert precisions == ["float32", "float32, convolutions tf32"]


@pytest.mark.parametrize(
    "wrong",
    [
        image_of_pixels(pictures(1, 32, 32)),
        pictures(1, 32, 32)[:, :1],
        pictures(1, 32, 32)[0],
        pictures(1, 32, 32)[:0],
        pictures(1, 32, 32).permute(0, 2, 3, 1),
        image_of_pixels(pictures(1, 299, 299)),
        pictures(1, 32, 32).float(),
    ],
    ids=["floats", "grey", "no batch", "none", "channels last", "from -1", "not resized"],
)
def test_what_is_no_batch_of_rgb_bytes_is_refused_in_a_line(network, wrong):
    with pytest.raises(UserError, match="Inception sees bytes of RGB pictures") as error:
        network(wrong)
    assert "\n" not in str(error.value)


# ------------------------------------------------------------------ its weights


@pytest.fixture
def published(numbers, tmp_path, monkeypatch):
    """A file like the published one, which has no counts of batches, and its ``Weights``."""
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path / "hub"))
    path = tmp_path / "hub" / "checkpoints" / INCEPTION.file
    path.parent.mkdir(parents=True)
    torch.save({k: v for k, v in numbers.items() if "num_batches" not in k}, path)
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    weights = Weights("inception", INCEPTION.file, digest, (tmp_path / "nowhere").as_uri())
    monkeypatch.setattr(inception_v3, "INCEPTION", weights)
    return path


def test_the_published_file_is_found_among_downloads_and_by_its_path(published, network, tmp_path):
    pixels = pictures(1, 32, 32)
    by_name = frozen.inception()
    by_path = frozen.inception(published.rename(tmp_path / "mine.pth"))
    for found in (by_name, by_path):
        assert torch.equal(found(pixels).logits, network(pixels).logits)
        assert found.weights.name == "inception"
        assert len(found.weights.sha256) == 64


def test_another_file_is_refused_before_anything_of_it_is_loaded(published, monkeypatch):
    published.write_bytes(published.read_bytes() + b"!")
    monkeypatch.setattr("cartok.frozen.weights.read_tensors", lambda path: pytest.fail("loaded"))
    for path in (None, published):
        with pytest.raises(UserError, match="must have sha256"):
            frozen.inception(path)


def test_without_a_network_the_error_names_the_file_and_where_to_put_it(published):
    published.unlink()
    with pytest.raises(UserError, match="cannot be fetched") as error:
        frozen.inception()
    for named in (INCEPTION.file, str(published.parent), "give its path"):
        assert named in str(error.value)
    assert "\n" not in str(error.value)


def test_a_missing_package_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "torch_fidelity.feature_extractor_inceptionv3", None)
    with pytest.raises(UserError, match="install torch-fidelity"):
        frozen.inception(random_weights=True)
