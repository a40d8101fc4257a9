"""The verb that scores pictures, and compares what it scored."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import tyro

from cartok.core.errors import UserError
from cartok.verbs.arguments import First, Flat, parse, progress_bar

if TYPE_CHECKING:
    from cartok.metrics.score import Score


def score(arguments: list[str]) -> None:
    """Scores pictures against reference pictures."""
    from cartok.core.files import refuse_unwritable
    from cartok.core.parallel import World
    from cartok.core.progress import Progress
    from cartok.lab.score_page import refuse_page
    from cartok.lab.scoring import ScoreConfig, run_score

    @dataclass(frozen=True)
    class Score:
        """How far pictures are from reference pictures, under a protocol that has a name.

        Either side is a folder, a zip, a tar shard or a folder of them, parquet, an npy, or an npz
        as ADM's evaluator reads it. Without --preset the network is an offline one, so not FID.
        Started by torchrun, every process sees a share of the pictures.
        """

        generated: First[str] = ""
        """Pictures that are scored."""
        reference: First[str] = ""
        """Pictures to compare with; 'photos' too, or the npz of ADM's evaluator."""
        config: Annotated[ScoreConfig, Flat] = field(default_factory=ScoreConfig)
        device: str = "auto"
        """auto, cpu, cuda, cuda:N or mps."""
        json: Annotated[Path | None, tyro.conf.arg(metavar="FILE")] = None
        """Also write the scores with their receipts to this file."""
        npz: Annotated[Path | None, tyro.conf.arg(metavar="FILE")] = None
        """Also write the generated pictures and their statistics as ADM's evaluator reads them."""
        page: Annotated[Path | None, tyro.conf.arg(metavar="DIR")] = None
        """Also write a page: the scores, samples beside their nearest reference pictures, and with
        --paired the worst reconstructions."""
        compare: Annotated[tuple[Path, ...], tyro.conf.arg(metavar="A.json B.json")] = ()
        """Score nothing: print by how much the numbers of a second file exceed those of a first."""

    chosen = parse(Score, arguments, "score")
    if chosen.compare:
        _compare(chosen.compare, bool(chosen.generated))
        return
    if not chosen.generated or not chosen.reference:
        raise UserError("a score needs pictures and a reference: cartok score GENERATED REFERENCE")
    for path in (chosen.json, chosen.npz):
        if path is not None:
            refuse_unwritable(path)
    if chosen.page is not None:
        refuse_page(chosen.page)
    world = World.join(chosen.device)
    try:
        found = run_score(
            chosen.generated, chosen.reference, chosen.config, chosen.device,
            progress_bar() if world.is_main else Progress(),
            chosen.json, chosen.npz, chosen.page,
        )  # fmt: skip
    finally:
        world.leave()
    if not world.is_main:
        return
    for note in found.notes:
        print(note)
    print_scores(found.scores)
    if chosen.page is not None:
        print(chosen.page / "report.html")
    elif chosen.json is None and found.scores:
        import json

        print(json.dumps(next(iter(found.scores.values())).receipt))


def print_scores(scores: "dict[str, Score]") -> None:
    """Prints each number with its 90 % interval, if it has one, and its unit."""
    from cartok.metrics.score import interval_of

    width = max(map(len, scores), default=0)
    for name, value in scores.items():
        interval = interval_of(value)
        known = "" if interval is None else f" [{interval[0]:.6g}, {interval[1]:.6g}]"
        mark = " (indicative)" if value.receipt.get("indicative") else ""
        print(f"{name:<{max(width, 12)}} {value.value:.6g}{known} {value.unit}{mark}")


def _compare(paths: tuple[Path, ...], has_more: bool) -> None:
    from cartok.metrics.score import difference, read_scores

    if len(paths) != 2 or has_more:
        raise UserError("--compare takes two files of scores and nothing else; name both")
    first, second = map(read_scores, paths)
    shared = [name for name in first if name in second]
    if not shared:
        raise UserError(
            f"two files compare in the numbers that both have, but {paths[0]} has "
            f"{', '.join(first) or 'none'} and {paths[1]} {', '.join(second) or 'none'}"
        )
    found = {name: difference(first[name], second[name]) for name in shared}
    width = max(map(len, found))
    for name, by in found.items():
        interval = "no interval"
        if by.interval is not None:
            low, high = by.interval
            sure = "" if low <= 0 <= high else ", not by chance"
            interval = f"[{low:+.4g}, {high:+.4g}]{sure}"
        print(f"{name:<{width}} {by.value:+.6g} {interval} {second[name].unit}")
    for path, lone in ((paths[0], first.keys() - second), (paths[1], second.keys() - first)):
        if lone:
            print(f"in {path} alone: {', '.join(sorted(lone))}")
