"""What a training step of the tokenizer costs, counted, and how many steps that makes equal.

Counted on shapes alone (the meta device), so a 256-pixel recipe takes a second on a laptop.
"""

from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import nn
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import flop_registry

from cartok.core.job import Terms
from cartok.tokenizer.alignment import AlignmentHead
from cartok.tokenizer.causal import CausalConfig, CausalPredictor, refuse_several_tokens
from cartok.tokenizer.critic import AnyCritic
from cartok.tokenizer.losses import LossConfig, codec_terms, critic_terms
from cartok.tokenizer.model import Tokenizer, TokenizerConfig
from cartok.tokenizer.quantize.residual import ResidualVQConfig


@dataclass(frozen=True)
class Networks:
    """The networks of a step, on the meta device; None where a recipe has none."""

    tokenizer: Tokenizer
    causal: CausalPredictor | None = None
    critic: AnyCritic | None = None
    alignment: AlignmentHead | None = None
    perceptual: nn.Module | None = None


@dataclass(frozen=True)
class StepFlops:
    """FLOPs a picture and step, forward and backward; a multiply-add counts as two."""

    codec: float
    """Encoder, codebook, decoder, pixel, perceptual and alignment terms."""
    critic: float
    """What the critic adds from the step on at which it learns."""
    causal: float
    """What the regulariser adds; 0 at weight 0, where watching is no part of the recipe."""

    def of(self, steps: int, losses: LossConfig) -> float:
        """FLOPs a picture of the batch over a whole training."""
        learning = 0
        if losses.critic.weight:
            learning = max(0, steps - max(0, losses.critic.start - losses.critic.warm))
        return steps * (self.codec + self.causal) + learning * self.critic


def count_flops(networks: Networks, losses: LossConfig, size: int) -> StepFlops:
    """Counts one step on pictures of ``size`` pixels a side."""
    bare = replace(networks, causal=None, critic=None)
    codec = with_critic = with_causal = _count(bare, losses, size)
    if networks.critic is not None:
        with_critic = _count(replace(bare, critic=networks.critic), losses, size)
    if networks.causal is not None and networks.causal.config.weight:
        with_causal = _count(replace(bare, causal=networks.causal), losses, size)
    return StepFlops(codec, with_critic - codec, with_causal - codec)


def equal_steps(steps: int, flops: StepFlops, losses: LossConfig) -> int:
    """The most steps with the regulariser that cost no more than ``steps`` without it.

    The paper takes 5 % fewer: 380k for 400k (section 3.6).
    """
    budget = StepFlops(flops.codec, flops.critic, 0.0).of(steps, losses)
    low, high = 0, steps
    while low < high:
        middle = (low + high + 1) // 2
        affordable = flops.of(middle, losses) <= budget
        low, high = (middle, high) if affordable else (low, middle - 1)
    return max(1, low)


def channels_read(model: TokenizerConfig, causal: CausalConfig) -> int:
    """Channels of the latents that the causal predictor reads and predicts.

    Raises:
        UserError: loss ``ce`` meets a quantizer that makes several tokens of a latent.
    """
    residual = isinstance(model.quantizer, ResidualVQConfig)
    refuse_several_tokens(causal, model.quantizer.levels if residual else 1)
    encoder = causal.space == "encoder"
    return model.codec.latent_channels if encoder else model.quantizer.dim


def _count(networks: Networks, losses: LossConfig, size: int) -> float:
    image = torch.zeros(2, 3, size, size, device="meta")
    tokenizer, predictor, critic = networks.tokenizer, networks.causal, networks.critic
    with _Counter() as counter, _WithoutNorms():
        encoded = tokenizer.encode(image)
        reconstruction = tokenizer.decode(encoded.quantized.codes)
        causal = alignment = None
        if predictor is not None:
            codes_of = tokenizer.quantizer.codes_of
            causal = predictor.regularise(encoded, 1.0, codes_of=codes_of)
        if networks.alignment is not None:
            alignment = networks.alignment(encoded.encoder_output, image)
        terms = codec_terms(
            losses, image, reconstruction, encoded,
            perceptual=networks.perceptual, critic=critic, causal=causal, alignment=alignment,
            step=losses.critic.start + losses.critic.ramp,
            last_layer=tokenizer.decoder.last_layer,
        )  # fmt: skip
        _backward(terms, [tokenizer, predictor, networks.alignment])
        if critic is not None:
            _backward(critic_terms(critic, image, reconstruction), [critic])
    return counter.flops / len(image)


class _Counter(TorchDispatchMode):
    """FLOPs by torch's formulas. Its own counter also tells modules apart, in thrice the time."""

    def __init__(self):
        super().__init__()
        self.flops = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        if (formula := flop_registry.get(func._overloadpacket)) is not None:
            self.flops += formula(*args, **(kwargs or {}), out_val=out)
        return out


class _WithoutNorms(TorchFunctionMode):
    """Leaves group norms out: no FLOPs of theirs count, and on shapes alone they take the longest.

    They keep a shape, so nothing else changes; torch has no kernel for them on the meta device, but
    a dozen small operations in Python, forward and thrice as many backward.
    """

    def __torch_function__(self, func, types, args: tuple[Any, ...] = (), kwargs=None):
        if func is F.group_norm:
            return args[0]
        return func(*args, **(kwargs or {}))


def _backward(terms: Terms, modules: list[nn.Module | None]) -> None:
    moved = [
        p
        for module in modules
        if module is not None
        for p in module.parameters()
        if p.requires_grad
    ]
    terms.total.backward(inputs=moved)
