import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from cartok.core.config import ConfigError
from cartok.core.errors import UserError
from cartok.tokenizer.codec import (
    CodecConfig,
    Decoder,
    Encoder,
    GridAttention,
    Pending,
    check_size,
    parameter_count,
)


def small(**changes) -> CodecConfig:
    plain = {"channels": 8, "multipliers": (1, 2), "encoder_blocks": 1, "decoder_blocks": 1}
    return CodecConfig(**(plain | {"latent_channels": 12, "groups": 4} | changes))


def test_the_default_is_the_papers_network_of_29_and_42_million_parameters():
    with torch.device("meta"):
        encoder, decoder = Encoder(CodecConfig()), Decoder(CodecConfig())
    assert CodecConfig().factor == 16
    assert round(parameter_count(encoder) / 1e6, 1) == 29.3
    assert round(parameter_count(decoder) / 1e6, 1) == 42.4
    assert round((parameter_count(encoder) + parameter_count(decoder)) / 1e6) == 72


FACTORS = [
    (2, 1, (1, 2)), (2, 2, (1,)),
    (4, 1, (1, 1, 2)), (4, 2, (1, 2)), (4, 4, (2,)),
    (8, 1, (1, 1, 1, 2)), (8, 4, (1, 1)), (8, 8, (1,)),
    (16, 1, (1, 1, 2, 2, 4)), (16, 2, (1, 1, 1, 2)), (16, 8, (1, 2)),
]  # fmt: skip


@pytest.mark.parametrize(("factor", "stem", "multipliers"), FACTORS)
@pytest.mark.parametrize("attention", [True, False])
def test_the_grid_is_factor_times_smaller_and_the_picture_comes_back(
    factor, stem, multipliers, attention
):
    config = small(stem=stem, multipliers=multipliers, attention=attention)
    assert config.factor == factor
    image = torch.randn(2, 3, 2 * factor, 3 * factor)
    latents = Encoder(config)(image)
    assert latents.shape == (2, 12, 2, 3)
    assert latents.shape[2:] == check_size(*image.shape[2:], factor)
    assert Decoder(config)(latents).shape == image.shape


@pytest.mark.parametrize("stem", [1, 2])
@pytest.mark.parametrize("attention", [True, False])
def test_every_parameter_gets_a_gradient(stem, attention):
    config = small(stem=stem, attention=attention, encoder_blocks=2, decoder_blocks=3)
    torch.manual_seed(0)
    encoder, decoder = Encoder(config), Decoder(config)
    decoder(encoder(torch.randn(2, 3, 8, 16))).square().sum().backward()
    for part in (encoder, decoder):
        for name, parameter in part.named_parameters():
            assert parameter.grad is not None, name
            assert parameter.grad.isfinite().all(), name
            assert parameter.grad.abs().max() > 0, name


def test_a_picture_is_encoded_alike_alone_and_in_company():
    torch.manual_seed(0)
    encoder, decoder = Encoder(small()).double(), Decoder(small()).double()
    image = torch.randn(3, 3, 8, 8, dtype=torch.float64)
    together = encoder(image)
    alone = torch.cat([encoder(one[None]) for one in image])
    torch.testing.assert_close(together, alone)
    again = torch.cat([decoder(one[None]) for one in together])
    torch.testing.assert_close(decoder(together), again)


def test_grid_attention_is_softmax_attention_of_one_head_over_all_cells():
    torch.manual_seed(0)
    attention = GridAttention(8, groups=4).double()
    x = torch.randn(2, 8, 3, 5, dtype=torch.float64)
    q, k, v = attention.qkv(attention.norm(x)).chunk(3, dim=1)
    scores = torch.einsum("bchw,bcij->bhwij", q, k) / 8**0.5
    shares = scores.flatten(3).softmax(-1).view_as(scores)
    mixed = torch.einsum("bhwij,bcij->bchw", shares, v)
    torch.testing.assert_close(attention(x), x + attention.out(mixed))


def test_what_is_not_added_yet_is_added_before_attention_is_compiled(monkeypatch):
    """A compiler that met the kernels which do it on a GPU would break the graph there."""
    torch.manual_seed(0)
    attention = GridAttention(8, groups=4)
    parts = Pending(torch.randn(2, 8, 3, 5), torch.randn(8), torch.randn(2, 8, 3, 5))
    wanted, met, plain = attention(parts.added()), [], attention.forward
    monkeypatch.setattr(attention, "forward", lambda x: met.append(type(x)) or plain(x))
    torch.testing.assert_close(attention(parts), wanted)
    assert met == [torch.Tensor]


def test_only_the_coarsest_grid_has_attention():
    def places(module):
        return [n for n, part in module.named_modules() if isinstance(part, GridAttention)]

    config = small(multipliers=(1, 1, 2), encoder_blocks=2, decoder_blocks=3)
    # Every block of the level, and the middle: as VQGAN at 16x16.
    assert places(Encoder(config)) == ["levels.2.1", "levels.2.3", "middle.1"]
    assert places(Decoder(config)) == [
        "middle.1", "levels.0.0.1", "levels.0.0.3", "levels.0.0.5",
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"multipliers": ()}, "multipliers"),
        ({"multipliers": (1, 0)}, "multipliers"),
        ({"channels": 30, "groups": 4}, "channels 30 must be a multiple of groups 4"),
        ({"stem": 3}, "stem must be 1, 2, 4 or 8, but is 3"),
        ({"stem": 0}, "stem"),
        ({"channels": 0}, "channels must be at least 1"),
        ({"groups": 0}, "groups must be at least 1"),
        ({"encoder_blocks": 0}, "encoder_blocks"),
        ({"decoder_blocks": 0}, "decoder_blocks"),
        ({"latent_channels": 0}, "latent_channels"),
    ],
)
def test_impossible_shapes_are_refused(change, words):
    with pytest.raises(ConfigError, match=words) as caught:
        small(**change)
    assert "\n" not in str(caught.value)


@given(st.integers(0, 70), st.integers(0, 70), st.sampled_from([1, 2, 4, 8, 16]))
def test_a_size_has_a_grid_exactly_if_the_factor_divides_both_sides(height, width, factor):
    if height and width and height % factor == 0 and width % factor == 0:
        rows, cols = check_size(height, width, factor)
        assert (rows * factor, cols * factor) == (height, width)
    else:
        with pytest.raises(UserError, match=f"multiples of {factor}, but it is {width}x{height}"):
            check_size(height, width, factor)
