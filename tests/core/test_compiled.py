"""Compiled modules train compiled and are evaluated as they are written."""

import pytest
import torch
from torch import nn

from cartok.core.compiled import as_written, compile_in_place


class Doubled(nn.Module):
    def forward(self, x):
        return 2 * x


@pytest.fixture
def compilations(monkeypatch):
    """How often a graph has been compiled; what is compiled runs as it was traced."""
    found = []

    def backend(graph, inputs):
        found.append(graph)
        return graph.forward

    plain = nn.Module.compile
    monkeypatch.setattr(nn.Module, "compile", lambda self: plain(self, backend=backend))
    yield found
    torch.compiler.reset()


def test_modules_of_one_shape_are_compiled_once(compilations):
    modules = [Doubled() for _ in range(4)]
    compile_in_place(modules)
    assert [module(torch.ones(3)).sum().item() for module in modules] == [6] * 4
    assert len(compilations) == 1


def test_an_evaluation_compiles_nothing_and_gives_the_same(compilations):
    module = Doubled()
    compile_in_place([module])
    with as_written():
        assert module(torch.ones(5)).sum() == 10
    assert not compilations
    assert module(torch.ones(5)).sum() == 10
    assert len(compilations) == 1


def test_what_an_earlier_training_compiled_does_not_make_shapes_variable(compilations):
    for size in (3, 4, 5):
        module = Doubled()
        compile_in_place([module])
        module(torch.ones(size))
    shapes = [node.meta["example_value"].shape for graph in compilations
              for node in graph.graph.nodes if node.op == "placeholder"]  # fmt: skip
    assert shapes == [(3,), (4,), (5,)]
