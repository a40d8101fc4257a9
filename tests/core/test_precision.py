import torch
from torch import nn

from cartok.core.precision import computing_in, full_precision, keep_weights_in, rounding

CPU = torch.device("cpu")


def test_products_run_in_the_precision_asked_for():
    matrix = torch.eye(2)
    with computing_in("bf16", CPU):
        assert (matrix @ matrix).dtype == torch.bfloat16
    with computing_in("fp32", CPU):
        assert (matrix @ matrix).dtype == torch.float32
    assert (matrix @ matrix).dtype == torch.float32


def test_an_island_stays_in_float32():
    matrix = torch.eye(2)
    with computing_in("bf16", CPU):
        with full_precision(CPU):
            assert (matrix @ matrix).dtype == torch.float32
        assert (matrix @ matrix).dtype == torch.bfloat16


def test_factors_are_rounded_as_asked_and_the_programs_own_setting_survives():
    backends = torch.backends
    before = backends.cudnn.conv.fp32_precision, backends.cuda.matmul.fp32_precision
    seen = []
    for tf32 in (False, True):
        with rounding(tf32):
            seen.append((backends.cudnn.conv.fp32_precision, backends.cuda.matmul.fp32_precision))
        assert (backends.cudnn.conv.fp32_precision, backends.cuda.matmul.fp32_precision) == before
    assert seen == [("ieee", "ieee"), ("tf32", "ieee")]


def test_an_island_of_shapes_without_numbers_runs():
    meta = torch.device("meta")
    with full_precision(meta):
        assert (torch.empty(2, 2, device=meta) @ torch.empty(2, 2, device=meta)).shape == (2, 2)


def test_weights_are_rounded_and_buffers_are_not():
    norm = nn.BatchNorm1d(3)
    norm.running_mean.fill_(1 / 3)
    with torch.no_grad():
        norm.weight.fill_(1 / 3)
    keep_weights_in("bf16", norm)
    assert norm.weight.dtype == torch.bfloat16
    assert torch.equal(norm.running_mean, torch.full((3,), 1 / 3))
    keep_weights_in("fp32", norm)
    assert torch.equal(norm.weight, torch.full((3,), 1 / 3).bfloat16().float())
