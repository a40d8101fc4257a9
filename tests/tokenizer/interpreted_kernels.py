"""Runs the GPU kernels on the CPU, in triton's interpreter, beside plain torch in float64.

The tests run it as a script, since triton reads TRITON_INTERPRET when it is imported. It reads
cases as a line of JSON, and answers with a line: by case how far off each answer and gradient is.
"""

import json
import os
import sys
import warnings

os.environ["TRITON_INTERPRET"] = "1"

import torch
from torch import Tensor
from torch.nn import functional as F

from cartok.tokenizer import blocks, codec, fused
from cartok.tokenizer.codec import CodecConfig, Decoder, Encoder

EPS = 1e-6


def last(x: Tensor) -> Tensor:
    """Channels last in memory."""
    return x.contiguous(memory_format=torch.channels_last)


def off(found: Tensor | None, wanted: Tensor) -> float:
    """Largest difference over the largest value, or over 1 where all is smaller."""
    if found is None:
        return float("inf")
    found, wanted = found.detach().double(), wanted.detach()
    return float((found - wanted).abs().max() / wanted.abs().max().clamp_min(1))


class Case:
    """Inputs of one kind of step: float32 parameters, activations of some dtype."""

    def __init__(self, step: str, shape: list[int], groups: int, bias: bool = True,
                 beside: bool = True, mean: float = 1.0, dtype: str = "float32",
                 used: str = "both", parts: int = 64, elements: int = 4096):  # fmt: skip
        torch.manual_seed(0)
        fused._PARTS, fused._ELEMENTS = parts, elements
        self.step, self.groups, self.used = step, groups, used
        kind, channels = getattr(torch, dtype), shape[1]
        self.h = last(torch.randn(shape) + mean).to(kind).requires_grad_()
        self.x = last(torch.randn(shape) - mean / 3).to(kind).requires_grad_() if beside else None
        self.weight, self.beta, self.bias = torch.randn(3, channels).unbind()
        if not bias:
            self.bias = None
        given = (self.h, self.weight, self.beta, self.bias, self.x)
        self.leaves = [value for value in given if value is not None]
        for leaf in self.leaves:
            leaf.requires_grad_()
        # One gradient is laid out otherwise, as some torch operators leave them.
        self.slopes = [torch.randn(shape).to(kind), last(torch.randn(shape).to(kind))]

    def fused(self) -> list[Tensor]:
        """The answers of the kernels; ``h`` is copied, since it is written to."""
        if self.step == "norm":
            return [fused.NormSiLU.apply(self.h, self.weight, self.beta, self.bias, self.groups,
                                         EPS)]  # fmt: skip
        h = last(self.h.clone())
        if self.step == "add":
            return [fused.AddBias.apply(h, self.bias, self.x)]
        return list(fused.AddNormSiLU.apply(h, self.bias, self.x, self.weight, self.beta,
                                            self.groups, EPS))  # fmt: skip

    def plain(self, leaves: list[Tensor]) -> list[Tensor]:
        """The same of leaves in float64."""
        left = iter(leaves)
        h, weight, beta = next(left), next(left), next(left)
        total = h if self.bias is None else h + next(left)[:, None, None]
        if self.x is not None and self.step != "norm":
            total = total + next(left)
        normed = F.silu(F.group_norm(total, self.groups, weight, beta, EPS))
        return {"norm": [normed], "add": [total], "both": [normed, total]}[self.step]

    def errors(self) -> dict[str, float]:
        """Of all answers, and of the gradients of those answers that are used."""
        exact = [leaf.detach().double().requires_grad_() for leaf in self.leaves]
        found, wanted = self.fused(), self.plain(exact)
        numbers = {
            f"answer {i}": off(*pair) for i, pair in enumerate(zip(found, wanted, strict=True))
        }
        index = {"both": [0, 1], "first": [0], "second": [1]}[self.used][: len(found)]
        slopes = [self.slopes[i] for i in index]
        mine = torch.autograd.grad([found[i] for i in index], self.leaves, slopes,
                                   allow_unused=True)  # fmt: skip
        slopes = [slope.double() for slope in slopes]
        theirs = torch.autograd.grad([wanted[i] for i in index], exact, slopes,
                                     allow_unused=True)  # fmt: skip
        for number, (one, other) in enumerate(zip(mine, theirs, strict=True)):
            if other is not None:
                numbers[f"gradient {number}"] = off(one, other)
        numbers["dtypes differ"] = float(any(y.dtype != self.h.dtype for y in found))
        numbers["layouts differ"] = float(
            any(not y.is_contiguous(memory_format=torch.channels_last) for y in found)
        )
        return numbers


def whole_codec(levels: int) -> dict[str, float]:
    """Encoder and decoder with every step fused, beside float64; ``levels`` are recomputed."""
    fused._PARTS, fused._ELEMENTS = 64, 4096
    config = CodecConfig(channels=24, multipliers=(1, 2), encoder_blocks=1, decoder_blocks=2,
                         latent_channels=8, groups=8)  # fmt: skip
    torch.manual_seed(0)
    networks = [Encoder(config), Decoder(config)]
    torch.manual_seed(0)
    exact = [Encoder(config).double(), Decoder(config).double()]
    image = torch.randn(2, 3, 10, 14)
    wanted = exact[1](exact[0](image.double()))
    wanted.square().mean().backward()
    for network in networks:
        network.recompute_levels = levels
    plain = blocks.runs_fused, blocks.channels_last, codec.channels_last
    blocks.runs_fused = lambda x: x.is_contiguous(memory_format=torch.channels_last)
    blocks.channels_last = codec.channels_last = last
    found = networks[1](networks[0](image))
    found.square().mean().backward()
    blocks.runs_fused, blocks.channels_last, codec.channels_last = plain
    pairs = [
        (name, one.grad, other.grad)
        for mine, theirs in zip(networks, exact, strict=True)
        for (name, one), other in zip(mine.named_parameters(), theirs.parameters(), strict=True)
    ]
    # A key's bias changes no attention: its gradient is rounding alone.
    worst = max(
        float((one.double() - other).abs().max() / other.abs().max())
        for name, one, other in pairs
        if not name.endswith("qkv.bias")
    )
    return {"answer": off(found, wanted), "gradients": worst}


if __name__ == "__main__":
    torch.set_num_threads(1)
    warnings.filterwarnings("ignore", "overflow encountered in exp")  # a sigmoid that is 0
    asked = json.loads(sys.stdin.readline())
    answers = {name: Case(**case).errors() for name, case in asked.items()}
    answers["can run"] = {"at all": float(not blocks._kernels_work(torch.device("cpu")))}
    answers |= {f"codec {levels}": whole_codec(levels) for levels in (0, 2)}
    print(json.dumps(answers))
