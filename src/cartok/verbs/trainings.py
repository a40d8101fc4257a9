"""The verbs that make something: trainings, tokens, and the demo that joins them."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated

import tyro

from cartok.core.config import read_config
from cartok.core.errors import UserError
from cartok.verbs.arguments import First, Flat, Where, parse, progress_bar, train, with_recipe


def demo(arguments: list[str]) -> None:
    """Runs the demo."""
    from cartok.lab.demo import DemoConfig, run_demo
    from cartok.lab.stages import Launch

    @dataclass(frozen=True)
    class Demo(Where):
        """The whole way on photographs: two tokenizers, two priors, samples, scores, a page."""

        out: Path = Path("runs/demo")
        config: Annotated[DemoConfig, Flat] = field(default_factory=DemoConfig)

    chosen = parse(Demo, arguments, "demo")
    launch = Launch(chosen.out, chosen.device, chosen.resume, chosen.overwrite)
    run_demo(chosen.config, launch, progress_bar())


def train_tokenizer(arguments: list[str]) -> int:
    """Trains a tokenizer."""
    from cartok.lab.stages import Launch, run_tokenizer
    from cartok.recipes.tokenizer import TOKENIZERS
    from cartok.tokenizer.train import TokenizerRun

    @dataclass(frozen=True)
    class TrainTokenizer(Where):
        """Stage 1: pictures to a tokenizer.

        --model.quantizer KIND (vq, fsq, lfq, bsq, residual) puts another quantizer into a recipe;
        its own options follow it.
        """

        config: Annotated[TokenizerRun, Flat] = field(default_factory=TokenizerRun)

    chosen = with_recipe(TrainTokenizer, TokenizerRun, TOKENIZERS, arguments, "train-tokenizer")
    launch = Launch(chosen.out, chosen.device, chosen.resume, chosen.overwrite)
    return train(lambda progress: run_tokenizer(chosen.config, launch, progress), launch.device)


def train_prior(arguments: list[str]) -> int:
    """Trains a prior."""
    from cartok.lab.stages import Launch, run_prior
    from cartok.prior.train import PriorRun
    from cartok.recipes.prior import PRIORS

    @dataclass(frozen=True)
    class TrainPrior(Where):
        """Stage 2: token shards to a prior."""

        config: Annotated[PriorRun, Flat] = field(default_factory=PriorRun)

    chosen = with_recipe(TrainPrior, PriorRun, PRIORS, arguments, "train-prior", "prior-")
    launch = Launch(chosen.out, chosen.device, chosen.resume, chosen.overwrite)
    return train(lambda progress: run_prior(chosen.config, launch, progress), launch.device)


def extract(arguments: list[str]) -> None:
    """Writes token shards."""
    from cartok.core.precision import Precision
    from cartok.data.views import Kind, View
    from cartok.lab.extraction import run_extract
    from cartok.lab.stages import Launch

    @dataclass(frozen=True)
    class Extract:
        """A tokenizer and pictures to token shards."""

        tokenizer: str
        """A run, a model folder, or a model of the hub."""
        out: Path
        """A new or empty folder; one that holds tokens with --resume or --overwrite."""
        data: str = ""
        """Pictures; those the tokenizer was trained on, if it is a run and nothing is given."""
        size: int = 0
        """Pixels a side; that of the training, if nothing is given."""
        views: Kind = "flip"
        """Views of each picture; the paper's is ten-crop."""
        precision: Precision = "fp32"
        """fp32: tokens do not depend on the device; bf16 is faster on a GPU."""
        batch: int = 128
        """Views that are encoded at once."""
        workers: Annotated[int | None, tyro.conf.arg(metavar="INT")] = None
        """Processes that decode ahead; if nothing is given, up to 16 for a GPU, else none."""
        device: str = "auto"
        """auto, cpu, cuda, cuda:N or mps."""
        resume: bool = False
        """Go on where an extraction was stopped; picture files count as equal by name and size."""
        overwrite: bool = False
        """Start again in a folder that holds tokens."""

    chosen = parse(Extract, arguments, "extract")
    if chosen.resume and chosen.overwrite:
        raise UserError("--resume goes on and --overwrite starts again, but got both; give one")
    if chosen.batch < 1 or (chosen.workers or 0) < 0:
        raise UserError(
            f"--batch is at least 1 and --workers at least 0, but they are {chosen.batch} and "
            f"{chosen.workers}"
        )
    launch = Launch(chosen.out, chosen.device, chosen.resume, chosen.overwrite)
    manifest = run_extract(
        chosen.tokenizer, launch, progress_bar(), data=chosen.data,
        view=View(size=chosen.size) if chosen.size else None, kind=chosen.views,
        precision=chosen.precision, batch=chosen.batch, workers=chosen.workers,
    )  # fmt: skip
    print(f"{manifest.num('train')} training and {manifest.num('val')} validation pictures, "
          f"{manifest.num_tokens} tokens each: {chosen.out}")  # fmt: skip


def resume(arguments: list[str]) -> int:
    """Goes on with a run."""
    from cartok.core.parallel import World
    from cartok.lab import stages
    from cartok.lab.demo import DemoConfig, run_demo

    @dataclass(frozen=True)
    class Resume:
        """Go on with a run, or a demo, that was stopped."""

        run: First[Path]
        """Its folder."""
        device: str = "auto"
        """auto, cpu, cuda, cuda:N or mps."""

    chosen = parse(Resume, arguments, "resume")
    path = chosen.run / "demo.json"
    if not path.exists():
        return train(
            lambda progress: stages.resume(chosen.run, chosen.device, progress), chosen.device
        )
    if World.join(chosen.device).size > 1:
        raise UserError("a demo runs in one process, but there are more; resume without torchrun")
    launch = stages.Launch(chosen.run, chosen.device, resume=True)
    run_demo(read_config(DemoConfig, path), launch, progress_bar())
    return 0
