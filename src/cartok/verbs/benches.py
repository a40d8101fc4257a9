"""The verb that measures speed: its first word says of what."""

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import tyro

from cartok.core.config import nearest
from cartok.core.errors import UserError
from cartok.verbs.arguments import Flat, parse

if TYPE_CHECKING:
    from cartok.core.parallel import World


def bench(arguments: list[str]) -> None:
    """Measures a subject."""
    subjects = {"tokenizer": _tokenizer, "prior": _prior, "sampler": _sampler}
    if arguments and arguments[0] in ("-h", "--help"):
        print("usage: cartok bench SUBJECT [OPTIONS]\n\nSubjects, each with a --help of its own:")
        for name, subject in subjects.items():
            print(f"  {name:<10} {subject.__doc__}")
        return
    if not arguments or arguments[0] not in subjects:
        got = f"'{arguments[0]}'" if arguments else "nothing"
        hint = nearest(arguments[0] if arguments else "", list(subjects))
        raise UserError(f"bench names a subject first, but got {got}; {hint}")
    subjects[arguments[0]](arguments[1:])


def _tokenizer(arguments: list[str]) -> None:
    """Stage 1: training, encoding and decoding."""
    from cartok.core.files import refuse_unwritable, write_json
    from cartok.core.parallel import World
    from cartok.lab.bench import BenchConfig, bench_tokenizer, usual_bench

    @dataclass(frozen=True)
    class BenchTokenizer:
        """How fast a tokenizer trains, encodes and decodes here, beside the device's limits."""

        config: Annotated[BenchConfig, Flat] = field(default_factory=BenchConfig)
        device: str = "auto"
        """auto, cpu, cuda, cuda:N or mps."""
        profile: Annotated[Path | None, tyro.conf.arg(metavar="FILE")] = None
        """Also write a Markdown table of a training step's kernels to this file."""
        json: Annotated[Path | None, tyro.conf.arg(metavar="FILE")] = None
        """Also write every number, and what made it, to this file."""

    default = BenchTokenizer(usual_bench(tiny="--tiny" in arguments))
    chosen = parse(BenchTokenizer, arguments, "bench tokenizer", default)
    for path in filter(None, (chosen.json, chosen.profile)):
        refuse_unwritable(path)
    world = World.join(chosen.device)

    try:
        found = bench_tokenizer(chosen.config, world, _say(world), chosen.profile)
        if chosen.json is not None and world.is_main:
            write_json(chosen.json, found)
    finally:
        world.leave()


def _prior(arguments: list[str]) -> None:
    """Stage 2: training."""
    from cartok.lab.bench_prior import PriorBench, bench_prior, usual_prior_bench

    @dataclass(frozen=True)
    class BenchPrior(_Alone):
        """How fast a prior trains here, beside the device's limits."""

        config: Annotated[PriorBench, Flat] = field(default_factory=PriorBench)

    default = BenchPrior(config=usual_prior_bench(tiny="--tiny" in arguments))
    chosen = parse(BenchPrior, arguments, "bench prior", default)
    _measure(chosen, lambda world: bench_prior(chosen.config, world, _say(world)))


def _sampler(arguments: list[str]) -> None:
    """Drawing tokens, beside the least time that memory allows."""
    from cartok.lab.bench_sampler import SamplerBench, bench_sampler, usual_sampler_bench

    @dataclass(frozen=True)
    class BenchSampler(_Alone):
        """How fast a prior draws pictures here, beside the least that memory allows."""

        config: Annotated[SamplerBench, Flat] = field(default_factory=SamplerBench)

    default = BenchSampler(config=usual_sampler_bench(tiny="--tiny" in arguments))
    chosen = parse(BenchSampler, arguments, "bench sampler", default)
    _measure(chosen, lambda world: bench_sampler(chosen.config, world, _say(world)))


@dataclass(frozen=True)
class _Alone:
    """Options of a bench that runs in one process."""

    device: str = "auto"
    """auto, cpu, cuda, cuda:N or mps."""
    json: Annotated[Path | None, tyro.conf.arg(metavar="FILE")] = None
    """Also write every number, and what made it, to this file."""


def _measure(chosen: _Alone, bench: Callable[["World"], dict[str, Any]]) -> None:
    from cartok.core.files import refuse_unwritable, write_json
    from cartok.core.parallel import World

    if chosen.json is not None:
        refuse_unwritable(chosen.json)
    world = World.join(chosen.device)
    try:
        found = bench(world)
        if chosen.json is not None:
            write_json(chosen.json, found)
    finally:
        world.leave()


def _say(world: "World") -> Callable[[str], None]:
    def say(line: str) -> None:
        if world.is_main:
            print(line, flush=True)

    return say
