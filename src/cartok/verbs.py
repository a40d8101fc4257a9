"""What the verbs of the command line do with their arguments; ``__main__`` alone imports it.

Each takes the arguments after its name and prints its answer; progress goes to standard error.
"""

import json
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, TypeVar

import tyro
from rich.console import Console

from cartok.core.config import read_config
from cartok.core.errors import UserError
from cartok.core.progress import Progress
from cartok.recipes import recipe_of

T = TypeVar("T")
Flat = tyro.conf.arg(name="")  # a config's fields become options without its name before them
First = tyro.conf.Positional


@dataclass(frozen=True)
class _Where:
    """Where a run goes and on what."""

    out: Path = Path("runs/NAME")
    """A new or empty folder."""
    device: str = "auto"
    """auto, cpu, cuda, cuda:N or mps."""
    resume: bool = False
    """Go on with what is in the folder."""
    overwrite: bool = False
    """Start again in a folder that holds a run."""


def demo(arguments: list[str]) -> None:
    """Runs the demo."""
    from cartok.lab.demo import DemoConfig, run_demo
    from cartok.lab.stages import Launch

    @dataclass(frozen=True)
    class Demo(_Where):
        """The whole way on photographs: two tokenizers, two priors, samples, scores, a page."""

        out: Path = Path("runs/demo")
        config: Annotated[DemoConfig, Flat] = field(default_factory=DemoConfig)

    chosen = _parse(Demo, arguments, "demo")
    launch = Launch(chosen.out, chosen.device, chosen.resume, chosen.overwrite)
    run_demo(chosen.config, launch, _progress())


def inspect(arguments: list[str]) -> None:
    """Describes a data set and writes a contact sheet."""
    from cartok.data.survey import check_sheet, contact_sheet, describe, survey

    @dataclass(frozen=True)
    class Inspect:
        """Counts, sizes, classes, modes, duplicates and broken files; a sheet of pictures."""

        data: First[str]
        """'photos', a folder or parquet of pictures, or 'hub:owner/name'."""
        sheet: Path = Path("contact-sheet.png")
        """Where the sheet goes; a PNG that is there is replaced."""
        num: int = 64
        """Pictures on it."""

    chosen = _parse(Inspect, arguments, "inspect")
    check_sheet(chosen.sheet, chosen.num)
    found = survey(chosen.data, _progress())
    print(describe(found))
    contact_sheet(found.pictures, chosen.sheet, num=chosen.num)
    print(f"contact sheet: {chosen.sheet}")


def recipes(arguments: list[str]) -> None:
    """Lists the recipes."""
    from cartok.recipes.prior import PRIORS
    from cartok.recipes.tokenizer import TOKENIZERS

    @dataclass(frozen=True)
    class Recipes:
        """Every recipe, one line each."""

    _parse(Recipes, arguments, "recipes")
    for verb, table in (("train-tokenizer", TOKENIZERS), ("train-prior", PRIORS)):
        print(f"cartok {verb} RECIPE")
        for recipe in table.values():
            print(f"  {recipe.name:<16} {recipe.summary}")


def train_tokenizer(arguments: list[str]) -> None:
    """Trains a tokenizer."""
    from cartok.lab.stages import Launch, run_tokenizer
    from cartok.recipes.tokenizer import TOKENIZERS
    from cartok.tokenizer.train import TokenizerRun

    @dataclass(frozen=True)
    class TrainTokenizer(_Where):
        """Stage 1: pictures to a tokenizer."""

        config: Annotated[TokenizerRun, Flat] = field(default_factory=TokenizerRun)

    chosen = _with_recipe(TrainTokenizer, TokenizerRun, TOKENIZERS, arguments, "train-tokenizer")
    launch = Launch(chosen.out, chosen.device, chosen.resume, chosen.overwrite)
    _train(lambda progress: run_tokenizer(chosen.config, launch, progress), launch.device)


def train_prior(arguments: list[str]) -> None:
    """Trains a prior."""
    from cartok.lab.stages import Launch, run_prior
    from cartok.prior.train import PriorRun
    from cartok.recipes.prior import PRIORS

    @dataclass(frozen=True)
    class TrainPrior(_Where):
        """Stage 2: token shards to a prior."""

        config: Annotated[PriorRun, Flat] = field(default_factory=PriorRun)

    chosen = _with_recipe(TrainPrior, PriorRun, PRIORS, arguments, "train-prior")
    launch = Launch(chosen.out, chosen.device, chosen.resume, chosen.overwrite)
    _train(lambda progress: run_prior(chosen.config, launch, progress), launch.device)


def extract(arguments: list[str]) -> None:
    """Writes token shards."""
    from cartok.data.views import Kind, View
    from cartok.lab.stages import Launch, run_extract

    @dataclass(frozen=True)
    class Extract:
        """A tokenizer and pictures to token shards."""

        tokenizer: str
        """A run, a model folder, or a model of the hub."""
        out: Path
        """A new or empty folder."""
        data: str = ""
        """Pictures; those the tokenizer was trained on, if it is a run and nothing is given."""
        size: int = 0
        """Pixels a side; that of the training, if nothing is given."""
        views: Kind = "flip"
        """Views of each picture; the paper's is ten-crop."""
        device: str = "auto"
        """auto, cpu, cuda, cuda:N or mps."""
        overwrite: bool = False
        """Start again in a folder that holds tokens."""

    chosen = _parse(Extract, arguments, "extract")
    launch = Launch(chosen.out, chosen.device, overwrite=chosen.overwrite)
    manifest = run_extract(
        chosen.tokenizer, launch, _progress(), data=chosen.data,
        view=View(size=chosen.size) if chosen.size else None, kind=chosen.views,
    )  # fmt: skip
    print(f"{manifest.num('train')} training and {manifest.num('val')} validation pictures, "
          f"{manifest.num_tokens} tokens each: {chosen.out}")  # fmt: skip


def resume(arguments: list[str]) -> None:
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

    chosen = _parse(Resume, arguments, "resume")
    path = chosen.run / "demo.json"
    if not path.exists():
        _train(lambda progress: stages.resume(chosen.run, chosen.device, progress), chosen.device)
    elif World.join(chosen.device).size > 1:
        raise UserError("a demo runs in one process, but there are more; resume without torchrun")
    else:
        launch = stages.Launch(chosen.run, chosen.device, resume=True)
        run_demo(read_config(DemoConfig, path), launch, _progress())


def sample(arguments: list[str]) -> None:
    """Draws pictures."""
    from cartok.lab.pictures import SampleConfig, run_sample

    @dataclass(frozen=True)
    class Sample:
        """A prior and its tokenizer to new pictures."""

        prior: str
        """A run, a model folder, or a model of the hub."""
        tokenizer: str
        """The one whose tokens the prior was trained on."""
        out: Path
        """A new or empty folder."""
        config: Annotated[SampleConfig, Flat] = field(default_factory=SampleConfig)
        device: str = "auto"
        """auto, cpu, cuda, cuda:N or mps."""
        overwrite: bool = False
        """Replace samples that are there."""

    chosen = _parse(Sample, arguments, "sample")
    page = run_sample(
        chosen.prior, chosen.tokenizer, chosen.config, chosen.out, chosen.device, _progress(),
        overwrite=chosen.overwrite,
    )  # fmt: skip
    print(page)


def score(arguments: list[str]) -> None:
    """Scores pictures against reference pictures."""
    from cartok.lab.pictures import run_score

    @dataclass(frozen=True)
    class Score:
        """How far pictures are from reference pictures; offline networks, so not FID."""

        generated: First[str]
        """Pictures: a folder or parquet."""
        reference: First[str]
        """Pictures to compare with: the same, or 'photos'."""
        size: int = 0
        """Pixels a side that all pictures are brought to; the generated ones', if not given."""
        network_size: int = 96
        """Pixels a side that the network sees; 224 is its own."""
        seed: int = 0
        """Of the bootstrap."""
        device: str = "auto"
        """auto, cpu, cuda, cuda:N or mps."""
        json: Annotated[Path | None, tyro.conf.arg(metavar="FILE")] = None
        """Also write the scores with their receipts to this file."""

    chosen = _parse(Score, arguments, "score")
    scores = run_score(
        chosen.generated, chosen.reference, size=chosen.size, network_size=chosen.network_size,
        seed=chosen.seed, device=chosen.device, path=chosen.json,
    )  # fmt: skip
    for name, value in scores.items():
        mark = " (indicative)" if value.receipt.get("indicative") else ""
        print(f"{name:<12} {value.value:.6g} {value.unit}{mark}")
    if chosen.json is None and scores:
        print(json.dumps(next(iter(scores.values())).receipt))


def report(arguments: list[str]) -> None:
    """Writes a page."""
    from cartok.scaling.report import write_report

    @dataclass(frozen=True)
    class Report:
        """A page for a demo's folder, a run, or a folder of runs."""

        folder: First[Path]

    print(write_report(_parse(Report, arguments, "report").folder))


def _parse(cls: Callable[..., T], arguments: list[str], verb: str, default: Any = None) -> T:
    # tyro prints a mistyped option with the nearest right ones and exits with 2.
    given = {} if default is None else {"default": default}
    chosen = tyro.cli(cls, args=arguments, prog=f"cartok {verb}", **given)
    if isinstance(chosen, _Where) and chosen.resume and chosen.overwrite:
        raise UserError("--resume goes on and --overwrite starts again, but got both; give one")
    return chosen


def _with_recipe(
    cls: Callable[..., T], config: type, table: dict, arguments: list[str], verb: str
) -> T:
    """Options over a recipe's config, or over that of ``--config FILE``."""
    arguments = list(arguments)
    path = _take_option(arguments, "--config")
    name = arguments.pop(0) if arguments and not arguments[0].startswith("-") else ""
    if not path and not name and {"-h", "--help"} & set(arguments):
        name = next(iter(table))
    if bool(path) == bool(name):
        got = f"both {name} and {path}" if name else "neither"
        raise UserError(
            f"{verb} needs a recipe or --config FILE, but got {got}; see cartok recipes"
        )
    base = read_config(config, Path(path)) if path else recipe_of(table, name)
    out = Path("runs") / (name or f"{Path(path).resolve().parent.name}-again")
    return _parse(cls, arguments, f"{verb} {name}".strip(), cls(config=base, out=out))


def _take_option(arguments: list[str], name: str) -> str:
    for index, argument in enumerate(arguments):
        if argument == name and index + 1 < len(arguments):
            value = arguments[index + 1]
            del arguments[index : index + 2]
            return value
        if argument.startswith(f"{name}="):
            del arguments[index]
            return argument.split("=", 1)[1]
    return ""


def _train(action: Callable[[Progress], Any], device: str) -> None:
    """Runs a training on all ranks; the main one alone shows how far it is and names its folder."""
    from cartok.core.parallel import World

    world = World.join(device)
    try:
        run = action(_progress() if world.is_main else Progress())
        if world.is_main:
            print(run.folder)
    finally:
        world.leave()


def _progress() -> Progress:
    return Progress(Console(stderr=True))
