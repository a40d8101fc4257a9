import numpy as np
import pytest
from PIL import Image

from cartok.data.images import open_pictures


def _picture(number: int, size: int) -> Image.Image:
    """A tilted colour ramp with a bright bar: whole numbers only, so equal on any machine."""
    rows, cols = np.mgrid[:size, :size]
    channels = [
        37 * number * (channel + 1) % 90 + rows * (number % 5) + cols * (number % 4)
        for channel in range(3)
    ]
    picture = np.stack(channels, axis=-1).astype(np.uint8)
    picture[number % size, :, number % 3] = 255
    return Image.fromarray(picture)


@pytest.fixture(scope="session")
def picture_folder(tmp_path_factory):
    """Two classes of 24 pictures of 16 pixels, without splits."""
    folder = tmp_path_factory.mktemp("pictures")
    for name, start in (("even", 0), ("odd", 1)):
        (folder / name).mkdir()
        for number in range(start, 48, 2):
            _picture(number, 16).save(folder / name / f"{number:02d}.png")
    return folder


@pytest.fixture(scope="session")
def pictures(picture_folder):
    """The training split of the picture folder."""
    return open_pictures(picture_folder, "train", size=16)
