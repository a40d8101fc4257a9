"""What a stage-1 training is decided by, and the networks it takes."""

import copy
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal, TypeVar

import torch
from torch import Tensor, nn

from cartok.core.checkpoint import TrainingState, load_state, put_tensors
from cartok.core.compiled import compile_in_place
from cartok.core.config import config, dict_of
from cartok.core.errors import UserError
from cartok.core.job import EvaluationConfig, LoopConfig
from cartok.core.optim import OptimConfig
from cartok.core.parallel import World
from cartok.data.views import View
from cartok.frozen import dino_of, teacher
from cartok.frozen.dino import DinoFeatures
from cartok.tokenizer.alignment import AlignmentHead
from cartok.tokenizer.blocks import GridAttention
from cartok.tokenizer.causal import CausalConfig, CausalPredictor
from cartok.tokenizer.cost import Networks, channels_read
from cartok.tokenizer.critic import AnyCritic, critic_of
from cartok.tokenizer.losses import LossConfig
from cartok.tokenizer.model import Tokenizer, TokenizerConfig

M = TypeVar("M", bound=nn.Module)

DINO_PATCH = 14
"""Pixels a side of one of DINOv2's tokens."""


@config
class TokenizerRun:
    """Everything that decides a stage-1 training."""

    data: str = "photos"
    """'photos' (embedded), a folder or parquet of pictures, or 'hub:owner/name'."""
    view: View = View(size=256, min_scale=0.8)
    model: TokenizerConfig = TokenizerConfig()
    start_from: str = ""
    """A tokenizer whose weights the training starts from: a run, a model folder, or a model of the
    hub; read once, and no more when the training goes on from a checkpoint. Its encoder must be
    that of ``model``, and its quantizer have tensors of the same shapes: the rest, such as how
    codes are looked up, is what ``model`` says. A decoder of another shape starts anew."""
    trains: Literal["all", "decoder"] = "all"
    """decoder: encoder and quantizer, of which no field may differ, stay as they are in
    ``start_from``, and so do all tokens; a prior that learned them needs no other training. The
    encoder runs in float32, as in ``cartok extract``, whatever ``loop.precision`` says."""
    causal: CausalConfig = CausalConfig()
    losses: LossConfig = LossConfig()
    optim: OptimConfig = OptimConfig()
    """Of the codec and of the critic; the paper's is the same for both."""
    loop: LoopConfig = LoopConfig(steps=400_000, batch=128)
    equal_compute: bool = True
    """loop.steps are those of a run without the regulariser; with it, the steps that its FLOPs
    cost are taken off."""
    compile: bool = False
    """Fuses the frozen networks, the predictors, the critic and the codec's attention by
    torch.compile: a minute at the start, then a GPU's steps are a seventh shorter. The rest of the
    codec has kernels of its own."""
    recompute_levels: int = 0
    """Of the codec's levels, from the finest on, whose activations are computed again in the
    backward pass instead of kept: less memory, more time."""
    evaluations: tuple[EvaluationConfig, ...] = ()
    workers: int = 0
    """Processes that read pictures; 0: this one."""
    seed: int = 0

    def __post_init__(self):
        if min(self.seed, self.workers, self.recompute_levels) < 0:
            raise ValueError(
                "seed, workers and recompute_levels must not be negative: "
                f"{self.seed}, {self.workers}, {self.recompute_levels}"
            )
        self._check_sizes()
        if self.trains == "decoder" and not self.start_from:
            raise ValueError(
                "trains 'decoder' keeps an encoder as it is, so start_from must name its tokenizer"
            )
        if self.trains == "decoder" and (self.causal.is_used or self.losses.alignment.weight):
            raise ValueError(
                "with trains 'decoder' no latent moves, so causal.weight and "
                "losses.alignment.weight must be 0 and causal.watch false"
            )

    def _check_sizes(self) -> None:
        size, factor, critic = self.view.size, self.model.codec.factor, self.losses.critic
        if size % factor or size < 2 * factor:
            raise ValueError(
                f"view.size must be a multiple of the codec's factor {factor}, two or more times, "
                f"but is {size}; change it, or model.codec"
            )
        if critic.weight and critic.kind == "patch" and size < 3 * 2**critic.layers:
            raise ValueError(
                f"a critic of {critic.layers} layers needs pictures of {3 * 2**critic.layers} "
                f"pixels or more, but view.size is {size}; lower losses.critic.layers"
            )
        if self.losses.perceptual and self.losses.perceptual_network == "lpips-vgg" and size < 16:
            raise ValueError(
                f"lpips-vgg halves pictures four times, so view.size must be 16 or more, but is "
                f"{size}; take losses.perceptual_network effnet-lite2"
            )


@dataclass(frozen=True)
class Parts:
    """The networks of a training, on the device and equal on all ranks; None where not asked for.

    They are made in the order of the fields, so that a part that is left out moves no other's
    start but those after it: a baseline and a causal run of one seed start alike.
    """

    tokenizer: Tokenizer
    causal: CausalPredictor | None
    critic: AnyCritic | None
    alignment: AlignmentHead | None
    twin: CausalPredictor | None
    """The regulariser's control: reads codes, moves nothing but itself."""
    perceptual: nn.Module | None
    still: dict[str, Tensor] = field(default_factory=dict)
    """What must not move, as it was: the encoder and the codebook where only the decoder trains."""

    @property
    def modules(self) -> dict[str, nn.Module]:
        """Everything with state, by name."""
        parts = {"tokenizer": self.tokenizer, "causal": self.causal, "critic": self.critic,
                 "alignment": self.alignment, "twin": self.twin}  # fmt: skip
        return {name: module for name, module in parts.items() if module is not None}

    @property
    def on_meta(self) -> Networks:
        """The same networks without numbers, for counting; what is computed again counts once."""
        tokenizer = copy.deepcopy(self.tokenizer).to("meta")
        tokenizer.encoder.recompute_levels = tokenizer.decoder.recompute_levels = 0
        critic = _on_meta(self.critic)
        if critic is not None:
            critic.eval()  # batch norm joined over ranks learns on no device but a GPU
        return Networks(
            tokenizer=tokenizer,
            causal=_on_meta(self.causal),
            critic=critic,
            alignment=_on_meta(self.alignment),
            perceptual=_on_meta(self.perceptual),
        )

    def compile(self) -> None:
        """Compiles in place everything but the quantizer and what the codec has kernels for."""
        parts = (self.critic, self.alignment, self.perceptual)
        predictors = [p.transformer for p in (self.causal, self.twin) if p is not None]
        layers = [block for transformer in predictors for block in transformer.blocks]
        attention = [part for part in self.tokenizer.modules() if isinstance(part, GridAttention)]
        found = (module for module in parts if module is not None)
        compile_in_place([*layers, *attention, *found])


def _on_meta(module: M | None) -> M | None:
    return None if module is None else copy.deepcopy(module).to("meta")


def parts_of(run: TokenizerRun, world: World, checkpoints: Path | None = None) -> Parts:
    """Builds the networks of a training; trainable ones are drawn from the global generator.

    ``checkpoints`` is the folder of those of a run that is to go on: what started from another
    tokenizer is taken from the newest, if there is one, and not from that tokenizer again.

    Raises:
        UserError: weights that the recipe names are missing, or do not go with it.
    """
    tokenizer = _tokenizer(run, world, checkpoints)
    causal = run.causal
    predictor = None
    if causal.is_used:
        channels = channels_read(run.model, causal)
        predictor = world.shard(CausalPredictor(causal, channels, tokenizer.codebook_size))
    dino = _dino(run, world)
    widths = (dino.network.embed_dim,) * len(dino.layers) if dino else ()
    critic = alignment = twin = perceptual = None
    if run.losses.critic.weight:
        critic = world.shard(critic_of(run.losses.critic, dino, widths))
    if run.losses.alignment.weight and dino:
        wide = run.model.codec.latent_channels
        head = AlignmentHead(run.losses.alignment, dino, wide, dino.network.embed_dim)
        alignment = world.shard(head)
    if causal.has_twin:
        twin = world.shard(CausalPredictor(causal.of_twin, tokenizer.quantizer.dim))
    if run.losses.perceptual:
        network, weights = run.losses.perceptual_network, run.losses.perceptual_weights
        perceptual = world.first(lambda: teacher(network, weights)).to(world.device)
    still = {}
    if run.trains == "decoder":
        still = {k: v.clone() for k, v in tokenizer.encoding_state().items()}
    return Parts(tokenizer, predictor, critic, alignment, twin, perceptual, still)


def _tokenizer(run: TokenizerRun, world: World, checkpoints: Path | None) -> Tokenizer:
    tokenizer = Tokenizer(run.model)
    state = load_state(checkpoints) if run.start_from and checkpoints else None
    if state is not None:
        _take_back(tokenizer, state)
    elif run.start_from:
        _take_weights(tokenizer, run, world)
    if run.trains == "decoder":
        for part in (tokenizer.encoder, tokenizer.project_in, tokenizer.quantizer):
            part.eval().requires_grad_(False)  # in evaluation mode codes are looked up, not drawn
    tokenizer.encoder.recompute_levels = run.recompute_levels
    tokenizer.decoder.recompute_levels = run.recompute_levels
    return world.shard(tokenizer)


def _take_back(tokenizer: Tokenizer, state: TrainingState) -> None:
    """From a checkpoint; the loop puts back the rest of it."""
    prefix = "module/tokenizer/"  # as core.snapshot names them
    tensors = {k.removeprefix(prefix): v for k, v in state.tensors.items() if k.startswith(prefix)}
    put_tensors(tokenizer, tensors, "the checkpoint's tokenizer")


def _take_weights(tokenizer: Tokenizer, run: TokenizerRun, world: World) -> None:
    """Copies what fits: all, or everything but a decoder of another shape."""
    source = world.first(lambda: Tokenizer.from_pretrained(run.start_from))
    tensors, wanted = source.state_dict(), tokenizer.state_dict()
    odd = [k for k in wanted | tensors if k not in tensors or k not in wanted]
    odd += [k for k in wanted if k in tensors and tensors[k].shape != wanted[k].shape]
    others = [*_differences(run, source.config), *(k for k in odd if not k.startswith("decoder."))]
    if others:
        raise UserError(
            f"start_from needs the encoder and quantizer of this recipe, but {run.start_from} "
            f"has others ({others[0]}); take its model config"
        )
    if odd:  # a decoder of another shape starts anew, whole
        tensors = {k: v for k, v in tensors.items() if not k.startswith("decoder.")}
    tokenizer.load_state_dict(tensors, strict=not odd)


def _differences(run: TokenizerRun, found: TokenizerConfig) -> list[str]:
    """Fields that shape latents, or tokens that must not change, and that two configs differ in."""
    mine, others = dict_of(run.model), dict_of(found)
    parts = ("codec", "quantizer") if run.trains == "decoder" else ("codec",)
    return [
        f"{part}.{key}"
        for part in parts
        for key, value in mine[part].items()
        if key != "decoder_blocks" and others[part].get(key) != value
    ]


def _dino(run: TokenizerRun, world: World) -> DinoFeatures | None:
    """On a grid of patches as large as the token grid."""
    losses = run.losses
    if not losses.alignment.weight and not (losses.critic.weight and losses.critic.kind == "dino"):
        return None
    size = DINO_PATCH * (run.view.size // run.model.codec.factor)
    network = losses.alignment.network
    return world.first(lambda: dino_of(network, losses.dino_weights, size=size)).to(world.device)


def assert_still(parts: Parts) -> None:
    """Makes sure that what must not move has not, to the bit."""
    now = parts.tokenizer.encoding_state()
    moved = [name for name, before in parts.still.items() if not torch.equal(before, now[name])]
    assert not moved, f"tokens must not change, but {moved[0]} has moved"
