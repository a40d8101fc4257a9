import jaxtyping
import pytest
import torch
from torch import nn

from cartok.core.errors import UserError
from cartok.tokenizer.codec import CodecConfig
from cartok.tokenizer.model import Tokenizer, TokenizerConfig
from cartok.tokenizer.quantize.vq import VQConfig


def small_config(**changes) -> TokenizerConfig:
    codec = CodecConfig(
        channels=8, multipliers=(1, 2), encoder_blocks=1, decoder_blocks=1, latent_channels=12,
        groups=4, stem=2,
    )  # fmt: skip
    return TokenizerConfig(
        codec=codec, quantizer=VQConfig(**({"codebook_size": 32, "dim": 4} | changes))
    )


def small_tokenizer(seed=0, **changes) -> Tokenizer:
    torch.manual_seed(seed)
    return Tokenizer(small_config(**changes)).eval()


def some_images(num=6, height=16, width=24) -> torch.Tensor:
    generator = torch.Generator().manual_seed(1)
    return torch.rand(num, 3, height, width, generator=generator) * 2 - 1


def test_tokens_lie_on_a_grid_factor_times_smaller():
    tokenizer = small_tokenizer()
    tokens = tokenizer.tokens_of(some_images())
    assert tokenizer.factor == 4
    assert tokens.shape == (6, 4, 6)
    assert tuple(tokens.shape[1:]) == tokenizer.grid_of(16, 24)
    assert not tokens.is_floating_point()
    assert 0 <= tokens.min() <= tokens.max() < tokenizer.codebook_size == 32
    assert len(tokens.unique()) > 4


@pytest.mark.parametrize("normalise", [True, False])
@pytest.mark.parametrize("batch", [1, 4, 5])
def test_tokens_and_pictures_do_not_depend_on_the_batch_size(normalise, batch):
    tokenizer, images = small_tokenizer(normalise=normalise), some_images()
    together = tokenizer.tokens_of(images)
    assert torch.equal(
        torch.cat([tokenizer.tokens_of(some) for some in images.split(batch)]), together
    )
    pictures = torch.cat([tokenizer.image_of(some) for some in together.split(batch)])
    torch.testing.assert_close(tokenizer.image_of(together), pictures, rtol=0, atol=1e-5)


def test_encoding_shows_latents_at_three_places():
    tokenizer, images = small_tokenizer(), some_images()
    encoded = tokenizer.encode(images)
    assert encoded.encoder_output.shape == (6, 12, 4, 6)
    assert encoded.projected.shape == encoded.quantized.latents.shape == (6, 4, 4, 6)
    torch.testing.assert_close(
        encoded.quantized.latents, nn.functional.normalize(encoded.projected, dim=1), atol=1e-4,
        rtol=1e-3,
    )  # fmt: skip
    assert torch.equal(encoded.quantized.tokens, tokenizer.tokens_of(images))


def test_pictures_of_tokens_are_those_the_training_saw_clipped():
    tokenizer, images = small_tokenizer(), some_images()
    with torch.no_grad():
        tokenizer.decoder.leave[-1].weight.mul_(200)  # so that some of it leaves [-1, 1]
        raw = tokenizer.decode(tokenizer.encode(images).quantized.codes)
    assert raw.abs().max() > 1
    again = tokenizer.image_of(tokenizer.tokens_of(images))
    assert again.shape == images.shape
    torch.testing.assert_close(again, raw.clamp(-1, 1), rtol=0, atol=1e-3)
    assert again.abs().max() == 1


def test_inference_tracks_no_gradient():
    tokenizer = small_tokenizer()
    tokens = tokenizer.tokens_of(some_images().requires_grad_())
    assert not tokenizer.image_of(tokens).requires_grad
    assert tokenizer.decode(tokenizer.encode(some_images()).quantized.codes).requires_grad


# ------------------------------------------------------------------ mistakes


@pytest.mark.parametrize(("height", "width"), [(16, 18), (18, 16), (2, 16)])
def test_sides_that_the_factor_does_not_divide_are_refused(height, width):
    with pytest.raises(UserError, match=f"multiples of 4, but it is {width}x{height}"):
        small_tokenizer().tokens_of(some_images(1, height, width))


@pytest.mark.parametrize(
    "images",
    [torch.zeros(1, 3, 16, 16, dtype=torch.uint8), torch.zeros(3, 16, 16), torch.zeros(1, 1, 8, 8)],
)
def test_what_is_no_batch_of_float_pictures_is_refused(images, monkeypatch):
    monkeypatch.setattr(jaxtyping.config, "jaxtyping_disable", True)  # as outside the tests
    with pytest.raises(UserError, match=r"pictures are floats in \[-1, 1\]") as caught:
        small_tokenizer().tokens_of(images)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(("token", "words"), [(-1, "from -1 to 0"), (32, "from 0 to 32")])
def test_tokens_of_another_codebook_are_refused(token, words):
    tokens = torch.zeros(1, 2, 2, dtype=torch.long)
    tokens[0, 1, 1] = token
    with pytest.raises(UserError, match=f"tokens are 0 to 31, but they range {words}"):
        small_tokenizer().image_of(tokens)


# ------------------------------------------------------------------ on disk


def test_saved_is_loaded(tmp_path):
    tokenizer, images = small_tokenizer(revive_after=3), some_images()
    tokenizer.quantizer.idle[3] = 2
    tokenizer.save(tmp_path / "run" / "model")
    for source in (tmp_path / "run" / "model", tmp_path / "run", str(tmp_path / "run")):
        again = Tokenizer.from_pretrained(source)
        assert again.config == tokenizer.config
        assert again.digest == tokenizer.digest
        assert not again.training
        assert torch.equal(again.tokens_of(images), tokenizer.tokens_of(images))
        assert again.quantizer.idle[3] == 2


def test_the_digest_names_config_and_weights():
    tokenizer = small_tokenizer()
    assert tokenizer.digest == small_tokenizer().digest
    assert tokenizer.digest != small_tokenizer(seed=1).digest
    other = small_tokenizer(revive_after=3)
    other.load_state_dict(tokenizer.state_dict())
    assert other.digest != tokenizer.digest
    before = tokenizer.digest
    with torch.no_grad():
        tokenizer.quantizer.table[0, 0] += 1e-3
    assert tokenizer.digest != before


def test_a_folder_without_a_tokenizer_is_refused(tmp_path):
    with pytest.raises(UserError, match="holds none") as caught:
        Tokenizer.from_pretrained(tmp_path)
    assert "\n" not in str(caught.value)
    with pytest.raises(UserError, match="does not exist"):
        Tokenizer.from_pretrained(tmp_path / "nowhere")


def test_damaged_weights_are_refused(tmp_path):
    small_tokenizer().save(tmp_path / "model")
    weights = tmp_path / "model" / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:1000])
    with pytest.raises(UserError, match="cannot be read") as caught:
        Tokenizer.from_pretrained(tmp_path)
    assert "\n" not in str(caught.value)
