"""Stage 1: a job of two phases, the codec with its causal predictor, and the critic."""

from collections.abc import Hashable, Iterator
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from cartok.core.job import Evaluation, Mover, Phase, Terms
from cartok.core.loop import Outcome, fit
from cartok.core.optim import OptimConfig, adamw_of, rate_of
from cartok.core.parallel import World
from cartok.core.precision import full_precision
from cartok.core.progress import Tick
from cartok.core.run import Run
from cartok.core.shapes import Image
from cartok.data.batches import Batch, image_batches
from cartok.data.pictures import Pictures
from cartok.tokenizer.codec import parameter_count
from cartok.tokenizer.cost import count_flops, equal_steps
from cartok.tokenizer.losses import codec_terms, critic_terms, verdicts_of
from cartok.tokenizer.model import Encoded
from cartok.tokenizer.quantize import Statistics
from cartok.tokenizer.setup import TokenizerRun, assert_still, parts_of

__all__ = ["Forward", "TokenizerJob", "TokenizerRun", "train_tokenizer"]


@dataclass(frozen=True)
class Forward:
    """One batch, through the codec."""

    image: Image
    encoded: Encoded
    reconstruction: Image
    verdicts: list[Tensor] = field(default_factory=list)
    """The critic's mean verdicts on both, once it has given them."""


class TokenizerJob:
    """Trains a tokenizer on pictures.

    ``checkpoints`` is the folder of those of a run that is to go on, see ``parts_of``.
    """

    def __init__(
        self,
        config: TokenizerRun,
        pictures: Pictures,
        world: World,
        checkpoints: Path | None = None,
    ):
        self.config, self.pictures, self.world = config, pictures, world
        torch.manual_seed(config.seed)
        self.parts = parts_of(config, world, checkpoints)
        self.flops = count_flops(self.parts.on_meta, config.losses, config.view.size)
        self.steps = config.loop.steps
        if config.equal_compute and config.causal.weight:
            self.steps = equal_steps(config.loop.steps, self.flops, config.losses)
        if config.compile:
            self.parts.compile()
        self.tokenizer = self.parts.tokenizer
        self.modules = self.parts.modules
        self.averaged = ("tokenizer",)
        self.phases = self._phases()
        # Ranks draw different noise from here on.
        torch.manual_seed(config.seed + 1 + world.rank)

    def batches(self, start: int) -> Iterator[Batch]:
        """Augmented training pictures on the device."""
        loop, world = self.config.loop, self.world
        stream = image_batches(
            self.pictures,
            self.config.view,
            batch=loop.batch // loop.accumulate // world.size,
            seed=self.config.seed,
            start=start,
            augment=True,
            workers=self.config.workers,
            pinned=world.device.type == "cuda",
            rank=world.rank,
            world_size=world.size,
        )
        for batch in stream:
            yield batch.on(world.device)

    def prepare(self, batch: Batch, step: int) -> Forward:
        """Encodes and decodes."""
        encoded = self._encoded(batch.image)
        return Forward(batch.image, encoded, self.tokenizer.decode(encoded.quantized.codes))

    def fixed_at(self, step: int) -> Hashable:
        """The weights that grow over steps, and whether the codec hears a critic."""
        critic, causal = self.config.losses.critic, self.config.causal
        return critic.weight_at(step), step >= critic.start, causal.weight_at(step)

    def after_step(self, outcomes: list[Forward], step: int) -> None:
        """Tells quantizer and critic what the whole batch, on all ranks, made of them."""
        critic = self.parts.critic
        heard = [verdicts for outcome in outcomes for verdicts in outcome.verdicts]
        if heard and critic is not None and critic.running is not None:
            critic.running.update(self.world.mean(torch.stack(heard).mean(0)))
        if self.tokenizer.quantizer.learns_by_update and self.config.trains == "all":
            self.tokenizer.quantizer.update(self._statistics(outcomes), step)

    def facts(self, outcome: Outcome) -> dict[str, Any]:
        """What the record says of this training."""
        per_picture = self.flops.of(outcome.step, self.config.losses)
        return {
            "steps": outcome.step,
            "samples": outcome.step * self.config.loop.batch,
            "parameters": {name: parameter_count(m) for name, m in self.modules.items()},
            "flops": per_picture * self.config.loop.batch,
            "flops_per_picture": asdict(self.flops),
            "pictures_digest": self.pictures.digest,
            "seconds": outcome.clock.seconds,
            "joules": outcome.clock.joules,
            "stall_share": outcome.clock.stall_share,
            "skips": outcome.skips,
            "rollbacks": outcome.rollbacks,
            "tokenizer_digest": self.tokenizer.digest,
        }

    def _encoded(self, image: Image) -> Encoded:
        if self.config.trains == "all":
            return self.tokenizer.encode(image)
        with full_precision(image.device):  # the decoder learns the tokens that ``extract`` writes
            return self.tokenizer.encode(image)

    def _statistics(self, outcomes: list[Forward]) -> Statistics:
        """Of the whole batch, equal on all ranks."""
        seen = [outcome.encoded.quantized.statistics for outcome in outcomes]
        counts = torch.stack([statistics.counts for statistics in seen]).sum(0)
        sums = torch.stack([statistics.sums for statistics in seen]).sum(0)
        candidates = torch.cat([statistics.candidates for statistics in seen])
        num_pictures = sum(len(outcome.image) for outcome in outcomes)
        mine = candidates.unflatten(0, (1, num_pictures, -1))
        # Ranks took turns in the order of the pictures; so one process would have seen them.
        everyone = self.world.gather(mine).transpose(0, 1).flatten(0, 2)
        return Statistics(self.world.mean(counts), everyone, self.world.mean(sums))

    def _phases(self) -> tuple[Phase, ...]:
        optim, parts = self.config.optim, self.parts
        own = replace(optim, weight_decay=self.config.causal.weight_decay)
        named = {"tokenizer": optim, "alignment": optim, "causal": own, "twin": own}
        movers = [
            self._mover(name, self.modules[name], how)
            for name, how in named.items()
            if name in self.modules
        ]
        phases = [Phase("codec", tuple(movers), self._codec_objective)]
        if parts.critic is not None:
            mover = self._mover("critic", parts.critic, optim)
            active = self.config.losses.critic.learns_at
            phases.append(Phase("critic", (mover,), self._critic_objective, active))
        return tuple(phases)

    def _mover(self, name: str, module: nn.Module, optim: OptimConfig) -> Mover:
        optimizer = adamw_of(optim, module.parameters())
        return Mover(name, module, optimizer, rate_of(optim, self.steps), optim.clip)

    def _codec_objective(self, forward: Forward, step: int) -> Terms:
        parts, encoded = self.parts, forward.encoded
        causal = twin = alignment = None
        if parts.causal is not None:
            weight = self.config.causal.weight_at(step)
            codes_of = self.tokenizer.quantizer.codes_of
            causal = parts.causal.regularise(encoded, weight, codes_of=codes_of)
        if parts.twin is not None:
            twin = parts.twin.regularise(encoded, 0.0)
        if parts.alignment is not None:
            alignment = parts.alignment(encoded.encoder_output, forward.image)
        return codec_terms(
            self.config.losses, forward.image, forward.reconstruction, encoded,
            perceptual=parts.perceptual, critic=parts.critic, causal=causal, twin=twin,
            alignment=alignment, step=step, last_layer=self.tokenizer.decoder.last_layer,
        )  # fmt: skip

    def _critic_objective(self, forward: Forward, step: int) -> Terms:
        assert self.parts.critic is not None
        terms = critic_terms(self.parts.critic, forward.image, forward.reconstruction)
        forward.verdicts.append(verdicts_of(terms))
        return terms


def train_tokenizer(
    job: TokenizerJob,
    run: Run,
    *,
    evaluations: tuple[Evaluation, ...] = (),
    tick: Tick = lambda done, words: None,
) -> Outcome:
    """Trains to the end, or to a SIGTERM; a finished run has ``model/`` and may have a record."""
    loop = replace(job.config.loop, steps=job.steps)
    outcome = fit(job, loop, run, evaluations=evaluations, tick=tick)
    assert_still(job.parts)
    if outcome.finished and run.world.is_main:
        job.tokenizer.save(run.folder / "model")
    return outcome
