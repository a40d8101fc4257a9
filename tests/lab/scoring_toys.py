"""What the tests of scores share: small networks, pictures, and how they are scored."""

import io
import tarfile
import zipfile
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

from cartok.core.progress import Progress
from cartok.data.arrays import Statistics, write_npz
from cartok.frozen import Weights
from cartok.frozen.inception_v3 import Inception, InceptionFeatures
from cartok.lab import scoring
from cartok.lab.scoring import ScoreConfig, run_score

ADM = "adm-imagenet256"
QUIET = Progress()
PUBLISHED = {"precision", "recall", "density", "coverage", "fid", "fid_infinity", "sfid",
             "sfid_infinity", "kid", "is"}  # fmt: skip


class SmallInception(Inception):
    """Of Inception's interface, with few features; remembers what it was shown."""

    def __init__(self, dim=6, source="an address"):
        nn.Module.__init__(self)
        self.weights, self.tf32 = Weights("inception", "file", "abc123", source), False
        self.widths = {"pool": dim, "spatial": 5, "logits": 4}
        self.register_buffer("classes", torch.zeros(1))
        self.seen = []

    def forward(self, pixels):
        self.seen.append(pixels.clone())
        generator = torch.Generator().manual_seed(0)
        cells = torch.nn.functional.adaptive_avg_pool2d(pixels.float(), 4).flatten(1) / 64 - 2
        random = torch.randn(cells.shape[1], sum(self.widths.values()), generator=generator)
        return InceptionFeatures(*(cells @ random).split([*self.widths.values()], 1))


@pytest.fixture(autouse=True)
def kept(monkeypatch, tmp_path):
    """The folder that keeps features, which is nobody else's."""
    monkeypatch.setattr(scoring, "default_folder", lambda: tmp_path / "kept")
    return tmp_path / "kept"


def install(monkeypatch, **options):
    network = SmallInception(**options)
    monkeypatch.setattr(scoring.frozen, "inception", lambda path=None: network)
    return network


@pytest.fixture
def inception(monkeypatch):
    return install(monkeypatch)


def pictures(count, seed, size=256, spread=60):
    """Of 8 x 8 flat squares, so that they are quick to draw and to encode."""
    generator = np.random.default_rng(seed)
    shade = generator.normal(128, 30, (count, 1, 1, 3))
    small = shade + generator.normal(0, spread, (count, 8, 8, 3))
    small = small.clip(0, 255).astype(np.uint8)
    return small.repeat(size // 8, 1).repeat(size // 8, 2)


def pixels_of_rows(rows):
    return torch.from_numpy(rows).permute(0, 3, 1, 2).contiguous()


def npz(path, rows, statistics=None):
    write_npz(path, [pixels_of_rows(rows)], len(rows), statistics)
    return str(path)


@pytest.fixture(scope="module")
def rows():
    """Generated pictures in the order of two classes, and fewer reference pictures."""
    some = pictures(36, 0)
    some[18:] = 255 - some[18:] // 3
    return SimpleNamespace(generated=some, reference=pictures(30, 1, spread=40))


@pytest.fixture(scope="module")
def stored():
    """Statistics of neither."""
    generator = np.random.default_rng(5)
    mixed = {"pool": generator.normal(size=(6, 6)), "spatial": generator.normal(size=(5, 5))}
    return {k: Statistics(np.ones(len(m)), m @ m.T + np.eye(len(m))) for k, m in mixed.items()}


@pytest.fixture
def sources(rows, stored, tmp_path):
    return (
        npz(tmp_path / "generated.npz", rows.generated),
        npz(tmp_path / "reference.npz", rows.reference, stored),
    )


def scored(sources, cache=False, **config):
    return run_score(*sources, ScoreConfig(cache=cache, **config), "cpu", QUIET)


def values(found):
    return {name: score.value for name, score in found.scores.items()}


class SmallLpips:
    """Of LPIPS's interface: the mean absolute difference."""

    weights = Weights("vgg16", "file", "def456", "an address")

    def to(self, device):
        return self

    def __call__(self, image, target):
        return (image - target).abs().mean((1, 2, 3))


@pytest.fixture
def lpips(monkeypatch):
    monkeypatch.setattr(scoring.frozen, "teacher", lambda name, *paths: SmallLpips())


def png(rows):
    buffer = io.BytesIO()
    Image.fromarray(rows).save(buffer, format="PNG", compress_level=1)
    return buffer.getvalue()


def in_zip(path, rows):
    with zipfile.ZipFile(path, "w") as archive:
        for index, picture in enumerate(rows):
            archive.writestr(f"{index:04d}.png", png(picture))
    return str(path)


def in_tar(path, rows):
    with tarfile.open(path, "w") as archive:
        for index, picture in enumerate(rows):
            info = tarfile.TarInfo(f"{index:04d}.png")
            info.size = len(png(picture))
            archive.addfile(info, io.BytesIO(png(picture)))
    return str(path)


def in_classes(path, rows):
    for index, picture in enumerate(rows):
        (path / f"{index % 3}").mkdir(parents=True, exist_ok=True)
        (path / f"{index % 3}" / f"{index:04d}.png").write_bytes(png(picture))
    return str(path)
