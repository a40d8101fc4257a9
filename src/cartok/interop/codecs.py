"""Tokenizers of LlamaGen (arXiv 2406.06525) and taming-transformers (arXiv 2012.09841) as ours.

All three have VQGAN's codec, layer by layer; the names differ, and ours keeps query, key and value
of attention in one. LlamaGen looks codes up on the unit sphere, as we do; taming-transformers off
it, by the distance of 256 channels. Shapes say all else: widths, depths, the size of the codebook.
"""

import re

import torch
from torch import Tensor
from torch.nn import functional as F

from cartok.core.checkpoint import put_tensors
from cartok.core.errors import UserError
from cartok.interop.doubts import told_by_shapes
from cartok.tokenizer.codec import CodecConfig
from cartok.tokenizer.model import Tokenizer, TokenizerConfig
from cartok.tokenizer.quantize.vq import VQConfig

_BLOCK = re.compile(r"(encoder|decoder)\.conv_blocks\.(\d+)\.(res|attn)\.(\d+)\.(.+)")
_RESAMPLE = re.compile(r"(encoder|decoder)\.conv_blocks\.(\d+)\.(?:down|up)sample\.(.+)")
_PART = re.compile(r"(.+)\.([qkv])\.(weight|bias)")
_BOOK = "quantize.embedding.weight"
_OURS = {
    ".conv_in.": ".enter.", ".mid.": ".middle.", ".norm_out.": ".leave.0.",
    ".conv_out.": ".leave.1.", ".nin_shortcut.": ".skip.", ".proj_out.": ".out.",
    "post_quant_conv.": "project_out.", "quant_conv.": "project_in.",
}  # fmt: skip


def tokenizer_of_llamagen(tensors: dict[str, Tensor]) -> Tokenizer:
    """LlamaGen's tokenizer, VQ-16 or VQ-8 or one of other widths, from its named tensors.

    Raises:
        UserError: a tensor is missing, left over or of another shape.
    """
    kept = {name: value for name, value in tensors.items() if name != "quantize.codebook_used"}
    return _tokenizer(kept, on_sphere=True)


def tokenizer_of_taming(tensors: dict[str, Tensor]) -> Tokenizer:
    """A VQGAN of taming-transformers from its named tensors; its losses' networks are not needed.

    Raises:
        UserError: a tensor is missing, left over or of another shape, or it attends elsewhere than
            on its coarsest grid.
    """
    ups = [int(match[1]) for name in tensors if (match := re.match(r"decoder\.up\.(\d+)\.", name))]
    coarsest = max(ups, default=0)  # counted from the finest there, from the coarsest in LlamaGen

    def as_llamagen(name: str) -> str:
        name = re.sub(r"^encoder\.down\.", "encoder.conv_blocks.", name)
        if match := re.fullmatch(r"decoder\.up\.(\d+)\.(.+)", name):
            name = f"decoder.conv_blocks.{coarsest - int(match[1])}.{match[2]}"
        name = re.sub(r"^(\w+\.conv_blocks\.\d+)\.block\.", r"\1.res.", name)
        for number, part in enumerate(("block_1", "attn_1", "block_2")):
            name = name.replace(f".mid.{part}.", f".mid.{number}.")
        return name

    kept = {as_llamagen(n): value for n, value in tensors.items() if not n.startswith("loss.")}
    return _tokenizer(kept, on_sphere=False)


def _tokenizer(tensors: dict[str, Tensor], *, on_sphere: bool) -> Tokenizer:
    """From tensors that are named as LlamaGen names them."""
    with told_by_shapes("tokenizer"):
        config = _config_of(
            {name: tuple(value.shape) for name, value in tensors.items()}, on_sphere
        )
        ours = _codec(tensors)
    book = ours.pop(_BOOK)
    ours["quantizer.table"] = F.normalize(book, dim=1) if on_sphere else book
    ours["quantizer.idle"] = torch.zeros(len(book))
    tokenizer = Tokenizer(config)
    put_tensors(tokenizer, ours, "the tokenizer that their shapes describe", assign=True)
    return tokenizer.eval()


def _config_of(shapes: dict[str, tuple[int, ...]], on_sphere: bool) -> TokenizerConfig:
    blocks = [match.groups() for name in shapes if (match := _BLOCK.fullmatch(name))]
    num_levels = 1 + max((int(level) for _, level, *_ in blocks), default=0)
    coarsest = {("encoder", str(num_levels - 1)), ("decoder", "0")}
    if {(side, level) for side, level, kind, *_ in blocks if kind == "attn"} != coarsest:
        raise UserError(
            "a codec attends on its coarsest grid and on no other, but this one does elsewhere or "
            "nowhere; it cannot be imported"
        )

    def depth(side: str) -> int:
        return len({number for *at, number, _ in blocks if at == [side, "0", "res"]})

    channels = shapes["encoder.conv_in.weight"][0]
    widths = [shapes[f"encoder.conv_blocks.{i}.res.0.conv1.weight"][0] for i in range(num_levels)]
    num_codes, dim = shapes[_BOOK]
    return TokenizerConfig(
        codec=CodecConfig(
            channels=channels,
            multipliers=tuple(width // channels for width in widths),
            encoder_blocks=depth("encoder"),
            decoder_blocks=depth("decoder"),
            latent_channels=shapes["encoder.conv_out.weight"][0],
        ),
        quantizer=VQConfig(codebook_size=num_codes, dim=dim, normalise=on_sphere),
    )


def _codec(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """All tensors under our names, in float32; a name that is not known stays, to be refused."""
    blocks = [match for name in tensors if (match := _BLOCK.fullmatch(name))]
    attends = {match.group(1, 2) for match in blocks if match[3] == "attn"}
    resampled = {match.group(1, 2) for name in tensors if (match := _RESAMPLE.fullmatch(name))}

    def our_name(name: str) -> str:
        if match := _RESAMPLE.fullmatch(name):
            side, level, rest = match.groups()
            name = f"{side}.levels.{level}.1.{rest}"
        elif match := _BLOCK.fullmatch(name):
            side, level, kind, number, rest = match.groups()
            place = int(number)
            if (side, level) in attends:  # each residual block is followed by its attention
                place = 2 * place + (kind == "attn")
            inner = "0." if (side, level) in resampled else ""
            name = f"{side}.levels.{level}.{inner}{place}.{rest}"
        for theirs, ours in _OURS.items():
            name = name.replace(theirs, ours)
        return name

    return _joined({our_name(name): value.float() for name, value in tensors.items()})


def _joined(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """Query, key and value of each attention in one tensor."""
    joined = {}
    for name, value in tensors.items():
        match = _PART.fullmatch(name)
        if match is None:
            joined[name] = value
        elif match[2] == "q":
            parts = [tensors[f"{match[1]}.{part}.{match[3]}"] for part in "qkv"]
            joined[f"{match[1]}.qkv.{match[3]}"] = torch.cat(parts)
    return joined
