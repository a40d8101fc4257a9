"""From pictures to rows of features: once, whatever is measured on them afterwards.

Every picture goes through bytes, so a float batch and the file saved from it score alike.
"""

import hashlib
import itertools
from collections.abc import Iterable, Iterator

import numpy as np
import torch
from jaxtyping import Float, Shaped
from scipy.special import ndtri
from torch import Tensor, nn

from cartok.core.errors import UserError
from cartok.core.shapes import Features, Pixels, image_of_pixels, pixels_of
from cartok.core.threads import in_threads, num_threads

ROUNDING = "bytes: 127.5 x + 127.5, clipped to 0..255, half to even"
"""The rule of ``pixels_of``, as receipts state it."""

HASHED_AT_ONCE = 1 << 20
"""Bytes that a thread hashes before it takes others: a millisecond's work."""

Pictures = Tensor | Iterable[Tensor]
"""One tensor of pictures or batches of them: ``Pixels``, or ``Image`` in [-1, 1]."""

FirstFeatures = Float[Tensor, "first feature"]
SecondFeatures = Float[Tensor, "second feature"]
"""Two sets of features of one network, and of their own counts."""

AnyRows = Shaped[Tensor, "..."]
"""What ought to be ``Features``, and is checked in words: see ``checked_rows``."""


def features_of(pictures: Pictures, network: nn.Module, batch: int | None = None) -> Features:
    """The network's features of every picture, in order, on the CPU.

    Independent of ``batch`` up to float rounding. None means 16 on a CPU, where more leaves the
    cache (1.6 ms a picture at 96 px on two threads, against 4.8 for 64), and 256 elsewhere.

    Raises:
        UserError: something is not a batch of RGB pictures, or there is none.
    """
    device = device_of(network)
    batch = batch or (16 if device.type == "cpu" else 256)
    rows = [
        network(image_of_pixels(part.to(device))).cpu()
        for pixels in pixel_batches(pictures)
        for part in pixels.split(batch)
    ]
    if not rows:
        raise UserError("features need at least one picture, but none came")
    return torch.cat(rows)


def pixel_batches(pictures: Pictures) -> Iterator[Tensor]:
    """Batches of ``Pixels``; a single tensor is one batch.

    Raises:
        UserError: a batch is none of pictures: see ``checked_pixels``.
    """
    for part in [pictures] if isinstance(pictures, Tensor) else pictures:
        yield checked_pixels(part)


def checked_pixels(pictures: Tensor) -> Pixels:
    """The bytes of one batch of pictures.

    Raises:
        UserError: it is not RGB, neither bytes nor floats in [-1, 1], or not finite.
    """
    shape, dtype = tuple(pictures.shape), pictures.dtype
    if len(shape) != 4 or shape[1] != 3 or 0 in shape:
        raise UserError(
            f"pictures are (batch, 3, height, width) in RGB, but these are {shape}; "
            "convert grey or RGBA pictures to RGB, and put channels first"
        )
    if dtype == torch.uint8:
        return pictures
    if not dtype.is_floating_point:
        raise UserError(f"pictures are uint8 or float, but these are {dtype}; use uint8 for bytes")
    if not pictures.isfinite().all():
        raise UserError("pictures are finite, but these hold NaN or infinity; see what made them")
    if (reach := pictures.abs().max().item()) > 2:  # a decoder may overshoot 1; bytes reach 255
        raise UserError(
            f"float pictures lie in [-1, 1], but these reach {reach:.4g}; pass bytes as uint8"
        )
    return pixels_of(pictures)


def content_hash(pixels: Pixels) -> str:
    """Sixteen hex digits that name a set of pictures, in whatever order they come."""
    return hash_of_pictures(picture_hashes(pixels), (pixels.shape[2], pixels.shape[3]))


def picture_hashes(pixels: Pixels) -> list[bytes]:
    """The sha256 of each picture's bytes."""

    def some(part: np.ndarray) -> list[bytes]:
        return [hashlib.sha256(np.ascontiguousarray(picture).data).digest() for picture in part]

    rows = pixels.cpu().numpy()
    each = max(1, len(rows) * HASHED_AT_ONCE // max(1, rows.nbytes))
    parts = [rows[start : start + each] for start in range(0, len(rows), each)]
    return [found for part in in_threads(some, parts, min(num_threads(), len(parts) // 2))
            for found in part]  # fmt: skip


def hash_of_pictures(hashes: list[bytes], size: tuple[int, int]) -> str:
    """``content_hash`` from the hashes of pictures of one height and width, read in batches."""
    return hashlib.sha256(repr(size).encode() + b"".join(sorted(hashes))).hexdigest()[:16]


def checked_rows(*sides: AnyRows, at_least: int = 0) -> None:
    """Refuses what is no set of features, or are no two sets that compare.

    Raises:
        UserError: a side has not two axes, is neither float32 nor float64, has fewer rows than
            ``at_least`` or one that is not finite; or the sides' widths or devices differ.
    """
    for rows in sides:
        if rows.ndim != 2 or rows.shape[1] == 0:
            raise UserError(
                f"features are (pictures, features), but these are {tuple(rows.shape)}; "
                "flatten all axes but the first"
            )
        if rows.dtype not in (torch.float32, torch.float64):
            raise UserError(
                f"features are float32 or float64, but these are {rows.dtype}; "
                "run the network in float32"
            )
        if len(rows) < at_least:
            raise UserError(
                f"this score needs {at_least} rows or more of each set of features, but one has "
                f"{len(rows)}; add pictures"
            )
    for what, found in (
        ("width", [rows.shape[1] for rows in sides]),
        ("device", [str(rows.device) for rows in sides]),
    ):
        if len(set(found)) > 1:
            raise UserError(
                f"sets of features that are compared have one {what}, but these have "
                f"{' and '.join(map(str, found))}; featurise both alike"
            )
    if not all(rows.isfinite().all() for rows in sides):
        raise UserError("features are finite, but these hold NaN or infinity; check the pictures")


def projection(dim_in: int, dim_out: int = 64, seed: int = 0) -> Float[Tensor, "dim_in dim_out"]:
    """A fixed random projection with orthogonal columns that keeps squared lengths on average.

    The same on every machine and version: numpy guarantees the bits of PCG64, and the normal
    numbers, the signs of the QR factors and the scale are fixed here; float64.
    """
    bits = np.random.PCG64(seed).random_raw(dim_in * dim_out)
    uniform = ((bits >> np.uint64(11)) + 0.5) * 2.0**-53
    orthogonal, upper = np.linalg.qr(ndtri(uniform).reshape(dim_in, dim_out))
    return torch.from_numpy(orthogonal * np.sign(np.diag(upper)) * (dim_in / dim_out) ** 0.5)


def device_of(network: nn.Module) -> torch.device:
    """Where a network's numbers are."""
    tensors = itertools.chain(network.parameters(), network.buffers())
    return next((tensor.device for tensor in tensors), torch.device("cpu"))
