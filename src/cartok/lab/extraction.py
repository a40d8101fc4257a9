"""Tokens of a data set into a folder: what ``cartok extract`` does."""

import os
from pathlib import Path

from cartok.core.config import config_of
from cartok.core.errors import UserError
from cartok.core.files import read_json
from cartok.core.parallel import World
from cartok.core.precision import Precision
from cartok.core.progress import Progress
from cartok.data.images import open_splits
from cartok.data.token_writer import is_half_written, is_shard
from cartok.data.tokens import MANIFEST, TokenManifest
from cartok.data.views import Kind, View
from cartok.lab.evaluations import spread
from cartok.lab.stages import Launch, Splits, say_unreadable
from cartok.tokenizer.extract import extract
from cartok.tokenizer.model import Tokenizer
from cartok.tokenizer.train import TokenizerRun


def run_extract(
    tokenizer_source: str,
    launch: Launch,
    progress: Progress,
    *,
    data: str = "",
    view: View | None = None,
    kind: Kind = "flip",
    precision: Precision = "fp32",
    batch: int = 128,
    workers: int | None = 0,
    most: int = 0,
    title: str = "tokens",
    splits: Splits | None = None,
) -> TokenManifest:
    """Writes the tokens of a data set; data and view are the tokenizer run's unless given.

    At most ``most`` training pictures and a tenth as many for validation are taken, spread evenly
    over the set; 0 takes all. ``splits`` are the data, where they have been opened already.
    ``batch`` and ``workers`` are those of ``extract``; None is as many as suit the device.

    Raises:
        UserError: the folder is not empty; the tokenizer is no run and data or view is missing.
    """
    _refuse_folder(launch)
    world = World.join(launch.device)
    tokenizer = Tokenizer.from_pretrained(tokenizer_source).to(world.device)
    trained = trained_with(tokenizer_source)
    data = data or (trained.data if trained else "")
    view = view or (trained.view if trained else None)
    if not data or view is None:
        raise UserError(
            f"{tokenizer_source} is no run folder that says what it was trained on; "
            "give --data and --size"
        )
    splits = splits or open_splits(data, size=view.size)
    if most:
        few = {"train": most, "val": most // 10}
        splits = {split: spread(pictures, few[split]) for split, pictures in splits.items()}
    if workers is None:  # on a CPU they would take turns with what encodes
        workers = min(16, os.cpu_count() or 1) if world.device.type == "cuda" else 0
    if launch.overwrite:
        _empty_folder(launch.out)
    manifest = extract(
        tokenizer,
        splits,
        launch.out,
        source=data,
        view=view,
        kind=kind,
        precision=precision,
        batch=batch,
        workers=workers,
        resume=launch.resume and not launch.overwrite,
        progress=progress,
        title=title,
    )
    for pictures in splits.values():
        say_unreadable(pictures, progress)
    return manifest


def trained_with(source: str) -> TokenizerRun | None:
    """The config of a tokenizer's run, if the source is the folder of one."""
    path = Path(source) / "config.json"
    if not path.exists():
        return None
    stored = read_json(path, "a run's config")
    return config_of(TokenizerRun, stored["config"]) if "digest" in stored else None


def _refuse_folder(launch: Launch) -> None:
    """Refuses, before anything is loaded or removed, a folder that tokens cannot go to."""
    out = launch.out
    if out.exists() and not out.is_dir():
        raise UserError(f"--out is a folder to write to, but {out} is a file; name another")
    if not out.is_dir() or not any(out.iterdir()):
        return
    if not launch.overwrite and not launch.resume:
        raise UserError(
            f"--out must be new or empty, but {out} holds files; give --resume to go on, "
            "--overwrite to start again, or another --out"
        )
    if not all(_is_of_tokens(path) for path in out.iterdir()):
        raise UserError(
            f"--out must hold tokens alone, but {out} holds other files; name another --out"
        )


def _empty_folder(out: Path) -> None:
    (out / MANIFEST).unlink(missing_ok=True)  # first, so no half-emptied folder looks whole
    for path in filter(_is_of_tokens, out.glob("*")):
        path.unlink()


def _is_of_tokens(path: Path) -> bool:
    return path.name == MANIFEST or is_shard(path) or is_half_written(path)
