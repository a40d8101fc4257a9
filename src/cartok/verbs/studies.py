"""The verb of studies: many small trainings, of a recipe or of a grid that the options span."""

import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, Literal

import tyro

from cartok.core.errors import STOPPED, UserError
from cartok.verbs.arguments import First, Flat, parse, progress_bar


@dataclass(frozen=True)
class Launching:
    """How a study is run."""

    out: Annotated[Path | None, tyro.conf.arg(metavar="DIR")] = None
    """A new folder, or the study's; runs/NAME (runs/grid), if none is given."""
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
    """Arms at once, on all visible GPUs; 0: one a core, or four on each GPU."""
    retry: bool = False
    """Run again what failed before."""
    dry_run: bool = False
    """Print the runs and their cost, and train nothing."""
    on: Literal["here", "slurm", "ray"] = "here"
    """Where runs take place; slurm and ray make a job of each, on machines that see --out."""
    options: Annotated[tuple[str, ...], tyro.conf.arg(name="with", metavar="NAME=VALUE")] = ()
    """For such jobs, as submitit or ray.remote know them: timeout_min=240 gpus_per_node=1."""


_USAGE = """cartok study run NAME [OPTIONS]    a study of cartok recipes
cartok study grid [OPTIONS]        tokenizers by codes, pixels and weights, by priors and steps
with --help after either: its options"""


def study(arguments: list[str]) -> int:
    """Runs a study, or says what it would cost; 1 if every run of it has failed."""
    if arguments[:1] == ["grid"]:
        return _grid(arguments[1:])
    if arguments[:1] in ([], ["-h"], ["--help"]):
        print(_USAGE)
        return 0 if arguments else 2
    if arguments[0] != "run":
        raise UserError(
            "studies are run by: cartok study run NAME, or study grid with options; got "
            f"'{arguments[0]}'"
        )
    from cartok.recipes import recipe_of
    from cartok.recipes.study import STUDIES

    @dataclass(frozen=True)
    class NamedStudy(Launching):
        """Many small trainings that answer one question; started again, it goes on.

        cartok study run NAME; cartok recipes lists their names.
        """

        name: First[str] = field(kw_only=True)
        """Of a study; cartok recipes lists them."""

    chosen = parse(NamedStudy, arguments[1:], "study run")
    return _go(recipe_of(STUDIES, chosen.name), chosen)


def _grid(arguments: list[str]) -> int:
    from cartok.recipes import recipe_of
    from cartok.recipes.grids import grid
    from cartok.recipes.prior import PRIORS
    from cartok.recipes.tokenizer import TOKENIZERS
    from cartok.recipes.yardstick import Yardstick

    @dataclass(frozen=True)
    class Grid(Launching):
        """Tokenizers by codes, pixels and weights, each followed by priors of several lengths.

        Every combination is a run of its own with a whole schedule, so a grid grows: the same
        command with more values runs what is new. Then cartok plan DIR answers for a budget.
        """

        tokenizer: str = "causal-demo"
        """A recipe of stage 1, from which all tokenizers are made."""
        codes: tuple[int, ...] = ()
        """Sizes of the codebook; that of the recipe, if none is given."""
        pixels: tuple[int, ...] = ()
        """Pixels a side that tokens are made at: more give more tokens of the same tokenizer. Those
        of its training, if none is given."""
        weights: tuple[float, ...] = ()
        """Of the causal term; 0 is the baseline. That of the recipe, if none is given."""
        priors: tuple[str, ...] = ("demo",)
        """Recipes of stage 2, one for each size."""
        steps: tuple[int, ...] = (100, 200, 400, 800, 1600)
        """Lengths of a prior's training, its warm-up in proportion. A law takes four or more, which
        span a factor of ten."""
        yardstick: Annotated[Yardstick, Flat] = field(default_factory=Yardstick)

    chosen = parse(Grid, arguments, "study grid")
    config = grid(
        recipe_of(TOKENIZERS, chosen.tokenizer),
        [recipe_of(PRIORS, name) for name in chosen.priors],
        chosen.yardstick,
        codes=chosen.codes, pixels=chosen.pixels, weights=chosen.weights, steps=chosen.steps,
    )  # fmt: skip
    return _go(config, chosen)


def _go(config: Any, chosen: Launching) -> int:
    from cartok.lab.means import tables_of
    from cartok.lab.plan import plan_of
    from cartok.lab.records import why_none_counts
    from cartok.lab.study import StudyLaunch, refuse_folder, run_study
    from cartok.recipes.arms import adapted
    from cartok.scaling.claim import claims_lines, claims_of, pairs_of
    from cartok.scaling.grid import grid_of
    from cartok.scaling.grid_lines import grid_lines
    from cartok.scaling.numbers import aligned
    from cartok.scaling.study_file import read_study

    config = adapted(config, data=chosen.data, seeds=chosen.seeds, scale=chosen.scale)
    out = chosen.out or Path("runs") / config.name
    if chosen.options and chosen.on == "here":
        raise UserError("--with goes to jobs, but there are none here; give --on slurm or --on ray")
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
    try:
        means = run_study(config, launch, progress_bar())
    except (KeyboardInterrupt, SystemExit):
        print(f"cartok: interrupted; {_recorded(out)}, and the same command goes on",
              file=sys.stderr)  # fmt: skip
        return STOPPED
    study = read_study(out / "study.json")
    for part in grid_lines(study) if config.apart else tables_of(means):
        print(f"{part}\n")
    if claims := claims_of(study) + pairs_of(study):
        print(f"{aligned(claims_lines(claims), left=4)}\n")
    print(out / "study.json")
    print(f"its page: cartok report {out}")
    costs = [point.flops for arm in grid_of(study) for point in arm.points]
    if config.apart and costs:
        print(f"what to train: cartok plan {out} --budget {max(costs):.2g}flop")
    return 0 if any(arm.finished for arm in means) else 1


def _recorded(out: Path) -> str:
    from cartok.scaling.study_file import read_study

    if not (out / "study.json").exists():
        return "no run is recorded"
    runs = read_study(out / "study.json")["runs"]
    return f"{sum(run['status'] == 'finished' for run in runs)} of {len(runs)} runs are recorded"
