import dataclasses

import pytest
import torch
import torch.nn.functional as F
from skimage import data
from skimage.filters import gaussian

from cartok import frozen
from cartok.core.errors import UserError
from cartok.frozen import LITE0, LITE2, PERCEPTUAL_BLOCKS, judge, read_network, read_weights


@pytest.fixture(scope="module")
def features():
    return judge(64)


@pytest.fixture(scope="module")
def perceptual():
    return frozen.teacher()


def image_of(array, size):
    """A batch of one, from the middle square of a photograph in [0, 1] or bytes."""
    scale = 255 if array.dtype.kind == "u" else 1
    height, width = array.shape[:2]
    side = min(height, width)
    top, left = (height - side) // 2, (width - side) // 2
    square = torch.tensor(array[top : top + side, left : left + side] / scale).float()
    square = square.permute(2, 0, 1)[None] * 2 - 1
    return F.interpolate(square, (size, size), mode="bicubic", antialias=True).clamp(-1, 1)


def noise_image(*shape):
    return torch.rand(*shape, generator=torch.Generator().manual_seed(0)) * 2 - 1


def blocks_of(network, image):
    """What each block of the published network says, in its own code."""
    out, outputs = network._swish(network._bn0(network._conv_stem(image))), []
    for block in network._blocks:
        out = block(out)
        outputs.append(out)
    return outputs


def test_the_judge_is_not_the_teacher(features, perceptual):
    assert features.weights.sha256 != perceptual.weights.sha256


@pytest.mark.parametrize("shape", [(64, 64), (47, 33)])
def test_perceptual_directions_are_those_of_the_published_network(perceptual, shape):
    image = noise_image(2, 3, *shape)
    published = blocks_of(read_network(LITE2), (image * 127.5 + 127.5 - 127) / 128)
    ours = perceptual._directions_of(image)
    for direction, index in zip(ours, PERCEPTUAL_BLOCKS, strict=True):
        torch.testing.assert_close(
            direction, F.normalize(published[index], dim=1), atol=1e-4, rtol=0
        )


def test_features_are_those_of_the_published_network(features):
    image = noise_image(2, 3, 64, 64)
    published = read_network(LITE0).extract_features((image * 127.5 + 127.5 - 127) / 128)
    torch.testing.assert_close(features(image), published.mean((2, 3)), atol=1e-4, rtol=1e-4)


def test_the_judge_sees_espresso_in_a_cup_of_coffee():
    network = judge(224)
    head = read_network(LITE0)._fc
    logits = head(network(image_of(data.coffee(), 320)))
    assert logits.argmax().item() == 967  # espresso, in the order of ImageNet-1k


def test_frozen_networks_show_nothing_to_optimizers_and_checkpoints(features, perceptual):
    for network in (features, perceptual):
        assert not list(network.parameters())
        assert not network.state_dict()
        assert not any(module.training for module in network.train().modules())


def test_building_a_frozen_network_draws_no_random_numbers():
    before = torch.get_rng_state()
    judge(64)
    assert torch.equal(before, torch.get_rng_state())


def test_a_judge_below_32_pixels_is_refused():
    with pytest.raises(UserError, match="size is 16"):
        judge(16)


def test_weights_that_are_not_the_published_ones_are_refused():
    with pytest.raises(UserError, match="must have sha256 0000000000000000…") as error:
        read_weights(dataclasses.replace(LITE0, sha256="0" * 64))
    assert "\n" not in str(error.value)


def test_a_missing_weights_package_is_named():
    with pytest.raises(UserError, match="install no-such-model"):
        read_weights(dataclasses.replace(LITE0, package="no_such_model"))


def test_a_missing_architecture_package_is_named(monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "efficientnet_lite_pytorch", None)
    with pytest.raises(UserError, match="install efficientnet-lite-pytorch"):
        read_network(LITE0)


def test_features_are_float32_without_gradient_even_under_autocast(features):
    image = noise_image(2, 3, 40, 40).requires_grad_()
    plain = features(image)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        cast = features(image)
    assert not plain.requires_grad
    torch.testing.assert_close(cast, plain, atol=0, rtol=0)


def test_equal_pictures_are_at_distance_zero_with_a_finite_gradient(perceptual):
    for image in (noise_image(2, 3, 32, 32), torch.zeros(2, 3, 32, 32)):
        copy = image.clone().requires_grad_()
        distance = perceptual(copy, image)
        distance.sum().backward()
        assert distance.abs().max() < 1e-10
        assert copy.grad.isfinite().all()


def test_the_gradient_reaches_the_picture_and_never_the_target(perceptual):
    image = noise_image(2, 3, 32, 32).requires_grad_()
    target = (-noise_image(2, 3, 32, 32)).requires_grad_()
    perceptual(image, target).mean().backward()
    assert target.grad is None
    assert (image.grad.flatten(1).norm(dim=1) > 0).all()


def test_a_step_against_the_gradient_brings_the_pictures_closer(perceptual):
    target = image_of(data.astronaut(), 32)
    image = image_of(gaussian(data.astronaut(), 8, channel_axis=2), 32).requires_grad_()
    before = perceptual(image, target)
    before.sum().backward()
    after = perceptual(image - 0.05 * image.grad / image.grad.norm(), target)
    assert after.item() < before.item()


def test_the_distance_is_one_number_per_pair_whatever_the_batch(perceptual):
    image, target = noise_image(3, 3, 32, 32), -noise_image(3, 3, 32, 32)
    together = perceptual(image, target)
    alone = torch.cat([perceptual(a[None], b[None]) for a, b in zip(image, target, strict=True)])
    torch.testing.assert_close(together, alone)


def test_distances_under_bfloat16_are_float32_and_close(perceptual):
    image, target = image_of(data.astronaut(), 32), image_of(data.coffee(), 32)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        cast = perceptual(image, target)
    assert cast.dtype == torch.float32
    torch.testing.assert_close(cast, perceptual(image, target), atol=0.01, rtol=0.02)


def test_distances_grow_with_damage_and_lie_in_the_range_of_lpips(perceptual):
    photo = data.astronaut()
    image = image_of(photo, 64)
    distances = [
        perceptual(image_of(gaussian(photo, sigma * 8, channel_axis=2), 64), image).item()
        for sigma in (0.5, 1, 2, 4)
    ]
    other = perceptual(image_of(data.coffee(), 64), image).item()
    assert distances == sorted(distances)
    assert distances[0] < 0.1 < distances[2] < 0.6 < other < 1


def test_a_size_resizes_before_comparing():
    image, target = noise_image(1, 3, 32, 32), -noise_image(1, 3, 32, 32)
    enlarged = [F.interpolate(x, (48, 48), mode="bicubic", antialias=True) for x in (image, target)]
    expected = frozen.teacher()(*enlarged)
    torch.testing.assert_close(frozen.teacher(size=48)(image, target), expected)
