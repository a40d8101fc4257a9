import pytest
import torch

from cartok.core.errors import UserError
from cartok.interop.codecs import tokenizer_of_llamagen, tokenizer_of_taming
from cartok.tokenizer.codec import parameter_count
from cartok.tokenizer.model import Tokenizer

# What is published: whose, multipliers, channels of a code, how many; parameters in millions.
VQ_16 = ("llamagen", (1, 1, 2, 2, 4), 8, 16384)
VQ_8 = ("llamagen", (1, 2, 2, 4), 8, 16384)
F16_1024 = ("taming", (1, 1, 2, 2, 4), 256, 1024)
F16_16384 = ("taming", (1, 1, 2, 2, 4), 256, 16384)
ALL = [VQ_16, VQ_8, F16_1024, F16_16384]


def drawn(originals, published, **sizes):
    whose, multipliers, dim, codes = published
    names = originals.LLAMAGEN if whose == "llamagen" else originals.TAMING
    sizes = {"channels": 128, "latent": 256, "dim": dim, "codes": codes} | sizes
    tensors = originals.vqgan(names, multipliers, **sizes)
    if whose == "taming":
        tensors["loss.discriminator.main.0.weight"] = torch.randn(64, 3, 4, 4)
    else:
        tensors["quantize.codebook_used"] = torch.zeros(65536)
    return names, tensors


def imported(published, tensors) -> Tokenizer:
    return (tokenizer_of_llamagen if published[0] == "llamagen" else tokenizer_of_taming)(tensors)


def some_images(num, height, width):
    return torch.rand(num, 3, height, width, generator=torch.Generator().manual_seed(7)) * 2 - 1


def check_equal(originals, published, names, tensors, images):
    tokenizer = imported(published, tensors)
    levels, on_sphere = len(published[1]), published[0] == "llamagen"
    with torch.inference_mode():
        latents = originals.encoded(tensors, names, levels, images)
        expected = originals.looked_up(tensors, latents, on_sphere)
        torch.testing.assert_close(tokenizer.encode(images).projected, latents, rtol=0, atol=1e-4)
        tokens = tokenizer.tokens_of(images)
        assert torch.equal(tokens, expected)
        pictures = originals.decoded(tensors, names, levels, tokens, on_sphere)
        ours = tokenizer.decode(tokenizer.quantizer.codes_of(tokens))
        torch.testing.assert_close(ours, pictures, rtol=0, atol=1e-4)
        torch.testing.assert_close(
            tokenizer.image_of(tokens), pictures.clamp(-1, 1), rtol=0, atol=1e-4
        )
    assert latents.std() > 0.1
    assert pictures.std() > 0.1
    return tokens


@pytest.mark.parametrize("published", [VQ_16, VQ_8, F16_16384])
def test_narrow_tokenizers_give_the_originals_tokens_and_pictures(originals, published):
    sizes = {"channels": 32, "latent": 24, "codes": 97, "dim": min(published[2], 20)}
    names, tensors = drawn(originals, published, **sizes)
    images = some_images(2, 64, 48 if len(published[1]) < 5 else 96)
    tokens = check_equal(originals, published, names, tensors, images)
    assert len(tokens.unique()) > 5


@pytest.mark.parametrize("published", [VQ_16, F16_1024])
def test_at_their_true_widths_they_do_so_too(originals, published):
    names, tensors = drawn(originals, published)
    check_equal(originals, published, names, tensors, some_images(1, 32, 32))


@pytest.mark.parametrize(
    ("published", "millions"), list(zip(ALL, (72, 70, None, None), strict=True))
)
def test_every_published_tokenizer_has_a_place_for_each_of_its_tensors(
    originals, published, millions
):
    _, tensors = drawn(originals, published, unfilled_on="cpu")
    tokenizer = imported(published, tensors)
    config = tokenizer.config
    assert config.codec.channels == 128
    assert config.codec.multipliers == published[1]
    assert (config.codec.encoder_blocks, config.codec.decoder_blocks) == (2, 3)
    assert (config.quantizer.dim, config.quantizer.codebook_size) == published[2:]
    assert config.quantizer.normalise == (published[0] == "llamagen")
    theirs = sum(
        value.numel()
        for name, value in tensors.items()
        if not name.startswith("loss.") and not name.endswith("codebook_used")
    )
    assert parameter_count(tokenizer) == theirs
    if millions:  # as LlamaGen's page has it
        assert round(theirs / 1e6) == millions


def test_off_the_sphere_a_long_code_is_another_than_a_short_one(originals):
    _, tensors = drawn(originals, F16_1024, channels=32, latent=24, codes=2, dim=4)
    tensors["quantize.embedding.weight"] = torch.tensor([[1.0, 0, 0, 0], [3, 0, 0, 0]])
    quantizer = imported(F16_1024, tensors).quantizer
    latents = torch.tensor([0.5, 1.9, 2.1, 9.0]).view(1, 1, 2, 2) * torch.eye(4)[0].view(1, 4, 1, 1)
    assert quantizer.tokens_of(latents).flatten().tolist() == [0, 0, 1, 1]
    assert torch.equal(
        quantizer.codes_of(torch.tensor([[[1]]])).flatten(), torch.tensor([3.0, 0, 0, 0])
    )


def test_codes_far_off_the_sphere_are_put_on_it(originals):
    names, tensors = drawn(originals, VQ_8, channels=32, latent=24, codes=50)
    tensors["quantize.embedding.weight"] *= 1e-4
    check_equal(originals, VQ_8, names, tensors, some_images(1, 32, 32))


def test_an_imported_tokenizer_comes_back_the_same(originals, tmp_path):
    _, tensors = drawn(originals, VQ_8, channels=32, latent=24, codes=50)
    tokenizer = imported(VQ_8, tensors)
    tokenizer.save(tmp_path / "model")
    back = Tokenizer.from_pretrained(tmp_path / "model")
    assert back.digest == tokenizer.digest
    images = some_images(1, 32, 32)
    tokens = tokenizer.tokens_of(images)
    assert torch.equal(back.tokens_of(images), tokens)
    assert torch.equal(back.image_of(tokens), tokenizer.image_of(tokens))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_weights_of_half_precision_become_float32(originals, dtype):
    _, tensors = drawn(originals, VQ_8, channels=32, latent=24, codes=50)
    tokenizer = imported(VQ_8, {name: value.to(dtype) for name, value in tensors.items()})
    assert {weight.dtype for weight in tokenizer.parameters()} == {torch.float32}


@pytest.mark.parametrize(
    ("change", "line"),
    [
        (lambda t: t.pop("encoder.conv_in.weight"), "a tensor named 'encoder.conv_in.weight'"),
        (lambda t: t.pop("encoder.mid.1.k.bias"), "needs a tensor named"),
        (lambda t: t.pop("decoder.mid.0.norm2.bias"), "do not fit"),
        (lambda t: t.update({"encoder.more.weight": torch.zeros(1)}), "encoder.more.weight"),
        (lambda t: t.update({"quant_conv.bias": torch.zeros(9)}), "project_in.bias"),
        (lambda t: t.update({"encoder.conv_blocks.1.attn.0.q.bias": torch.zeros(64)}), "elsewhere"),
        (lambda t: t.update({"quantize.embedding.weight": torch.zeros(9)}), "are of none"),
        (lambda t: t.update({"encoder.conv_out.weight": torch.tensor(0.0)}), "are of none"),
        (lambda t: t.update({"encoder.conv_in.weight": torch.zeros(0, 3)}), "are of none"),
    ],
)  # fmt: skip
def test_tensors_that_do_not_fit_are_refused_by_name(originals, change, line):
    _, tensors = drawn(originals, VQ_8, channels=32, latent=24, codes=50)
    change(tensors)
    with pytest.raises(UserError, match=line):
        tokenizer_of_llamagen(tensors)
