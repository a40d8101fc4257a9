"""Inputs replaced by the predictor's own predictions: which, by what, and what is felt of it."""

import importlib.util
from pathlib import Path

import pytest
import torch
from torch.nn import functional as F

from cartok.tokenizer.order import in_order, in_raster_order, order_of

_TOYS = Path(__file__).with_name("causal_toys.py")
_SPEC = importlib.util.spec_from_file_location(_TOYS.stem, _TOYS)
toys = importlib.util.module_from_spec(_SPEC)
_SPEC.loader.exec_module(toys)

CHANNELS = toys.CHANNELS
SAMPLED = pytest.mark.parametrize("form", [
    {}, {"reads": "codes"}, {"loss": "cosine"}, {"start": "learned"}, {"order": "spiral"},
    {"loss": "ce", "reads": "codes"},
], ids=str)  # fmt: skip


def codes_of(tokens: torch.Tensor) -> torch.Tensor:
    """Codes that tell their token."""
    return 100.0 + tokens[:, None].expand(-1, CHANNELS, -1, -1).float()


@SAMPLED
def test_none_sampled_is_as_without_and_draws_nothing(form):
    encoded, state = toys.encoded_of(toys.some_latents()), torch.get_rng_state()
    plain, none = (toys.small_predictor(**form, **more) for more in ({}, {"scheduled_sampling": 0}))
    torch.set_rng_state(state)
    assert torch.equal(none.regularise(encoded, 1.0).loss, plain.regularise(encoded, 1.0).loss)
    assert torch.equal(torch.get_rng_state(), state)


@SAMPLED
def test_what_is_sampled_is_the_predictors_own_prediction_in_that_place(form):
    latents = toys.some_latents(64, 3, 3)
    predictor = toys.small_predictor(scheduled_sampling=0.3, **form)
    encoded, order = toys.encoded_of(latents), order_of(form.get("order", "raster"), 3, 3)
    shown = []
    predictor.register_forward_pre_hook(lambda module, given: shown.append(given[0]))
    predictor.regularise(encoded, 1.0, torch.Generator().manual_seed(0), codes_of)
    true, mixed = (in_order(grid, order) for grid in shown)
    own = predictor(shown[0])
    if form.get("loss") == "ce":
        own = in_raster_order(codes_of(own.argmax(-1)[:, None]))
    if form.get("loss") == "cosine":
        own = F.normalize(own, dim=-1) * true[:, 1:].norm(dim=-1, keepdim=True)
    if form.get("start") != "learned":
        own = torch.cat([true[:, :1], own], dim=1)  # nothing predicts the first cell
    replaced = (mixed != true).all(-1)
    torch.testing.assert_close(mixed[replaced], own[replaced])
    assert torch.equal(mixed[~replaced], true[~replaced])
    share = replaced[:, 1:].float().mean()  # of 512 draws, 2 % of deviation
    assert share == pytest.approx(0.3, abs=0.08)


def test_no_gradient_passes_through_what_is_sampled():
    latents = toys.some_latents().requires_grad_()
    predictor = toys.last_cell_predictor(scale="none", target="detached", scheduled_sampling=0.5)
    shown = []
    predictor.register_forward_pre_hook(lambda module, given: shown.append(given[0]))
    encoded = toys.encoded_of(latents)
    loss = predictor.regularise(encoded, 1.0, torch.Generator().manual_seed(0)).loss
    (gradient,) = torch.autograd.grad(loss, latents)
    replaced = (shown[1] != shown[0]).all(1).flatten(1)
    felt = in_raster_order(gradient).abs().amax(-1)
    assert replaced[:, 1:-1].any()
    assert (felt[replaced] == 0).all()
    assert (felt[:, :-1][~replaced[:, :-1]] > 0).all()


def test_nothing_is_sampled_in_evaluation():
    encoded = toys.encoded_of(toys.some_latents())
    predictor = toys.small_predictor(scheduled_sampling=0.5)
    plain = toys.small_predictor().regularise(encoded, 1.0).loss
    assert predictor.regularise(encoded, 1.0).loss != plain
    assert predictor.eval().regularise(encoded, 1.0).loss == plain
