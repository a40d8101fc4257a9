"""The whole way through, twice: a tokenizer without and with the regulariser, and what follows.

Both arms have the same seed, data order, prior and FLOPs; the causal one takes fewer steps by what
its predictor costs. Each ends in samples and scores; together they make one page.
"""

import time
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from cartok.core.config import config, dict_of
from cartok.core.errors import UserError
from cartok.core.files import read_json, remove, write_json
from cartok.core.parallel import World
from cartok.core.progress import Progress
from cartok.core.run import provenance
from cartok.data.images import open_pictures, open_splits
from cartok.data.pictures import Pictures, largest_crop
from cartok.lab.arm_stages import run_arm
from cartok.lab.evaluations import save_png, sheet_of
from cartok.lab.inputs import COLUMNS, ArmInputs, arm_inputs
from cartok.lab.probe import ProbeConfig
from cartok.lab.stages import Launch
from cartok.lab.together import run_together
from cartok.prior.train import PriorRun
from cartok.recipes.prior import demo as demo_prior
from cartok.recipes.tokenizer import baseline_demo, causal_demo
from cartok.scaling.report import closing_table, write_report
from cartok.tokenizer.cost import Networks, count_flops
from cartok.tokenizer.doctor import collapse_of, gaming_of, measures_of
from cartok.tokenizer.losses import LossConfig
from cartok.tokenizer.model import Tokenizer, TokenizerConfig
from cartok.tokenizer.train import TokenizerRun

DEFAULT_MINUTES = 4.0
"""What the recipes' steps take on two slow CPU cores, everything included."""

PROBE = ProbeConfig()
_CONFIG = "demo.json"
_PARTS = ("summary.json", "report.html", "baseline", "causal", "pictures")


@config
class DemoConfig:
    """What can be chosen."""

    data: str = "photos"
    """'photos' (embedded), a folder or parquet of pictures, or 'hub:owner/name'."""
    seed: int = 0
    minutes: float = DEFAULT_MINUTES
    """Scales the steps of every training; 4 is what they take on two slow CPU cores."""

    def __post_init__(self):
        if self.minutes <= 0:
            raise ValueError(f"minutes must be above 0, but is {self.minutes}")
        if self.seed < 0:
            raise ValueError(f"seed must not be negative, but is {self.seed}")


@dataclass(frozen=True)
class Recipes:
    """The configs of both arms."""

    baseline: TokenizerRun
    causal: TokenizerRun
    prior: PriorRun


def run_demo(config: DemoConfig, launch: Launch, progress: Progress) -> dict[str, Any]:
    """Runs what is not done yet and writes ``summary.json`` and ``report.html``.

    Raises:
        UserError: the pictures are too few or too small, or the folder holds another demo.
    """
    started = time.monotonic()
    world, out = World.join(launch.device), launch.out
    refuse_folder(config, launch)
    if launch.resume and (out / "summary.json").exists():
        progress.say(f"this demo is finished; --overwrite starts it again ({out})")
        return _closing(out, progress)
    size = 32 if config.data == "photos" else largest_crop(open_pictures(config.data, "all"))
    splits = open_splits(config.data, size=size)
    train, held = splits["train"], splits["val"]
    recipes = recipes_for(config, size)
    inputs = inputs_of(recipes, train, held, world, launch.device)
    progress.say(
        f"{len(train)} training and {len(held)} validation pictures of {size} px, "
        f"{train.num_classes or 'no'} classes; two arms on {world.device.type}"
    )
    claim_folder(config, launch)
    save_png(sheet_of(inputs.held_image, COLUMNS), out / "pictures" / "inputs.png")
    both = {"baseline": recipes.baseline, "causal": recipes.causal}
    run_together(
        {
            name: (run_arm, (name, recipe, recipes.prior, out, inputs))
            for name, recipe in both.items()
        },
        progress,
    )
    arms = {name: read_json(out / name / "scores.json", "an arm's scores") for name in both}
    model, causal = recipes.causal.model, recipes.causal.causal
    summary = {
        "about": {
            **provenance(world),
            **dict_of(config),
            "num_train": len(train),
            "num_val": len(held),
            "num_tokenised": min(len(train), inputs.most_tokenised),
            "classes": list(train.classes),
            "size": size,
            "tokens": (size // model.codec.factor) ** 2,
            "codebook": model.quantizer.codebook_size,
            "guidance": inputs.yardstick.guidances[0] if inputs.num_classes else 1.0,
            "causal_weight": causal.weight,
            "causal_reads": causal.reads,
        },
        **arms,
        "warnings": warnings_of(arms),
        "seconds": {"value": time.monotonic() - started, "unit": "s"},
    }
    write_json(out / "summary.json", summary)
    write_report(out)
    return _closing(out, progress)


def recipes_for(config: DemoConfig, size: int) -> Recipes:
    """The demo's recipes for pictures of ``size`` pixels and a budget.

    Larger pictures get fewer steps, so that a training costs the FLOPs it does at 32 pixels.
    """
    share = config.minutes / DEFAULT_MINUTES
    base = baseline_demo()
    codec = replace(base.model.codec, stem=4 if size == 64 else base.model.codec.stem)
    model = replace(base.model, codec=codec)
    cost = _codec_flops(model, base.losses, size)
    usual = _codec_flops(base.model, base.losses, base.view.size)
    steps = max(10, round(base.loop.steps * share * min(1.0, usual / cost)))

    def sized(run: TokenizerRun) -> TokenizerRun:
        return replace(
            run, data=config.data, model=model, seed=config.seed,
            view=replace(run.view, size=size), loop=replace(run.loop, steps=steps),
        )  # fmt: skip

    prior = demo_prior()
    fewer = min(1.0, 64 / (size // codec.factor) ** 2)
    prior_steps = max(10, round(prior.loop.steps * share * fewer))
    prior = replace(prior, seed=config.seed, loop=replace(prior.loop, steps=prior_steps))
    return Recipes(sized(base), sized(causal_demo()), prior)


def _codec_flops(model: TokenizerConfig, losses: LossConfig, size: int) -> float:
    """What a codec costs a picture and step, without the networks that only look at pictures."""
    with torch.device("meta"):
        networks = Networks(Tokenizer(model))
    return count_flops(networks, losses, size).codec


def refuse_folder(config: DemoConfig, launch: Launch) -> None:
    """Looks, before anything is written, whether this demo may go to its folder.

    Raises:
        UserError: it holds files and neither resume nor overwrite is given, or no demo, or another.
    """
    out, path = launch.out, launch.out / _CONFIG
    if out.exists() and not out.is_dir():
        raise UserError(f"--out is a folder to write to, but {out} is a file; name another")
    if not out.is_dir() or not any(out.iterdir()):
        return
    if not (launch.resume or launch.overwrite):
        raise UserError(
            f"--out must be new or empty, but {out} holds files; give --resume to go on, "
            "--overwrite to start again, or another --out"
        )
    if not path.exists():
        raise UserError(f"{out} holds files but no demo (no {_CONFIG}); name another folder")
    if not launch.overwrite and (before := read_json(path, "a demo's config")) != dict_of(config):
        raise UserError(
            f"--resume goes on with an equal demo, but {out} holds {before}; "
            "give --overwrite to start again, or another --out"
        )


def claim_folder(config: DemoConfig, launch: Launch) -> None:
    """Makes the folder this demo's; one that should be overwritten loses the demo it holds."""
    if launch.overwrite:
        for part in (*_PARTS, _CONFIG):  # the config last: what it names is a demo until then
            remove(launch.out / part)
    write_json(launch.out / _CONFIG, dict_of(config))


def warnings_of(arms: dict[str, dict[str, Any]]) -> list[str]:
    """What a person should know before believing the numbers."""
    found = []
    for name, scores in arms.items():
        keys = ("code_usage", "code_perplexity", "latent_variance")
        lines = collapse_of(*(scores[key]["value"] for key in keys))
        found += [f"{name}: {line}" for line in lines]
    gamed = gaming_of(measures_of(arms["causal"]), measures_of(arms["baseline"]))
    return found + [f"causal: {line}" for line in gamed]


def inputs_of(
    recipes: Recipes, train: Pictures, held: Pictures, world: World, device: str
) -> ArmInputs:
    """What both arms share.

    Raises:
        UserError: there are too few pictures for a score.
    """
    inputs = arm_inputs(recipes.baseline.view, train, held, world, device)
    seen = recipes.prior.loop.steps * recipes.prior.loop.batch
    most = max(inputs.most_tokenised, seen)
    return replace(inputs, probe=PROBE, most_tokenised=most)


def _closing(out: Path, progress: Progress) -> dict[str, Any]:
    """Says the summary as a table, and where the page is; returns the summary."""
    summary = read_json(out / "summary.json", "a demo's summary")
    rows = [("", "baseline", "causal", ""), *closing_table(summary)]
    widths = [max(len(row[column]) for row in rows) for column in range(4)]
    progress.say("")
    for row in rows:
        cells = [row[0].ljust(widths[0]), row[1].rjust(widths[1]), row[2].rjust(widths[2]), row[3]]
        progress.say("  ".join(cells).rstrip())
    for warning in summary["warnings"]:
        progress.say(f"warning: {warning}")
    progress.say(f"\n{summary['seconds']['value']:.0f} s; open {out / 'report.html'}")
    return summary
