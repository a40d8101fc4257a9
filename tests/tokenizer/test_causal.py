"""Who sees what, and who feels how much: causality and the gradient of the regulariser."""

import importlib.util
from pathlib import Path

import pytest
import torch

from cartok.core.errors import UserError
from cartok.layers import TransformerConfig
from cartok.tokenizer.causal import CausalPredictor, scale_gradient
from cartok.tokenizer.order import in_raster_order, order_of
from cartok.tokenizer.quantize.fsq import FSQConfig
from cartok.tokenizer.quantize.residual import ResidualVQConfig
from cartok.tokenizer.quantize.vq import VQConfig

_TOYS = Path(__file__).with_name("causal_toys.py")
_SPEC = importlib.util.spec_from_file_location(_TOYS.stem, _TOYS)
toys = importlib.util.module_from_spec(_SPEC)
_SPEC.loader.exec_module(toys)

CHANNELS, CODES = toys.CHANNELS, toys.CODES
STARTS = pytest.mark.parametrize("start", ["skip", "learned"])
ORDERS = pytest.mark.parametrize("order", ["raster", "columns", "snake", "spiral", "random"])
GRIDS = pytest.mark.parametrize("grid", [(3, 4), (1, 6), (5, 1), (2, 2)])


# ------------------------------------------------------------------ causality and indices


def follows(before, after, predictor, cell: int, tolerance=1e-12) -> None:
    """Asserts that a change of a cell moved all predictions after it, and none up to it."""
    # Entry i has read i + 1 cells of the order, or with a start vector before them i.
    first = cell + int(predictor.config.start == "learned")
    torch.testing.assert_close(after[:, :first], before[:, :first], rtol=0, atol=tolerance)
    assert ((after - before).abs().amax(-1)[:, first:] > 1e-6).all()


@ORDERS
@STARTS
@GRIDS
def test_later_latents_never_change_earlier_predictions(order, start, grid):
    predictor = toys.small_predictor(start=start, order=order).double()
    latents = toys.some_latents(2, *grid).double()
    before = predictor(latents)
    num = grid[0] * grid[1]
    assert before.shape == (2, num - int(start == "skip"), CHANNELS)
    for cell, place in enumerate(order_of(order, *grid)):
        other = latents.clone().flatten(2)
        other[:, :, place] += 1.0
        follows(before, predictor(other.view_as(latents)), predictor, cell)


@pytest.mark.parametrize("form", [
    {}, {"reads": "codes"}, {"reads": "noisy"}, {"loss": "ce"}, {"loss": "ce", "reads": "codes"},
    {"space": "encoder"}, {"scheduled_sampling": 0.5}, {"order": "spiral", "reads": "codes"},
], ids=str)  # fmt: skip
@STARTS
def test_whatever_is_read_a_later_cell_never_changes_an_earlier_prediction(form, start):
    predictor = toys.small_predictor(start=start, **form)
    shown = []
    predictor.register_forward_hook(lambda module, given, made: shown.append(made.detach()))
    order, latents = order_of(predictor.config.order, 2, 3), toys.some_latents()

    def seen(latents):
        # The size of the noise is one number of the whole batch, so it is held here.
        encoded = toys.encoded_of(latents, latents + 0.1)
        predictor.regularise(encoded, 1.0, torch.Generator().manual_seed(1))
        return shown[-1]

    before = seen(latents)
    for cell, place in enumerate(order):
        other = latents.clone().flatten(2)
        other[:, :, place] += 1.0
        after = seen(other.view_as(latents))
        first = cell + int(start == "learned")
        torch.testing.assert_close(after[:, :first], before[:, :first], rtol=0, atol=1e-5)
        assert ((after - before).abs().amax((0, 2))[first:] > 1e-4).all()


@ORDERS
def test_an_order_is_the_raster_order_of_the_reordered_grid_but_for_the_places(order):
    latents = toys.some_latents(2, 3, 4)
    cells = order_of(order, 3, 4)
    row = in_raster_order(latents)[:, cells].transpose(1, 2).unflatten(2, (3, 4))
    ordered, raster = (toys.last_cell_predictor(order=name) for name in (order, "raster"))
    assert torch.equal(ordered(latents), raster(row))
    found, wanted = (p.regularise(toys.encoded_of(x), 1.0)
                     for p, x in ((ordered, latents), (raster, row)))  # fmt: skip
    torch.testing.assert_close(found.loss, wanted.loss)
    # The rotary angles go with the cells, so the network does not see the same thing.
    full, plain = (toys.small_predictor(order=name) for name in (order, "raster"))
    assert torch.equal(full(latents), plain(row)) == (order == "raster")


def test_turning_the_picture_turns_raster_into_columns():
    """Rows and columns swap in the rotary table too: a predictor that knows no difference."""
    columns, raster = toys.small_predictor(order="columns"), toys.small_predictor(order="raster")
    with torch.no_grad():  # rows turn the first quarter of a head's angles, columns the second
        for block in columns.transformer.blocks:
            weights = block.attention.qkv.weight[:32].view(2, 2, 2, 2, 2, 16)
            weights.copy_(weights.flip(3))
            for norm in (block.attention.query_norm, block.attention.key_norm):
                norm.weight.copy_(norm.weight.view(2, 2, 2).flip(1).flatten())
    latents = toys.some_latents(2, 3, 4)
    torch.testing.assert_close(columns(latents), raster(latents.transpose(2, 3)))


def test_skipping_the_start_entry_i_predicts_cell_i_plus_1():
    latents = toys.some_latents()
    predictor = toys.last_cell_predictor(scale="none", start="skip")
    assert torch.equal(predictor(latents), in_raster_order(latents)[:, :-1])
    found = predictor.regularise(toys.encoded_of(latents), 1.0)
    torch.testing.assert_close(found.loss, toys.differences(latents).square().mean())
    # The rise of 1 a cell has an error of 1 only if each is compared with its very successor.
    rising = torch.arange(12.0).view(1, 1, 3, 4).expand(2, CHANNELS, 3, 4)
    assert predictor.regularise(toys.encoded_of(rising), 1.0).loss == 1.0


def test_with_a_learned_start_every_cell_is_predicted_the_first_from_the_start_vector():
    latents = toys.some_latents()
    predictor = toys.last_cell_predictor(scale="none", start="learned")
    sequence = in_raster_order(latents)
    assert torch.equal(predictor(latents)[:, 1:], sequence[:, :-1])
    assert torch.equal(predictor(latents)[:, 0], torch.full((3, CHANNELS), 0.5))
    errors = torch.cat([0.5 - sequence[:, :1], toys.differences(latents)], dim=1)
    found = predictor.regularise(toys.encoded_of(latents), 1.0)
    torch.testing.assert_close(found.loss, errors.square().mean())


def test_dropout_is_active_in_training_alone():
    net = TransformerConfig(width=16, depth=2, heads=2, hidden_multiple=16, dropout=0.5)
    predictor, latents = toys.small_predictor(transformer=net), toys.some_latents()
    assert not torch.equal(predictor(latents), predictor(latents))
    predictor.eval()
    assert torch.equal(predictor(latents), predictor(latents))


@pytest.mark.parametrize("change", [
    {"weight": 0.0}, {"reads": "codes"}, {"target": "codes"}, {"scale": "live"}, {"twin": False},
    {"order": "spiral"}, {"scheduled_sampling": 0.5}, {"reduction": "norm"}, {"start": "learned"},
], ids=str)  # fmt: skip
def test_arms_that_differ_in_a_choice_start_from_the_same_weights(change):
    usual, other = (toys.fresh_predictor(**form).state_dict() for form in ({}, change))
    assert other.keys() - usual.keys() <= {"start"}
    for name, weight in usual.items():
        assert torch.equal(weight, other[name]), name


# ------------------------------------------------------------------ who feels how much

FORMS = [
    {},
    {"reads": "codes"},
    {"reads": "noisy"},
    {"start": "learned"},
    {"target": "detached"},
    {"target": "codes"},
    {"reads": "codes", "target": "codes"},
    {"loss": "cosine"},
    {"loss": "ce"},
    {"loss": "ce", "reads": "codes", "scheduled_sampling": 0.5},
    {"reduction": "sum"},
    {"reduction": "norm"},
    {"scale": "variance"},
    {"scale": "live"},
    {"space": "projected"},
    {"space": "encoder"},
    {"order": "random"},
    {"scheduled_sampling": 0.5},
]


def gradients(form: dict, weight: float, times: float = 1.0) -> tuple[dict, dict, torch.Tensor]:
    """Gradients of encoder and predictor, of ``times`` the loss at ``weight``, and the loss."""
    stage = toys.Stage()
    predictor = toys.small_predictor(toys.channels_of(form), **form)
    draws = torch.Generator().manual_seed(4)
    codes_of = stage.quantizer.codes_of
    found = predictor.regularise(stage(toys.some_image()), weight, draws, codes_of)
    (times * found.loss).backward()

    def of(module):
        return {name: p.grad for name, p in module.named_parameters() if p.grad is not None}

    return of(stage), of(predictor), found.loss.detach()


@pytest.mark.parametrize("form", FORMS, ids=str)
def test_the_encoder_feels_the_loss_lambda_times_and_the_predictor_as_it_is(form):
    encoder, predictor, loss = gradients(form, 1.0)
    assert encoder
    assert all(gradient.abs().max() > 0 for gradient in encoder.values())
    # A power of two changes no digit in binary, so equal means equal to the last bit.
    for weight in (4.0, 0.5):
        scaled, own, same = gradients(form, weight)
        assert same == loss
        assert scaled.keys() == encoder.keys()
        for name, gradient in encoder.items():
            assert torch.equal(scaled[name], weight * gradient), name
        for name, gradient in predictor.items():
            assert torch.equal(own[name], gradient), name
    scaled, own, _ = gradients(form, 0.3)
    for name, gradient in encoder.items():
        error = (scaled[name] - 0.3 * gradient).abs().max()
        assert error <= 1e-6 * gradient.abs().max(), name
    for name, gradient in predictor.items():
        assert torch.equal(own[name], gradient), name


@pytest.mark.parametrize("form", FORMS, ids=str)
def test_it_is_the_papers_recipe_times_lambda_with_the_predictors_gradient_divided_by_it(form):
    """The paper: total = ... + lambda * loss, and the head's loss is divided by lambda."""
    ours_encoder, ours_predictor, _ = gradients(form, 4.0)
    papers_encoder, papers_predictor, _ = gradients(form, 1.0, times=4.0)
    assert ours_encoder.keys() == papers_encoder.keys()
    assert ours_predictor.keys() == papers_predictor.keys()
    for name, gradient in papers_encoder.items():
        assert torch.equal(ours_encoder[name], gradient), name
    for name, gradient in papers_predictor.items():
        assert torch.equal(ours_predictor[name], gradient / 4.0), name


@pytest.mark.parametrize("form", FORMS, ids=str)
def test_at_weight_0_the_encoder_gets_no_gradient_at_all_and_the_predictor_its_usual_one(form):
    encoder, predictor, loss = gradients(form, 0.0)
    _, usual, usual_loss = gradients(form, 4.0)
    assert encoder == {}
    assert loss == usual_loss
    assert predictor.keys() == usual.keys()
    for name, gradient in usual.items():
        assert torch.equal(predictor[name], gradient), name


@pytest.mark.parametrize("fault", [float("inf"), float("nan"), 1e38])
def test_at_weight_0_no_infinite_loss_poisons_the_encoder(fault):
    predictor = toys.small_predictor(scale="none")
    for weight in (0.0, 1e-3):
        latents = toys.some_latents().fill_(fault).requires_grad_()
        loss = predictor.regularise(toys.encoded_of(latents), weight).loss
        assert not loss.isfinite()
        loss.backward()
        if weight:  # the fault is real: any other weight lets it through
            assert not latents.grad.isfinite().all()
        else:
            assert latents.grad is None


@STARTS
@pytest.mark.parametrize("form", FORMS, ids=str)
def test_every_parameter_of_a_fresh_predictor_gets_a_gradient(start, form):
    predictor = toys.fresh_predictor(toys.channels_of(form), **({"start": start} | form))
    stage = toys.Stage()
    encoded = stage(toys.some_image())
    predictor.regularise(encoded, 0.0, codes_of=stage.quantizer.codes_of).loss.backward()
    for name, parameter in predictor.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.isfinite().all(), name
        assert parameter.grad.abs().max() > 0, name


@pytest.mark.parametrize("form", FORMS, ids=str)
def test_under_autocast_encoder_and_predictor_get_gradients_and_the_loss_is_float32(form):
    stage = toys.Stage()
    predictor = toys.small_predictor(toys.channels_of(form), **form)
    with torch.autocast("cpu", torch.bfloat16):
        encoded = stage(toys.some_image())
        found = predictor.regularise(encoded, 1.0, codes_of=stage.quantizer.codes_of)
    assert all(value.dtype == torch.float32 for value in [found.loss, *found.watched.values()])
    found.loss.backward()
    for name, parameter in [*predictor.named_parameters(), *stage.encoder.named_parameters()]:
        assert parameter.grad is not None, name
        assert parameter.grad.isfinite().all(), name
        assert parameter.grad.abs().max() > 0, name


@pytest.mark.parametrize("form", FORMS, ids=str)
def test_the_predictor_moves_no_code(form):
    encoder, _, _ = gradients(form, 4.0)
    assert not any(name.startswith("quantizer") for name in encoder)


def test_gradients_pass_times_the_scale_and_at_0_not_at_all():
    x = toys.some_latents().requires_grad_()
    gradient = torch.randn_like(x)
    assert torch.equal(scale_gradient(x, 3.0), x)
    (found,) = torch.autograd.grad(scale_gradient(x, 3.0), x, gradient)
    assert torch.equal(found, 3.0 * gradient)
    assert torch.equal(scale_gradient(x, 0.0), x)
    assert not scale_gradient(x, 0.0).requires_grad


# ------------------------------------------------------------------ any quantizer

QUANTIZERS = [
    VQConfig(codebook_size=CODES, dim=CHANNELS),
    VQConfig(codebook_size=CODES, dim=CHANNELS, normalise=False, gradient="rotation"),
    FSQConfig(levels=(3, 3, 3, 3)),
    ResidualVQConfig(levels=2, codebook_size=8, dim=CHANNELS),
]


@pytest.mark.parametrize("quantizer", QUANTIZERS, ids=lambda config: config.kind)
@pytest.mark.parametrize(
    "form", [form for form in FORMS if form.keys() & {"reads", "loss"}], ids=str
)
def test_any_quantizer_can_be_regularised_unless_it_makes_several_tokens_of_a_latent(
    quantizer, form
):
    stage = toys.Stage(quantizer)
    predictor = toys.small_predictor(toys.channels_of(form), **form)
    encoded, codes_of = stage(toys.some_image()), stage.quantizer.codes_of
    if quantizer.kind == "residual" and form.get("loss") == "ce":
        with pytest.raises(UserError, match="one token of a latent") as caught:
            predictor.regularise(encoded, 1.0, codes_of=codes_of)
        assert "\n" not in str(caught.value)
        return
    found = predictor.regularise(encoded, 1.0, codes_of=codes_of)
    found.loss.backward()
    assert found.loss.isfinite()
    assert all(value.isfinite() for value in found.watched.values())
    assert all(p.grad.abs().max() > 0 for p in stage.encoder.parameters())


def test_the_cross_entropy_needs_to_know_the_codebook():
    config = toys.config_with(loss="ce", reads="codes", scheduled_sampling=0.5)
    with pytest.raises(UserError, match="codebook_size is 0") as caught:
        CausalPredictor(config, CHANNELS)
    assert "\n" not in str(caught.value)
    predictor = CausalPredictor(config, CHANNELS, codebook_size=CODES)
    with pytest.raises(UserError, match="pass codes_of") as caught:
        predictor.regularise(toys.encoded_of(toys.some_latents()), 1.0)
    assert "\n" not in str(caught.value)
