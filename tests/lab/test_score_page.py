"""The page of a score shows what numbers do not: copies, and the worst reconstructions."""

import json

import numpy as np
import pytest
import torch
from PIL import Image

from cartok.core.errors import UserError
from cartok.lab.score_page import copies_of, refuse_page, write_page
from cartok.metrics.score import Score

RECEIPT = {"preset": "toy", "generated_count": 40, "reference_count": 60, "network": "toy",
           "network_sha256": "0", "size": 1, "indicative": True}  # fmt: skip


def pictures(num, seed):
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(256, (num, 3, 8, 8), dtype=torch.uint8, generator=generator)


@pytest.fixture
def sides():
    """Forty samples, of which number 17 is reference picture 33."""
    samples, reference = pictures(40, 0), pictures(60, 1)
    samples[17] = reference[33]
    return samples, reference


def written(folder, samples, reference, paired=False):
    rows = [side.flatten(1).double() for side in (samples, reference)]
    nearest, share = copies_of(*rows, RECEIPT)
    precision = {"precision_toy": 0.5, "recall_toy": 0.25}
    scores = {name: Score(value, "share", RECEIPT) for name, value in precision.items()} | share
    page = write_page(
        folder,
        scores,
        lambda: iter(samples.split(16)),
        lambda: iter(reference.split(16)),
        nearest,
        paired,
    )
    return page.read_text(), nearest


def test_bars_stand_where_receipts_have_intervals(tmp_path):
    names = ("precision", "recall", "density", "coverage")
    spans = [RECEIPT, RECEIPT | {"interval": [0.4, 0.75]}]
    pages = [
        write_page(
            tmp_path / str(number), {name: Score(0.5, "share", receipt) for name in names},
            list, list, None, False,
        ).read_text()
        for number, receipt in enumerate(spans)
    ]  # fmt: skip
    assert ["bars: 90 % intervals" in page for page in pages] == [False, True]
    assert pages[1].count("<path d=") == pages[0].count("<path d=") + 4


def tiles_of(path, columns):
    sheet = torch.from_numpy(np.asarray(Image.open(path).convert("RGB")).copy()).permute(2, 0, 1)
    return [sheet[:, y : y + 8, x * 10 : x * 10 + 8]
            for y in range(0, sheet.shape[1], 10) for x in range(columns)]  # fmt: skip


def test_a_copy_comes_first_beside_what_it_copies(tmp_path, sides):
    samples, reference = sides
    page, nearest = written(tmp_path, *sides)
    assert int(nearest.closer.argmin()) == 17
    tiles = tiles_of(tmp_path / "pictures" / "nearest.png", 8)
    assert torch.equal(tiles[0], samples[17])
    assert torch.equal(tiles[1], reference[33])
    assert "A copy would show here" in page


def test_the_worst_pairs_come_first_reference_before_reconstruction(tmp_path):
    reference = pictures(40, 2)
    spoilt = reference.clone()
    spoilt[29] = 255 - reference[29]
    spoilt[5, :, 0] = 0
    written(tmp_path, spoilt, reference, paired=True)
    tiles = tiles_of(tmp_path / "pictures" / "worst.png", 6)
    for tile, wanted in zip(tiles, (reference[29], spoilt[29], reference[5], spoilt[5]),
                            strict=False):  # fmt: skip
        assert torch.equal(tile, wanted)


def test_the_page_holds_every_number_and_the_shared_receipt_once(tmp_path, sides):
    page, _ = written(tmp_path, *sides)
    scores = json.loads((tmp_path / "scores.json").read_text())
    for name, score in scores.items():
        assert f'data-key="{name}" data-value="{json.dumps(score["value"])}"' in page
    assert page.count("network_sha256") == 1
    assert "precision over recall" in page
    assert "40 pictures against 60, by the protocol toy" in page
    assert "distances are indicative" in page


def test_a_set_of_copies_is_warned_of(tmp_path, sides):
    _, reference = sides
    page, _ = written(tmp_path, reference[:40], reference)
    assert "look for copies" in page
    page, _ = written(tmp_path, *sides)
    assert "look for copies" not in page


def test_a_page_is_written_again_without_what_is_there_no_more(tmp_path, sides):
    written(tmp_path, *sides)
    refuse_page(tmp_path)
    scores, nothing = {"psnr_db": Score(20.0, "dB", RECEIPT)}, lambda: iter(())
    write_page(tmp_path, scores, nothing, nothing, None, paired=False)
    assert not list((tmp_path / "pictures").iterdir())


def test_a_folder_of_something_else_is_refused(tmp_path):
    (tmp_path / "mine.txt").write_text("mine")
    with pytest.raises(UserError, match=r"holds files but no scores\.json"):
        refuse_page(tmp_path)
    with pytest.raises(UserError, match="is a file; name another"):
        refuse_page(tmp_path / "mine.txt")
