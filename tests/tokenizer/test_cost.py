from dataclasses import replace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.utils.flop_counter import FlopCounterMode

from cartok.frozen import lpips_of
from cartok.layers import TransformerConfig
from cartok.recipes.tokenizer import causal_16k
from cartok.tokenizer.causal import CausalConfig, CausalPredictor
from cartok.tokenizer.codec import CodecConfig
from cartok.tokenizer.cost import Networks, StepFlops, channels_read, count_flops, equal_steps
from cartok.tokenizer.critic import Critic, CriticConfig
from cartok.tokenizer.losses import LossConfig
from cartok.tokenizer.model import Tokenizer, TokenizerConfig
from cartok.tokenizer.quantize.vq import VQConfig

WITHOUT_CRITIC = LossConfig(critic=CriticConfig(weight=0.0))
CODEC = CodecConfig(
    channels=8, multipliers=(1,), encoder_blocks=1, decoder_blocks=2, attention=False,
    latent_channels=12, stem=2, groups=4,
)  # fmt: skip
MODEL = TokenizerConfig(codec=CODEC, quantizer=VQConfig(codebook_size=32, dim=4))
CAUSAL = CausalConfig(transformer=TransformerConfig(width=16, depth=2, heads=2, hidden_multiple=16))


def conv(before: int, after: int, side: int, cells: int) -> int:
    return 2 * before * after * side**2 * cells


def counted(losses: LossConfig, causal: CausalConfig, size: int) -> StepFlops:
    with torch.device("meta"):
        predictor = CausalPredictor(causal, channels_read(MODEL, causal), 32)
        critic = Critic(losses.critic) if losses.critic.weight else None
        networks = Networks(Tokenizer(MODEL), causal=predictor, critic=critic)
    return count_flops(networks, losses, size)


def test_the_flops_of_a_small_codec_are_those_counted_by_hand():
    cells = 8 * 8  # 16 pixels, folded by 2; no further halving
    first = conv(3 * 2**2, 8, 3, cells)
    block = 2 * conv(8, 8, 3, cells)
    encoder = 3 * block + conv(8, 12, 3, cells)  # one block, two in the middle
    between = conv(12, 4, 1, cells) + conv(4, 12, 1, cells)
    decoder = conv(12, 8, 3, cells) + 4 * block + conv(8, 3 * 2**2, 3, cells)
    search = 2 * 32 * 4 * cells
    # Backward costs twice the forward, but no picture needs a gradient and no search has one.
    wanted = 3 * (first + encoder + between + decoder) - first + search
    found = counted(WITHOUT_CRITIC, CAUSAL, 16)
    assert found.codec == wanted
    assert found.critic == 0


def test_the_flops_of_the_predictor_are_those_counted_by_hand():
    positions = 8 * 8 - 1
    net = CAUSAL.transformer
    layer = 4 * net.width**2 + 3 * net.width * net.hidden
    matrices = net.depth * layer + 2 * 4 * net.width
    attention = net.depth * 2 * positions * net.width  # scores and mix, each over all positions
    found = counted(WITHOUT_CRITIC, CAUSAL, 16)
    wanted = 3 * 2 * (matrices + attention) * positions
    # How attention's backward is counted depends on the kernel that torch picks.
    assert found.causal == pytest.approx(wanted, rel=0.1)


def test_the_flops_of_a_picture_do_not_depend_on_batch_or_device():
    tokenizer = Tokenizer(MODEL)
    with FlopCounterMode(display=False) as counter:
        encoded = tokenizer.encode(torch.zeros(5, 3, 16, 16))
        image, quantized = tokenizer.decode(encoded.quantized.codes), encoded.quantized
        (image.sum() + quantized.losses["codebook"] + quantized.losses["commitment"]).backward()
    found = counted(WITHOUT_CRITIC, CAUSAL, 16)
    assert counter.get_total_flops() / 5 == found.codec


def test_convolutions_cost_four_times_as_much_at_twice_the_side():
    small, large = (counted(WITHOUT_CRITIC, CAUSAL, size) for size in (16, 32))
    assert large.codec == 4 * small.codec
    assert large.causal > 4 * small.causal  # attention grows faster


def test_each_part_that_is_switched_off_costs_nothing():
    losses = LossConfig(critic=CriticConfig(channels=8, layers=2))
    both = counted(losses, CAUSAL, 16)
    assert both.critic > 0
    assert both.causal > 0
    without = counted(losses, replace(CAUSAL, weight=0.0, watch=True), 16)
    assert without == StepFlops(both.codec, both.critic, 0.0)
    alone = counted(WITHOUT_CRITIC, CAUSAL, 16)
    assert alone == StepFlops(both.codec, 0.0, both.causal)


@pytest.mark.parametrize("space", ["lookup", "projected", "encoder"])
def test_every_space_can_be_counted(space):
    found = counted(WITHOUT_CRITIC, replace(CAUSAL, space=space), 16)
    assert found.causal > 0


def test_the_critic_is_paid_from_the_step_on_at_which_it_learns():
    flops = StepFlops(codec=10.0, critic=3.0, causal=1.0)
    losses = LossConfig(critic=CriticConfig(start=6, warm=2))
    assert [flops.of(steps, losses) for steps in (1, 4, 5, 10)] == [11, 44, 58, 128]
    assert flops.of(10, WITHOUT_CRITIC) == 110
    early = LossConfig(critic=CriticConfig(start=2, warm=9))
    assert flops.of(5, early) == 5 * 14


@given(
    steps=st.integers(1, 10**6),
    codec=st.integers(1, 10**4),
    critic=st.integers(0, 10**3),
    causal=st.integers(0, 10**4),
    start=st.integers(0, 10**6),
    warm=st.integers(0, 10**4),
)
def test_equal_steps_are_the_most_that_the_budget_pays_for(
    steps, codec, critic, causal, start, warm
):
    flops = StepFlops(float(codec), float(critic), float(causal))
    losses = LossConfig(critic=CriticConfig(start=start, warm=warm))
    budget = StepFlops(float(codec), float(critic), 0.0).of(steps, losses)
    found = equal_steps(steps, flops, losses)
    assert 1 <= found <= steps
    if found > 1:
        assert flops.of(found, losses) <= budget
    if found < steps:
        assert flops.of(found + 1, losses) > budget
    if causal == 0:
        assert found == steps


def test_the_papers_recipe_takes_3_percent_fewer_steps():
    run = causal_16k()
    perceptual = lpips_of(random_weights=True).to("meta")
    with torch.device("meta"):
        tokenizer = Tokenizer(run.model)
        predictor = CausalPredictor(run.causal, run.model.quantizer.dim)
        critic = Critic(run.losses.critic)
    networks = Networks(tokenizer, predictor, critic, perceptual=perceptual)
    flops = count_flops(networks, run.losses, run.view.size)
    # 3.1 % at the width of 1024 that is our reading; the paper says 5 % and takes 380k.
    assert equal_steps(run.loop.steps, flops, run.losses) == pytest.approx(387_449, abs=100)
    bare = count_flops(replace(networks, perceptual=None), run.losses, run.view.size)
    # LlamaGen's VQ-16 of 69.2 and 126.4 GMAC forward, and twice that backward; less 5/9 of the
    # four convolutions after an upsampling, which are done in one with it.
    upsampling = 9 * (512**2 * 32**2 + 256**2 * (64**2 + 128**2) + 128**2 * 256**2)
    wanted = 69.2e9 + 126.4e9 - 5 / 9 * upsampling
    assert bare.codec == pytest.approx(3 * 2 * wanted, rel=0.01)
