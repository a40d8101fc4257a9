"""Means over pairs in order, batch by batch, with their errors."""

import pytest
import torch

from cartok.core.errors import UserError
from cartok.core.shapes import image_of_pixels
from cartok.frozen import lpips_of
from cartok.metrics.pairs import PAIR_METRICS, lpips_metric, pair_numbers, too_small
from cartok.metrics.reconstruction import psnr_db_of_each
from cartok.metrics.ssim import ssim


@pytest.fixture(scope="module")
def sides():
    generator = torch.Generator().manual_seed(0)
    wanted = torch.randint(256, (5, 3, 20, 24), generator=generator, dtype=torch.uint8)
    noise = torch.randint(-30, 31, wanted.shape, generator=generator)
    return (wanted + noise).clamp(0, 255).byte(), wanted


def measured(sides, *names, batch=2):
    metrics = [PAIR_METRICS[name] for name in names]
    return pair_numbers(*(side.split(batch) for side in sides), metrics)


def test_means_and_errors_are_those_of_all_pairs_whatever_the_batch(sides):
    each = psnr_db_of_each(*sides)
    for batch in (1, 2, 5):
        psnr, similarity = measured(sides, "psnr", "ssim", batch=batch)
        assert psnr.value == pytest.approx(each.mean().item())
        assert psnr.own["standard_error"] == pytest.approx(each.std().item() / 5**0.5)
        assert similarity.value == pytest.approx(ssim(*sides))


def test_what_pictures_are_too_small_for_is_left_out_and_told(sides):
    assert [number.name for number in measured(sides, "ms-ssim", "psnr")] == ["psnr_db"]
    assert too_small([PAIR_METRICS["ms-ssim"], PAIR_METRICS["psnr"]], 20) == [
        "ms_ssim is left out: it needs 161 pixels each way, and these have 20"
    ]
    assert not too_small([PAIR_METRICS["ms-ssim"]], 161)


def test_lpips_is_the_mean_over_pairs_and_names_its_network(sides):
    network = lpips_of(random_weights=True)
    metric = lpips_metric(network, torch.device("cpu"))
    (number,) = pair_numbers(*(side.split(2) for side in sides), [metric])
    wanted = network(*map(image_of_pixels, sides)).mean().item()
    assert number.value == pytest.approx(wanted, rel=1e-4)
    assert number.own["network"] == network.weights.name


def test_lpips_is_measured_in_the_precision_that_its_receipt_names(sides):
    """A GPU's convolutions would else round to TF32, or to what autocast is around them."""
    seen = []

    class Network(torch.nn.Module):
        weights = lpips_of(random_weights=True).weights

        def forward(self, image, target):
            seen.append(
                (torch.backends.cudnn.conv.fp32_precision, torch.is_autocast_enabled("cpu"))
            )
            return (image - target).mean((1, 2, 3))

    metric = lpips_metric(Network(), torch.device("cpu"))
    with torch.autocast("cpu", torch.bfloat16):
        metric.measure(*sides)
    assert seen == [("ieee", False)]
    assert metric.own["precision"] == "float32"


@pytest.mark.parametrize("missing", [1, 2, 3])
def test_a_side_with_other_pictures_is_refused(sides, missing):
    with pytest.raises(UserError, match="other numbers of them"):
        measured((sides[0][:-missing], sides[1]), "psnr")
    with pytest.raises(UserError, match="other numbers of them"):
        measured((sides[0], sides[1][:-missing]), "psnr")
