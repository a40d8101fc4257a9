from itertools import pairwise

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from cartok.core.config import ConfigError, config_of
from cartok.layers import RMSNorm, Transformer, TransformerConfig, rotary_table, rotate

SMALL = TransformerConfig(width=32, depth=2, heads=2, hidden_multiple=16)
grids = st.tuples(st.integers(1, 4), st.integers(1, 4))


def small_transformer(seed: int = 0, dropout: float = 0.0) -> Transformer:
    torch.manual_seed(seed)
    net = Transformer(
        TransformerConfig(width=32, depth=2, heads=2, hidden_multiple=16, dropout=dropout)
    )
    with torch.no_grad():  # far from the small initialisation, so that every path carries weight
        for weight in net.parameters():
            weight.add_(0.2 * torch.randn_like(weight))
    return net.eval()


@settings(max_examples=20, deadline=None)
@given(grid=grids, data=st.data())
def test_later_positions_never_change_earlier_ones(grid, data):
    net, length = small_transformer(), grid[0] * grid[1]
    changed = data.draw(st.integers(0, length - 1))
    x, rotary = torch.randn(2, length, 32), rotary_table(*grid, SMALL.head_dim)
    before = net(x, rotary)
    x[:, changed] += 1
    after = net(x, rotary)
    torch.testing.assert_close(after[:, :changed], before[:, :changed], rtol=0, atol=1e-6)
    assert (after[:, changed:] - before[:, changed:]).abs().amax(dim=-1).min() > 1e-4


@settings(max_examples=20, deadline=None)
@given(grid=grids, cuts=st.sets(st.integers(1, 16)))
def test_decoding_in_pieces_equals_one_pass(grid, cuts):
    net, length = small_transformer(), grid[0] * grid[1]
    x, rotary = torch.randn(2, length, 32), rotary_table(*grid, SMALL.head_dim)
    cache = net.empty_cache(2, length)
    edges = [0, *sorted(cut for cut in cuts if cut < length), length]
    pieces = [x[:, start:stop] for start, stop in pairwise(edges)]
    in_pieces = torch.cat([net(piece, rotary, cache) for piece in pieces], dim=1)
    torch.testing.assert_close(in_pieces, net(x, rotary), rtol=1e-5, atol=1e-5)
    assert cache.filled == length


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_layers_follow_the_dtype_of_weights_and_input(dtype):
    net = small_transformer().to(dtype)
    x, rotary = torch.randn(2, 6, 32, dtype=dtype), rotary_table(2, 3, SMALL.head_dim)
    cache = net.empty_cache(2, 6)
    assert net(x, rotary).dtype == dtype
    assert net(x[:, :1], rotary, cache).dtype == dtype
    assert cache.layers[0].key.dtype == dtype


def test_keys_and_values_never_share_storage():
    cache = small_transformer().empty_cache(1, 4)
    tensors = [tensor for layer in cache.layers for tensor in (layer.key, layer.value)]
    assert len({tensor.untyped_storage().data_ptr() for tensor in tensors}) == 2 * SMALL.depth


def test_every_parameter_gets_a_gradient():
    torch.manual_seed(0)
    net = Transformer(SMALL)
    weights = torch.randn(2, 6, 32)
    (net(torch.randn(2, 6, 32), rotary_table(2, 3, 16)) * weights).sum().backward()
    assert all(weight.grad.abs().max() > 0 for weight in net.parameters())


@settings(max_examples=30, deadline=None)
@given(
    query=st.tuples(st.integers(0, 4), st.integers(0, 5)),
    key=st.tuples(st.integers(0, 4), st.integers(0, 5)),
    shift=st.tuples(st.integers(0, 3), st.integers(0, 2)),
)
def test_inner_products_depend_on_the_offset_on_the_grid_alone(query, key, shift):
    table = rotary_table(8, 8, 16).double().unflatten(0, (8, 8))
    torch.manual_seed(0)
    q, k = torch.randn(2, 1, 1, 1, 16, dtype=torch.float64)

    def product(query, key):
        return (rotate(q, table[query][None]) * rotate(k, table[key][None])).sum()

    moved = [tuple(a + b for a, b in zip(cell, shift, strict=True)) for cell in (query, key)]
    torch.testing.assert_close(product(*moved), product(query, key), rtol=0, atol=1e-5)


def test_rows_and_columns_are_told_apart():
    table = rotary_table(3, 3, 16).unflatten(0, (3, 3))
    assert not torch.allclose(table[0, 1], table[1, 0])
    # The first half of the angles turns with the row alone, the second with the column alone.
    torch.testing.assert_close(table[1, 0, :, :4], table[1, 2, :, :4])
    torch.testing.assert_close(table[0, 1, :, 4:], table[2, 1, :, 4:])


def test_a_prefix_is_not_rotated_and_moves_no_cell():
    x = torch.randn(1, 2, 1, 16)
    table = rotary_table(2, 3, 16, prefix=2)
    torch.testing.assert_close(rotate(x, table[:2]), x)
    torch.testing.assert_close(table[2:], rotary_table(2, 3, 16))


def test_rotation_keeps_lengths():
    x = torch.randn(2, 12, 3, 16)
    turned = rotate(x, rotary_table(3, 4, 16))
    torch.testing.assert_close(turned.norm(dim=-1), x.norm(dim=-1))
    assert not torch.allclose(turned[:, -1], x[:, -1])


def test_rms_norm_is_computed_in_float32_for_bfloat16():
    x = (torch.randn(4, 64) * 3).bfloat16()
    wide = x.float()
    expected = wide / (wide.square().mean(dim=-1, keepdim=True) + 1e-5).sqrt()
    torch.testing.assert_close(RMSNorm(64)(x), expected.bfloat16(), rtol=0, atol=0)


def test_the_scale_of_queries_and_keys_does_not_matter():
    net = small_transformer()
    x, rotary = torch.randn(1, 6, 32), rotary_table(2, 3, SMALL.head_dim)
    before = net(x, rotary)
    with torch.no_grad():
        net.blocks[0].attention.qkv.weight[:64] *= 10  # queries and keys, not values
    torch.testing.assert_close(net(x, rotary), before, rtol=0, atol=1e-4)


def test_dropout_acts_in_training_alone():
    net, x = small_transformer(dropout=0.5), torch.randn(1, 6, 32)
    rotary = rotary_table(2, 3, SMALL.head_dim)
    assert torch.equal(net(x, rotary), net(x, rotary))
    net.train()
    assert not torch.equal(net(x, rotary), net(x, rotary))


def test_projections_into_the_stream_start_smaller_with_depth():
    torch.manual_seed(0)
    net = Transformer(TransformerConfig(width=128, depth=8, heads=2, hidden_multiple=64))
    into = net.blocks[3].feed.down.weight.std()
    assert into.item() == pytest.approx(0.02 / 16**0.5, rel=0.05)
    assert net.blocks[3].feed.gate_up.weight.std().item() == pytest.approx(0.02, rel=0.05)


@pytest.mark.parametrize(
    ("width", "multiple", "hidden"), [(768, 256, 2048), (640, 256, 1792), (96, 64, 256)]
)
def test_feed_forward_width_is_eight_thirds_rounded_up(width, multiple, hidden):
    config = TransformerConfig(width=width, heads=2, hidden_multiple=multiple)
    assert config.hidden == hidden


@pytest.mark.parametrize(
    "wrong",
    [{"width": 100}, {"width": 24}, {"heads": 0}, {"depth": 0}, {"dropout": 1.0}, {"rope_base": 1}],
)
def test_impossible_shapes_are_refused_in_one_line(wrong):
    with pytest.raises(ConfigError) as caught:
        config_of(TransformerConfig, wrong)
    assert "\n" not in str(caught.value)
