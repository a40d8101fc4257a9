"""What Inception says of a set of pictures, and the folder that keeps it for the next scoring.

A kept file is a safetensors file of numbers. It is read only if every part of its key agrees and
its checksum holds; nothing in it is ever run.
"""

import hashlib
import json
import zlib
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Literal

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

from cartok.core.errors import UserError, warn
from cartok.core.files import staged
from cartok.core.shapes import Features
from cartok.frozen.inception_v3 import SIDE, Inception
from cartok.metrics.census import START
from cartok.metrics.gaussian import Moments

Kind = Literal["pool", "spatial", "logits"]
"""The features of ``InceptionFeatures``."""

KINDS: tuple[Kind, ...] = ("pool", "spatial", "logits")

Resize = Literal["network", "clean"]
"""What brings pictures to the network's size: itself, or ``cleanly_resized`` before it."""

LAYOUT = 1
"""Rises when files of old would be misread."""


@dataclass(frozen=True)
class Key:
    """All that the numbers depend on."""

    pictures: str
    """Names the pictures in their order."""
    network: str
    network_sha256: str
    precision: str
    resize: Resize = "network"
    size: int = SIDE
    layout: int = LAYOUT

    @classmethod
    def of(cls, pictures: str, network: Inception, resize: Resize) -> "Key":
        """That of pictures seen by a network."""
        weights = network.weights
        return cls(pictures, weights.name, weights.sha256, network.precision, resize)

    @property
    def file(self) -> str:
        """The name of the file that keeps them."""
        digest = hashlib.sha256(json.dumps(asdict(self)).encode()).hexdigest()
        return f"{self.file_start}{digest[:24]}.safetensors"

    @property
    def file_start(self) -> str:
        """What files begin with whose pictures' names begin alike: see ``Census.name``."""
        start = hashlib.sha256(self.pictures[:START].encode()).hexdigest()
        return f"{self.network}-{start[:8]}-"


@dataclass(frozen=True)
class Activations:
    """What a network says of a set of pictures: moments, and rows of what was asked for."""

    key: Key
    hash: str
    """``content_hash`` of the pictures, whatever their order."""
    picture_size: tuple[int, int]
    """Height, width."""
    pool: Moments
    spatial: Moments
    kept: dict[Kind, Features]
    """Float32 rows in the order of the pictures, mapped from a file: see ``rows``."""

    @property
    def count(self) -> int:
        """How many pictures."""
        return self.pool.count

    def rows(self, kind: Kind) -> Features:
        """A row for each picture, in order.

        Raises:
            UserError: this kind of rows was not kept.
        """
        if kind not in self.kept:
            raise UserError(
                f"this score needs rows of '{kind}', but {sorted(self.kept)} were kept; ask for "
                "them when pictures are featurised"
            )
        return self.kept[kind]


def default_folder() -> Path:
    """Beside the weights that are downloaded; deleting it costs time and nothing else."""
    return Path(torch.hub.get_dir()) / "cartok-activations"


def has_begun_alike(folder: Path, key: Key) -> bool:
    """Whether the folder keeps pictures whose first is that of the key's."""
    return any(path.name.startswith(key.file_start) for path in folder.glob("*.safetensors"))


def read_kept(folder: Path, key: Key, kinds: tuple[Kind, ...]) -> Activations | None:
    """What the folder keeps under this key; None if it is not there, or lacks a kind of rows.

    A file that is damaged or somebody else's is warned of and taken for none.
    """
    path = folder / key.file
    if not path.exists():
        return None
    try:
        found = _read(path, key)
    except Exception as error:  # a file of another kind fails in any way
        reason = " ".join(str(error).split())
        warn(f"{path} is not what cartok keeps there ({reason}); it will be written anew")
        return None
    return found if set(kinds) <= set(found.kept) else None


def keep(folder: Path, activations: Activations) -> None:
    """Writes a file that ``read_kept`` finds; if it can not, warns and goes on."""
    path = folder / activations.key.file
    tensors = _tensors_of(activations)
    about = {
        "key": asdict(activations.key),
        "hash": activations.hash,
        "picture_size": activations.picture_size,
        "count": activations.count,
        "crc32": {name: _checksum(tensor) for name, tensor in tensors.items()},
    }
    try:
        with staged(path) as temporary:
            save_file(tensors, temporary, metadata={"cartok": json.dumps(about)})
    except (OSError, UserError) as error:
        warn(f"features of {activations.count:,} pictures are not kept: {error}")


def _tensors_of(activations: Activations) -> dict[str, Tensor]:
    moments = {"pool": activations.pool, "spatial": activations.spatial}
    return {
        **{f"{name}.mean": each.mean for name, each in moments.items()},
        **{f"{name}.scatter": each.scatter for name, each in moments.items()},
        **{f"{kind}.rows": rows for kind, rows in activations.kept.items()},
    }


def _read(path: Path, key: Key) -> Activations:
    with safe_open(path, "pt") as file:
        about = json.loads(file.metadata()["cartok"])
        if about["key"] != asdict(key):
            raise ValueError("of other pictures or another network")
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    if {name: _checksum(tensor) for name, tensor in tensors.items()} != about["crc32"]:
        raise ValueError("damaged")
    pool, spatial = (
        Moments(about["count"], tensors[f"{name}.mean"], tensors[f"{name}.scatter"])
        for name in ("pool", "spatial")
    )
    height, width = about["picture_size"]
    kept = {kind: tensors[f"{kind}.rows"] for kind in KINDS if f"{kind}.rows" in tensors}
    return Activations(key, about["hash"], (height, width), pool, spatial, kept)


def _checksum(tensor: Tensor) -> int:
    return zlib.crc32(tensor.contiguous().numpy().data)
