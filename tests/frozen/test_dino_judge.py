import numpy as np
import pytest
import torch
from PIL import Image

from cartok.core.errors import UserError
from cartok.core.shapes import image_of_pixels
from cartok.frozen import DINOV2_LARGE, dino_judge_of
from cartok.frozen.dino_judge import bytes_of_side, positions_of

timm = pytest.importorskip("timm")


@pytest.fixture(scope="module")
def judge():
    """The small network, for speed; both have one layout."""
    return dino_judge_of(random_weights=True, name="dinov2-small")


def pixels(height, width, seed=0):
    generator = np.random.default_rng(seed)
    return generator.integers(0, 256, (height, width, 3), dtype=np.uint8)


@pytest.mark.parametrize("shape", [(300, 300), (256, 310), (64, 64), (224, 224)])
def test_pictures_are_resized_as_pillow_does_up_to_two_levels(shape):
    rows = pixels(*shape)
    wanted = np.asarray(Image.fromarray(rows).resize((224, 224), Image.Resampling.BICUBIC))
    image = image_of_pixels(torch.from_numpy(rows).permute(2, 0, 1)[None])
    found = bytes_of_side(image, 224)[0].permute(1, 2, 0).numpy()
    assert abs(found - wanted).max() <= 2  # ties of the first pass may fall either way
    assert (found != wanted).mean() < 0.01


def cubic(table, places):
    """Keys' interpolation with a = -0.75 along the first axis, its ends repeated."""
    whole = np.floor(places).astype(int)
    rows = np.zeros((len(places), *table.shape[1:]))
    for tap in range(-1, 3):
        x = abs(places - whole - tap)
        near, far = 1.25 * x**3 - 2.25 * x**2 + 1, -0.75 * (x**3 - 5 * x**2 + 8 * x - 4)
        weight = np.where(x <= 1, near, far)
        rows += (
            weight.reshape(-1, *[1] * (table.ndim - 1))
            * table[(whole + tap).clip(0, len(table) - 1)]
        )
    return rows


def test_positions_are_read_between_those_of_a_grid_a_tenth_larger():
    table = torch.randn(1, 1 + 37 * 37, 3, generator=torch.Generator().manual_seed(0))
    places = (np.arange(16) + 0.5) * 37 / 16.1 - 0.5
    grid = table[0, 1:].reshape(37, 37, 3).double().numpy()
    wanted = cubic(cubic(grid, places).swapaxes(0, 1), places).swapaxes(0, 1)
    found = positions_of(table, 16)
    assert torch.equal(found[:, 0], table[:, 0])
    np.testing.assert_allclose(found[0, 1:].numpy(), wanted.reshape(256, 3), atol=1e-4)


def test_a_row_is_the_class_token_of_timms_network_on_normalised_bytes(judge):
    rows = pixels(224, 224)
    reference = timm.create_model("vit_small_patch14_dinov2", num_classes=0, img_size=224)
    tensors = {name: tensor.clone() for name, tensor in judge.network.named_buffers()}
    reference.load_state_dict(tensors)
    mean, deviation = (torch.tensor(reference.default_cfg[key]) for key in ("mean", "std"))
    unit = ((torch.from_numpy(rows) / 255 - mean) / deviation).permute(2, 0, 1)[None]
    with torch.no_grad():
        wanted = reference.eval().forward_features(unit)[:, 0]
    image = image_of_pixels(torch.from_numpy(rows).permute(2, 0, 1)[None])
    found = judge(image)
    assert found.shape == (1, 384)
    torch.testing.assert_close(found, wanted, atol=1e-4, rtol=1e-4)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(judge(image), found)


def test_the_large_network_has_the_layout_of_the_published_file():
    """Of its 343 tensors one, the mask token, is not used; 304 million numbers."""
    with torch.device("meta"):
        network = timm.create_model("vit_large_patch14_dinov2", num_classes=0)
    shapes = {name: tuple(tensor.shape) for name, tensor in network.state_dict().items()}
    assert len(shapes) == 342
    assert shapes["pos_embed"] == (1, 1370, 1024)
    assert shapes["blocks.23.ls2.gamma"] == (1024,)
    sizes = [np.prod(shape) for shape in shapes.values()]
    assert 0 < 1_217_586_395 - 4 * (sum(sizes) + 1024) < 200_000  # the rest is names and zip


def test_the_network_shows_nothing_to_optimizers_and_is_always_the_same(judge, noise):
    before = torch.get_rng_state()
    again = dino_judge_of(random_weights=True, name="dinov2-small")
    assert torch.equal(before, torch.get_rng_state())
    assert not list(again.parameters())
    assert not again.state_dict()
    assert torch.equal(again(noise(1, 3, 32, 32)), judge(noise(1, 3, 32, 32)))
    assert (again.weights.name, again.weights.source) == ("dinov2-small-random", "")


def test_another_file_and_no_network_are_told_with_file_and_place(tmp_path, monkeypatch):
    (tmp_path / "mine.pth").write_bytes(b"another")
    with pytest.raises(UserError, match=f"must have sha256 {DINOV2_LARGE.sha256[:16]}"):
        dino_judge_of(str(tmp_path / "mine.pth"))
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path))

    def offline(*_, **__):
        raise OSError("no network")

    monkeypatch.setattr("cartok.frozen.weights.urlopen", offline)
    with pytest.raises(UserError, match=r"dinov2_vitl14_pretrain\.pth") as error:
        dino_judge_of()
    assert str(tmp_path / "checkpoints") in str(error.value)
