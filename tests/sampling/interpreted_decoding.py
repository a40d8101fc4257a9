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
from cartok.sampling import decoding, drawing
from cartok.sampling.decoding import FusedDecoder, PlainDecoder
from cartok.sampling.sampler import Sampler

OTHERS = {"query_key_norm": False, "class_has_key": False}

CASES: dict[str, Any] = {
    "many rows": {"thin": False},
    "few rows": {"thin": True},
    "up to 16 rows": {"thin": True, "few": False},
    "heads that fill no power of two": {"thin": True, "few": False, "width": 20, "heads": 1},
    "weights of others": {"thin": True, "few": False} | OTHERS,
    "many rows in float16": {"thin": False, "dtype": torch.float16},
    "few rows in float16": {"thin": True, "dtype": torch.float16},
    "up to 16 rows in float16": {"thin": True, "few": False, "dtype": torch.float16},
}


class Painter:
    digest = "painter"

    def image_of(self, tokens):
        return tokens[:, None].float()


def prior_of(width=16, heads=2, **flags):
    torch.manual_seed(0)
    net = TransformerConfig(width=width, depth=2, heads=heads, hidden_multiple=8)
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
    """Of all that are drawn, by kernels in batches of two and by the prior as written."""
    labels = [0, 1, 2]
    prefixes = torch.randn(2, 3, 5, generator=torch.Generator().manual_seed(1))
    takes_prefixes = {"num_classes": 0, "prefix_length": 3, "prefix_width": 5}
    plain = Sampler(prior_of(), Painter()).sample_tokens(labels, 3, 2.0)
    after = Sampler(prior_of(**takes_prefixes), Painter()).sample_tokens(prefixes, 3)
    drawing.decoder_of = FusedDecoder
    fused = Sampler(prior_of(), Painter()).sample_tokens(labels, 3, 2.0, batch=2)
    fused_after = Sampler(prior_of(**takes_prefixes), Painter()).sample_tokens(prefixes, 3)
    differ = int((fused != plain).sum()) + int((fused_after != after).sum())
    return {"of": plain.numel() + after.numel(), "differ": differ}


if __name__ == "__main__":
    torch.set_num_threads(1)
    decoding._DEEP = 8  # as the widths are: every program is slow here
    with torch.inference_mode():
        answers = {name: off(**case) for name, case in CASES.items()}
    print(json.dumps(answers | {"tokens": tokens_that_differ()}))
