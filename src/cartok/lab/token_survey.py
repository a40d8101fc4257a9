"""What a folder of tokens holds: its stamp, counts, how codes are used, and pictures of a few.

The numbers are of the central views of training pictures, at most ``MOST`` spread evenly over them:
views of one picture are no further evidence.
"""

import math
from dataclasses import dataclass
from pathlib import Path

import torch
from PIL import Image as Picture

from cartok.core.errors import UserError
from cartok.core.files import read_json
from cartok.core.shapes import Image, Tokens, image_of_pixels, pixels_of
from cartok.data.images import open_pictures
from cartok.data.survey import classes_text
from cartok.data.token_writer import is_shard
from cartok.data.tokens import MANIFEST, Split, TokenManifest, TokenShards, open_tokens
from cartok.data.views import views_of
from cartok.lab.evaluations import grid_of_pictures, spread
from cartok.metrics.codes import (
    ContextBits,
    code_usage,
    context_bits,
    per_position_entropy,
    skew,
    skew_by_chance,
    unigram_bits,
)
from cartok.prior.train import first_views
from cartok.tokenizer.model import Tokenizer

MOST = 10_000
"""Pictures that are counted: half a minute on a slow core."""

_SHOWN = 96  # pixels a side of a small picture on a sheet
_COLUMNS = 8


@dataclass(frozen=True)
class TokenSurvey:
    """A token folder, read whole and found to be as it was written. Entropies are in bits."""

    folder: Path
    manifest: TokenManifest
    splits: dict[Split, TokenShards]
    tokens: Tokens
    """Those that are counted, of a view of each picture."""
    code_usage: float
    unigram_bits: float
    position_bits: float
    """Mean over positions, of plain shares."""
    position_bits_corrected: float
    skew: float
    skew_by_chance: float
    context: ContextBits | None
    """None where there are too few pictures."""

    @property
    def num_counted(self) -> int:
        """Pictures."""
        return len(self.tokens)


def holds_tokens(path: str | Path) -> bool:
    """Whether something is a token folder, finished or not."""
    path = Path(path)
    return path.is_dir() and ((path / MANIFEST).exists() or any(map(is_shard, path.iterdir())))


def survey_tokens(folder: Path) -> TokenSurvey:
    """Reads and checks every shard, and counts.

    Raises:
        UserError: the folder is unfinished or damaged, or holds no training tokens.
    """
    train = open_tokens(folder, "train")
    splits: dict[Split, TokenShards] = {"train": train}
    if train.manifest.num("val"):
        splits["val"] = open_tokens(folder, "val")
    rows = torch.linspace(0, len(train) - 1, min(MOST, len(train))).round().long()
    tokens = first_views(train, rows.tolist()).unflatten(1, train.manifest.grid)
    size = train.manifest.codebook_size
    return TokenSurvey(
        folder=folder,
        manifest=train.manifest,
        splits=splits,
        tokens=tokens,
        code_usage=code_usage(tokens, size),
        unigram_bits=unigram_bits(tokens, size),
        position_bits=per_position_entropy(tokens, size).mean().item(),
        position_bits_corrected=per_position_entropy(tokens, size, corrected=True).mean().item(),
        skew=skew(tokens, size),
        skew_by_chance=skew_by_chance(tokens, size),
        context=context_bits(tokens, size) if len(tokens) >= 4 else None,
    )


def describe_tokens(found: TokenSurvey) -> str:
    """The survey as lines of text, one fact a line."""
    about, train = found.manifest, found.splits["train"]
    rows, cols = about.grid
    size, num = about.codebook_size, found.num_counted
    counts = train.labels.bincount(minlength=len(about.classes)).tolist()
    held = ", ".join(f"{split} {len(shards):,}" for split, shards in found.splits.items())
    lost = sum(shards.num_pictures - len(shards) for shards in found.splits.values())
    lines = [
        ("tokens", str(found.folder)),
        ("tokenizer", f"{about.tokenizer_digest}, {size:,} codes, {rows} x {cols} tokens"),
        ("made of", f"{about.source}, encoded in {about.precision}"),
        ("transform", about.transform or f"{about.view.size} px, {about.kind} (an older version)"),
        ("pictures", f"{held}; {about.num_views} views each; {lost:,} could not be decoded"),
        ("shards", f"{len(about.shards)}, all as they were written"),
        ("classes", classes_text(dict(zip(about.classes, counts, strict=False)))),
        ("counted", f"the central view of {num:,} training pictures, {num * rows * cols:,} tokens"),
        ("codes used", f"{found.code_usage:.1%}"),
        ("entropy", f"{found.unigram_bits:.3f} bits a token, of {math.log2(size):.3f} at most"),
        (
            "a position",
            f"{found.position_bits:.3f} bits on average, {found.position_bits_corrected:.3f} "
            "corrected for few pictures (Miller-Madow)",
        ),
    ]
    if num < size:
        lines.append(("", f"low: {num:,} pictures show at most {math.log2(num):.3f} bits"))
    lines.append(("skew", f"{found.skew:.3f}; {found.skew_by_chance:.3f} if tokens are shuffled"))
    return "\n".join(f"{name:<13} {text}".rstrip() for name, text in lines + _context(found))


def _context(found: TokenSurvey) -> list[tuple[str, str]]:
    if found.context is None:
        return [("neighbours", "unknown: 4 pictures or more are needed")]
    bits = found.context
    return [
        ("neighbours", "bits a token costs on pictures that were not counted (estimates)"),
        ("", f"alone {bits.alone:.3f}, given the one before it {bits.given_before:.3f}, "
             f"given the one above it {bits.given_above:.3f}"),
    ]  # fmt: skip


def tokenizer_of(folder: Path, manifest: TokenManifest, source: str = "") -> Tokenizer | None:
    """The tokenizer that made tokens: of ``source``, or of a folder beside theirs if there is one.

    Raises:
        UserError: ``source`` holds another.
    """
    if source:
        tokenizer = Tokenizer.from_pretrained(source)
        if tokenizer.digest != manifest.tokenizer_digest:
            raise UserError(
                f"tokens are decoded by the tokenizer that made them, '{manifest.tokenizer_digest}'"
                f", but {source} is '{tokenizer.digest}'; name the right one"
            )
        return tokenizer
    above = folder.absolute().parent
    for place in (above, *sorted(path for path in above.iterdir() if path.is_dir())):
        try:
            tokenizer = Tokenizer.from_pretrained(place) if _is_tokenizer(place) else None
        except UserError:  # a run that is not finished, or damaged: no matter of these tokens
            continue
        if tokenizer is not None and tokenizer.digest == manifest.tokenizer_digest:
            return tokenizer
    return None


@dataclass(frozen=True)
class TokenSheet:
    """Decoded tokens, each after its source where that can be read."""

    picture: Picture.Image
    words: str
    """What is to be seen; why there are no sources, or how many tokens they give again."""


@torch.inference_mode()
def sheet_of_tokens(found: TokenSurvey, tokenizer: Tokenizer, num: int) -> TokenSheet:
    """``num`` pictures, sources and decoded ones together, held-out ones if there are any."""
    split: Split = "val" if "val" in found.splits else "train"
    shards = found.splits[split]
    rows = torch.linspace(0, len(shards) - 1, min(max(1, num // 2), len(shards))).round().long()
    tokens = first_views(shards, rows.tolist()).unflatten(1, found.manifest.grid)
    device = next(tokenizer.parameters()).device
    made = tokenizer.image_of(tokens.to(device)).cpu()
    zoom = max(1, _SHOWN // made.shape[-1])
    try:
        source = _sources(found.manifest, shards, split, rows.tolist())
    except UserError as error:
        sheet = grid_of_pictures(pixels_of(made), _COLUMNS, zoom)
        return TokenSheet(sheet, f"decoded {split} tokens; without their sources: {error}")
    again = _share_made_again(tokenizer, source.to(device), tokens.to(device))
    pairs = torch.stack([source, made], dim=1).flatten(0, 1)
    words = f"{split} pictures, each before its decoded tokens; encoded here, {again:.2%} of "
    return TokenSheet(
        grid_of_pictures(pixels_of(pairs), _COLUMNS, zoom), words + "their tokens are equal"
    )


def _sources(manifest: TokenManifest, shards: TokenShards, split: Split, rows: list[int]) -> Image:
    """The central views of the pictures that rows of tokens were made of."""
    if manifest.source.startswith("hub:"):
        raise UserError(f"{manifest.source} is not fetched for a look")
    if not shards.pictures:
        raise UserError("shards of older versions do not say which pictures they hold")
    pictures = open_pictures(manifest.source, split, size=manifest.view.size)
    if pictures.digest != manifest.picture_digests[split]:
        pictures = spread(pictures, shards.num_pictures)  # as a part of a set is taken
    if pictures.digest != manifest.picture_digests[split]:
        raise UserError(f"the pictures of '{manifest.source}' are others now")
    loaded = (pictures.read(shards.pictures[row]) for row in rows)
    squares = [views_of(picture, manifest.view, manifest.kind)[0] for picture in loaded]
    return image_of_pixels(torch.stack(squares))


def _share_made_again(tokenizer: Tokenizer, image: Image, tokens: Tokens) -> float:
    return (tokenizer.tokens_of(image) == tokens).double().mean().item()


def _is_tokenizer(place: Path) -> bool:
    paths = (path for path in (place / "config.json", place / "model/config.json") if path.exists())
    stored = [read_json(path, "a config") for path in paths]
    return any(isinstance(one, dict) and one.get("kind") == "tokenizer" for one in stored)
