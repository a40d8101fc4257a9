"""Rows of features in a file, mapped into memory: what fits no memory can still be scored."""

import tempfile
import weakref
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float32
from torch import Tensor

Rows = Float32[Tensor, "row feature"]


class RowFile:
    """Rows of one width in a file without a name, which goes with the last that refers to it."""

    def __init__(self, folder: Path, width: int):
        self._file = tempfile.TemporaryFile(dir=folder)  # noqa: SIM115
        weakref.finalize(self, self._file.close)
        self._width, self._bytes = width, 4 * width

    def write(self, rows: Rows, at: int) -> None:
        """Puts rows there, the first of them as row ``at``; on the CPU."""
        self._file.seek(at * self._bytes)
        self._file.write(rows.contiguous().numpy().data)

    def mapped(self) -> Rows:
        """All rows, read from the file as they are used; to be called when the last is written."""
        count = self._file.seek(0, 2) // self._bytes
        self._file.flush()
        if not count:
            return torch.empty(0, self._width)
        # "c": a change would stay in memory, and torch takes no array that forbids changes.
        return torch.from_numpy(np.memmap(self._file, np.float32, "c", shape=(count, self._width)))
