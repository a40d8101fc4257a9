"""Runs a block's GPU kernels on the CPU, in triton's interpreter, beside the layers as written.

The tests run it as a script, since triton reads TRITON_INTERPRET when it is imported. It answers
with a line of JSON: by case how far answers and gradients are off, norm over norm, or what is
claimed of dropout.
"""

import json
import os
from types import SimpleNamespace

os.environ["TRITON_INTERPRET"] = "1"

import torch
import triton
from torch import Tensor
from triton import language as tl

from cartok import layers
from cartok.core.recompute import recompute_in_place
from cartok.layers import RMSNorm, Transformer, TransformerConfig, fused, kernels, rotary_table

# Small enough that every loop goes round and every tile has an edge.
fused._ADD["tile"], fused._GATE["tile"], fused._GATE_BACK["tile"] = 64, 64, 64
fused._TURN["tile"], fused._TURN_BACK["tile"] = 16, 8
fused._TURN_BACK["programs"], fused._NORM_BACK["programs"] = 1, 4

NETWORKS = {
    "heads that fill a power of two": {"width": 32, "heads": 2},
    "heads that fill none": {"width": 36, "heads": 3},
    "heads without norms": {"width": 40, "heads": 2, "norms": False},
    "autocast": {"width": 40, "heads": 2, "autocast": True},
    "float16": {"width": 40, "heads": 2, "dtype": torch.float16},
}


def network(
    width: int, heads: int, norms: bool = True, drop: float = 0.0, depth: int = 2
) -> Transformer:
    torch.manual_seed(0)
    config = TransformerConfig(
        width=width, depth=depth, heads=heads, hidden_multiple=12, dropout=drop
    )  # hidden 96 or 108: the last tile is not full
    net = Transformer(config)
    if not norms:
        net.leave_out_query_key_norm()
    with torch.no_grad():  # far from the small initialisation, so that every path carries weight
        for weight in net.parameters():
            weight.add_(0.2 * torch.randn_like(weight))
    return net


def answers_of(net: Transformer, by_kernels: bool, autocast: bool = False) -> dict[str, Tensor]:
    """The network's answer, and the gradients of all it depends on."""
    layers.trains_fused = lambda x: by_kernels
    weight, width = net.norm.weight, net.config.width
    net.zero_grad(set_to_none=True)
    torch.manual_seed(1)
    x, slope = (torch.randn(2, 3, width).to(weight.dtype) for _ in range(2))
    x.requires_grad_()
    rotary = rotary_table(2, 2, net.config.head_dim, prefix=1)
    with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
        y = net(x, rotary)
    y.backward(slope)
    found = {name: parameter.grad for name, parameter in net.named_parameters()}
    return {"answer": y.detach(), "input": x.grad} | found


def off(found: dict[str, Tensor], wanted: dict[str, Tensor]) -> float:
    """Of the worst tensor: the norm of the difference over that of what is wanted."""
    pairs = [(found[name].double(), wanted[name].double()) for name in wanted]
    return max(float((one - other).norm() / other.norm()) for one, other in pairs)


def whole_network(dtype=torch.float32, autocast=False, **shape) -> dict[str, float]:
    """Of kernels and of layers as written, from the layers in float64 with weights so rounded."""
    net = network(**shape).to(dtype)
    exact = network(**shape).double()
    exact.load_state_dict({name: weight.double() for name, weight in net.state_dict().items()})
    wanted = answers_of(exact, by_kernels=False)
    worst = {}
    for name, by_kernels in (("kernels", True), ("as written", False)):
        found = answers_of(net, by_kernels, autocast)
        worst[name] = off(found, wanted)
    return worst


def recomputed() -> float:
    """How far answers and gradients are off where blocks are computed twice, dropout included."""
    once, twice = (network(32, 2, drop=0.3, depth=1) for _ in range(2))
    recompute_in_place(twice.blocks)
    wanted = answers_of(once, by_kernels=True)
    assert off(answers_of(once, by_kernels=False), wanted) > 0.1  # other noise
    return off(answers_of(twice, by_kernels=True), wanted)


def probed() -> dict[str, bool]:
    """Whether kernels can run, and whether finding out has left the generator as it was."""
    before = torch.get_rng_state()
    layers._kernels_work.cache_clear()
    can_run = layers._kernels_work(torch.device("cpu"))
    return {"can run": can_run, "draws nothing": torch.equal(before, torch.get_rng_state())}


def evaluated() -> float:
    """How far a network with dropout is off in evaluation, gradients on."""
    net = network(32, 2, drop=0.3, depth=1).eval()
    return off(answers_of(net, by_kernels=True), answers_of(net, by_kernels=False))


def partly_frozen() -> float:
    """How far gradients of the rest are off where a matrix and a gain get none."""
    net = network(32, 2, depth=1)
    for weight in (net.blocks[0].feed.down.weight, net.blocks[0].feed_norm.weight):
        weight.requires_grad_(False)
    found, wanted = (answers_of(net, by_kernels) for by_kernels in (True, False))
    given = {name for name, tensor in wanted.items() if tensor is not None}
    assert {name for name, tensor in found.items() if tensor is not None} == given
    return off(found, {name: wanted[name] for name in given})


def with_a_cache() -> float:
    """A block that is given a cache extends it, kernels or not."""
    net = network(32, 2)
    rotary, x, cache = rotary_table(2, 3, 16), torch.randn(2, 6, 32), net.empty_cache(2, 6)
    layers.trains_fused = lambda x: True
    steps = [net(x[:, [place]], rotary, cache) for place in range(6)]
    return off({"answer": torch.cat(steps, 1).detach()}, {"answer": net(x, rotary).detach()})


def norm_alone(used: str, drop: float, branch_dtype: torch.dtype) -> float:
    """An add_norm of which not every answer is used; the mask is read off the stream."""
    torch.manual_seed(0)
    x, slope, other = torch.randn(3, 5, 20).unbind()
    branch, gain = torch.randn(5, 20).to(branch_dtype), torch.randn(20)
    given = [part.requires_grad_() for part in (x, branch, gain)]
    found = fused.add_norm(x, branch, drop, gain, 1e-5)
    kept = torch.ones_like(x)
    if drop:
        moved = (found[0] - x).detach()
        kept = (moved != 0) / (1 - drop)
    exact = [part.detach().double().requires_grad_() for part in given]
    stream = exact[0] + kept * exact[1]
    normed = RMSNorm(20).double()
    normed.weight = torch.nn.Parameter(torch.ones(20).double())
    wanted = (stream, normed(stream) * exact[2])
    at = {"both": [0, 1], "stream": [0], "norm": [1]}[used]
    slopes = [(slope, other)[i] for i in at]
    mine = torch.autograd.grad([found[i] for i in at], given, slopes, allow_unused=True)
    slopes = [part.double() for part in slopes]
    theirs = torch.autograd.grad([wanted[i] for i in at], exact, slopes, allow_unused=True)
    assert [part is None for part in mine] == [part is None for part in theirs]
    pairs = zip((*found, *mine), (*wanted, *theirs), strict=True)
    named = {str(i): pair for i, pair in enumerate(pairs) if pair[0] is not None}
    return off({i: one.detach() for i, (one, _) in named.items()},
               {i: other.detach() for i, (_, other) in named.items()})  # fmt: skip


@triton.jit
def noise_kernel(seed, first, out, wide: tl.constexpr):
    at = tl.arange(0, wide)
    one = tl.full([wide], 1.0, tl.float32)
    tl.store(out + at, kernels._dropped(one, seed, tl.load(first), 1 << 30, 1.0, wide))


def noise(first: int) -> list[float]:
    """Which of 64 elements are kept, from number 4 * ``first`` on."""
    out = torch.empty(64)
    noise_kernel[(1,)](torch.tensor([5]), torch.tensor([first]), out, wide=64)
    return out.tolist()


def dropout() -> dict[str, float | bool]:
    """What is claimed of it, on 2^16 elements of which a tenth is dropped."""
    fused._ADD["tile"] = 2**14
    x, share, slope = torch.zeros(16, 4096), 0.1, torch.randn(16, 4096)
    ones, gain = torch.ones(16, 4096, requires_grad=True), torch.ones(4096)

    def added(seed: int) -> Tensor:
        torch.manual_seed(seed)
        return fused.Add.apply(x, ones, share)

    first, again, second = added(0), added(0), added(1)
    (back,) = torch.autograd.grad(first, ones, slope)
    torch.manual_seed(0)
    stream, normed = fused.add_norm(x, ones, share, gain, 1e-5)
    (through_norm,) = torch.autograd.grad((stream, normed), ones, (slope, torch.zeros_like(normed)))
    lost = (first == 0).float()
    state = torch.get_rng_state()
    whole = fused.Add.apply(x, ones, 0.0)
    return {
        "share": float(lost.mean()),
        "share of pairs": float((lost[:, 1:] * lost[:, :-1]).mean()),
        "share of both rows": float((lost[1:] * lost[:-1]).mean()),
        "share of both seeds": float((lost * (second == 0)).mean()),
        "values": sorted({round(value, 6) for value in first.unique().tolist()}),
        "one seed, one mask": bool(torch.equal(first, again)),
        "back through the same mask": bool(torch.equal(back, slope * first)),
        "the norm's mask is the same": bool(torch.equal(stream, first)),
        "back through the norm's": bool(torch.equal(through_norm, slope * first)),
        "none where the share is 0": bool(torch.equal(whole, ones)),
        "none is drawn": bool(torch.equal(state, torch.get_rng_state())),
    }


def where() -> dict[str, bool]:
    """Whether kernels are taken, told of tensors on a GPU that is not there."""
    layers._kernels_work = lambda device: True
    like = {"is_cuda": True, "dtype": torch.float32, "device": torch.device("cpu")}
    compiling = torch.compiler.is_compiling

    def asked(**other) -> bool:
        return TRAINS_FUSED(SimpleNamespace(**(like | other)))

    found = {
        "training": asked(),
        "on the CPU": asked(is_cuda=False),
        "in float64": asked(dtype=torch.float64),
    }
    with torch.no_grad():
        found["without gradients"] = asked()
    torch.compiler.is_compiling = lambda: True
    found["while compiling"] = asked()
    torch.compiler.is_compiling = compiling
    return found


if __name__ == "__main__":
    torch.set_num_threads(1)
    TRAINS_FUSED = layers.trains_fused
    answers = {name: whole_network(**shape) for name, shape in NETWORKS.items()}
    answers["probed"] = probed()
    answers["evaluated"], answers["partly frozen"] = evaluated(), partly_frozen()
    answers["recomputed"], answers["with a cache"] = recomputed(), with_a_cache()
    answers["add and norm"] = {
        f"{used} used, {share} of {dtype} dropped": norm_alone(used, share, dtype)
        for used in ("both", "stream", "norm")
        for share, dtype in ((0.0, torch.float32), (0.4, torch.float32), (0.0, torch.float16))
    }
    answers["dropout"] = dropout()
    answers["noise"] = {str(first): noise(first) for first in (0, 2**30, 2**31, 2**32, 2**33)}
    answers["where"] = where()
    print(json.dumps(answers))
