"""What numbers of a score do not show, for eyes: copies, and the worst reconstructions.

DIR/
  scores.json           the numbers with their receipts, as --json writes them
  report.html           the page
  pictures/nearest.png  samples that are nearest to reference pictures, each before its nearest ones
  pictures/worst.png    pairs of least PSNR, the reference first
"""

from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from cartok.core.errors import UserError
from cartok.core.files import write_json
from cartok.core.shapes import Pixels
from cartok.lab.evaluations import grid_of_pictures, save_png
from cartok.metrics.nearest import Nearest, nearest_of
from cartok.metrics.reconstruction import psnr_db_of_each
from cartok.metrics.score import Score
from cartok.scaling.report import write_report

FILE = "scores.json"
SUSPECTS, NEIGHBOURS, WORST = 12, 3, 12

Read = Callable[[], Iterable[Pixels]]
"""All pictures of a side, in order, in batches."""


def refuse_page(folder: Path) -> None:
    """Refuses a folder that holds something else than such a page.

    Raises:
        UserError: says which.
    """
    if folder.exists() and not folder.is_dir():
        raise UserError(f"--page is a folder to write to, but {folder} is a file; name another")
    if folder.is_dir() and any(folder.iterdir()) and not (folder / FILE).exists():
        raise UserError(f"{folder} holds files but no {FILE}; name a new folder for --page")


def copies_of(
    generated: Float[Tensor, "sample feature"], reference: Float[Tensor, "row feature"],
    receipt: dict,
) -> tuple[Nearest, dict[str, Score]]:  # fmt: skip
    """The nearest reference pictures, and the share of samples that are too near, as a score.

    ``receipt`` is what all scores of the two sides share.
    """
    found = nearest_of(generated, reference, min(NEIGHBOURS, len(reference) - 1))
    name = "closer_than_reference"
    return found, {name: Score(found.share_closer, "share of samples", {"metric": name} | receipt)}


def write_page(
    folder: Path, scores: dict[str, Score], generated: Read, reference: Read,
    nearest: Nearest | None, paired: bool,
) -> Path:  # fmt: skip
    """Writes the folder and returns the page; pictures are read again for the sheets."""
    write_json(folder / FILE, {name: score.to_json() for name, score in scores.items()})
    sheets = folder / "pictures"
    for name in ("nearest.png", "worst.png"):
        (sheets / name).unlink(missing_ok=True)
    if nearest is not None:
        save_png(_nearest_sheet(nearest, generated, reference), sheets / "nearest.png")
    if paired:
        save_png(_worst_sheet(generated, reference), sheets / "worst.png")
    return write_report(folder)


def _nearest_sheet(nearest: Nearest, generated: Read, reference: Read):
    """Two samples a row, each followed by its nearest, as large as the samples are."""
    suspects = nearest.closer.argsort()[:SUSPECTS]
    samples = _picked(generated(), suspects.tolist())
    shown = nearest.indices[suspects]
    known = _picked(reference(), sorted(set(shown.flatten().tolist())))
    tiles = [
        tile
        for suspect, row in zip(suspects.tolist(), shown.tolist(), strict=True)
        for tile in (samples[suspect], *(_fitted(known[i], samples[suspect]) for i in row))
    ]
    return grid_of_pictures(torch.stack(tiles), 2 * (1 + shown.shape[1]))


def _fitted(picture: Tensor, like: Tensor) -> Tensor:
    """A picture in another one's size: some presets score sides of two sizes."""
    if picture.shape == like.shape:
        return picture
    size = (like.shape[1], like.shape[2])
    resized = F.interpolate(picture[None].float(), size, mode="bilinear", antialias=True)
    return resized[0].round().byte()


def _worst_sheet(generated: Read, reference: Read):
    """Three pairs a row, from the worst on."""
    found: list[tuple[float, Tensor, Tensor]] = []
    for pixels, wanted in zip(generated(), reference(), strict=True):
        each = psnr_db_of_each(pixels, wanted)
        worst = each.argsort()[:WORST].tolist()
        found += [(each[i].item(), wanted[i].clone(), pixels[i].clone()) for i in worst]
        found = sorted(found, key=lambda pair: pair[0])[:WORST]
    tiles = [tile for _, wanted, pixels in found for tile in (wanted, pixels)]
    return grid_of_pictures(torch.stack(tiles), 6)


def _picked(batches: Iterable[Pixels], indices: list[int]) -> dict[int, Tensor]:
    """Some of the pictures, by their index; reads no further than the last."""
    return dict(_those(batches, set(indices)))


def _those(batches: Iterable[Pixels], wanted: set[int]) -> Iterator[tuple[int, Tensor]]:
    start = 0
    for pixels in batches:
        for index in sorted(wanted & set(range(start, start + len(pixels)))):
            yield index, pixels[index - start].cpu().clone()
        start += len(pixels)
        if start > max(wanted, default=0):
            return
