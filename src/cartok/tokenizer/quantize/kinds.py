"""The quantizers there are, by name."""

from collections.abc import Callable
from typing import Annotated, Any

from pydantic import Discriminator, Tag

from cartok.tokenizer.quantize import Quantizer
from cartok.tokenizer.quantize.binary import BinaryQuantizer, BSQConfig, LFQConfig
from cartok.tokenizer.quantize.fsq import FSQConfig, ScalarQuantizer
from cartok.tokenizer.quantize.residual import ResidualQuantizer, ResidualVQConfig
from cartok.tokenizer.quantize.vq import VectorQuantizer, VQConfig

KINDS: dict[str, tuple[type, Callable[[Any], Quantizer]]] = {
    "vq": (VQConfig, VectorQuantizer),
    "fsq": (FSQConfig, ScalarQuantizer),
    "lfq": (LFQConfig, BinaryQuantizer),
    "bsq": (BSQConfig, BinaryQuantizer),
    "residual": (ResidualVQConfig, ResidualQuantizer),
}
"""A quantizer's config and the network it describes."""


def _kind_of(value: Any) -> str:
    """A config's kind; one that was stored before there were kinds is a codebook."""
    return value.get("kind", "vq") if isinstance(value, dict) else getattr(value, "kind", "vq")


QuantizerConfig = Annotated[
    Annotated[VQConfig, Tag("vq")]
    | Annotated[FSQConfig, Tag("fsq")]
    | Annotated[LFQConfig, Tag("lfq")]
    | Annotated[BSQConfig, Tag("bsq")]
    | Annotated[ResidualVQConfig, Tag("residual")],
    Discriminator(_kind_of),
]


def quantizer_of(config: QuantizerConfig) -> Quantizer:
    """The quantizer that a config describes."""
    return KINDS[config.kind][1](config)
