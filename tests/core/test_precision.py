import torch

from cartok.core.precision import computing_in, full_precision

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


def test_an_island_of_shapes_without_numbers_runs():
    meta = torch.device("meta")
    with full_precision(meta):
        assert (torch.empty(2, 2, device=meta) @ torch.empty(2, 2, device=meta)).shape == (2, 2)
