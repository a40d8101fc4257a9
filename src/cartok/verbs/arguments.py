"""What all verbs share: their options as dataclasses, recipes under them, progress on stderr."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, TypeVar

import tyro
from rich.console import Console

from cartok.core.config import nearest, read_config
from cartok.core.errors import STOPPED, UserError
from cartok.core.progress import Progress
from cartok.recipes import recipe_of

T = TypeVar("T")
Flat = tyro.conf.arg(name="")  # a config's fields become options without its name before them
First = tyro.conf.Positional


@dataclass(frozen=True)
class Where:
    """Where a run goes and on what."""

    out: Path = Path("runs/NAME")
    """A new or empty folder."""
    device: str = "auto"
    """auto, cpu, cuda, cuda:N or mps."""
    resume: bool = False
    """Go on with what is in the folder."""
    overwrite: bool = False
    """Start again in a folder that holds a run."""


def parse(cls: Callable[..., T], arguments: list[str], verb: str, default: Any = None) -> T:
    """The options of a verb; a mistyped one ends the program with the nearest right ones."""
    given = {} if default is None else {"default": default}
    # A choice of configs is made before; its options are then plain ones, not subcommands.
    plain = (tyro.conf.AvoidSubcommands,)
    chosen = tyro.cli(cls, args=arguments, prog=f"cartok {verb}", config=plain, **given)
    if isinstance(chosen, Where) and chosen.resume and chosen.overwrite:
        raise UserError("--resume goes on and --overwrite starts again, but got both; give one")
    return chosen


def with_recipe(
    cls: Callable[..., T],
    config: type,
    table: dict,
    arguments: list[str],
    verb: str,
    prefix: str = "",
) -> T:
    """Options over a recipe's config, or over that of ``--config FILE``.

    The folder it goes to, unless one is named, is ``runs/`` with the recipe's name, after
    ``prefix``.
    """
    arguments = list(arguments)
    path = take_option(arguments, "--config")
    name = arguments.pop(0) if arguments and not arguments[0].startswith("-") else ""
    if not path and not name and {"-h", "--help"} & set(arguments):
        name = next(iter(table))
    if bool(path) == bool(name):
        got = f"both {name} and {path}; give one" if name else "neither; a recipe comes first"
        raise UserError(
            f"{verb} needs a recipe or --config FILE, but got {got}; see cartok recipes"
        )
    base = read_config(config, Path(path)) if path else recipe_of(table, name)
    if hasattr(getattr(base, "model", None), "quantizer"):
        kind = take_option(arguments, "--model.quantizer")
        kind = kind or take_option(arguments, "--model.quantizer.kind")
        base = _with_quantizer(base, kind)
    out = Path("runs") / (prefix + name if name else f"{Path(path).resolve().parent.name}-again")
    return parse(cls, arguments, f"{verb} {name}".strip(), cls(config=base, out=out))


def _with_quantizer(base: Any, kind: str) -> Any:
    """The config with another kind of quantizer; one of that kind already keeps what it says."""
    from cartok.tokenizer.quantize.kinds import KINDS

    if not kind or kind == base.model.quantizer.kind:
        return base
    if kind not in KINDS:
        raise UserError(f"--model.quantizer has no kind '{kind}'; {nearest(kind, list(KINDS))}")
    return replace(base, model=replace(base.model, quantizer=KINDS[kind][0]()))


def take_option(arguments: list[str], name: str) -> str:
    """Takes ``name VALUE`` or ``name=VALUE`` out of the arguments; '' if it is not there."""
    for index, argument in enumerate(arguments):
        if argument == name and index + 1 < len(arguments):
            value = arguments[index + 1]
            del arguments[index : index + 2]
            return value
        if argument.startswith(f"{name}="):
            del arguments[index]
            return argument.split("=", 1)[1]
    return ""


def train(action: Callable[[Progress], Any], device: str) -> int:
    """Runs a training on all ranks; the main one alone shows how far it is and names its folder.

    The exit code is 0 at its end, and ``STOPPED`` before.
    """
    from cartok.core.parallel import World

    world = World.join(device)
    try:
        run = action(progress_bar() if world.is_main else Progress())
        if world.is_main:
            print(run.folder)
        return 0 if run.is_finished or not world.is_main else STOPPED
    finally:
        world.leave()


def progress_bar() -> Progress:
    """Progress on standard error."""
    return Progress(Console(stderr=True))
