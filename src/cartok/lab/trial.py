"""Tokenizers compared without a large prior: each gets the same small one, and the same budget.

DIR/
  trial.json            what was asked, and every tokenizer's scores with their receipts
  NAME/                 tokens/ and prior/, and the scores that are measured already
  pictures/             reconstructions and samples
"""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from cartok.core.config import config, dict_of
from cartok.core.errors import UserError
from cartok.core.files import finite, read_json, write_json
from cartok.core.parallel import World
from cartok.core.progress import Progress
from cartok.core.run import first_difference, provenance
from cartok.data.images import open_splits
from cartok.data.tokens import MANIFEST, read_manifest
from cartok.data.views import View
from cartok.lab.arm import Arm, once, score_of
from cartok.lab.arm_scores import tokenizer_scores
from cartok.lab.arm_stages import run_stage_two
from cartok.lab.extraction import run_extract, trained_with
from cartok.lab.inputs import Scores, arm_inputs
from cartok.prior.train import PriorRun
from cartok.recipes.prior import demo, small
from cartok.recipes.yardstick import Yardstick
from cartok.tokenizer.model import Tokenizer

FILE = "trial.json"


@config
class TrialConfig:
    """What every tokenizer is put to; numbers of different trials do not compare."""

    data: str = ""
    """Pictures; those of the first tokenizer's training, if it is a run and nothing is given."""
    size: int = 0
    """Pixels a side; that of the first tokenizer's training, if nothing is given."""
    prior: PriorRun = demo()
    yardstick: Yardstick = Yardstick()


def usual_trial(on_gpu: bool) -> TrialConfig:
    """Minutes a tokenizer: on a GPU the studies' prior, and samples enough for a verdict."""
    if not on_gpu:
        return TrialConfig()
    yardstick = Yardstick(
        samples=10_000, reference=10_000, held=5_000, guidances=(1.0, 1.25, 1.5, 2.0),
        scan_samples=2_048, drawn_in="bf16",
    )  # fmt: skip
    return TrialConfig(prior=small(), yardstick=yardstick)


def run_trial(
    sources: Sequence[str], trial: TrialConfig, out: Path, device: str, progress: Progress
) -> dict[str, Scores]:
    """Tokens, a prior and scores for every tokenizer, by name; what is there is not made again.

    A source is a run, a model folder or a model of the hub, as such or as ``NAME=SOURCE``. Written
    to ``trial.json`` as they come.

    Raises:
        UserError: two names are alike; the folder holds another trial; pictures or their size are
            not known; a tokenizer cannot be read, or is another than the one of that name before.
        SystemExit: a training was asked to stop; the same command goes on.
    """
    named = _named(sources)
    trial = _settled(trial, next(iter(named.values())))
    asked = {"sources": named, "config": dict_of(trial)}
    _refuse_other(out / FILE, asked)
    world, view = World.join(device), View(size=trial.size)
    for source in named.values():  # before any is trained on
        Tokenizer.from_pretrained(source).grid_of(view.size, view.size)
    splits = open_splits(trial.data, size=trial.size)
    inputs = arm_inputs(view, splits["train"], splits["val"], world, device, trial.yardstick)
    seen = trial.prior.loop.steps * trial.prior.loop.batch
    inputs = replace(inputs, most_tokenised=max(inputs.most_tokenised, seen))
    found: dict[str, Scores] = {}
    for name, source in named.items():
        arm = Arm(name, out / name, out / "pictures", inputs, progress, splits, source)
        found[name] = _scores(arm, trial, view) | inputs.floor
        written = asked | {"scores": found, "provenance": provenance(world)}
        write_json(out / FILE, finite(written))
    return found


def _scores(arm: Arm, trial: TrialConfig, view: View) -> Scores:
    tokenizer, launch = arm.tokenizer(), arm.launch("tokens")
    if (launch.out / MANIFEST).exists():
        if read_manifest(launch.out).tokenizer_digest != tokenizer.digest:
            raise UserError(
                f"a trial goes on with the tokenizers it began with, but {arm.source} is another "
                f"than the one whose tokens lie in {launch.out}; give another --out or NAME="
            )
    else:
        run_extract(
            arm.source, replace(launch, overwrite=True), arm.progress, data=trial.data, view=view,
            kind="flip", most=arm.inputs.most_tokenised, title=f"{arm.name} tokens",
            splits=arm.splits,
        )  # fmt: skip
    rows, cols = tokenizer.grid_of(view.size, view.size)
    shape = {
        "tokens": score_of(rows * cols, "tokens/image"),
        "codes": score_of(tokenizer.codebook_size, "codes", digest=tokenizer.digest),
    }
    scores = once(arm.folder / "tokenizer-scores.json", lambda: tokenizer_scores(arm))
    scores = shape | scores | run_stage_two(arm, trial.prior, "prior")
    record = read_json(arm.folder / "prior" / "record.json", "a record")
    scores["prior_nats_per_token"]["receipt"]["per_position"] = record["nats_per_position"]
    return scores


def _named(sources: Sequence[str]) -> dict[str, str]:
    """By the name that is given, or by the last words of the path that tell what it is."""
    if not sources:
        raise UserError("a trial needs a tokenizer or more: runs, model folders or hub models")
    found: dict[str, str] = {}
    for given in sources:
        name, _, source = given.rpartition("=")
        parts = [part for part in Path(source).parts if part not in ("/", "tokenizer", "model")]
        name = name or (parts[-1] if parts else "tokenizer")
        if name in found:
            raise UserError(
                f"tokenizers of a trial have names of their own, but two are '{name}'; give "
                f"NAME={source}"
            )
        if Path(name).name != name or name in ("pictures", FILE, ".", ".."):
            raise UserError(f"a name is that of a folder, but is '{name}'; give another")
        found[name] = source
    return found


def _settled(trial: TrialConfig, first: str) -> TrialConfig:
    """With pictures and size, if need be those of the first tokenizer's training."""
    trained = trained_with(first)
    data = trial.data or (trained.data if trained else "")
    size = trial.size or (trained.view.size if trained else 0)
    if not data or not size:
        raise UserError(
            f"{first} is no run folder that says what it was trained on; give --data and --size"
        )
    return replace(trial, data=data, size=size)


def _refuse_other(path: Path, asked: dict[str, Any]) -> None:
    if not path.exists():
        return
    before = read_json(path, "a trial")
    if before.get("config") != asked["config"]:
        parted = first_difference(before.get("config"), asked["config"])
        raise UserError(
            f"tokenizers that are compared are put to the same, but to those of {path.parent} was "
            f"put another: {parted}; give the same options, or another --out"
        )
