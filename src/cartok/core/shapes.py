"""The axis dictionary: one name for each kind of array, with its range, order and type.

Every public function states its shapes through these aliases. They are checked while the tests
run (``--jaxtyping-packages``) and cost nothing otherwise.
"""

from jaxtyping import Float, Integer, UInt8
from torch import Tensor

Image = Float[Tensor, "batch 3 height width"]
"""Pictures as networks see them: RGB, float, in [-1, 1]."""

Pixels = UInt8[Tensor, "batch 3 height width"]
"""Pictures as files hold them: RGB bytes, 0 to 255."""

Latents = Float[Tensor, "batch channel row column"]
"""What the encoder says, before quantizing; one vector per cell of the token grid."""

Codes = Float[Tensor, "batch channel row column"]
"""Codebook vectors, after quantizing; same layout as ``Latents``."""

Tokens = Integer[Tensor, "batch row place"]
"""Codebook indices on the grid, 0 to codebook size - 1; a row's places are its cells, each as many
times as the quantizer makes tokens of a latent."""

TokenSequence = Integer[Tensor, "batch position"]
"""Tokens in raster order: left to right, then top to bottom."""

Sequence = Float[Tensor, "batch position channel"]
"""Vectors in raster order."""

Logits = Float[Tensor, "batch position code"]
"""Unnormalised log-probabilities over the codebook."""

Labels = Integer[Tensor, " batch"]
"""Class indices, 0 to number of classes - 1; the number itself means "no class"."""

Mixtures = Float[Tensor, "batch choice"]
"""Shares of every class and, last, of "no class": a label that is a mixture of several."""

Prefixes = Float[Tensor, "batch place feature"]
"""Vectors that stand in place of a class, such as the embeddings of a text."""

Condition = Labels | Mixtures | Prefixes
"""What a picture is to show."""

Features = Float[Tensor, "picture feature"]
"""One row of network features per picture; float32 or float64."""


def pixels_of(image: Image) -> Pixels:
    """Bytes of pictures: [-1, 1] to 0..255, clipped, rounded half to even.

    The one place where a float picture becomes bytes, so every score rounds alike.
    """
    return (image.float().clamp(-1, 1) * 127.5 + 127.5).round().byte()


def image_of_pixels(pixels: Pixels) -> Image:
    """Pictures in [-1, 1] from bytes; ``pixels_of`` inverts it exactly."""
    return pixels.float() / 127.5 - 1
