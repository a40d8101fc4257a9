"""Pictures and statistics as numpy's files hold them: ``.npy``, and ``.npz`` as ADM lays it out.

A batch of ADM is ``arr_0``, bytes of (picture, height, width, 3); its statistics are ``mu`` and
``sigma`` of pooled features, and ``mu_s`` and ``sigma_s`` of spatial ones. Pictures are read in
order, compressed or not, so a few of them are in memory at a time. Nothing pickled is ever read.
"""

import os
import zipfile
from collections.abc import Generator, Iterable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from numpy.lib import format as npy
from torch import Tensor

from cartok.core.errors import UserError
from cartok.core.files import staged
from cartok.core.shapes import pixels_of
from cartok.data.stores import PixelRows, reason_of

PICTURES = "arr_0"
"""The member of an npz that holds pictures."""

STATISTICS = {"pool": ("mu", "sigma"), "spatial": ("mu_s", "sigma_s")}
"""The members that hold a mean and a covariance, by the kind of features."""

ENOUGH = 64
"""Pictures of floats that are surely not in [-1, 1] if none of them falls below 0."""


@dataclass(frozen=True, eq=False)
class Statistics:
    """A mean and a covariance of features, float64."""

    mean: Float[np.ndarray, " feature"]
    cov: Float[np.ndarray, "feature feature"]


@dataclass(frozen=True)
class PictureArray:
    """Pictures in an array on disk: bytes, or floats in [-1, 1]; channels last or first."""

    path: Path
    member: str
    """Of an npz; "" for an npy."""
    shape: tuple[int, ...]
    dtype: np.dtype

    def __len__(self) -> int:
        return self.shape[0]

    @property
    def size(self) -> tuple[int, int]:
        """Height and width in pixels."""
        first = 1 if self._is_last else 2
        return self.shape[first], self.shape[first + 1]

    def rows(self, chosen: range | None = None, at_once: int = 64) -> Iterator[PixelRows]:
        """Some pictures at a time, in order: all, or those of a range without gaps.

        Raises:
            UserError: floats are not finite or not in [-1, 1], or the file ends too early.
        """
        self._refuse_unit_range(at_once)
        for part in self._parts(range(len(self)) if chosen is None else chosen, at_once):
            part = part if self._is_last else part.transpose(0, 2, 3, 1)
            yield np.ascontiguousarray(
                part if part.dtype == np.uint8 else _bytes_of(part, self.path)
            )

    def _refuse_unit_range(self, at_once: int) -> None:
        """By the first of all pictures, so that every share of them is refused alike, and early."""
        if self.dtype == np.uint8 or len(self) < ENOUGH:
            return
        if all((part >= 0).all() for part in self._parts(range(ENOUGH), at_once)):
            raise UserError(
                f"float pictures lie in [-1, 1], but none of the first {ENOUGH} of "
                f"{self.path} falls below 0; write 2 x - 1 of pictures in [0, 1], or bytes"
            )

    @property
    def _is_last(self) -> bool:
        return self.shape[-1] == 3

    def _parts(self, chosen: range, at_once: int) -> Iterator[np.ndarray]:
        one = int(np.prod(self.shape[1:])) * self.dtype.itemsize
        with _stream(self.path, self.member) as stream:
            _header(stream)
            stream.seek(chosen.start * one, os.SEEK_CUR)
            for start in chosen[::at_once]:
                count = min(at_once, chosen.stop - start)
                part = _exactly(stream, count * one, self.path)
                yield np.frombuffer(part, self.dtype).reshape(count, *self.shape[1:])


def picture_array(path: Path) -> PictureArray:
    """The pictures of an ``.npy``, or in ``arr_0`` of an ``.npz``; reads the header alone.

    Raises:
        UserError: the file is damaged, holds pickled objects, has no ``arr_0``, or its array is
            none of RGB pictures.
    """
    member = PICTURES if path.suffix == ".npz" else ""
    if member and not has_pictures(path):
        names = ", ".join(sorted(_members_of(path))) or "nothing"
        raise UserError(
            f"an npz holds its pictures in {PICTURES}, but {path} has {names}; "
            "write it by np.savez(file, pictures)"
        )
    with _explained(path), _stream(path, member) as stream:
        shape, dtype = _header(stream)
    if len(shape) != 4 or 3 not in (shape[-1], shape[1]) or 0 in shape:
        raise UserError(
            f"an array of pictures is (picture, height, width, 3) in RGB, but that of {path} is "
            f"{shape}; repeat a single channel three times, and leave alpha out"
        )
    if dtype != np.uint8 and dtype.kind != "f":
        raise UserError(f"pictures are uint8 or float, but those of {path} are {dtype}; use uint8")
    return PictureArray(path, member, shape, dtype)


def has_pictures(path: Path) -> bool:
    """Whether an ``.npz`` holds pictures; one of statistics alone does not.

    Raises:
        UserError: the file is no npz.
    """
    return PICTURES in _members_of(path)


def read_statistics(path: Path) -> dict[str, Statistics]:
    """The statistics that an ``.npz`` holds, by the kind of features; none is an empty dict.

    Raises:
        UserError: a mean and a covariance do not fit, are not finite, or one of them is missing.
    """
    there = _members_of(path)
    found = {}
    for kind, (mean, cov) in STATISTICS.items():
        if not {mean, cov} & there:
            continue
        if not {mean, cov} <= there:
            raise UserError(f"statistics are {mean} and {cov}, but {path} has one alone; add both")
        with _explained(path), np.load(path, allow_pickle=False) as archive:
            values = [_float64(archive[name]) for name in (mean, cov)]
        found[kind] = _checked_statistics(*values, kind, path)
    return found


def write_npz(
    path: Path,
    pixels: Iterable[Tensor],
    count: int,
    statistics: dict[str, Statistics] | None = None,
) -> None:
    """Writes ``count`` pictures, and statistics, as ADM's evaluator reads them.

    ``pixels`` are batches of ``Pixels``, one of them in memory at a time.

    Raises:
        UserError: another number of pictures comes, they differ in size, or the disk is full.
    """
    with staged(path) as temporary, zipfile.ZipFile(temporary, "w") as archive:
        _write_pictures(archive, pixels, count)
        for kind, found in (statistics or {}).items():
            for name, values in zip(STATISTICS[kind], (found.mean, found.cov), strict=True):
                with archive.open(f"{name}.npy", "w") as member:
                    npy.write_array(member, np.asarray(values), allow_pickle=False)


def _write_pictures(archive: zipfile.ZipFile, pixels: Iterable[Tensor], count: int) -> None:
    written, size = 0, None
    with archive.open(f"{PICTURES}.npy", "w", force_zip64=True) as member:
        for batch in pixels:
            if size is None:
                size = tuple(batch.shape[2:])
                about = {"descr": "|u1", "fortran_order": False, "shape": (count, *size, 3)}
                npy.write_array_header_1_0(member, about)
            if tuple(batch.shape[2:]) != size:
                raise UserError(f"an npz holds pictures of one size, but {size} came first; crop")
            member.write(batch.permute(0, 2, 3, 1).contiguous().cpu().numpy().tobytes())
            written += len(batch)
    if written != count:
        raise UserError(
            f"an npz was begun for {count} pictures, but {written} could be read; "
            "remove those that are broken"
        )


@contextmanager
def _stream(path: Path, member: str) -> Generator[Any]:
    """The bytes of an npy, or of a member of an npz, stored or compressed, in order."""
    with ExitStack() as opened:
        if not member:
            yield opened.enter_context(open(path, "rb"))
            return
        archive = opened.enter_context(zipfile.ZipFile(path))
        yield opened.enter_context(archive.open(f"{member}.npy"))


def _header(stream: Any) -> tuple[tuple[int, ...], np.dtype]:
    version = npy.read_magic(stream)
    read = npy.read_array_header_1_0 if version == (1, 0) else npy.read_array_header_2_0
    shape, is_fortran, dtype = read(stream)
    if dtype.hasobject:
        raise ValueError("it holds pickled objects, which are never read")
    if is_fortran:
        raise ValueError("its array is in Fortran's order; write np.ascontiguousarray of it")
    return shape, dtype


def _members_of(path: Path) -> set[str]:
    with _explained(path), zipfile.ZipFile(path) as archive:
        return {name.removesuffix(".npy") for name in archive.namelist()}


def _exactly(stream: Any, count: int, path: Path) -> bytes:
    with _explained(path):
        part = stream.read(count)
        if len(part) < count:
            raise ValueError("it ends too early")
    return part


@contextmanager
def _explained(path: Path) -> Generator[None]:
    try:
        yield
    except UserError:
        raise
    except (OSError, ValueError, zipfile.BadZipFile, EOFError, KeyError) as error:
        raise UserError(
            f"{path} cannot be read as an array: {reason_of(error)}; write it again"
        ) from error


def _bytes_of(part: np.ndarray, path: Path) -> PixelRows:
    part = np.asarray(part, np.float32)
    if not np.isfinite(part).all():
        raise UserError(f"pictures are finite, but those of {path} hold NaN or infinity; see why")
    if (reach := float(np.abs(part).max())) > 2:  # a decoder may overshoot 1
        raise UserError(
            f"float pictures lie in [-1, 1], but those of {path} reach {reach:.4g}; "
            "write bytes as uint8"
        )
    image = torch.from_numpy(part.transpose(0, 3, 1, 2).copy())
    return pixels_of(image).permute(0, 2, 3, 1).numpy()


def _float64(values: np.ndarray) -> np.ndarray:
    if values.dtype.kind != "f":
        raise ValueError(f"its statistics are {values.dtype}, not float")
    return values.astype(np.float64)


def _checked_statistics(mean: np.ndarray, cov: np.ndarray, kind: str, path: Path) -> Statistics:
    if mean.ndim != 1 or cov.shape != (len(mean), len(mean)):
        raise UserError(
            f"a mean of n features has a covariance of n x n, but the {kind} ones of {path} are "
            f"{mean.shape} and {cov.shape}; write them again"
        )
    if not (np.isfinite(mean).all() and np.isfinite(cov).all()):
        raise UserError(f"statistics are finite, but those of {path} hold NaN; write them again")
    if np.abs(cov - cov.T).max() > 1e-5 * np.abs(cov).max():
        raise UserError(f"a covariance is symmetric, but that of {path} is not; write it again")
    return Statistics(mean, cov)
