import numpy as np
import torch

from cartok.metrics import row_file
from cartok.metrics.row_file import RowFile


def test_rows_come_back_in_their_places_in_whatever_order_they_are_written(tmp_path):
    rows = torch.randn(9, 3, generator=torch.Generator().manual_seed(0))
    file = RowFile(tmp_path, 3)
    for begin in (6, 0, 3):
        file.write(rows[begin : begin + 3], at=begin)
    assert torch.equal(file.mapped(), rows)


def test_rows_are_mapped_and_outlive_their_file_which_nobody_sees(tmp_path, monkeypatch):
    kinds, plain = [], torch.from_numpy
    monkeypatch.setattr(row_file.torch, "from_numpy", lambda a: kinds.append(type(a)) or plain(a))
    file = RowFile(tmp_path, 2)
    file.write(torch.ones(4, 2).T.contiguous().T, at=0)  # not contiguous
    rows = file.mapped()
    del file
    assert kinds == [np.memmap]
    assert not list(tmp_path.iterdir())
    assert rows.sum() == 8


def test_a_file_without_rows_has_none(tmp_path):
    assert RowFile(tmp_path, 5).mapped().shape == (0, 5)
