"""Stage 1: a job of two phases, the codec with its causal predictor, and the critic."""

import copy
from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from typing import Any

import torch
from torch import nn

from cartok.core.config import config
from cartok.core.job import Evaluation, EvaluationConfig, LoopConfig, Mover, Phase, Terms
from cartok.core.loop import Outcome, fit
from cartok.core.optim import OptimConfig, adamw_of, rate_of
from cartok.core.parallel import World
from cartok.core.progress import Tick
from cartok.core.run import Run
from cartok.core.shapes import Image
from cartok.data.batches import Batch, image_batches
from cartok.data.pictures import Pictures
from cartok.data.views import View
from cartok.frozen import teacher
from cartok.tokenizer.causal import CausalConfig, CausalLoss, CausalPredictor
from cartok.tokenizer.codec import parameter_count
from cartok.tokenizer.cost import channels_read, count_flops, equal_steps
from cartok.tokenizer.critic import Critic
from cartok.tokenizer.losses import LossConfig, codec_terms, critic_terms
from cartok.tokenizer.model import Encoded, Tokenizer, TokenizerConfig
from cartok.tokenizer.quantize import Statistics


@config
class TokenizerRun:
    """Everything that decides a stage-1 training."""

    data: str = "photos"
    """'photos' (embedded), a folder or parquet of pictures, or 'hub:owner/name'."""
    view: View = View(size=256, min_scale=0.8)
    model: TokenizerConfig = TokenizerConfig()
    causal: CausalConfig = CausalConfig()
    losses: LossConfig = LossConfig()
    optim: OptimConfig = OptimConfig()
    """Of the codec and of the critic; the paper's is the same for both."""
    loop: LoopConfig = LoopConfig(steps=400_000, batch=128)
    equal_compute: bool = True
    """loop.steps are those of a run without the regulariser; with it, the steps that its FLOPs
    cost are taken off."""
    evaluations: tuple[EvaluationConfig, ...] = ()
    workers: int = 0
    """Processes that read pictures; 0: this one."""
    seed: int = 0

    def __post_init__(self):
        if self.seed < 0 or self.workers < 0:
            raise ValueError(f"seed and workers must not be negative: {self.seed}, {self.workers}")
        size, factor, critic = self.view.size, self.model.codec.factor, self.losses.critic
        if size % factor or size < 2 * factor:
            raise ValueError(
                f"view.size must be a multiple of the codec's factor {factor}, two or more times, "
                f"but is {size}; change it, or model.codec"
            )
        if critic.weight and size < 3 * 2**critic.layers:
            raise ValueError(
                f"a critic of {critic.layers} layers needs pictures of {3 * 2**critic.layers} "
                f"pixels or more, but view.size is {size}; lower losses.critic.layers"
            )


@dataclass(frozen=True)
class Forward:
    """One batch, through the codec."""

    image: Image
    encoded: Encoded
    reconstruction: Image


class TokenizerJob:
    """Trains a tokenizer on pictures."""

    def __init__(self, config: TokenizerRun, pictures: Pictures, world: World):
        self.config, self.pictures, self.world = config, pictures, world
        torch.manual_seed(config.seed)
        self.tokenizer = world.shard(Tokenizer(config.model))
        self.causal = self._causal()
        self.critic = world.shard(Critic(config.losses.critic)) if self._has_critic else None
        self.perceptual = self._perceptual()
        self.flops = count_flops(
            config.model, config.losses, config.causal, config.view.size,
            copy.deepcopy(self.perceptual).to("meta") if self.perceptual else None,
        )  # fmt: skip
        self.steps = config.loop.steps
        if config.equal_compute and config.causal.weight:
            self.steps = equal_steps(config.loop.steps, self.flops, config.losses)
        parts = {"tokenizer": self.tokenizer, "causal": self.causal, "critic": self.critic}
        self.modules = {name: module for name, module in parts.items() if module is not None}
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
            rank=world.rank,
            world_size=world.size,
        )
        for batch in stream:
            yield replace(batch, image=batch.image.to(world.device, non_blocking=True))

    def prepare(self, batch: Batch, step: int) -> Forward:
        """Encodes and decodes."""
        encoded = self.tokenizer.encode(batch.image)
        return Forward(batch.image, encoded, self.tokenizer.decode(encoded.quantized.codes))

    def after_step(self, outcomes: list[Forward], step: int) -> None:
        """Tells the quantizer what the whole batch, on all ranks, made of its codes."""
        if not self.tokenizer.quantizer.learns_by_update:
            return  # nothing is moved, so the ranks need not tell each other
        seen = [outcome.encoded.quantized.statistics for outcome in outcomes]
        counts = torch.stack([statistics.counts for statistics in seen]).sum(0)
        candidates = torch.cat([statistics.candidates for statistics in seen])
        num_pictures = sum(len(outcome.image) for outcome in outcomes)
        mine = candidates.unflatten(0, (1, num_pictures, -1))
        # Ranks took turns in the order of the pictures; so one process would have seen them.
        everyone = self.world.gather(mine).transpose(0, 1).flatten(0, 2)
        self.tokenizer.quantizer.update(Statistics(self.world.mean(counts), everyone), step)

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
            "seconds": outcome.seconds,
            "stall_share": outcome.stall_share,
            "tokenizer_digest": self.tokenizer.digest,
        }

    @property
    def _has_critic(self) -> bool:
        return self.config.losses.critic.weight > 0

    def _causal(self) -> CausalPredictor | None:
        causal = self.config.causal
        if not causal.is_used:
            return None
        channels = channels_read(self.config.model, causal)
        return self.world.shard(CausalPredictor(causal, channels))

    def _perceptual(self) -> nn.Module | None:
        if not self.config.losses.perceptual:
            return None
        return teacher().to(self.world.device)

    def _phases(self) -> tuple[Phase, ...]:
        config = self.config
        movers = [self._mover("tokenizer", self.tokenizer, config.optim)]
        if self.causal is not None:
            own = replace(config.optim, weight_decay=config.causal.weight_decay)
            movers.append(self._mover("causal", self.causal, own))
        phases = [Phase("codec", tuple(movers), self._codec_objective)]
        if self.critic is not None:
            mover = self._mover("critic", self.critic, config.optim)
            active = config.losses.critic.learns_at
            phases.append(Phase("critic", (mover,), self._critic_objective, active))
        return tuple(phases)

    def _mover(self, name: str, module: nn.Module, optim: OptimConfig) -> Mover:
        optimizer = adamw_of(optim, module.parameters())
        return Mover(name, module, optimizer, rate_of(optim, self.steps), optim.clip)

    def _codec_objective(self, forward: Forward, step: int) -> Terms:
        causal: CausalLoss | None = None
        if self.causal is not None:
            weight = self.config.causal.weight_at(step)
            causal = self.causal.regularise(forward.encoded, weight)
        return codec_terms(
            self.config.losses, forward.image, forward.reconstruction, forward.encoded,
            perceptual=self.perceptual, critic=self.critic, causal=causal, step=step,
        )  # fmt: skip

    def _critic_objective(self, forward: Forward, step: int) -> Terms:
        assert self.critic is not None
        return critic_terms(self.critic, forward.image, forward.reconstruction)


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
    if outcome.finished and run.world.is_main:
        job.tokenizer.save(run.folder / "model")
    return outcome
