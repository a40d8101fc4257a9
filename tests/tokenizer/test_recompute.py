"""Levels that are computed again in the backward pass: less is kept, and nothing else changes."""

from contextlib import nullcontext
from dataclasses import replace
from itertools import pairwise

import pytest
import torch
from torch import nn
from torch.autograd.graph import saved_tensors_hooks

from cartok.core.config import ConfigError
from cartok.core.loop import fit
from cartok.core.parallel import World
from cartok.core.run import Run
from cartok.recipes.tokenizer import causal_toy
from cartok.tokenizer.codec import CodecConfig
from cartok.tokenizer.model import Tokenizer, TokenizerConfig
from cartok.tokenizer.quantize.vq import VQConfig
from cartok.tokenizer.train import TokenizerJob

LEVELS = 3
CONFIG = TokenizerConfig(
    codec=CodecConfig(channels=8, multipliers=(1, 1, 2), encoder_blocks=1, decoder_blocks=2,
                      latent_channels=8, groups=4),
    quantizer=VQConfig(codebook_size=32, dim=4),
)  # fmt: skip


class Kept:
    """Bytes that the graph keeps for going back; a storage counts once, and parameters do not."""

    def __init__(self, module: nn.Module):
        self.known = {p.untyped_storage().data_ptr() for p in module.parameters()}
        self.storages: dict[int, torch.UntypedStorage] = {}

    def pack(self, tensor):
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in self.known:
            self.storages[storage.data_ptr()] = storage  # held, so that no other takes its place
        return tensor

    @property
    def num_bytes(self) -> int:
        return sum(storage.nbytes() for storage in self.storages.values())


def step(levels: int, precision: str, training: bool = True):
    """One forward and backward pass: its loss, all gradients, and the bytes kept in between."""
    torch.manual_seed(0)
    tokenizer = Tokenizer(CONFIG).train(training)
    tokenizer.encoder.recompute_levels = tokenizer.decoder.recompute_levels = levels
    image = torch.rand(2, 3, 32, 24) * 2 - 1
    kept = Kept(tokenizer)
    autocast = torch.autocast("cpu", torch.bfloat16) if precision == "bf16" else nullcontext()
    with autocast, saved_tensors_hooks(kept.pack, lambda tensor: tensor):
        encoded = tokenizer.encode(image)
        picture = tokenizer.decode(encoded.quantized.codes)
        loss = (picture - image).square().mean() + encoded.quantized.losses["commitment"]
    held = kept.num_bytes
    loss.backward()
    return loss.detach(), [p.grad for p in tokenizer.parameters()], held


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_recomputed_levels_change_no_bit_of_loss_and_gradients(precision):
    loss, gradients, _ = step(0, precision)
    for levels in range(1, LEVELS + 2):
        again, others, _ = step(levels, precision)
        assert torch.equal(again, loss)
        for mine, other in zip(gradients, others, strict=True):
            assert (mine is None) == (other is None)
            assert mine is None or torch.equal(mine, other)


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_each_recomputed_level_keeps_less_and_the_finest_spares_most(precision):
    kept = [step(levels, precision)[2] for levels in range(LEVELS + 1)]
    spared = [before - after for before, after in pairwise(kept)]
    assert min(spared) > 0
    assert spared[0] == max(spared)
    assert kept[-1] < 0.35 * kept[0]


def test_a_number_beyond_all_levels_is_all_levels():
    assert step(LEVELS + 5, "fp32")[2] == step(LEVELS, "fp32")[2]


def test_nothing_is_computed_again_where_nobody_trains():
    assert step(LEVELS, "fp32", training=False)[2] == step(0, "fp32", training=False)[2]


def test_a_training_that_recomputes_ends_with_the_same_bits(pictures, tmp_path):
    def train(levels: int) -> TokenizerJob:
        run = causal_toy()
        loop = replace(run.loop, steps=9, accumulate=2, precision="bf16")  # the critic is heard
        run = replace(run, recompute_levels=levels, loop=loop, equal_compute=False)
        job = TokenizerJob(run, pictures, World())
        fit(job, loop, Run.open(tmp_path / str(levels), run, kind="tokenizer"))
        return job

    plain, again = train(0), train(2)
    assert again.tokenizer.encoder.recompute_levels == 2
    assert again.tokenizer.decoder.recompute_levels == 2
    assert plain.flops == again.flops
    for name, module in plain.modules.items():
        for key, value in module.state_dict().items():
            assert torch.equal(value, again.modules[name].state_dict()[key]), (name, key)


def test_a_negative_number_of_levels_is_refused():
    with pytest.raises(ConfigError, match="recompute_levels must not be negative: 0, 0, -1"):
        replace(causal_toy(), recompute_levels=-1)
