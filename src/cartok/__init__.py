"""cartok: image tokenizers trained to be predictable, and the priors that predict them.

    from cartok import Prior, Sampler, Tokenizer

    tokenizer = Tokenizer.from_pretrained("runs/demo/causal/tokenizer")
    tokens = tokenizer.tokens_of(images)  # images: (batch, 3, height, width) in [-1, 1]
    images = tokenizer.image_of(tokens)

    prior = Prior.from_pretrained("runs/demo/causal/prior")
    images = Sampler(prior, tokenizer).sample([0, 1, 2], seed=0, guidance=1.5)

Names are looked up when first used, so importing the package imports no torch.
"""

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from cartok.prior.model import Prior
    from cartok.sampling.sampler import Sampler
    from cartok.tokenizer.model import Tokenizer

__version__ = "0.1.0"
__all__ = ["Prior", "Sampler", "Tokenizer", "__version__"]

_HOMES = {
    "Prior": "cartok.prior.model",
    "Sampler": "cartok.sampling.sampler",
    "Tokenizer": "cartok.tokenizer.model",
}


def __getattr__(name: str):
    if name not in _HOMES:
        raise AttributeError(f"module 'cartok' has no attribute '{name}'")
    return getattr(import_module(_HOMES[name]), name)
