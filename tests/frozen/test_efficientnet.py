import pytest
import torch
import torch.nn.functional as F
from skimage import data
from skimage.filters import gaussian

from cartok.core.errors import UserError
from cartok.frozen import (
    LITE0,
    LITE2,
    PERCEPTUAL_BLOCKS,
    PerceptualDistance,
    judge,
    read_network,
    teacher,
)


@pytest.fixture(scope="module")
def features():
    return judge(64)


@pytest.fixture(scope="module")
def perceptual():
    return teacher()


def blocks_of(network, image):
    """What each block of the published network says, in its own code."""
    out, outputs = network._swish(network._bn0(network._conv_stem(image))), []
    for block in network._blocks:
        out = block(out)
        outputs.append(out)
    return outputs


@pytest.mark.parametrize("shape", [(64, 64), (47, 33)])
def test_perceptual_directions_are_those_of_the_published_network(perceptual, shape, noise):
    image = noise(2, 3, *shape)
    published = blocks_of(read_network(LITE2), (image * 127.5 + 127.5 - 127) / 128)
    ours = perceptual._directions_of(image)
    for direction, index in zip(ours, PERCEPTUAL_BLOCKS, strict=True):
        torch.testing.assert_close(
            direction, F.normalize(published[index], dim=1), atol=1e-4, rtol=0
        )


def test_features_are_those_of_the_published_network(features, noise):
    image = noise(2, 3, 64, 64)
    published = read_network(LITE0).extract_features((image * 127.5 + 127.5 - 127) / 128)
    torch.testing.assert_close(features(image), published.mean((2, 3)), atol=1e-4, rtol=1e-4)


def test_the_judge_sees_espresso_in_a_cup_of_coffee(photo):
    network = judge(224)
    head = read_network(LITE0)._fc
    logits = head(network(photo(data.coffee(), 320)))
    assert logits.argmax().item() == 967  # espresso, in the order of ImageNet-1k


def test_a_judge_below_32_pixels_is_refused():
    with pytest.raises(UserError, match="size is 16"):
        judge(16)


def test_a_missing_architecture_package_is_named(monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "efficientnet_lite_pytorch", None)
    with pytest.raises(UserError, match="install efficientnet-lite-pytorch"):
        read_network(LITE0)


def test_features_are_float32_without_gradient_even_under_autocast(features, noise):
    image = noise(2, 3, 40, 40).requires_grad_()
    plain = features(image)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        cast = features(image)
    assert not plain.requires_grad
    torch.testing.assert_close(cast, plain, atol=0, rtol=0)


def test_equal_pictures_are_at_distance_zero_with_a_finite_gradient(perceptual, noise):
    for image in (noise(2, 3, 32, 32), torch.zeros(2, 3, 32, 32)):
        copy = image.clone().requires_grad_()
        distance = perceptual(copy, image)
        distance.sum().backward()
        assert distance.abs().max() < 1e-10
        assert copy.grad.isfinite().all()


def test_the_gradient_reaches_the_picture_and_never_the_target(perceptual, noise):
    image = noise(2, 3, 32, 32).requires_grad_()
    target = (-noise(2, 3, 32, 32)).requires_grad_()
    perceptual(image, target).mean().backward()
    assert target.grad is None
    assert (image.grad.flatten(1).norm(dim=1) > 0).all()


def test_a_step_against_the_gradient_brings_the_pictures_closer(perceptual, photo):
    target = photo(data.astronaut(), 32)
    image = photo(gaussian(data.astronaut(), 8, channel_axis=2), 32).requires_grad_()
    before = perceptual(image, target)
    before.sum().backward()
    after = perceptual(image - 0.05 * image.grad / image.grad.norm(), target)
    assert after.item() < before.item()


def test_the_distance_is_one_number_per_pair_whatever_the_batch(perceptual, noise):
    image, target = noise(3, 3, 32, 32), -noise(3, 3, 32, 32)
    together = perceptual(image, target)
    alone = torch.cat([perceptual(a[None], b[None]) for a, b in zip(image, target, strict=True)])
    torch.testing.assert_close(together, alone)


def test_distances_under_bfloat16_are_float32_and_close(perceptual, photo):
    image, target = photo(data.astronaut(), 32), photo(data.coffee(), 32)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        cast = perceptual(image, target)
    assert cast.dtype == torch.float32
    torch.testing.assert_close(cast, perceptual(image, target), atol=0.01, rtol=0.02)


def test_distances_grow_with_damage_and_lie_in_the_range_of_lpips(perceptual, photo):
    whole = data.astronaut()
    image = photo(whole, 64)
    distances = [
        perceptual(photo(gaussian(whole, sigma * 8, channel_axis=2), 64), image).item()
        for sigma in (0.5, 1, 2, 4)
    ]
    other = perceptual(photo(data.coffee(), 64), image).item()
    assert distances == sorted(distances)
    assert distances[0] < 0.1 < distances[2] < 0.6 < other < 1


def test_the_picture_is_prepared_in_float32_whatever_comes(perceptual, noise):
    image, target = noise(1, 3, 32, 32).bfloat16(), -noise(1, 3, 32, 32)
    expected = perceptual(image.float(), target)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        cast = perceptual(image, target), perceptual(image.float(), target)
    torch.testing.assert_close(perceptual(image, target), expected, atol=0, rtol=0)
    torch.testing.assert_close(cast[0], cast[1], atol=0, rtol=0)


def test_a_size_resizes_before_comparing(noise):
    image, target = noise(1, 3, 32, 32), -noise(1, 3, 32, 32)
    enlarged = [F.interpolate(x, (48, 48), mode="bicubic", antialias=True) for x in (image, target)]
    expected = PerceptualDistance()(*enlarged)
    torch.testing.assert_close(PerceptualDistance(48)(image, target), expected)
