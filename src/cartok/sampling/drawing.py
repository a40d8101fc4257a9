"""One batch of tokens on the way: guidance, filters and the draw, a step at a time.

All that changes from step to step lies in tensors of fixed places, the position among them.
"""

from typing import Any

import torch
from jaxtyping import Float, Integer
from torch import Tensor

from cartok.prior.model import Prior
from cartok.sampling.decoding import FusedDecoder, PlainDecoder, decoder_of, power_of_two
from cartok.sampling.guidance import Scores, guided, min_p, tempered, top_k, top_p
from cartok.sampling.options import SamplingConfig
from cartok.sampling.recorded import Drawn, ToDraw


class BatchDrawing:
    """As many pictures as ``like`` has labels; guided, their unconditional twins are more rows."""

    def __init__(self, prior: Prior, choice: SamplingConfig, like: ToDraw) -> None:
        self._prior, self._choice = prior, choice
        self._batch = like.copied()
        self._is_guided = choice.guidance != 1
        self.rows, self.num_positions = like.kept.shape
        decoded = self.rows * (1 + self._is_guided)
        self._decoder = decoder_of(prior, decoded)
        self.is_fixed = not isinstance(self._decoder, PlainDecoder)
        filters = (choice.top_k, choice.min_p, 1 - choice.top_p)
        has_kernels = isinstance(self._decoder, FusedDecoder)
        self._in_one = has_kernels and choice.temperature > 0 and not any(filters)
        table = prior.token_embedding.weight
        self._x = table.new_empty(decoded, table.shape[1])
        self._position = torch.zeros(1, dtype=torch.long, device=table.device)  # of the token
        self._place = torch.zeros_like(self._position)  # in the sequence, behind the prefix
        self._tokens = torch.zeros_like(self._batch.kept)
        self._all_finite = torch.ones((), dtype=torch.bool, device=table.device)
        self._temperature = torch.tensor(
            choice.temperature, dtype=torch.float64, device=table.device
        )

    def start(self, batch: ToDraw) -> None:
        """Begins with a batch of as many rows."""
        self._batch.put(batch)
        self._decoder.restart()
        self._position.zero_()
        self._all_finite.fill_(True)
        self._place.zero_()
        labels = self._batch.labels
        before = self._prior.vectors_of(labels)
        if self._is_guided:
            none = torch.full((len(labels),), self._prior.config.num_classes, device=labels.device)
            before = torch.cat([before, self._prior.vectors_of(none)])
        *prefix, last = before.unbind(1)
        for x in prefix:
            self._decoder.logits(x.contiguous(), self._place)
            self._place += 1
        self._x.copy_(last)

    def step(self) -> None:
        """Draws one token of each picture."""
        logits = self._decoder.logits(self._x, self._place)
        if self._in_one:
            self._draw_in_one(logits)
        else:
            self._draw(logits.double())
        self._position += 1
        self._place += 1

    def _draw(self, logits: Scores) -> None:
        choice, batch, position = self._choice, self._batch, self._position
        self._all_finite &= logits.isfinite().all()
        if self._is_guided:
            logits = guided(*logits.chunk(2), batch.scales.index_select(0, position))
        logits = top_k(tempered(logits, choice.temperature), choice.top_k)
        logits = top_p(min_p(logits, choice.min_p), choice.top_p)
        code = codes_at(logits, batch.noise.index_select(1, position)[:, 0])
        stays = batch.kept.index_select(1, position)[:, 0]
        code = torch.where(stays >= 0, stays, code)
        self._tokens.index_copy_(1, position, code[:, None])
        vectors = self._prior.token_embedding(code)
        self._x.copy_(vectors.repeat(2, 1) if self._is_guided else vectors)

    def _draw_in_one(self, logits: Scores) -> None:
        """The same as one kernel, where nothing is filtered."""
        from cartok.sampling import draw_kernel

        kernel: Any = draw_kernel.draw_kernel  # triton's own annotations contradict its calls
        batch, table = self._batch, self._prior.token_embedding.weight
        codes, width = table.shape
        kernel[(self.rows,)](
            logits, batch.scales, self._temperature, batch.noise, batch.kept, self._position,
            self._tokens, table, self._x, self._all_finite, codes, self.rows, self.num_positions,
            width, guided=self._is_guided, tile=4096, wide=power_of_two(width), num_warps=16,
        )  # fmt: skip

    def drawn(self) -> Drawn:
        """What has been drawn; good until the next start."""
        return Drawn(self._tokens, self._all_finite)


def codes_at(logits: Scores, uniform: Float[Tensor, " batch"]) -> Integer[Tensor, " batch"]:
    """The code at each ``uniform`` of the cumulative softmax: code c for a share p(c) of [0, 1).

    In float64. A code of probability 0 is never drawn, not even at the ends.
    """
    cumulative = logits.double().softmax(dim=-1).cumsum(dim=-1)
    total = cumulative[:, -1:]
    below_total = torch.nextafter(total, torch.zeros_like(total))
    aim = torch.minimum(uniform[:, None] * total, below_total)
    drawn = torch.searchsorted(cumulative, aim, right=True)[:, 0]
    return drawn.clamp(max=logits.shape[-1] - 1)  # past the end only if not a number
