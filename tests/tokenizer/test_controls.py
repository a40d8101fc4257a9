"""What shows whether the regulariser is felt, or is won without helping."""

import importlib.util
from pathlib import Path

import pytest
import torch
from torch.nn import functional as F

from cartok.core.job import Terms
from cartok.tokenizer.causal import CausalPredictor
from cartok.tokenizer.order import in_raster_order

_TOYS = Path(__file__).with_name("causal_toys.py")
_SPEC = importlib.util.spec_from_file_location(_TOYS.stem, _TOYS)
toys = importlib.util.module_from_spec(_SPEC)
_SPEC.loader.exec_module(toys)

CHANNELS = toys.CHANNELS


# ------------------------------------------------------------------ the share of the gradient


def rest_of(encoded) -> torch.Tensor:
    """What else an encoder is trained for: a picture of the codes, and to stay near them."""
    picture = encoded.quantized.codes.square().mean() + 0.1 * encoded.quantized.codes.sum()
    return picture + 0.25 * encoded.quantized.losses["commitment"]


def read_of(encoded, form: dict) -> torch.Tensor:
    """The latents that a form reads."""
    space = form.get("space", "lookup")
    places = {"projected": encoded.projected, "encoder": encoded.encoder_output}
    return places.get(space, encoded.quantized.latents)


@pytest.mark.parametrize("weight", [0.5, 4.0])
@pytest.mark.parametrize("form", [
    {}, {"reads": "codes"}, {"reads": "codes", "target": "codes"}, {"target": "detached"},
    {"loss": "ce"}, {"space": "projected"}, {"space": "encoder"}, {"order": "snake"},
    {"scale": "live"},
], ids=str)  # fmt: skip
def test_the_share_is_lambdas_gradient_over_the_whole(form, weight):
    stage = toys.Stage()
    predictor = toys.small_predictor(toys.channels_of(form), **form)
    encoded = stage(toys.some_image())
    found = predictor.regularise(encoded, weight)
    latents, total = read_of(encoded, form), found.loss + rest_of(encoded)
    (own,) = torch.autograd.grad(found.loss, latents, retain_graph=True)
    assert found.causal_share == pytest.approx(1)  # nothing else was asked for so far
    (rest,) = torch.autograd.grad(rest_of(encoded), latents, retain_graph=True)
    assert found.causal_share == 0  # and nothing of the regulariser here
    total.backward()
    assert found.causal_share.item() == pytest.approx((own.norm() / (own + rest).norm()).item())
    assert 0.001 < found.causal_share < 10


def test_lambda_is_in_the_share():
    shares = []
    for weight in (1e-4, 2e-4):
        stage, predictor = toys.Stage(), toys.small_predictor()
        encoded = stage(toys.some_image())
        found = predictor.regularise(encoded, weight)
        (found.loss + rest_of(encoded)).backward()
        shares.append(found.causal_share.item())
    assert shares[1] == pytest.approx(2 * shares[0], rel=1e-2)


def test_a_regulariser_that_works_against_the_rest_has_a_share_above_1():
    latents = toys.some_latents().requires_grad_()
    found = toys.small_predictor().regularise(toys.encoded_of(1.0 * latents), 1.0)
    (own,) = torch.autograd.grad(found.loss, latents, retain_graph=True)
    encoded = toys.encoded_of(1.0 * latents)
    found = toys.small_predictor().regularise(encoded, 1.0)
    (found.loss - 0.75 * (own * encoded.quantized.latents).sum()).backward()
    assert found.causal_share.item() == pytest.approx(4)


def test_the_hooks_change_no_gradient(monkeypatch):
    def gradients():
        stage, predictor = toys.Stage(), toys.small_predictor()
        encoded = stage(toys.some_image())
        (predictor.regularise(encoded, 4.0).loss + rest_of(encoded)).backward()
        return [p.grad for p in [*stage.parameters(), *predictor.parameters()]]

    hooked = gradients()
    monkeypatch.setattr(torch.Tensor, "register_hook", lambda self, hook: None)
    for with_hook, without in zip(hooked, gradients(), strict=True):
        assert with_hook is without is None or torch.equal(with_hook, without)


def test_at_weight_0_and_without_gradients_the_share_is_0():
    stage, predictor = toys.Stage(), toys.small_predictor()
    encoded = stage(toys.some_image())
    watching = predictor.regularise(encoded, 0.0)
    (watching.loss + rest_of(encoded)).backward()
    assert watching.causal_share == 0
    with torch.no_grad():
        assert predictor.regularise(stage(toys.some_image()), 4.0).causal_share == 0


def test_every_part_of_an_accumulated_batch_has_its_own_share():
    stage, predictor = toys.Stage(), toys.small_predictor()
    moved, shares = [*stage.encoder.parameters(), *predictor.parameters()], []
    for part in toys.some_image(4).split(2):
        encoded = stage(part)
        found = predictor.regularise(encoded, 4.0)
        terms = Terms(
            {"causal": found.loss, "rest": rest_of(encoded)}, {"causal": 1.0, "rest": 1.0}
        )
        (terms.total / 2).backward(inputs=moved)  # as the loop does
        shares.append(found.causal_share)
    for part, share in zip(toys.some_image(4).split(2), shares, strict=True):
        encoded = stage(part)
        alone = predictor.regularise(encoded, 4.0)
        (alone.loss + rest_of(encoded)).backward()
        torch.testing.assert_close(share, alone.causal_share)
    assert shares[0] != shares[1]


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:The .grad attribute")  # torch's compiler reads it
def test_a_compiled_encoder_and_decoder_leave_the_share_as_it_is():
    shares = []
    for wrap in (lambda module: module, lambda module: torch.compile(module, backend="aot_eager")):
        stage, predictor = toys.Stage(), toys.small_predictor()
        torch.manual_seed(0)
        decoder = wrap(torch.nn.Conv2d(CHANNELS, 3, 1))
        stage.encoder = wrap(stage.encoder)
        encoded = stage(toys.some_image())
        found = predictor.regularise(encoded, 4.0)
        picture = decoder(encoded.quantized.codes).square().mean()
        (picture + found.loss).backward()
        shares.append(found.causal_share)
    torch.testing.assert_close(*shares)
    assert 0 < shares[0] < 1


# ------------------------------------------------------------------ the twin


def twin_of(**form) -> CausalPredictor:
    torch.manual_seed(1)
    return CausalPredictor(toys.config_with(**form).of_twin, CHANNELS)


@pytest.mark.parametrize("start", ["skip", "learned"])
@pytest.mark.parametrize("order", ["raster", "spiral"])
@pytest.mark.parametrize("space", ["lookup", "encoder"])
def test_the_twin_reads_codes_and_predicts_the_latents_of_the_look_up(start, order, space):
    stage, twin = toys.Stage(), twin_of(space=space, order=order, start=start, loss="cosine")
    encoded = stage(toys.some_image())
    shown = []
    twin.register_forward_pre_hook(lambda module, given: shown.append(given[0]))
    found = twin.regularise(encoded, 0.0)
    torch.testing.assert_close(shown[0], encoded.quantized.codes)
    assert not shown[0].requires_grad
    target = twin.sequence_of(encoded.quantized.latents)[:, 1 if start == "skip" else 0 :]
    torch.testing.assert_close(found.loss, F.mse_loss(twin(encoded.quantized.codes), target))


@pytest.mark.parametrize("form", [{}, {"loss": "ce"}, {"space": "encoder"}], ids=str)
def test_the_twin_draws_nothing_and_leaves_every_gradient_as_it_is(form):
    def gradients(twin):
        stage = toys.Stage()
        predictor = toys.small_predictor(toys.channels_of(form), **form)
        encoded = stage(toys.some_image())
        total = predictor.regularise(encoded, 4.0).loss + rest_of(encoded)
        if twin:
            state = torch.get_rng_state()
            total = total + twin.regularise(encoded, 0.0).loss
            assert torch.equal(torch.get_rng_state(), state)
        total.backward()
        return [p.grad for p in [*stage.parameters(), *predictor.parameters()]]

    twin = twin_of(**form)
    for beside, alone in zip(gradients(twin), gradients(None), strict=True):
        assert beside is alone is None or torch.equal(beside, alone)
    assert all(parameter.grad.abs().max() > 0 for parameter in twin.parameters())


def test_the_twins_loss_alone_gives_the_encoder_no_gradient():
    stage, twin = toys.Stage(), twin_of()
    twin.regularise(stage(toys.some_image()), 0.0).loss.backward()
    assert all(parameter.grad is None for parameter in stage.parameters())


def test_a_next_latent_hidden_below_the_quantisation_is_seen_by_the_predictor_alone():
    """Two channels are looked up; two small ones, which every code drops, tell the next cell."""
    generator = torch.Generator().manual_seed(0)

    def hiding():
        signs = torch.randint(0, 2, (32, 2, 3, 4), generator=generator) * 2.0 - 1
        following = in_raster_order(signs).roll(-1, 1).transpose(1, 2).view(32, 2, 3, 4)
        latents = torch.cat([signs, 0.3 * following], dim=1)
        return toys.encoded_of(latents, torch.cat([signs, 0 * signs], dim=1))

    r2 = {}
    for name, config in {
        "predictor": toys.config_with(),
        "twin": toys.config_with().of_twin,
    }.items():
        torch.manual_seed(0)
        net = CausalPredictor(config, CHANNELS)
        optimizer = torch.optim.Adam(net.parameters(), lr=1e-2)
        for _ in range(80):
            optimizer.zero_grad()
            net.regularise(hiding(), 0.0).loss.backward()
            optimizer.step()
        r2[name] = net.regularise(hiding(), 0.0).next_latent_r2
    assert r2["predictor"] > 0.8
    assert r2["twin"].abs() < 0.05
