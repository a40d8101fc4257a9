"""The quantizers there are, by name."""

from typing import Annotated

from pydantic import Field

from cartok.tokenizer.quantize import Quantizer
from cartok.tokenizer.quantize.vq import VectorQuantizer, VQConfig

KINDS = {"vq": (VQConfig, VectorQuantizer)}
"""A quantizer's config and the network it describes."""

QuantizerConfig = Annotated[VQConfig, Field()]


def quantizer_of(config: QuantizerConfig) -> Quantizer:
    """The quantizer that a config describes."""
    return KINDS[config.kind][1](config)
