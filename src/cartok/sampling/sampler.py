"""Pictures from a prior and its tokenizer; the one place where both meet.

A sample is a function of (seed, index) alone: its noise is one uniform number for each position,
from a counter-based generator keyed by the two. Batch size, order and number of devices do not
enter, but for rounding: a draw within a rounding error of the border of two codes may fall to
either side. In float32 that is rare; of a prior kept in bfloat16 most samples change with the
batch.
"""

from collections.abc import Callable, Collection, Generator, Hashable
from contextlib import contextmanager
from functools import partial
from typing import Any, Protocol, runtime_checkable

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor, nn

from cartok.core.config import config_of
from cartok.core.errors import UserError
from cartok.core.shapes import Condition, Image, Labels, Tokens, TokenSequence
from cartok.prior.model import Prior
from cartok.sampling.drawing import BatchDrawing
from cartok.sampling.guidance import scales_of
from cartok.sampling.options import SamplingConfig
from cartok.sampling.recorded import Draws, ToDraw


@runtime_checkable
class TokenDecoder(Protocol):
    """What sampling asks of a tokenizer."""

    @property
    def digest(self) -> str:
        """Names the tokenizer and its weights."""
        ...

    def image_of(self, tokens: Tokens) -> Image:
        """The pictures that tokens stand for."""
        ...


class Sampler:
    """Draws pictures from a prior whose tokens ``tokenizer`` made, with a KV cache.

    On an NVIDIA GPU by replaying one step, recorded as a CUDA graph, where the weights are all
    float32 or all bfloat16; a warning says where that cannot be.

    Raises:
        UserError: the prior was trained on another tokenizer's tokens.
    """

    def __init__(self, prior: Prior, tokenizer: TokenDecoder) -> None:
        if prior.tokenizer_digest != tokenizer.digest:
            raise UserError(
                f"tokens made by another tokenizer: the prior learned those of "
                f"'{prior.tokenizer_digest}', but this one is '{tokenizer.digest}'; load the "
                "tokenizer the prior was trained with"
            )
        self.prior = prior
        self.tokenizer = tokenizer
        self._draws = Draws()

    def sample(
        self,
        labels: Condition | list[int],
        seed: int,
        guidance: float = 1.0,
        *,
        kept: TokenSequence | None = None,
        progress: Callable[[int], None] | None = None,
        **options: Any,
    ) -> Image:
        """One picture for each label; ``sample_tokens``, decoded in the same batches."""
        tokens = self.sample_tokens(labels, seed, guidance, kept=kept, progress=progress, **options)
        grids = tokens.unflatten(1, self.prior.config.grid)
        batch = _choice(seed, guidance, options).batch
        with torch.inference_mode():
            pictures = [self.tokenizer.image_of(grid) for grid in grids.split(batch)]
        return torch.cat(pictures)

    def sample_tokens(
        self,
        labels: Condition | list[int],
        seed: int,
        guidance: float = 1.0,
        *,
        kept: TokenSequence | None = None,
        progress: Callable[[int], None] | None = None,
        **options: Any,
    ) -> TokenSequence:
        """Tokens for each label, drawn in eval mode; ``options`` are fields of ``SamplingConfig``.

        Label i is sample ``first_index + i``. The number of classes stands for "no class". A label
        may be a mixture: a row of shares of every class and, last, of "no class"; or the prefix of
        a prior that takes prefixes: rows of vectors.
        ``progress`` is called after each batch with the number of samples finished.

        ``kept`` holds, for each label, tokens that stay as they are, and -1 where one is drawn
        (``sampling.editing`` makes it of a picture). A draw sees the tokens before it alone: what
        is kept after it in raster order stays, but is not looked at.

        Raises:
            UserError: an option means no distribution, a label is out of range, an unconditional
                prior should be guided, what is kept fits no picture of this prior, or the prior
                gives logits that are not finite.
        """
        choice = _choice(seed, guidance, options)
        labels = self._checked(torch.as_tensor(labels), choice)
        num_positions = self.prior.config.num_tokens
        kept = self._checked_kept(kept, labels)
        tokens = torch.empty_like(kept)
        scales = torch.tensor(
            scales_of(choice.schedule, guidance, num_positions, choice.power, choice.interval),
            dtype=torch.float64,
            device=labels.device,
        )
        key = (labels.dtype, labels.ndim, self._key_of(choice))
        on_its_device = torch.cuda.device_of(labels)  # kernels of ours run on the current one
        with torch.inference_mode(), _evaluating(self.prior), _without_cudnn(), on_its_device:
            for start in range(0, len(labels), choice.batch):
                some = labels[start : start + choice.batch]
                noise = uniforms(seed, choice.first_index + start, len(some), num_positions)
                stop = start + len(some)
                batch = ToDraw(some, noise.to(labels.device), scales, kept[start:stop])
                drawn = self._draws(partial(BatchDrawing, self.prior, choice, batch), batch, key)
                if not drawn.all_finite:
                    raise UserError(
                        "the prior gives logits that are not finite, so nothing can be drawn; its "
                        "training diverged or its weights are damaged: load an earlier checkpoint"
                    )
                tokens[start:stop] = drawn.tokens
                if progress is not None:
                    progress(stop)
        return tokens

    def _checked(self, labels: Tensor, choice: SamplingConfig) -> Condition:
        num_classes = self.prior.config.num_classes
        if num_classes == self.prior.config.prefix_length == 0 and choice.guidance != 1:
            raise UserError(
                f"guidance needs a prior with classes, but this one is unconditional and "
                f"guidance is {choice.guidance:g}; leave guidance at 1"
            )
        if len(labels) == 0:
            raise UserError("sampling needs one label for each picture, but got none")
        if labels.is_floating_point():
            if labels.ndim < 2 or (labels.ndim > 2 and not labels.isfinite().all()):
                raise UserError(
                    "labels are whole numbers, one a picture, or rows of shares, or prefixes of "
                    f"finite numbers, but got float {list(labels.shape)}"
                )
            if labels.ndim == 2:  # of prefixes the prior says itself what is wrong
                self._check_mixtures(labels)
            return labels.to(self.prior.rotary.device)
        labels = labels.long()
        wrong = labels[(labels < 0) | (labels > num_classes)]
        if len(wrong):
            raise UserError(
                f"labels lie in [0, {num_classes}], where {num_classes} means no class, "
                f"but one is {int(wrong[0])}"
            )
        return labels.to(self.prior.rotary.device)

    def _check_mixtures(self, shares: Tensor) -> None:
        wanted = (len(shares), self.prior.config.num_classes + 1)
        if self.prior.config.prefix_length:
            raise UserError(
                "prefixes are float [batch, place, feature], also for one picture, but their shape "
                f"is {tuple(shares.shape)}"
            )
        if shares.shape != wanted:
            raise UserError(
                f"a mixture is a row of {wanted[1]} shares, one a class and the last of no class, "
                f"but the shape is {tuple(shares.shape)}"
            )
        if not (shares >= 0).all() or not torch.allclose(shares.sum(1), shares.new_ones(())):
            raise UserError("a mixture's shares are 0 or more and sum to 1, but one's do not")

    def _checked_kept(self, kept: TokenSequence | None, labels: Condition) -> TokenSequence:
        shape, device = (len(labels), self.prior.config.num_tokens), labels.device
        if kept is None:
            return torch.full(shape, -1, device=device)
        codes = self.prior.config.codebook_size
        if kept.shape != shape:
            raise UserError(
                f"kept has a row for each of {shape[0]} labels, of {shape[1]} tokens in raster "
                f"order, but its shape is {tuple(kept.shape)}"
            )
        if kept.min() < -1 or kept.max() >= codes:
            raise UserError(
                f"kept holds tokens from 0 to {codes - 1}, and -1 where one is drawn, but goes "
                f"from {int(kept.min())} to {int(kept.max())}"
            )
        return kept.to(device, torch.long)

    def _key_of(self, choice: SamplingConfig) -> Hashable:
        """What decides a batch's kernels: where weights lie, in which precision, what filters."""
        tensors = (*self.prior.parameters(), *self.prior.buffers())
        places = tuple(tensor.data_ptr() for tensor in tensors)
        kind = self.prior.rotary.device.type
        precision = torch.is_autocast_enabled(kind) and torch.get_autocast_dtype(kind)
        filters = (choice.temperature, choice.top_k, choice.min_p, choice.top_p)
        return (places, precision, choice.guidance != 1, *filters)


def uniforms(
    seed: int, first_index: int, num: int, num_positions: int
) -> Float[Tensor, "index position"]:
    """Numbers in [0, 1), float64: row i is a function of (seed, first_index + i) alone.

    Philox bits, keyed by seed and index; the top 53 of each 64.
    """
    indices = range(first_index, first_index + num)
    keys = [np.array([seed, index], dtype=np.uint64) for index in indices]
    bits = np.stack([np.random.Philox(key=key).random_raw(num_positions) for key in keys])
    return torch.from_numpy((bits >> np.uint64(11)) * 2.0**-53)


def balanced_labels(num: int, num_classes: int, unseen: Collection[int] = ()) -> Labels:
    """``num`` labels, each class equally often but those ``unseen`` in training, which none.

    In turn, so the first classes come once more where the number does not go up. All 0 for an
    unconditional prior (no classes).
    """
    drawn = [label for label in range(max(num_classes, 1)) if label not in unseen]
    return torch.tensor(drawn)[torch.arange(num) % len(drawn)]


def _choice(seed: int, guidance: float, options: dict[str, Any]) -> SamplingConfig:
    return config_of(SamplingConfig, {"seed": seed, "guidance": guidance, **options})


@contextmanager
def _without_cudnn() -> Generator[None]:
    """No attention by cuDNN, which plans anew for every number of positions seen."""
    was_on = torch.backends.cuda.cudnn_sdp_enabled()
    torch.backends.cuda.enable_cudnn_sdp(False)
    try:
        yield
    finally:
        torch.backends.cuda.enable_cudnn_sdp(was_on)


@contextmanager
def _evaluating(module: nn.Module) -> Generator[None]:
    was_training = module.training
    module.eval()
    try:
        yield
    finally:
        module.train(was_training)
