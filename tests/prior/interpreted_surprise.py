"""Runs the GPU kernels of cross-entropy on the CPU, in triton's interpreter, beside plain torch.

The tests run it as a script, since triton reads TRITON_INTERPRET when it is imported. It answers
with a line of JSON: by case how far answers and gradients are off, over the largest of each.
"""

import json
import os

os.environ["TRITON_INTERPRET"] = "1"

import torch

from cartok.prior import surprise

CASES = {
    "fewer codes than a tile": {"codes": 11},
    "more codes than a tile": {"codes": 4100},
    "large logits": {"codes": 11, "scale": 60.0},
    "float16": {"codes": 11, "dtype": torch.float16},
}


def answers_of(dtype, codes, scale, at_once):
    torch.manual_seed(0)
    states = (scale * torch.randn(2, 3, 4)).to(dtype).requires_grad_()
    head = torch.randn(codes, 4).to(dtype).requires_grad_()
    tokens = torch.randint(codes, (2, 3))
    found = surprise.surprise_of_states(states, head, tokens, at_once)
    objective = (found.nats * torch.arange(6.0).view(2, 3)).mean() + found.log_total.square().mean()
    return [*found, *torch.autograd.grad(objective, (states, head))]


@torch.no_grad()
def off_of(found, wanted):
    """Largest difference over the largest value."""
    return float((found.double() - wanted.double()).abs().max() / wanted.double().abs().max())


def off(codes, scale=1.0, dtype=torch.float32):
    wanted = answers_of(dtype, codes, scale, 10**9)
    surprise._has_kernels = lambda like: True
    found = answers_of(dtype, codes, scale, 2 * codes)
    surprise._has_kernels = lambda like: False
    names = ("nats", "totals", "gradient of states", "gradient of the head")
    return {name: off_of(one, other) for name, one, other in zip(names, found, wanted, strict=True)}


if __name__ == "__main__":
    torch.set_num_threads(1)
    print(json.dumps({name: off(**case) for name, case in CASES.items()}))
