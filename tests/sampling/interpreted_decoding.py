"""Runs the sampler's GPU kernels on the CPU, in triton's interpreter, beside the prior as written.

The tests run it as a script, since triton reads TRITON_INTERPRET when it is imported. It answers
with a line of JSON: by case how far logits are off at the worst position, over the largest of them.
The interpreter multiplies no bfloat16, so float16 stands for both.
"""

import json
import os
from typing import Any

os.environ["TRITON_INTERPRET"] = "1"

import torch

from cartok.layers import TransformerConfig
from cartok.prior.model import Prior, PriorConfig
from cartok.sampling import decoding, draw_kernel, drawing
from cartok.sampling.decoding import FusedDecoder, PlainDecoder
from cartok.sampling.drawing import codes_at
from cartok.sampling.guidance import guided
from cartok.sampling.sampler import Sampler

OTHERS = {"query_key_norm": False, "class_has_key": False}

CASES: dict[str, Any] = {
    "many rows": {"thin": False},
    "few rows": {"thin": True, "depth": 1},
    "up to 16 rows": {"thin": True, "few": False},
    "heads that fill no power of two": {"thin": True, "few": False, "width": 20, "heads": 1},
    "weights of others": {"thin": True, "few": False} | OTHERS,
    "many rows in float16": {"thin": False, "dtype": torch.float16},
    "few rows in float16": {"thin": True, "depth": 1, "dtype": torch.float16},
    "up to 16 rows in float16": {"thin": True, "few": False, "dtype": torch.float16},
}


class Painter:
    digest = "painter"

    def image_of(self, tokens):
        return tokens[:, None].float()


def prior_of(width=16, heads=2, depth=2, **flags):
    torch.manual_seed(0)
    net = TransformerConfig(width=width, depth=depth, heads=heads, hidden_multiple=8)
    config = PriorConfig(
        transformer=net, codebook_size=11, grid=(2, 2), **({"num_classes": 4} | flags)
    )
    prior = Prior(config, tokenizer_digest="painter").eval()
    with torch.no_grad():
        for weight in prior.parameters():
            weight.add_(0.3 * torch.randn_like(weight))
    return prior


def off(thin, few=True, dtype=torch.float32, rows=2, **shape):
    """Of the kernels, and of the prior as written, from it in float64 with weights so rounded."""
    prior = prior_of(**shape).to(dtype)
    exact = prior_of(**shape).double()
    exact.load_state_dict({name: weight.double() for name, weight in prior.state_dict().items()})
    fused, plain = FusedDecoder(prior, rows), PlainDecoder(prior, rows)
    fused._is_thin, fused._is_few, fused._tile = thin, few, 2
    truth, worst = PlainDecoder(exact, rows), {"kernels": 0.0, "as written": 0.0}
    for position in range(prior.config.num_tokens):
        x, at = prior.token_embedding(torch.tensor([3, position])), torch.tensor([position])
        wanted = truth.logits(x.double(), at)
        for name, decoder in (("kernels", fused), ("as written", plain)):
            found = decoder.logits(x, at).double()
            error = float((found - wanted).abs().max() / wanted.abs().max())
            worst[name] = max(worst[name], error)
    return worst


def tokens_that_differ():
    """Of all that are drawn, by kernels and by the prior as written; by what was asked."""
    labels = [0, 1, 2]
    prefixes = torch.randn(2, 3, 5, generator=torch.Generator().manual_seed(1))
    takes_prefixes = {"num_classes": 0, "prefix_length": 3, "prefix_width": 5}
    columns = torch.tensor([[1, -1, 2], [-1, 3, -1], [4, -1, -1], [-1, -1, 0]])
    asked: dict[str, Any] = {
        "guided": (prior_of(), labels, 2.0, {"batch": 2}),
        "after prefixes": (prior_of(**takes_prefixes), prefixes, 1.0, {}),
        "cold, some kept": (  # which do not lie row by row
            prior_of(), labels, 2.0, {"temperature": 0.3, "kept": columns.t()},
        ),
        "filtered": (prior_of(), labels, 2.0, {"top_k": 3}),
    }  # fmt: skip
    found = {}
    for name, (prior, wanted, guidance, options) in asked.items():
        drawing.decoder_of = PlainDecoder
        plain = Sampler(prior, Painter()).sample_tokens(wanted, 3, guidance, **options)
        drawing.decoder_of = FusedDecoder
        fused = Sampler(prior, Painter()).sample_tokens(wanted, 3, guidance, **options)
        found[name] = [int((fused != plain).sum()), plain.numel()]
    return found


EDGES = [0.0, 2**-53, 0.25, 0.5, 0.999, 1 - 2**-40]


def drawn(logits, scale=None, temperature=1.0, kept=-1):
    """Of the kernel, in tiles of four codes: codes, whether all was finite, the next vectors.

    And the codes of ``codes_at``. Place 1 of 2 is drawn, at the noises of ``EDGES``.
    """
    pictures, codes = len(EDGES), logits.shape[1]
    noise = torch.tensor(EDGES, dtype=torch.float64)
    rows, table = logits.shape[0], torch.randn(codes, 6)
    x, finite = torch.zeros(rows, 6), torch.ones((), dtype=torch.bool)
    tokens, stays = torch.zeros(pictures, 2, dtype=torch.long), torch.full((pictures, 2), kept)
    kernel: Any = draw_kernel.draw_kernel
    kernel[(pictures,)](
        logits, torch.tensor([9.0, 1.0 if scale is None else scale], dtype=torch.float64),
        torch.tensor(temperature, dtype=torch.float64),
        torch.stack([torch.zeros_like(noise), noise], 1).contiguous(), stays, torch.tensor([1]),
        tokens, table, x, finite, codes, pictures, 2, 6, guided=scale is not None, tile=4, wide=8,
    )  # fmt: skip
    scores = logits.double()
    if scale is not None:
        scores = guided(*scores.chunk(2), scale)
    told = table[tokens[:, 1]]
    assert torch.equal(x, told if scale is None else told.repeat(2, 1))
    return tokens[:, 1], bool(finite), codes_at(scores / temperature, noise)


def draws():
    """What is claimed of the draw."""
    torch.manual_seed(0)
    alike = []
    for scale in (None, 0.0, -1.5, 1.0, 2.0):
        for temperature, codes in ((1.0, 1), (1.0, 11), (0.1, 13), (1e-3, 4)):
            logits = 3 * torch.randn(len(EDGES) * (1 if scale is None else 2), codes)
            found, finite, wanted = drawn(logits, scale, temperature)
            alike.append(finite and torch.equal(found, wanted))
    impossible = torch.tensor([[-2000.0, 0, -2000, 0, 0, -2000, -2000, 1, -2000]])
    possible = set(drawn(impossible.repeat(len(EDGES), 1))[0].tolist())
    told = []
    for bad in (float("nan"), float("inf"), -float("inf")):
        for row in (2, 8):  # one with its class, one without
            logits = torch.randn(2 * len(EDGES), 9)
            logits[row, 7] = bad
            told.append(not drawn(logits, 1.5)[1])
    stays = drawn(torch.randn(len(EDGES), 9), kept=5)[0].tolist()
    return {
        "alike": alike,
        "possible": sorted(possible),
        "non-finite are told": told,
        "kept": stays,
    }


if __name__ == "__main__":
    torch.set_num_threads(1)
    decoding._DEEP = 8  # as the widths are: every program is slow here
    with torch.inference_mode():
        answers = {name: off(**case) for name, case in CASES.items()}
    print(json.dumps(answers | {"tokens": tokens_that_differ(), "draws": draws()}))
