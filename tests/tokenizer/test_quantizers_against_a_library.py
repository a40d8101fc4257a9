"""Our tokens, codes and losses against vector-quantize-pytorch, with its weights copied over."""

import pytest
import torch
from vector_quantize_pytorch import FSQ, LFQ, ResidualVQ, VectorQuantize

from cartok.tokenizer.quantize.binary import BinaryQuantizer, BSQConfig, LFQConfig
from cartok.tokenizer.quantize.fsq import FSQConfig, ScalarQuantizer
from cartok.tokenizer.quantize.residual import ResidualQuantizer, ResidualVQConfig
from cartok.tokenizer.quantize.vq import VectorQuantizer, VQConfig


def some_latents(dim: int, seed=0, batch=4, size=1.0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return size * torch.randn(batch, dim, 3, 5, generator=generator)


@pytest.mark.parametrize("normalise", [True, False])
@pytest.mark.parametrize("rotation", [True, False])
def test_vq_agrees_also_in_the_gradient(normalise, rotation):
    torch.manual_seed(0)
    gradient = "rotation" if rotation else "straight-through"
    net = VectorQuantizer(VQConfig(codebook_size=64, dim=6, normalise=normalise, gradient=gradient))
    other = VectorQuantize(6, 64, use_cosine_sim=normalise, accept_image_fmap=True,
                           rotation_trick=rotation, ema_update=False)  # fmt: skip
    other.codebook = net.book().detach()
    latents = some_latents(6, size=1.0 if normalise else 1 / 64).requires_grad_()
    quantized = net(latents)
    codes, tokens, commitment = other(latents)
    assert torch.equal(quantized.tokens, tokens)
    torch.testing.assert_close(quantized.codes, codes)
    torch.testing.assert_close(quantized.losses["commitment"], commitment.squeeze())
    wanted = some_latents(6, seed=1)
    (ours,) = torch.autograd.grad(quantized.codes, latents, wanted)
    (theirs,) = torch.autograd.grad(codes, latents, wanted)
    torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("normalise", [True, False])
def test_running_means_agree_over_several_steps(normalise):
    torch.manual_seed(0)
    net = VectorQuantizer(
        VQConfig(codebook_size=16, dim=4, normalise=normalise, codebook="ema", decay=0.9)
    )
    other = VectorQuantize(4, 16, use_cosine_sim=normalise, accept_image_fmap=True, decay=0.9)
    other.codebook = net.book().detach()
    book = other._codebook
    # It counts latents where we keep shares: 60 of them in every step.
    book.cluster_size.fill_(60 / 16)
    book.embed_avg.copy_(net.book().detach()[None] * 60 / 16)
    for step in range(5):
        latents = some_latents(4, seed=step)
        net.update(net(latents).statistics, step)
        other(latents)
        torch.testing.assert_close(net.book(), other.codebook, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("levels", [(8, 5, 4), (7, 7), (8, 8, 8, 6, 5)])
def test_fsq_agrees_also_in_the_gradient(levels):
    net, other = ScalarQuantizer(FSQConfig(levels=levels)), FSQ(list(levels))
    latents = some_latents(len(levels), size=2.0).requires_grad_()
    quantized = net(latents)
    codes, tokens = other(latents)
    assert torch.equal(quantized.tokens, tokens.long())
    torch.testing.assert_close(quantized.codes, codes)
    torch.testing.assert_close(net.codes_of(quantized.tokens), other.indices_to_codes(tokens))
    (ours,) = torch.autograd.grad(quantized.codes.square().sum(), latents)
    (theirs,) = torch.autograd.grad(codes.square().sum(), latents)
    torch.testing.assert_close(ours, theirs)


@pytest.mark.parametrize("spherical", [False, True])
@pytest.mark.parametrize("temperature", [0.01, 1.0])
def test_lfq_and_bsq_agree_also_in_both_entropies(spherical, temperature):
    kind = BSQConfig if spherical else LFQConfig
    net = BinaryQuantizer(kind(bits=7, gamma=0.7, temperature=temperature))
    other = LFQ(dim=7, spherical=spherical, commitment_loss_weight=1.0, diversity_gamma=0.7)
    latents = some_latents(7, size=0.3).requires_grad_()
    quantized = net(latents)
    # It reads the first channel as the highest bit, we as the lowest.
    answer, parts = other(latents.flip(1), 1 / temperature, return_loss_breakdown=True)
    codes, tokens, _ = answer
    assert torch.equal(quantized.tokens, tokens)
    torch.testing.assert_close(quantized.codes, codes.flip(1))
    torch.testing.assert_close(quantized.losses["commitment"], parts.commitment)
    entropy = parts.per_sample_entropy - 0.7 * parts.batch_entropy
    # It cuts probabilities below 1e-5 off, which costs a little entropy.
    torch.testing.assert_close(quantized.losses["entropy"], entropy, rtol=1e-3, atol=5e-3)


@pytest.mark.parametrize("levels", [1, 2, 3])
def test_a_beam_of_one_is_greedy_residual_coding(levels):
    torch.manual_seed(0)
    net = ResidualQuantizer(ResidualVQConfig(levels=levels, codebook_size=16, dim=4, beam=1))
    other = ResidualVQ(dim=4, num_quantizers=levels, codebook_size=16).eval()
    for layer, table in zip(other.layers, net.tables, strict=True):
        layer.codebook = table.detach()
    latents = some_latents(4, size=0.1)
    codes, tokens, _ = other(latents.flatten(2).mT)
    assert torch.equal(net.tokens_of(latents).flatten(1), tokens.flatten(1))
    torch.testing.assert_close(net(latents).codes.flatten(2), codes.mT)
