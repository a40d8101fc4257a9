"""Stage 2: a job of one phase, next-token cross-entropy on token shards."""

from collections.abc import Hashable, Iterable, Iterator
from typing import Any, Literal

import torch
from jaxtyping import Float
from torch import Tensor

from cartok.core.compiled import as_written, compile_in_place
from cartok.core.config import config
from cartok.core.errors import UserError
from cartok.core.job import Evaluation, EvaluationConfig, LoopConfig, Mover, Phase, Terms
from cartok.core.loop import Outcome, fit
from cartok.core.optim import OptimConfig, adamw_of, muon_of, rate_of
from cartok.core.parallel import Weights, World
from cartok.core.progress import Tick
from cartok.core.recompute import recompute_in_place
from cartok.core.run import Run
from cartok.core.shapes import TokenSequence
from cartok.data.tokens import TokenBatch, TokenManifest, TokenShards, token_batches
from cartok.layers import TransformerConfig
from cartok.prior.model import (
    Prior,
    PriorConfig,
    flops_per_token,
    paper_flops,
    parameter_census,
)
from cartok.prior.surprise import Surprise


@config
class PriorRun:
    """Everything that decides a stage-2 training; codebook, grid and classes come with the tokens.

    The defaults are the paper's (A.2), and LlamaGen's where it is silent.
    """

    tokens: str = "tokens"
    """A folder that ``cartok extract`` wrote."""
    transformer: TransformerConfig = TransformerConfig(dropout=0.1)
    class_dropout: float = 0.1
    token_dropout: float = 0.1
    z_loss: float = 0.0
    """Weight of the squared log of the softmax's total, which keeps logits from drifting; 1e-4 was
    needed for some runs of 576 tokens (paper, A.2)."""
    optim: OptimConfig = OptimConfig(
        lr=3e-3, warmup_from=3e-4, warmup_steps=5000, schedule="cosine", weight_decay=0.05
    )
    matrices: Literal["adamw", "muon"] = "adamw"
    """What moves the layers' matrices, by the rate, decay and clip of ``optim``: AdamW as all
    else, or Muon, which leaves embeddings, head and gains to AdamW."""
    loop: LoopConfig = LoopConfig(steps=375_000, batch=256)
    compile: bool = False
    """Fuses each layer by torch.compile, some ten seconds at the start; on an NVIDIA GPU kernels of
    our own are there without it, and faster."""
    weights: Weights = "copied"
    """What each of several GPUs holds of weights, optimizer and running mean: all, or its share,
    for priors that do not fit otherwise. They are divided by rows, and every layer is put together
    when it is due (FSDP2)."""
    recompute: bool = False
    """Keeps of every layer only its input and computes the rest again on the way back: the same
    losses and less memory, for one more pass forward."""
    evaluations: tuple[EvaluationConfig, ...] = ()
    seed: int = 0

    def __post_init__(self):
        if self.seed < 0:
            raise ValueError(f"seed must not be negative, but is {self.seed}")
        if self.z_loss < 0:
            raise ValueError(f"z_loss is 0 (none) or more, but is {self.z_loss:g}")


class PriorJob:
    """Trains a prior on one tokenizer's tokens."""

    averaged = ("prior",)

    def __init__(self, config: PriorRun, shards: TokenShards, world: World):
        self.config, self.shards, self.world = config, shards, world
        manifest = shards.manifest
        torch.manual_seed(config.seed)
        shape = PriorConfig(
            transformer=config.transformer,
            codebook_size=manifest.codebook_size,
            grid=manifest.grid,
            num_classes=len(manifest.classes),
            class_dropout=config.class_dropout,
            token_dropout=config.token_dropout,
        )
        prior = Prior(
            shape,
            tokenizer_digest=manifest.tokenizer_digest,
            classes=manifest.classes,
            unseen=shards.unseen,
        )
        blocks = prior.transformer.blocks
        if config.recompute:
            recompute_in_place(blocks)
        if config.compile:
            compile_in_place(blocks)
        self.prior = world.shard(prior, config.weights, units=blocks, methods=["surprise"])
        self.modules = {"prior": self.prior}
        self.phases = (Phase("next_token", self._movers(), self._objective),)
        torch.manual_seed(config.seed + 1 + world.rank)

    def batches(self, start: int) -> Iterator[TokenBatch]:
        """Training tokens on the device."""
        loop, world = self.config.loop, self.world
        return token_batches(
            self.shards,
            batch=loop.batch // loop.accumulate // world.size,
            seed=self.config.seed,
            start=start,
            device=str(world.device),
            rank=world.rank,
            world_size=world.size,
        )

    def prepare(self, batch: TokenBatch, step: int) -> Surprise:
        """Predicts."""
        return self.prior.surprise(batch.tokens, batch.labels)

    def fixed_at(self, step: int) -> Hashable:
        """Nothing depends on the step."""
        return ()

    def after_step(self, outcomes: list[Surprise], step: int) -> None:
        """Nothing follows the optimizer."""

    def facts(self, outcome: Outcome) -> dict[str, Any]:
        """What the record says of this training."""
        shape, samples = self.prior.config, outcome.step * self.config.loop.batch
        return {
            "steps": outcome.step,
            "samples": samples,
            "tokens": samples * shape.num_tokens,
            "parameters": parameter_census(shape),
            "flops": 3.0 * flops_per_token(shape) * shape.num_tokens * samples,
            "paper_flops": paper_flops(shape, samples),
            "grid": list(shape.grid),
            "codebook_size": shape.codebook_size,
            "tokenizer_digest": self.prior.tokenizer_digest,
            "seconds": outcome.clock.seconds,
            "joules": outcome.clock.joules,
            "stall_share": outcome.clock.stall_share,
            "skips": outcome.skips,
            "rollbacks": outcome.rollbacks,
        }

    def _movers(self) -> tuple[Mover, ...]:
        config, ranks = self.config, self.world.size
        rate, clip = rate_of(config.optim, config.loop.steps), config.optim.clip
        weights = list(self.prior.parameters())
        if config.matrices == "adamw":
            return (Mover("prior", self.prior, adamw_of(config.optim, weights), rate, clip),)
        if config.weights == "divided" and config.transformer.width < ranks:
            raise UserError(
                "Muon moves divided matrices of no fewer rows than there are ranks, but the width "
                f"is {config.transformer.width} on {ranks} ranks; give --weights copied"
            )
        matrices = [w for w in self.prior.transformer.blocks.parameters() if w.ndim == 2]
        chosen = set(map(id, matrices))
        rest = [w for w in weights if id(w) not in chosen]
        return (
            Mover("prior", self.prior, adamw_of(config.optim, rest), rate, clip),
            Mover("matrices", self.prior, muon_of(config.optim, matrices), rate, clip),
        )

    def _objective(self, forward: Surprise, step: int) -> Terms:
        losses, weights = {"cross_entropy": forward.nats.mean()}, {"cross_entropy": 1.0}
        if self.config.z_loss:
            losses["z"] = forward.log_total.square().mean()
            weights["z"] = self.config.z_loss
        return Terms(losses, weights)


def train_prior(
    job: PriorJob,
    run: Run,
    *,
    evaluations: tuple[Evaluation, ...] = (),
    tick: Tick = lambda done, words: None,
) -> Outcome:
    """Trains to the end, or to a SIGTERM; a finished run has ``model/``."""
    outcome = fit(job, job.config.loop, run, evaluations=evaluations, tick=tick)
    if outcome.finished:
        tensors = run.world.gathered(job.prior)
        if run.world.is_main:
            job.prior.save(run.folder / "model", tensors)
    return outcome


def refuse_foreign(prior: Prior, manifest: TokenManifest) -> None:
    """Refuses tokens that are not those a prior predicts.

    Raises:
        UserError: another tokenizer made them, or their codebook, grid or classes are others.
    """
    ours, shape = prior.tokenizer_digest, prior.config
    facts = (
        ("tokenizer", ours or manifest.tokenizer_digest, manifest.tokenizer_digest),
        ("codebook size", shape.codebook_size, manifest.codebook_size),
        ("grid", shape.grid, manifest.grid),
        ("number of classes", shape.num_classes, len(manifest.classes)),
        ("classes", tuple(prior.classes) or manifest.classes, manifest.classes),
    )
    for name, known, found in facts:
        if known != found:
            raise UserError(
                f"a prior reads tokens like those it was trained on, but their {name} is {found} "
                f"and the prior's {known}; extract tokens with its tokenizer, or train another"
            )


@torch.no_grad()
def nats_per_position(
    prior: Prior, shards: TokenShards, num: int, device: torch.device, batch: int = 128
) -> Float[Tensor, " position"]:
    """Mean surprise at each position over ``num`` sequences, in nats; labels are given.

    The sequences are spread evenly over the set, since data sets come class by class.

    The mean over positions is the validation loss; the paper's central picture is that causal
    tokens lower it at every position, most at the end (its Figure 9).

    Raises:
        UserError: the tokens are not those this prior predicts.
    """
    refuse_foreign(prior, shards.manifest)
    was_training = prior.training
    prior.eval()
    total = torch.zeros(prior.config.num_tokens, dtype=torch.float64)
    num = min(num, len(shards))
    for rows in torch.linspace(0, len(shards) - 1, num).round().long().split(batch):
        tokens, labels = first_views(shards, rows.tolist()), shards.labels[rows]
        with as_written():
            total += prior.nats(tokens.to(device), labels.to(device)).cpu().double().sum(0)
    prior.train(was_training)
    return total / num


def first_views(shards: TokenShards, rows: Iterable[int]) -> TokenSequence:
    """The tokens of the central view of some pictures."""
    return torch.stack([shards[row][0] for row in rows])
