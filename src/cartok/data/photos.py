"""The embedded data set: crops of ten colour photographs that installed packages ship.

It needs no download. The class of a crop is its photograph. A photograph is first reduced by the
whole factor that brings its short side nearest to six crops: at that scale a crop of 32 px holds
a face, a cup's rim, a roof, where at the photographs' own scale it would hold texture only, and
much smaller there would be few different crops. Averaging whole blocks lets no pixel spread over
its neighbours. Then four of sixteen tiles, one in each row and column, are held out: validation
crops lie inside them and training crops outside, so the two share no pixel of the photograph, yet
show the same kinds of things.
"""

import importlib.util
from functools import lru_cache
from pathlib import Path

import numpy as np
from jaxtyping import Bool, UInt8
from PIL import Image

from cartok.core.errors import UserError
from cartok.data.listing import Listing
from cartok.data.stores import PixelStore

PixelGrid = UInt8[np.ndarray, "height width 3"]
"""One picture's RGB bytes."""

Mask = Bool[np.ndarray, "height width"]
"""One truth value a pixel."""

Crops = UInt8[np.ndarray, "crop size size 3"]
"""Square crops, RGB bytes."""

PHOTOS = {
    "astronaut": ("skimage", "data/astronaut.png"),
    "cat": ("skimage", "data/chelsea.png"),
    "coffee": ("skimage", "data/coffee.png"),
    "flower": ("sklearn", "datasets/images/flower.jpg"),
    "galaxies": ("skimage", "data/hubble_deep_field.jpg"),
    "motorcycle": ("skimage", "data/motorcycle_left.png"),
    "retina": ("skimage", "data/retina.jpg"),
    "rocket": ("skimage", "data/rocket.jpg"),
    "temple": ("sklearn", "datasets/images/china.jpg"),
    "tissue": ("skimage", "data/ihc.png"),
}
"""Class name: package and file within it """

NUM_TRAIN, NUM_VAL = 600, 64
"""Crops of each photograph, if so many pass ``MIN_DEVIATION``."""

HELD_TILES = (1, 3, 0, 2)
"""The column of the held out tile in each row of the four by four tiles."""

MIN_DEVIATION = 8.0
"""A crop none of whose colours deviates by this much (in bytes) is nearly constant and dropped."""

CROPS_PER_SIDE = 6
"""About how many crops make the short side of a reduced photograph."""


@lru_cache(maxsize=2)  # training and validation are opened one after the other
def photo_listing(size: int) -> Listing:
    """Crops of ``size`` px, photograph by photograph, the training crops of each first.

    Raises:
        UserError: the crop is too large or too small, or a photograph is not installed.
    """
    crops, names, labels, held = [], [], [], []
    for label, name in enumerate(PHOTOS):
        photo = read_photo(name, size)
        for word, count in (("train", NUM_TRAIN), ("val", NUM_VAL)):
            generator = np.random.default_rng((label, count))
            found = crops_of(photo, size, count, generator, held=word == "val")
            crops.append(found)
            names += [f"{name}:{word}-{number}" for number in range(len(found))]
            labels += [label] * len(found)
            held += [word == "val"] * len(found)
    store = PixelStore(np.concatenate(crops), names)
    return Listing(store, np.array(labels), tuple(PHOTOS), np.array(held))


def read_photo(name: str, size: int) -> PixelGrid:
    """A photograph reduced for crops of ``size`` px; never enlarged.

    Raises:
        UserError: a tile would not hold the crop, or the file is missing.
    """
    with Image.open(_path_of(name)) as file:
        photo = file.convert("RGB")
    factor = max(1, round(min(photo.size) / (CROPS_PER_SIDE * size)))
    reduced = photo.reduce(factor)
    room = min(reduced.size) // len(HELD_TILES)
    if room < size:
        raise UserError(
            f"a crop of the photographs must fit the tiles that are held out, but {size} px is "
            f"more than the {room} px of '{name}'; use a crop of 64 px or less, or larger pictures"
        )
    return np.asarray(reduced)


def held_mask(height: int, width: int) -> Mask:
    """Which pixels of a photograph are held out for validation: a quarter of them."""
    num = len(HELD_TILES)
    rows = np.arange(height) * num // height
    columns = np.arange(width) * num // width
    return columns[None, :] == np.array(HELD_TILES)[rows][:, None]


def crops_of(
    photo: PixelGrid, size: int, count: int, generator: np.random.Generator, *, held: bool
) -> Crops:
    """Up to ``count`` crops at different random places, all held out or all for training.

    Nearly constant crops are dropped: the black around the retina, empty sky, blurred ground.

    Raises:
        UserError: nothing is left, as of crops of a single pixel.
    """
    width = photo.shape[1] - size + 1
    held_pixels = _window_sums(held_mask(*photo.shape[:2]), size)
    places = np.flatnonzero(held_pixels == (size**2 if held else 0))
    found = []
    for place in generator.permutation(places):
        top, left = divmod(int(place), width)
        crop = photo[top : top + size, left : left + size]
        if crop.std(axis=(0, 1)).max() >= MIN_DEVIATION:
            found.append(crop)
        if len(found) == count:
            break
    if not found:
        raise UserError(
            f"a crop of the photographs must show more than one colour, but none of {size} px "
            "does; use a larger crop"
        )
    return np.stack(found)


def _window_sums(mask: Mask, size: int) -> np.ndarray:
    """How many pixels are true in each window of ``size``, from the sums over rectangles."""
    sums = np.pad(mask.cumsum(axis=0).cumsum(axis=1), ((1, 0), (1, 0)))
    return sums[size:, size:] - sums[:-size, size:] - sums[size:, :-size] + sums[:-size, :-size]


def _path_of(name: str) -> Path:
    package, file = PHOTOS[name]
    # Finding the package does not import it, which would cost a second.
    spec = importlib.util.find_spec(package)
    folders = (spec.submodule_search_locations if spec else None) or ["."]
    path = Path(folders[0]) / file
    if not path.is_file():
        raise UserError(
            f"the photograph '{name}' comes with {package}, which has no {file} here; "
            f"reinstall {package}"
        )
    return path
