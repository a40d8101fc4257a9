"""One function a verb: opens what is needed, runs one stage in one folder, closes the record."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from cartok.core.config import config_of, dict_of, read_config
from cartok.core.errors import UserError
from cartok.core.files import read_json, write_json
from cartok.core.loop import Outcome
from cartok.core.parallel import World
from cartok.core.progress import Progress
from cartok.core.run import Run, refuse_occupied
from cartok.data.images import open_splits
from cartok.data.pictures import Pictures
from cartok.data.tokens import TokenManifest, difference, open_tokens
from cartok.lab.diagnosis import diagnose
from cartok.lab.evaluations import STRETCHES, prior_evaluations, tokenizer_evaluations
from cartok.prior.train import PriorJob, PriorRun, nats_per_position, train_prior
from cartok.tokenizer.codec import parameter_count
from cartok.tokenizer.train import TokenizerJob, TokenizerRun, train_tokenizer

DATA_KINDS = "'photos', a folder or parquet of pictures, or 'hub:owner/name'"

UNITS = {
    "psnr_db": "dB",
    "num_pictures": "pictures",
    "code_usage": "share of codes",
    "code_perplexity": "codes",
    "r2_latents": "share of variance",
    "r2_codes": "share of variance",
    "next_latent_mse": "squared latent units",
    "quantisation_mse": "squared latent units",
    "latent_variance": "squared latent units",
    "survival": "share of tokens",
    "nats_per_token": "nats/token",
    **{f"nats_in_stretch_{number}": "nats/token" for number in range(1, STRETCHES + 1)},
    "fd_effnet64": "squared feature distance",
    "fd_effnet": "squared feature distance",
    "kd_effnet": "squared mean discrepancy",
}


Splits = dict[Literal["train", "val"], Pictures]
"""Both splits of a data set."""


@dataclass(frozen=True)
class Launch:
    """Where a run goes and on what; no part of its config, so no part of its digest."""

    out: Path
    device: str = "auto"
    resume: bool = False
    overwrite: bool = False


def run_tokenizer(
    config: TokenizerRun,
    launch: Launch,
    progress: Progress,
    title: str = "tokenizer",
    splits: Splits | None = None,
) -> Run:
    """Trains a tokenizer into a run folder; a finished run is left as it is on ``resume``.

    ``splits`` are the config's data, where they have been opened already.
    """
    if not config.data:
        raise UserError(f"this recipe names no pictures; give --data {DATA_KINDS}")
    world = World.join(launch.device)
    # Before what takes long; the folder is made after it, since what a job refuses leaves none.
    asked = Run(launch.out, "tokenizer", config, world)
    refuse_occupied(asked, resume=launch.resume, overwrite=launch.overwrite)
    if launch.resume and asked.is_finished:
        progress.say(f"{title}: {asked.folder} is finished already")
        return asked
    splits = splits or open_splits(config.data, size=config.view.size)
    train, held = splits["train"], splits["val"]
    for fault in train.skipped[:10]:
        progress.say(f"skipped {fault.name}: {fault.reason}")
    job = TokenizerJob(config, train, world, asked.checkpoints if launch.resume else None)
    run = _open_run(config, launch, "tokenizer", world)
    progress.say(f"{title}: {costs_of(job)}")
    evaluations = tokenizer_evaluations(job, held, run)
    with progress.stage(title, job.steps) as tick:
        outcome = train_tokenizer(job, run, evaluations=evaluations, tick=tick)
    say_unreadable(train, progress)
    _close_run(run, outcome, job.facts(outcome), progress)
    if outcome.finished and world.is_main:
        for finding in diagnose(run.folder)[0].findings:
            progress.say(f"{title}, {finding.severity}: {finding.line}")
    return run


def costs_of(job: TokenizerJob) -> str:
    """A training's networks and steps, in words: parameters, FLOPs, and what makes steps equal."""
    flops, config, parts = job.flops, job.config, job.parts
    counts = {"encoder": parts.tokenizer.encoder, "decoder": parts.tokenizer.decoder,
              "critic": parts.critic, "predictor": parts.causal}  # fmt: skip
    words = [
        f"{name} {_short(parameter_count(module))}"
        for name, module in counts.items()
        if module is not None
    ]
    tokenizer, side = job.tokenizer, config.view.size
    rows, places = tokenizer.grid_of(side, side)
    text = f"{rows * places} tokens of {tokenizer.codebook_size:,} codes; "
    text += f"parameters: {', '.join(words)}; FLOPs a picture: codec {_short(flops.codec)}"
    if flops.critic:
        text += f", critic {_short(flops.critic)}"
    if flops.causal:
        share = flops.causal / flops.codec
        text += f", regulariser {_short(flops.causal)} ({share:.1%})"
    if job.steps < config.loop.steps:
        text += (
            f"; {job.steps:,} steps cost what {config.loop.steps:,} cost without the regulariser"
        )
    return text


def _short(number: int | float) -> str:
    """A count in three digits with its unit: 42.4M, 1.17T."""
    for power, unit in ((12, "T"), (9, "G"), (6, "M"), (3, "k")):
        if number >= 10**power:
            return f"{number / 10**power:.3g}{unit}"
    return f"{number:.3g}"


def run_prior(config: PriorRun, launch: Launch, progress: Progress, title: str = "prior") -> Run:
    """Trains a prior into a run folder; a finished run is left as it is on ``resume``.

    Raises:
        UserError: the tokens are damaged, or on ``resume`` others than those it began with.
    """
    world = World.join(launch.device)
    shards = open_tokens(Path(config.tokens), "train")
    held = open_tokens(Path(config.tokens), "val")
    run = _open_run(config, launch, "prior", world)
    if launch.resume and run.is_finished:
        progress.say(f"{title}: {run.folder} is finished already")
        return run
    _refuse_other_tokens(run, shards.manifest)
    job = PriorJob(config, shards, world)
    evaluations = prior_evaluations(job, held)
    with progress.stage(title, config.loop.steps) as tick:
        outcome = train_prior(job, run, evaluations=evaluations, tick=tick)
    facts = job.facts(outcome)
    if outcome.finished:
        nats = nats_per_position(job.prior, held, len(held), world.device)
        facts["nats_per_position"] = nats.tolist()
    return _close_run(run, outcome, facts, progress)


def resume(folder: Path, device: str, progress: Progress) -> Run:
    """Goes on with a run from its folder alone.

    Raises:
        UserError: the folder holds no run.
    """
    stored = read_json(folder / "config.json", "a run's config")
    launch = Launch(out=folder, device=device, resume=True)
    kind = stored.get("kind") if isinstance(stored, dict) else None
    if kind == "tokenizer":
        return run_tokenizer(read_config(TokenizerRun, folder / "config.json"), launch, progress)
    if kind == "prior":
        return run_prior(read_config(PriorRun, folder / "config.json"), launch, progress)
    raise UserError(f"cartok resume goes on with a tokenizer or a prior; {folder} holds {kind!r}")


def _refuse_other_tokens(run: Run, manifest: TokenManifest) -> None:
    """Keeps what tokens a prior begins with; refuses to go on with others."""
    if run.tokens.exists():
        began = config_of(TokenManifest, read_json(run.tokens, "a token manifest"))
        if parted := difference(began, manifest):
            raise UserError(
                f"a prior goes on with the tokens it began with, but in their manifest {parted}; "
                "extract them as they were, or start again with --overwrite"
            )
    elif run.world.is_main:
        write_json(run.tokens, dict_of(manifest))


def say_unreadable(pictures: Pictures, progress: Progress) -> None:
    """Names the pictures that turned out to be unreadable when they were decoded."""
    for fault in pictures.broken[:10]:
        progress.say(f"left out {fault.name}: {fault.reason}")


def _open_run(config: Any, launch: Launch, kind: str, world: World) -> Run:
    return Run.open(
        launch.out, config, kind=kind, world=world,
        resume=launch.resume, overwrite=launch.overwrite,
    )  # fmt: skip


def _close_run(run: Run, outcome: Outcome, facts: dict[str, Any], progress: Progress) -> Run:
    if not outcome.finished:
        progress.say(f"stopped at step {outcome.step}; go on with: cartok resume {run.folder}")
        run.close()
        return run
    scores = {
        name: {"value": value, "unit": UNITS.get(name.split("/")[-1], "")}
        for name, value in outcome.values.items()
    }
    run.finish(**facts, scores=scores)
    return run
