"""Pictures out of a prior, into a folder."""

from dataclasses import dataclass, fields
from pathlib import Path

import torch
from jaxtyping import Integer
from PIL import Image as Picture
from torch import Tensor
from torch.nn.functional import one_hot

from cartok.core.config import config, dict_of
from cartok.core.errors import UserError
from cartok.core.files import staged, write_json
from cartok.core.parallel import World
from cartok.core.progress import Progress
from cartok.core.shapes import (
    Image,
    Labels,
    Mixtures,
    Pixels,
    TokenSequence,
    image_of_pixels,
    pixels_of,
)
from cartok.data.stores import reason_of, rgb_of
from cartok.data.views import View, center_view
from cartok.lab.evaluations import grid_of_pictures, save_png
from cartok.prior.model import Prior
from cartok.sampling.editing import kept_of, region
from cartok.sampling.options import SamplingConfig
from cartok.sampling.sampler import Sampler, balanced_labels
from cartok.tokenizer.model import Tokenizer

_ON_GRID = 64
_OPTIONS = {field.name for field in fields(SamplingConfig)} - {"first_index"}


@config
class SampleConfig(SamplingConfig):
    """What is drawn, and how."""

    num: int = 64
    """Pictures."""
    labels: tuple[str, ...] = ()
    """Class names or numbers, taken in turn; if none is given, all that the prior was trained on.
    Those joined by a + are mixed to equal parts."""
    seed: int = 0

    def __post_init__(self):
        super().__post_init__()
        if self.num < 1:
            raise ValueError(f"num is at least 1, but is {self.num}")


@config
class EditConfig:
    """A picture of which a part stays; its central square is seen."""

    picture: str
    """A file."""
    keep: str = "top"
    """What stays: top, bottom, left, right, centre or border. Only what lies above a token, or to
    its left in the same row, is seen when it is drawn: top is what a prior completes best."""
    keep_share: float = 0.5
    """Of the way across the picture."""


def run_sample(
    prior_source: str,
    tokenizer_source: str,
    config: SampleConfig,
    out: Path,
    device: str,
    progress: Progress,
    *,
    edit: EditConfig | None = None,
    overwrite: bool = False,
) -> Path:
    """Writes ``pictures/CLASS/NUMBER.png``, ``grid.png`` and, last, ``samples.json``.

    Returns the grid's path. Pictures are drawn and written a batch at a time, so that any number
    fits in memory. With ``edit`` a part of one picture stays in all of them, and ``kept.png`` shows
    the picture, its reconstruction, and what of it stays.

    Raises:
        UserError: the prior belongs to another tokenizer, a label is unknown, the picture cannot be
            read, or the folder holds files that are no samples.
    """
    world = World.join(device)
    _refuse_used(out, overwrite)
    tokenizer = Tokenizer.from_pretrained(tokenizer_source).to(world.device)
    prior = Prior.from_pretrained(prior_source).to(world.device)
    sampler, labels = Sampler(prior, tokenizer), _labels(config, prior)
    _warn_of_unseen(config, prior, progress)
    kept = None if edit is None else _kept(edit, tokenizer, prior)
    names = _folders(config, prior)
    shown: list[Pixels] = []
    with staged(out / "pictures") as folder, progress.stage("samples", config.num) as tick:
        for start in range(0, config.num, config.batch):
            some = labels[start : start + config.batch].to(world.device)
            stays = None if kept is None else kept.tokens.expand(len(some), -1)
            pixels = pixels_of(_drawn(sampler, some, config, start, stays)).cpu()
            for index, item in enumerate(pixels, start):
                number = config.first_index + index
                path = folder / names[index].replace("/", "-") / f"{number:06d}.png"
                path.parent.mkdir(parents=True, exist_ok=True)
                Picture.fromarray(item.permute(1, 2, 0).numpy()).save(path)
            shown += [pixels] if start < _ON_GRID else []
            tick(start + len(pixels), "")
    grid = out / "grid.png"
    save_png(grid_of_pictures(torch.cat(shown)[:_ON_GRID], columns=8, zoom=2), grid)
    if kept is not None:
        save_png(grid_of_pictures(kept.shown, columns=3, zoom=2), out / "kept.png")
    edited = {} if edit is None else {"edit": dict_of(edit)}
    write_json(out / "samples.json", {
        "prior": str(prior_source), "tokenizer_digest": tokenizer.digest, **dict_of(config),
        **edited,
    })  # fmt: skip
    return grid


def _drawn(
    sampler: Sampler, labels: Labels | Mixtures, config: SampleConfig, first_index: int,
    kept: TokenSequence | None,
) -> Image:  # fmt: skip
    options = {name: getattr(config, name) for name in _OPTIONS}
    first_index += config.first_index
    return sampler.sample(labels, first_index=first_index, kept=kept, **options)


@dataclass(frozen=True)
class _Kept:
    tokens: Integer[Tensor, "1 position"]
    shown: Pixels
    """The picture, its reconstruction, and that with grey where tokens are drawn."""


def _kept(edit: EditConfig, tokenizer: Tokenizer, prior: Prior) -> _Kept:
    rows, cols = prior.config.grid
    size = rows * tokenizer.factor
    if tokenizer.grid_of(size, size) != (rows, cols):
        raise UserError(
            f"a picture is edited as a square, but this prior draws {rows} rows of {cols} tokens"
        )
    mask = region(edit.keep, edit.keep_share, rows, cols)
    try:
        with Picture.open(edit.picture) as file:
            square = center_view(rgb_of(file), View(size=size))
    except (OSError, ValueError, SyntaxError) as error:
        reason = reason_of(error)
        raise UserError(f"{edit.picture} cannot be read as a picture: {reason}") from None
    device = next(tokenizer.parameters()).device
    image = image_of_pixels(square[None].to(device))
    tokens = tokenizer.tokens_of(image)
    made = tokenizer.image_of(tokens)
    is_kept = mask.to(device).repeat_interleave(size // rows, 0).repeat_interleave(size // cols, 1)
    shown = torch.cat([image, made, made * is_kept])
    return _Kept(kept_of(tokens, mask), pixels_of(shown).cpu())


def _refuse_used(out: Path, overwrite: bool) -> None:
    if not out.is_dir() or not any(out.iterdir()):
        return
    if not overwrite:
        raise UserError(
            f"--out must be new or empty, but {out} holds files; give --overwrite or another --out"
        )
    if not (out / "samples.json").exists():
        raise UserError(f"{out} holds files but no samples (no samples.json); name another --out")


def _labels(config: SampleConfig, prior: Prior) -> Labels | Mixtures:
    num_classes = prior.config.num_classes
    if not config.labels:
        return balanced_labels(config.num, num_classes, prior.unseen)
    mixed = [_parts(name, prior) for name in config.labels]
    if all(len(parts) == 1 for parts in mixed):
        chosen = torch.tensor([parts[0] for parts in mixed])
    else:
        chosen = torch.stack(
            [one_hot(torch.tensor(parts), num_classes + 1).float().mean(0) for parts in mixed]
        )
    return chosen[torch.arange(config.num) % len(chosen)]


def _folders(config: SampleConfig, prior: Prior) -> list[str]:
    """Of each picture: its class, or what it is a mixture of."""
    if not prior.classes:
        return ["all"] * config.num
    if not config.labels:
        return [prior.classes[label] for label in _labels(config, prior).tolist()]
    parts = [_parts(name, prior) for name in config.labels]
    chosen = ["+".join(prior.classes[label] for label in some) for some in parts]
    return [chosen[place % len(chosen)] for place in range(config.num)]


def _warn_of_unseen(config: SampleConfig, prior: Prior, progress: Progress) -> None:
    named = {label for name in config.labels for label in _parts(name, prior)}
    for label in sorted(named & {*prior.unseen}):
        name = prior.classes[label] if prior.classes else label
        progress.say(
            f"warning: this prior was trained on no picture of class '{name}'; "
            "what is drawn for it shows nothing that was learned"
        )


def _parts(name: str, prior: Prior) -> list[int]:
    """The classes of a label; a name may itself hold a +."""
    if name in prior.classes or "+" not in name:
        return [_label(name, prior)]
    return [_label(part.strip(), prior) for part in name.split("+")]


def _label(name: str, prior: Prior) -> int:
    if name in prior.classes:
        return prior.classes.index(name)
    if name.isdigit() and int(name) < max(1, prior.config.num_classes):
        return int(name)
    known = ", ".join(prior.classes[:10]) or "none: this prior is unconditional"
    raise UserError(f"a label is a class of the prior ({known}) or its number, but got '{name}'")
