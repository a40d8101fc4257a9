import copy
import shutil
import warnings

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from cartok.core.errors import UserError
from cartok.frozen import LPIPS, VGG16, Weights, lpips_of
from cartok.frozen.lpips import _unit
from cartok.frozen.weights import LPIPS_HEADS, find, read_weights


@pytest.fixture(scope="module")
def reference():
    """The lpips package on a VGG16 of random numbers."""
    import lpips

    with warnings.catch_warnings():  # its torchvision calls are deprecated
        warnings.filterwarnings("ignore", "The parameter 'pretrained' is deprecated")
        warnings.filterwarnings("ignore", "Arguments other than a weight enum")
        torch.manual_seed(0)
        network = lpips.LPIPS(net="vgg", pnet_rand=True, verbose=False)
    return network.requires_grad_(False)


@pytest.fixture(scope="module")
def ours(reference):
    """The same numbers in our own network."""
    slices = (getattr(reference.net, f"slice{n}") for n in range(1, 6))
    vgg = {f"features.{k}": v for part in slices for k, v in part.state_dict().items()}
    return LPIPS(vgg, read_weights(LPIPS_HEADS), Weights("random", "", "", ""))


@pytest.fixture(scope="module")
def random():
    return lpips_of(random_weights=True)


def with_gradient(network, image, target):
    image = image.clone().requires_grad_()
    distance = network(image, target).flatten()
    distance.sum().backward()
    return distance.detach(), image.grad


@pytest.mark.parametrize("shape", [(32, 32), (21, 40)])
def test_distances_and_gradients_are_those_of_the_lpips_package(reference, ours, noise, shape):
    image, target = noise(2, 3, *shape), noise(2, 3, *shape).flip(0) * 0.5
    distance, gradient = with_gradient(ours, image, target)
    expected, expected_gradient = with_gradient(reference, image, target)
    assert expected.min() > 1e-3
    torch.testing.assert_close(distance, expected, atol=1e-5, rtol=1e-5)
    # As a whole: rounding may put a unit on the other side of its kink, and so some elements off.
    assert (gradient - expected_gradient).norm() < 0.05 * expected_gradient.norm()


def test_under_bfloat16_distances_are_float32_and_close(random, noise):
    image, target = noise(2, 3, 32, 32), -noise(2, 3, 32, 32)
    plain, gradient = with_gradient(random, image, target)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        cast, cast_gradient = with_gradient(random, image, target)
    assert cast.dtype == torch.float32
    torch.testing.assert_close(cast, plain, atol=0, rtol=0.02)
    assert torch.cosine_similarity(cast_gradient.flatten(), gradient.flatten(), 0) > 0.98


def test_lengths_and_sums_are_not_rounded_to_bfloat16(random):
    """Equal features, so that only the arithmetic after the network can differ."""
    features = torch.rand(2, 512, 3, 3, generator=torch.Generator().manual_seed(0)).bfloat16()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        unit = _unit(features)
    assert unit.dtype == torch.float32
    torch.testing.assert_close(unit, torch.nn.functional.normalize(features.float(), dim=1))


def test_equal_pictures_are_at_distance_zero_with_a_finite_gradient(random, noise):
    dark = torch.zeros(1, 3, 16, 16)
    for image in (noise(1, 3, 16, 16), dark):
        distance, gradient = with_gradient(random, image, image)
        assert distance.abs().max() == 0
        assert gradient.isfinite().all()


def test_dead_features_leave_a_finite_gradient(ours, noise):
    """Every unit of every stage silent: lengths of zero, where a square root has no slope."""
    silent = copy.deepcopy(ours)
    for name, buffer in silent.named_buffers():
        if name.endswith("bias"):
            buffer.fill_(-1e3)
    distance, gradient = with_gradient(silent, noise(1, 3, 16, 16), -noise(1, 3, 16, 16))
    assert distance.item() == 0
    assert gradient.abs().max() == 0


def test_the_gradient_reaches_the_picture_and_never_the_target(random, noise):
    image = noise(2, 3, 16, 16).requires_grad_()
    target = (-noise(2, 3, 16, 16)).requires_grad_()
    random(image, target).mean().backward()
    assert target.grad is None
    assert (image.grad.flatten(1).norm(dim=1) > 0).all()


@settings(max_examples=5)
@given(st.integers(1, 3), st.integers(16, 24), st.integers(16, 24))
def test_there_is_one_distance_per_pair_whatever_the_batch(random, batch, height, width):
    generator = torch.Generator().manual_seed(height * width)
    image, target = torch.rand(2, batch, 3, height, width, generator=generator) * 2 - 1
    together = random(image, target)
    alone = torch.cat([random(a[None], b[None]) for a, b in zip(image, target, strict=True)])
    assert together.shape == (batch,)
    torch.testing.assert_close(together, alone, atol=1e-6, rtol=1e-4)


def test_every_stage_is_channels_last_in_memory_whatever_the_pictures_are(random, noise):
    seen = []
    hooks = [
        stage.register_forward_hook(lambda _, __, out: seen.append(out)) for stage in random.stages
    ]
    random(noise(1, 3, 32, 32).contiguous(memory_format=torch.channels_last), noise(1, 3, 32, 32))
    for hook in hooks:
        hook.remove()
    assert len(seen) == 10
    assert all(out.is_contiguous(memory_format=torch.channels_last) for out in seen)


def test_random_weights_are_always_the_same_and_never_pass_for_published(random, noise):
    image, target = noise(1, 3, 16, 16), -noise(1, 3, 16, 16)
    again = lpips_of(random_weights=True)
    torch.testing.assert_close(again(image, target), random(image, target), atol=0, rtol=0)
    assert "random" in random.weights.name
    assert random.weights.sha256 != VGG16.sha256


def test_learned_weights_may_lie_anywhere_and_are_the_published_ones(tmp_path, random, noise):
    path = tmp_path / "mine.pth"
    shutil.copy(find(LPIPS_HEADS), path)
    image, target = noise(1, 3, 16, 16), -noise(1, 3, 16, 16)
    there = lpips_of(random_weights=True, heads=str(path))
    torch.testing.assert_close(there(image, target), random(image, target), atol=0, rtol=0)
    path.write_bytes(path.read_bytes() + b"!")
    with pytest.raises(UserError, match="must have sha256 a78928a0"):
        lpips_of(random_weights=True, heads=str(path))


def test_a_vgg_that_is_not_the_published_one_is_refused(tmp_path):
    path = tmp_path / VGG16.file
    torch.save({"features.0.weight": torch.zeros(64, 3, 3, 3)}, path)
    with pytest.raises(UserError, match="must have sha256 397923af") as error:
        lpips_of(str(path))
    assert "\n" not in str(error.value)
