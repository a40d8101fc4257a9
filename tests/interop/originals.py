"""The published networks, computed plainly from their named tensors; no module of ours is used.

Written from what their files hold and their papers and code do: LlamaGen's tokenizer and prior,
taming-transformers' VQGAN. Also random tensors of the same names and shapes, at any width.
"""

import math

import torch
from torch.nn import functional as F

# ------------------------------------------------------------------ tensors of their names


class Draw:
    """Random named tensors, of a size that keeps activations near 1."""

    def __init__(self, unfilled_on=None):
        self.generator = torch.Generator().manual_seed(0)
        self.tensors, self.unfilled_on = {}, unfilled_on

    def normal(self, name, *shape, std=1.0, mean=0.0):
        if self.unfilled_on:  # where names and shapes are all that is asked for
            self.tensors[name] = torch.empty(shape, device=self.unfilled_on)
        else:
            self.tensors[name] = torch.randn(shape, generator=self.generator) * std + mean

    def conv(self, name, before, after, side):
        self.normal(f"{name}.weight", after, before, side, side, std=(before * side**2) ** -0.5)
        self.normal(f"{name}.bias", after, std=0.1)

    def norm(self, name, width):
        self.normal(f"{name}.weight", width, std=0.2, mean=1)
        self.normal(f"{name}.bias", width, std=0.1)

    def linear(self, name, before, after):
        self.normal(f"{name}.weight", after, before, std=before**-0.5)

    def block(self, name, before, after):
        self.norm(f"{name}.norm1", before)
        self.conv(f"{name}.conv1", before, after, 3)
        self.norm(f"{name}.norm2", after)
        self.conv(f"{name}.conv2", after, after, 3)
        if before != after:
            self.conv(f"{name}.nin_shortcut", before, after, 1)

    def attention(self, name, width):
        self.norm(f"{name}.norm", width)
        for part in ("q", "k", "v", "proj_out"):
            self.conv(f"{name}.{part}", width, width, 1)


LLAMAGEN = {
    "down": "conv_blocks.{}.res.{}", "down_attn": "conv_blocks.{}.attn.{}",
    "downsample": "conv_blocks.{}.downsample.conv", "upsample": "conv_blocks.{}.upsample.conv",
    "up": "conv_blocks.{}.res.{}", "up_attn": "conv_blocks.{}.attn.{}",
    "middle": ("mid.0", "mid.1", "mid.2"), "finest_up_is_0": False,
}  # fmt: skip
TAMING = {
    "down": "down.{}.block.{}", "down_attn": "down.{}.attn.{}",
    "downsample": "down.{}.downsample.conv", "upsample": "up.{}.upsample.conv",
    "up": "up.{}.block.{}", "up_attn": "up.{}.attn.{}",
    "middle": ("mid.block_1", "mid.attn_1", "mid.block_2"), "finest_up_is_0": True,
}  # fmt: skip


def vqgan(names, multipliers, *, channels, latent, dim, codes, blocks=2, unfilled_on=None):
    """Tensors of a tokenizer under the names of LlamaGen or of taming-transformers."""
    draw = Draw(unfilled_on)
    last = len(multipliers) - 1
    widths = [channels * m for m in multipliers]
    draw.conv("encoder.conv_in", 3, channels, 3)
    before = channels
    for level, width in enumerate(widths):
        for number in range(blocks):
            draw.block(f"encoder.{names['down'].format(level, number)}", before, width)
            before = width
            if level == last:
                draw.attention(f"encoder.{names['down_attn'].format(level, number)}", width)
        if level != last:
            draw.conv(f"encoder.{names['downsample'].format(level)}", width, width, 3)
    for side in ("encoder", "decoder"):
        if side == "decoder":
            draw.conv("decoder.conv_in", latent, widths[-1], 3)
        first, attention, second = (f"{side}.{part}" for part in names["middle"])
        draw.block(first, widths[-1], widths[-1])
        draw.attention(attention, widths[-1])
        draw.block(second, widths[-1], widths[-1])
        if side == "encoder":
            draw.norm("encoder.norm_out", widths[-1])
            draw.conv("encoder.conv_out", widths[-1], latent, 3)
    before = widths[-1]
    for step, width in enumerate(reversed(widths)):
        level = last - step if names["finest_up_is_0"] else step
        for number in range(blocks + 1):
            draw.block(f"decoder.{names['up'].format(level, number)}", before, width)
            before = width
            if step == 0:
                draw.attention(f"decoder.{names['up_attn'].format(level, number)}", width)
        if step != last:
            draw.conv(f"decoder.{names['upsample'].format(level)}", width, width, 3)
    draw.norm("decoder.norm_out", before)
    draw.conv("decoder.conv_out", before, 3, 3)
    draw.normal("quantize.embedding.weight", codes, dim, std=0.5)
    draw.conv("quant_conv", latent, dim, 1)
    draw.conv("post_quant_conv", dim, latent, 1)
    return draw.tensors


def gpt(width, depth, *, codes, classes, multiple_of=256, unfilled_on=None):
    """Tensors of a prior under LlamaGen's names."""
    draw = Draw(unfilled_on)
    hidden = int(2 * 4 * width / 3)
    hidden += -hidden % multiple_of
    draw.normal("cls_embedding.embedding_table.weight", classes + 1, width)
    draw.normal("tok_embeddings.weight", codes, width)
    for layer in range(depth):
        name = f"layers.{layer}"
        draw.linear(f"{name}.attention.wqkv", width, 3 * width)
        draw.linear(f"{name}.attention.wo", width, width)
        for part, shape in {
            "w1": (width, hidden),
            "w3": (width, hidden),
            "w2": (hidden, width),
        }.items():
            draw.linear(f"{name}.feed_forward.{part}", *shape)
        draw.normal(f"{name}.attention_norm.weight", width, std=0.2, mean=1)
        draw.normal(f"{name}.ffn_norm.weight", width, std=0.2, mean=1)
    draw.normal("norm.weight", width, std=0.2, mean=1)
    draw.linear("output", width, codes)
    return draw.tensors


# ------------------------------------------------------------------ what they compute


def conv(t, name, x, **options):
    return F.conv2d(x, t[f"{name}.weight"], t[f"{name}.bias"], **options)


def norm(t, name, x):
    return F.group_norm(x, 32, t[f"{name}.weight"], t[f"{name}.bias"], 1e-6)


def swish(x):
    return x * torch.sigmoid(x)


def block(t, name, x):
    h = conv(t, f"{name}.conv1", swish(norm(t, f"{name}.norm1", x)), padding=1)
    h = conv(t, f"{name}.conv2", swish(norm(t, f"{name}.norm2", h)), padding=1)
    return h + (conv(t, f"{name}.nin_shortcut", x) if f"{name}.nin_shortcut.weight" in t else x)


def attention(t, name, x):
    h = norm(t, f"{name}.norm", x)
    q, k, v = (conv(t, f"{name}.{part}", h).flatten(2) for part in "qkv")  # batch, channel, cell
    weights = torch.softmax(torch.einsum("bci,bcj->bij", q, k) / math.sqrt(q.shape[1]), dim=2)
    h = torch.einsum("bij,bcj->bci", weights, v).view_as(x)
    return x + conv(t, f"{name}.proj_out", h)


def end(t, side, x):
    return conv(t, f"{side}.conv_out", swish(norm(t, f"{side}.norm_out", x)), padding=1)


def middle(t, side, names, x):
    first, mixed, second = (f"{side}.{part}" for part in names["middle"])
    return block(t, second, attention(t, mixed, block(t, first, x)))


def encoded(t, names, levels, image, blocks=2):
    """Latents as they enter the look-up, before it normalises them."""
    h = conv(t, "encoder.conv_in", image, padding=1)
    for level in range(levels):
        for number in range(blocks):
            h = block(t, f"encoder.{names['down'].format(level, number)}", h)
            if level == levels - 1:
                h = attention(t, f"encoder.{names['down_attn'].format(level, number)}", h)
        if level != levels - 1:
            down = f"encoder.{names['downsample'].format(level)}"
            h = conv(t, down, F.pad(h, (0, 1, 0, 1)), stride=2)
    return conv(t, "quant_conv", end(t, "encoder", middle(t, "encoder", names, h)))


def looked_up(t, latents, on_sphere):
    """Tokens: the index of the code at the least distance."""
    book, rows = t["quantize.embedding.weight"], latents.permute(0, 2, 3, 1)
    if on_sphere:
        book, rows = F.normalize(book, dim=-1), F.normalize(rows, dim=-1)
    return (rows[..., None, :] - book).square().sum(-1).argmin(-1)


def decoded(t, names, levels, tokens, on_sphere, blocks=2):
    """Pictures of tokens, not clipped."""
    book = t["quantize.embedding.weight"]
    codes = (F.normalize(book, dim=-1) if on_sphere else book)[tokens].permute(0, 3, 1, 2)
    h = conv(t, "decoder.conv_in", conv(t, "post_quant_conv", codes), padding=1)
    h = middle(t, "decoder", names, h)
    for step in range(levels):
        level = levels - 1 - step if names["finest_up_is_0"] else step
        for number in range(blocks + 1):
            h = block(t, f"decoder.{names['up'].format(level, number)}", h)
            if step == 0:
                h = attention(t, f"decoder.{names['up_attn'].format(level, number)}", h)
        if step != levels - 1:
            h = F.interpolate(h, scale_factor=2.0, mode="nearest")
            h = conv(t, f"decoder.{names['upsample'].format(level)}", h, padding=1)
    return end(t, "decoder", h)


def rms(t, name, x):
    return x / torch.sqrt(x.square().mean(-1, keepdim=True) + 1e-5) * t[f"{name}.weight"]


def turned(x, side):
    """Each pair of neighbouring channels as a complex number, turned by its angle.

    x: batch, position, head, channel. The class, first, is multiplied by zero.
    """
    quarter = x.shape[-1] // 4
    rates = torch.tensor([10000.0 ** (-2 * i / (2 * quarter)) for i in range(quarter)])
    turns = torch.zeros(side**2 + 1, 2 * quarter, dtype=torch.complex64)
    for cell in range(side**2):
        angles = torch.cat([cell // side * rates, cell % side * rates])
        turns[cell + 1] = torch.polar(torch.ones_like(angles), angles)
    pairs = torch.view_as_complex(x.unflatten(-1, (-1, 2)).contiguous())
    return torch.view_as_real(pairs * turns[: x.shape[1], None]).flatten(-2)


def logits(t, heads, side, tokens, labels):
    """Of every token, given the class and those before it."""
    first = t["cls_embedding.embedding_table.weight"][labels][:, None]
    h = torch.cat([first, t["tok_embeddings.weight"][tokens[:, :-1]]], dim=1)
    length, width = h.shape[1:]
    for layer in range(sum(name.endswith("wqkv.weight") for name in t)):
        name = f"layers.{layer}"
        mixed = rms(t, f"{name}.attention_norm", h) @ t[f"{name}.attention.wqkv.weight"].T
        q, k, v = (part.unflatten(-1, (heads, -1)) for part in mixed.split(width, dim=-1))
        q, k = turned(q, side), turned(k, side)
        scores = torch.einsum("bihc,bjhc->bhij", q, k) / math.sqrt(width // heads)
        later = torch.ones(length, length, dtype=torch.bool).triu(1)
        weights = scores.masked_fill(later, -math.inf).softmax(-1)
        mixed = torch.einsum("bhij,bjhc->bihc", weights, v).flatten(2)
        h = h + mixed @ t[f"{name}.attention.wo.weight"].T
        x = rms(t, f"{name}.ffn_norm", h)
        gate, up = (x @ t[f"{name}.feed_forward.{part}.weight"].T for part in ("w1", "w3"))
        h = h + (swish(gate) * up) @ t[f"{name}.feed_forward.w2.weight"].T
    return rms(t, "norm", h) @ t["output.weight"].T
