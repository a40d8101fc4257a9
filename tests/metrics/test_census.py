import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from cartok.core.errors import UserError
from cartok.core.shapes import image_of_pixels
from cartok.metrics.census import START, Census
from cartok.metrics.features import content_hash


def census_of(batches):
    census = Census()
    passed = torch.cat(list(census.of(batches)))
    return census, passed


@given(count=st.integers(1, 9), batch=st.integers(1, 9), as_bytes=st.booleans())
def test_however_pictures_are_cut_into_batches_they_have_one_name_and_one_hash(
    tiny, count, batch, as_bytes
):
    pixels = tiny.pictures(count)
    shown = pixels if as_bytes else image_of_pixels(pixels)
    census, passed = census_of(shown.split(batch))
    whole, _ = census_of(pixels)
    assert torch.equal(passed, pixels)
    assert (census.name, census.hash, census.size) == (whole.name, content_hash(pixels), (8, 8))
    assert len(census.hashes) == count


def test_a_name_tells_order_and_size_apart_and_begins_with_the_first_picture(tiny):
    pixels = tiny.pictures(4)
    wide = pixels.reshape(4, 3, 4, 16)
    shown = (pixels, pixels[[0, 2, 1, 3]], pixels[:3], wide, pixels[:1], wide[:1], pixels[1:])
    names = [census_of(some)[0].name for some in shown]
    assert len({*names}) == len(names)
    assert len({name[:START] for name in names[:-1]}) == 1
    assert names[-1][:START] != names[0][:START]


def test_pictures_of_two_sizes_are_refused_in_one_line(tiny):
    with pytest.raises(UserError, match=r"have one size, but these have \[\(8, 8\), \(9, 9\)\]"):
        census_of([tiny.pictures(2), tiny.pictures(1, size=9)])
