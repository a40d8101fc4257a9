"""The verbs that make something: trainings, tokens, and the demo that joins them."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Literal

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


def study(arguments: list[str]) -> int:
    """Runs a study, or says what it would cost; 1 if every run of it has failed."""
    from cartok.lab.means import tables_of
    from cartok.lab.plan import plan_of
    from cartok.lab.records import why_none_counts
    from cartok.lab.study import StudyLaunch, refuse_folder, run_study
    from cartok.recipes import recipe_of
    from cartok.recipes.arms import adapted
    from cartok.recipes.study import STUDIES
    from cartok.scaling.claim import claims_lines, claims_of, pairs_of
    from cartok.scaling.grid_lines import grid_lines
    from cartok.scaling.numbers import aligned
    from cartok.scaling.study_file import read_study

    @dataclass(frozen=True)
    class Study:
        """Many small trainings that answer one question; started again, it goes on.

        cartok study run NAME; cartok recipes lists their names.
        """

        name: First[str]
        out: Annotated[Path | None, tyro.conf.arg(metavar="DIR")] = None
        """A new folder, or the study's; runs/NAME, if none is given."""
        data: str = ""
        """Pictures; 'photos', if nothing is given."""
        arms: tuple[str, ...] = ()
        """Names of arms to run now, while others wait; all, if none is given."""
        seeds: Annotated[int | None, tyro.conf.arg(metavar="INT")] = None
        """Runs of every arm; the study's own number, if none is given."""
        scale: float = 1.0
        """Multiplies the steps of every training, warm-up and annealing among them."""
        device: str = "auto"
        """auto, cpu, cuda, cuda:N or mps."""
        at_once: int = 0
        """Arms at once, dealt out to all visible GPUs; 0: one a core, or four on each GPU."""
        retry: bool = False
        """Run again what failed before."""
        dry_run: bool = False
        """Print the runs and their cost, and train nothing."""
        on: Literal["here", "slurm", "ray"] = "here"
        """Where runs take place; slurm and ray make a job of each, on machines that see --out."""
        options: Annotated[tuple[str, ...], tyro.conf.arg(name="with", metavar="NAME=VALUE")] = ()
        """For such jobs, as submitit or ray.remote know them: timeout_min=240 gpus_per_node=1."""

    if arguments[:1] not in (["run"], ["-h"], ["--help"], []):
        raise UserError(f"studies are run by: cartok study run NAME; got '{arguments[0]}'")
    chosen = parse(Study, arguments[1:] if arguments[:1] == ["run"] else arguments, "study run")
    config = adapted(
        recipe_of(STUDIES, chosen.name),
        data=chosen.data,
        seeds=chosen.seeds,
        scale=chosen.scale,
    )
    out = chosen.out or Path("runs") / chosen.name
    if chosen.at_once < 0:
        raise UserError(f"--at-once is 0 (as many as fit) or more, but is {chosen.at_once}")
    if chosen.dry_run:
        refuse_folder(config, out)
        if apart := why_none_counts(config, out):
            print(f"{apart}\n")
        print(plan_of(config, out, chosen.arms))
        return 0
    launch = StudyLaunch(
        out=out, device=chosen.device, at_once=chosen.at_once, retry=chosen.retry,
        arms=chosen.arms, on=chosen.on, options=chosen.options,
    )  # fmt: skip
    means = run_study(config, launch, progress_bar())
    study = read_study(out / "study.json")
    for part in grid_lines(study) if config.apart else tables_of(means):
        print(f"{part}\n")
    if claims := claims_of(study) + pairs_of(study):
        print(f"{aligned(claims_lines(claims), left=4)}\n")
    print(out / "study.json")
    return 0 if any(arm.finished for arm in means) else 1


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
