import hashlib
import sys

import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import save_file

from cartok.core.errors import UserError
from cartok.frozen import dino_of

timm = pytest.importorskip("timm")


@pytest.fixture(scope="module")
def reference():
    """timm's own network of random numbers."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        network = timm.create_model(
            "vit_small_patch14_dinov2", num_classes=0, dynamic_img_size=True
        )
        for name, parameter in network.named_parameters():
            if "gamma" in name:  # or blocks would hardly speak
                torch.nn.init.ones_(parameter)
    return network.eval().requires_grad_(False)


@pytest.fixture(scope="module")
def path(reference, tmp_path_factory):
    """Its numbers in a file as timm publishes them."""
    path = tmp_path_factory.mktemp("dino") / "model.safetensors"
    save_file(reference.state_dict(), path)
    return str(path)


@pytest.fixture(scope="module")
def dino(path):
    return dino_of(weights=path, layers=(1, 3))


def test_tokens_are_those_of_timm_on_its_own_normalisation(dino, reference, noise):
    image = noise(2, 3, 28, 42)
    mean, deviation = reference.default_cfg["mean"], reference.default_cfg["std"]
    unit = (image + 1) / 2 - torch.tensor(mean).view(3, 1, 1)
    published = reference.forward_intermediates(
        unit / torch.tensor(deviation).view(3, 1, 1),
        indices=[1, 3], norm=True, output_fmt="NLC", intermediates_only=True,
    )  # fmt: skip
    features = dino(image)
    assert (features.rows, features.columns) == (2, 3)
    for ours, theirs in zip(features.layers, published, strict=True):
        assert ours.shape == (2, 6, 384)
        torch.testing.assert_close(ours, theirs, atol=1e-4, rtol=1e-4)


def test_metas_file_holds_a_mask_token_that_is_left_out(reference, dino, tmp_path, noise):
    path = tmp_path / "dinov2_vits14_pretrain.pth"
    torch.save({"mask_token": torch.zeros(1, 384), **reference.state_dict()}, path)
    again = dino_of(weights=str(path), layers=(1, 3))
    image = noise(1, 3, 14, 14)
    for ours, theirs in zip(again(image).layers, dino(image).layers, strict=True):
        torch.testing.assert_close(ours, theirs, atol=0, rtol=0)


def test_pictures_are_resized_to_the_nearest_multiple_of_the_patch(dino, noise):
    image = noise(1, 3, 32, 50)
    features = dino(image)
    assert (features.rows, features.columns) == (2, 4)
    resized = F.interpolate(image, (28, 56), mode="bicubic", antialias=True)
    torch.testing.assert_close(features.layers[0], dino(resized).layers[0])
    assert [dino._patches(length) for length in (1, 20, 21, 224, 256)] == [1, 1, 2, 16, 18]


def test_a_size_gives_the_grid_of_a_tokenizer(path, noise):
    features = dino_of(weights=path, layers=(0,), size=56)(noise(1, 3, 64, 64))
    assert (features.rows, features.columns) == (4, 4)


def test_the_network_stays_as_it_was_and_the_gradient_passes_to_the_picture(dino, noise):
    assert not list(dino.parameters())
    assert not dino.state_dict()
    assert not any(module.training for module in dino.train().modules())
    image = noise(2, 3, 28, 28).requires_grad_()
    dino(image).layers[-1].square().mean().backward()
    assert (image.grad.flatten(1).norm(dim=1) > 0).all()


def test_tokens_are_float32_and_close_under_bfloat16(dino, noise):
    image = noise(1, 3, 28, 28)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        cast = dino(image).layers[-1]
    assert cast.dtype == torch.float32
    assert F.cosine_similarity(cast, dino(image).layers[-1], dim=-1).min() > 0.999


def test_building_draws_no_random_numbers_and_names_the_file_by_its_hash(path):
    before = torch.get_rng_state()
    network = dino_of(weights=path)
    assert torch.equal(before, torch.get_rng_state())
    with open(path, "rb") as file:
        assert network.weights.sha256 == hashlib.file_digest(file, "sha256").hexdigest()


def test_a_file_of_another_network_is_refused_by_its_first_fault(reference, tmp_path):
    tensors = {"pos_embed": torch.zeros(1, 5, 384)}
    save_file(reference.state_dict() | tensors, tmp_path / "other.safetensors")
    with pytest.raises(UserError, match=r"pos_embed must be .*1370.* but is .*5") as error:
        dino_of(weights=str(tmp_path / "other.safetensors"))
    assert "\n" not in str(error.value)
    save_file({"head.weight": torch.zeros(1)}, tmp_path / "head.safetensors")
    with pytest.raises(UserError, match="but is absent"):
        dino_of(weights=str(tmp_path / "head.safetensors"))


def test_offline_the_error_names_the_file_and_its_place(tmp_path, monkeypatch):
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path))

    def offline(*_, **__):
        raise OSError("no network")

    monkeypatch.setattr("cartok.frozen.weights.urlopen", offline)
    with pytest.raises(UserError, match=r"dinov2_vits14_pretrain\.pth") as error:
        dino_of()
    assert str(tmp_path / "checkpoints") in str(error.value)
    assert "\n" not in str(error.value)


def test_without_timm_the_extra_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "timm", None)
    with pytest.raises(UserError, match=r"install cartok\[dino\]"):
        dino_of()


def test_unknown_names_and_layers_are_refused():
    with pytest.raises(UserError, match="did you mean 'dinov2-small'"):
        dino_of("dino2-small")
    with pytest.raises(UserError, match=r"layers 0 to 11, but layers are \(3, 12\)"):
        dino_of(layers=(3, 12))
