"""Tokenizer: pictures to tokens and back.

Pictures are RGB floats in [-1, 1] whose sides are multiples of ``factor``; tokens are integers on
a grid, ``factor`` times smaller a side. What trained it is not kept here.
"""

from dataclasses import dataclass
from pathlib import Path

import torch
from jaxtyping import Float
from torch import Tensor, nn

from cartok.core.checkpoint import digest_of_weights, load_model, put_tensors, save_model
from cartok.core.config import config, config_of, dict_of
from cartok.core.errors import UserError
from cartok.core.shapes import Codes, Image, Latents, Tokens
from cartok.tokenizer.codec import CodecConfig, Decoder, Encoder, check_size
from cartok.tokenizer.quantize import Quantized
from cartok.tokenizer.quantize.kinds import QuantizerConfig, quantizer_of
from cartok.tokenizer.quantize.vq import VQConfig

_ENCODING = ("encoder.", "project_in.", "quantizer.")


@config
class TokenizerConfig:
    """A codec and its codebook."""

    codec: CodecConfig = CodecConfig()
    quantizer: QuantizerConfig = VQConfig()


@dataclass(frozen=True)
class Encoded:
    """A picture on its way to tokens: the three places where latents can be looked at."""

    encoder_output: Float[Tensor, "batch wide row column"]
    """256 channels in the paper."""
    projected: Latents
    """The codebook's few channels, not normalised."""
    quantized: Quantized


class Tokenizer(nn.Module):
    """An encoder, a codebook and a decoder."""

    def __init__(self, config: TokenizerConfig):
        super().__init__()
        self.config = config
        channels, dim = config.codec.latent_channels, config.quantizer.dim
        self.encoder = Encoder(config.codec)
        self.project_in = nn.Conv2d(channels, dim, 1)
        self.quantizer = quantizer_of(config.quantizer)
        self.project_out = nn.Conv2d(dim, channels, 1)
        self.decoder = Decoder(config.codec)

    @property
    def factor(self) -> int:
        """Pixels a side of one token: f in the paper."""
        return self.config.codec.factor

    @property
    def codebook_size(self) -> int:
        """Number of codes; tokens are 0 to this less 1."""
        return self.quantizer.codebook_size

    @property
    def digest(self) -> str:
        """Sixteen hex digits that name what makes the tokens, and that tokens carry.

        The decoder has no part in it: one that is tuned later reads the same tokens.
        """
        makes = {"factor": self.factor, "quantizer": dict_of(self.config.quantizer)}
        return digest_of_weights(makes, self.encoding_state())

    def encoding_state(self) -> dict[str, Tensor]:
        """The tensors that tokens depend on: encoder, projection and codebook."""
        state = self.state_dict()
        return {name: value for name, value in state.items() if name.startswith(_ENCODING)}

    def grid_of(self, height: int, width: int) -> tuple[int, int]:
        """Rows and columns of tokens for a picture of this size, in pixels."""
        rows, cols = check_size(height, width, self.factor)
        return rows, cols * self.quantizer.tokens_per_cell

    def encode(self, image: Image) -> Encoded:
        """Everything up to the codes, with gradients: what training reads."""
        output = self.encoder(image)
        projected = self.project_in(output)
        return Encoded(output, projected, self.quantizer(projected))

    def decode(self, codes: Codes) -> Image:
        """Pictures of codes, with gradients, not clipped."""
        return self.decoder(self.project_out(codes.to(self.project_out.weight.dtype)))

    @torch.inference_mode()
    def tokens_of(self, images: Image) -> Tokens:
        """Tokens of pictures in [-1, 1] on a grid; equal for any batch size, but for rounding.

        Raises:
            UserError: a side is no multiple of ``factor``, or the pictures are not floats.
        """
        _check_pictures(images)
        self.grid_of(*images.shape[-2:])
        return self.quantizer.tokens_of(self.project_in(self.encoder(images)))

    @torch.inference_mode()
    def image_of(self, tokens: Tokens) -> Image:
        """Pictures in [-1, 1] of tokens on a grid.

        Raises:
            UserError: a token is not of this codebook.
        """
        if tokens.numel() and not 0 <= int(tokens.min()) <= int(tokens.max()) < self.codebook_size:
            raise UserError(
                f"tokens are 0 to {self.codebook_size - 1}, but they range from "
                f"{int(tokens.min())} to {int(tokens.max())}; were they made by another tokenizer?"
            )
        return self.decode(self.quantizer.codes_of(tokens)).clamp(-1, 1)

    def save(self, folder: str | Path) -> None:
        """Writes ``config.json`` and ``model.safetensors``."""
        save_model(Path(folder), self, kind="tokenizer", config=self.config)

    @classmethod
    def from_pretrained(cls, source: str | Path) -> "Tokenizer":
        """Reads a model folder, a finished run's folder, or a model of the hub (``owner/name``).

        Raises:
            UserError: there is none, it is no tokenizer, or its weights are damaged.
        """
        stored = load_model(source, kind="tokenizer")
        tokenizer = cls(config_of(TokenizerConfig, stored.config))
        put_tensors(tokenizer, stored.tensors, f"the tokenizer of {source}")
        return tokenizer.eval()


def _check_pictures(images: Tensor) -> None:
    if images.ndim != 4 or images.shape[1] != 3 or not images.is_floating_point():
        raise UserError(
            "pictures are floats in [-1, 1] of shape (batch, 3, height, width), but got "
            f"{images.dtype} {tuple(images.shape)}; bytes become pictures as x / 127.5 - 1"
        )
