import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn
from torch.nn import functional as F

from cartok.core.config import ConfigError
from cartok.layers import TransformerConfig
from cartok.tokenizer.causal import (
    CausalConfig,
    CausalLoss,
    CausalPredictor,
    in_raster_order,
    scale_gradient,
)
from cartok.tokenizer.model import Encoded
from cartok.tokenizer.quantize import Quantized, Statistics
from cartok.tokenizer.quantize.vq import VectorQuantizer, VQConfig

CHANNELS = 4
STARTS = pytest.mark.parametrize("start", ["skip", "learned"])
GRIDS = pytest.mark.parametrize("grid", [(3, 4), (1, 6), (5, 1), (2, 2)])


def config_with(**changes) -> CausalConfig:
    net = TransformerConfig(width=16, depth=2, heads=2, hidden_multiple=16)
    return CausalConfig(**({"transformer": net} | changes))


def small_predictor(channels=CHANNELS, **changes) -> CausalPredictor:
    """A predictor far from its small initialisation, so that context matters to it."""
    torch.manual_seed(0)
    predictor = CausalPredictor(config_with(**changes), channels)
    with torch.no_grad():
        for weight in predictor.parameters():
            weight.add_(0.2 * torch.randn_like(weight))
    return predictor


class _Nothing(nn.Module):
    def forward(self, x, rotary):
        return x


def last_cell_predictor(channels=CHANNELS, **changes) -> CausalPredictor:
    """Predicts that the next latent is the last one it read: every loss has a closed form."""
    predictor = CausalPredictor(config_with(**changes), channels)
    predictor.read = predictor.write = nn.Identity()
    predictor.transformer = _Nothing()
    if predictor.config.start == "learned":
        predictor.start = nn.Parameter(torch.full((channels,), 0.5))
    return predictor


def some_latents(batch=3, rows=2, cols=3, channels=CHANNELS, seed=0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(batch, channels, rows, cols, generator=generator)


def encoded_of(latents, codes=None, *, on_sphere=False, projected=None, output=None) -> Encoded:
    """Latents on their way, with codes that are 0.1 away from them unless given."""
    codes = (latents + 0.1).detach() if codes is None else codes
    quantized = Quantized(
        latents=latents,
        codes=latents + (codes - latents).detach(),
        tokens=torch.zeros(latents[:, 0].shape, dtype=torch.long),
        losses={},
        error=F.mse_loss(latents, codes).detach(),
        statistics=Statistics(torch.ones(1), torch.zeros(1, latents.shape[1])),
        on_sphere=on_sphere,
    )
    projected = latents if projected is None else projected
    return Encoded(projected if output is None else output, projected, quantized)


def differences(latents: torch.Tensor) -> torch.Tensor:
    """Each cell less the one after it, in raster order."""
    sequence = latents.flatten(2).transpose(1, 2)
    return sequence[:, :-1] - sequence[:, 1:]


# ------------------------------------------------------------------ causality and indices


@STARTS
@GRIDS
def test_later_latents_never_change_earlier_predictions(start, grid):
    predictor = small_predictor(start=start).double()
    latents = some_latents(2, *grid).double()
    before = predictor(latents)
    num = grid[0] * grid[1]
    # Entry i has read cells 0 to i, or with a start vector before them 0 to i - 1.
    behind = 0 if start == "skip" else 1
    assert before.shape == (2, num - 1 + behind, CHANNELS)
    for cell in range(num):
        other = latents.clone().flatten(2)
        other[:, :, cell] += 1.0
        after = predictor(other.view_as(latents))
        first = cell + behind
        torch.testing.assert_close(after[:, :first], before[:, :first], rtol=0, atol=1e-12)
        moved = (after - before).abs().amax(-1)[:, first:]
        assert (moved > 1e-6).all()


def test_raster_order_is_left_to_right_then_top_to_bottom():
    latents = torch.tensor([[[[0.0, 1, 2], [3, 4, 5]], [[0.0, 10, 20], [30, 40, 50]]]])
    assert in_raster_order(latents)[0].tolist() == [[k, 10 * k] for k in range(6)]


def test_skipping_the_start_entry_i_predicts_cell_i_plus_1():
    latents = some_latents()
    predictor = last_cell_predictor(scale="none", start="skip")
    assert torch.equal(predictor(latents), in_raster_order(latents)[:, :-1])
    found = predictor.regularise(encoded_of(latents), 1.0)
    torch.testing.assert_close(found.loss, differences(latents).square().mean())
    # The rise of 1 a cell has an error of 1 only if each is compared with its very successor.
    rising = torch.arange(12.0).view(1, 1, 3, 4).expand(2, CHANNELS, 3, 4)
    assert predictor.regularise(encoded_of(rising), 1.0).loss == 1.0


def test_with_a_learned_start_every_cell_is_predicted_the_first_from_the_start_vector():
    latents = some_latents()
    predictor = last_cell_predictor(scale="none", start="learned")
    sequence = in_raster_order(latents)
    assert torch.equal(predictor(latents)[:, 1:], sequence[:, :-1])
    assert torch.equal(predictor(latents)[:, 0], torch.full((3, CHANNELS), 0.5))
    errors = torch.cat([0.5 - sequence[:, :1], differences(latents)], dim=1)
    found = predictor.regularise(encoded_of(latents), 1.0)
    torch.testing.assert_close(found.loss, errors.square().mean())


def trained_on(some, steps: int, start: str) -> CausalPredictor:
    """A small predictor after ``steps`` on fresh batches of ``some()``."""
    torch.manual_seed(1)
    net = TransformerConfig(width=32, depth=1, heads=2, hidden_multiple=16)
    predictor = CausalPredictor(config_with(transformer=net, start=start), CHANNELS)
    optimizer = torch.optim.Adam(predictor.parameters())
    for step in range(steps):
        optimizer.param_groups[0]["lr"] = 2e-2 * (1 - step / steps)
        optimizer.zero_grad()
        predictor.regularise(encoded_of(some(), on_sphere=True), 0.0).loss.backward()
        optimizer.step()
    return predictor


@STARTS
def test_a_linear_law_of_succession_is_learned_to_almost_nothing(start):
    generator = torch.Generator().manual_seed(0)
    turn = torch.linalg.qr(torch.randn(CHANNELS, CHANNELS, generator=generator)).Q

    def lawful() -> torch.Tensor:
        cells = [F.normalize(torch.randn(32, CHANNELS, generator=generator), dim=1)]
        for _ in range(11):
            cells.append(cells[-1] @ turn.T)
        return torch.stack(cells, dim=2).view(32, CHANNELS, 3, 4)

    predictor, latents = trained_on(lawful, 80, start), lawful()
    predicted = predictor(latents)[:, -11:]  # of the cells that have one before them
    wanted = in_raster_order(latents)[:, :-1] @ turn.T
    assert F.mse_loss(predicted, wanted) < 0.03 / CHANNELS
    r2 = predictor.regularise(encoded_of(latents, on_sphere=True), 0.0).next_latent_r2
    # With a start vector the first of twelve cells stays as surprising as ever.
    possible = 1 if start == "skip" else 11 / 12
    assert possible - 0.05 < r2 < possible + 0.02


def test_independent_latents_cannot_be_predicted():
    generator = torch.Generator().manual_seed(0)

    def lawless() -> torch.Tensor:
        return F.normalize(torch.randn(32, CHANNELS, 3, 4, generator=generator), dim=1)

    predictor = trained_on(lawless, 30, "skip")
    assert predictor.regularise(encoded_of(lawless()), 0.0).next_latent_r2 < 0.05


# ------------------------------------------------------------------ who feels how much

FORMS = [
    {},
    {"reads": "codes"},
    {"reads": "noisy"},
    {"start": "learned"},
    {"detach_target": True},
    {"loss": "cosine"},
    {"scale": "variance"},
    {"space": "projected"},
    {"space": "encoder"},
]


class _Stage(nn.Module):
    """An encoder, a projection and a codebook: everything the regulariser may look at."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(5)
        self.encoder = nn.Conv2d(3, 6, 2, stride=2)
        self.project = nn.Conv2d(6, CHANNELS, 1)
        self.quantizer = VectorQuantizer(VQConfig(codebook_size=16, dim=CHANNELS))

    def forward(self, image) -> Encoded:
        output = self.encoder(image)
        projected = self.project(output)
        return Encoded(output, projected, self.quantizer(projected))


def gradients(form: dict, weight: float, times: float = 1.0) -> tuple[dict, dict, torch.Tensor]:
    """Gradients of encoder and predictor, of ``times`` the loss at ``weight``, and the loss."""
    stage = _Stage()
    channels = 6 if form.get("space") == "encoder" else CHANNELS
    predictor = small_predictor(channels, **form)
    image = torch.randn(2, 3, 6, 8, generator=torch.Generator().manual_seed(3))
    noise = torch.Generator().manual_seed(4)
    found = predictor.regularise(stage(image), weight, noise)
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
    predictor = small_predictor(scale="none")
    for weight in (0.0, 1e-3):
        latents = some_latents().fill_(fault).requires_grad_()
        loss = predictor.regularise(encoded_of(latents), weight).loss
        assert not loss.isfinite()
        loss.backward()
        if weight:  # the fault is real: any other weight lets it through
            assert not latents.grad.isfinite().all()
        else:
            assert latents.grad is None


@STARTS
@pytest.mark.parametrize("form", FORMS, ids=str)
def test_every_parameter_of_a_fresh_predictor_gets_a_gradient(start, form):
    torch.manual_seed(0)
    channels = 6 if form.get("space") == "encoder" else CHANNELS
    predictor = CausalPredictor(config_with(**({"start": start} | form)), channels)
    stage = _Stage()
    predictor.regularise(stage(torch.randn(2, 3, 6, 8)), 0.0).loss.backward()
    for name, parameter in predictor.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.isfinite().all(), name
        assert parameter.grad.abs().max() > 0, name


def test_the_predictor_moves_no_code():
    encoder, _, _ = gradients({"reads": "codes"}, 4.0)
    assert not any(name.startswith("quantizer") for name in encoder)


def test_gradients_pass_times_the_scale_and_at_0_not_at_all():
    x = some_latents().requires_grad_()
    gradient = torch.randn_like(x)
    assert torch.equal(scale_gradient(x, 3.0), x)
    (found,) = torch.autograd.grad(scale_gradient(x, 3.0), x, gradient)
    assert torch.equal(found, 3.0 * gradient)
    assert torch.equal(scale_gradient(x, 0.0), x)
    assert not scale_gradient(x, 0.0).requires_grad


# ------------------------------------------------------------------ what is read and predicted


def read_by(predictor: CausalPredictor, encoded: Encoded, weight=1.0, seed=0) -> torch.Tensor:
    """The latents the predictor was shown."""
    shown = []
    handle = predictor.register_forward_pre_hook(lambda module, given: shown.append(given[0]))
    predictor.regularise(encoded, weight, torch.Generator().manual_seed(seed))
    handle.remove()
    return shown[0]


@pytest.mark.parametrize("detached", [False, True])
def test_the_target_pulls_unless_it_is_detached(detached):
    latents = some_latents().requires_grad_()
    predictor = last_cell_predictor(scale="none", detach_target=detached)
    loss = predictor.regularise(encoded_of(latents), 1.0).loss
    (found,) = torch.autograd.grad(loss, latents)
    pull = 2 * differences(latents.detach()) / differences(latents).numel()
    wanted = F.pad(pull, (0, 0, 0, 1))  # each cell as what was read ...
    if not detached:
        wanted = wanted - F.pad(pull, (0, 0, 1, 0))  # ... and as what was to be predicted
    torch.testing.assert_close(in_raster_order(found), wanted)


def test_reading_codes_the_gradient_passes_straight_to_the_latents():
    latents, codes = some_latents().requires_grad_(), some_latents(seed=1)
    predictor = last_cell_predictor(scale="none", reads="codes", detach_target=True)
    encoded = encoded_of(latents, codes)
    torch.testing.assert_close(read_by(predictor, encoded), codes)
    loss = predictor.regularise(encoded, 1.0).loss
    errors = in_raster_order(codes)[:, :-1] - in_raster_order(latents.detach())[:, 1:]
    torch.testing.assert_close(loss, errors.square().mean())  # codes read, latents predicted
    (found,) = torch.autograd.grad(loss, latents)
    wanted = F.pad(2 * errors / errors.numel(), (0, 0, 0, 1))
    torch.testing.assert_close(in_raster_order(found), wanted)


@pytest.mark.parametrize("gap", [0.02, 0.3])
def test_the_noise_is_as_large_as_the_quantisation(gap):
    latents = some_latents(64, 4, 4)
    codes = latents + gap * torch.randn(latents.shape, generator=torch.Generator().manual_seed(2))
    noise = read_by(small_predictor(reads="noisy"), encoded_of(latents, codes)) - latents
    size = F.mse_loss(latents, codes).sqrt()
    assert noise.std() == pytest.approx(size.item(), rel=0.05)  # 4096 draws: 1.1 % of deviation
    assert noise.mean().abs() < 0.08 * size
    assert (noise.flatten(2).std((0, 2)) > 0.8 * size).all()  # in every channel


def test_without_a_quantisation_error_there_is_no_noise():
    latents, predictor = some_latents(), small_predictor(reads="noisy")
    assert torch.equal(read_by(predictor, encoded_of(latents, latents)), latents)


def test_the_noise_follows_the_generator():
    encoded, predictor = encoded_of(some_latents()), small_predictor(reads="noisy")
    first, again, other = (read_by(predictor, encoded, seed=seed) for seed in (0, 0, 1))
    assert torch.equal(first, again)
    assert not torch.equal(first, other)
    torch.manual_seed(7)
    unnamed = predictor.regularise(encoded, 1.0).loss
    torch.manual_seed(7)
    assert predictor.regularise(encoded, 1.0).loss == unnamed  # the global one by default


def test_reading_noisy_latents_the_gradient_passes_straight_to_the_latents():
    latents = some_latents().requires_grad_()
    predictor = last_cell_predictor(scale="none", reads="noisy", detach_target=True)
    encoded = encoded_of(latents)
    noisy = read_by(predictor, encoded, seed=3).detach()
    loss = predictor.regularise(encoded, 1.0, torch.Generator().manual_seed(3)).loss
    errors = in_raster_order(noisy)[:, :-1] - in_raster_order(latents.detach())[:, 1:]
    torch.testing.assert_close(loss, errors.square().mean())  # the target has no noise
    (found,) = torch.autograd.grad(loss, latents)
    wanted = F.pad(2 * errors / errors.numel(), (0, 0, 0, 1))
    torch.testing.assert_close(in_raster_order(found), wanted)


@pytest.mark.parametrize("space", ["lookup", "projected", "encoder"])
def test_the_space_says_which_latents_are_read_and_predicted(space):
    places = {"lookup": some_latents(seed=1), "projected": some_latents(seed=2)}
    places["encoder"] = some_latents(channels=6, seed=3)
    encoded = encoded_of(places["lookup"], projected=places["projected"], output=places["encoder"])
    wanted = places[space]
    predictor = last_cell_predictor(wanted.shape[1], space=space, scale="none")
    assert torch.equal(read_by(predictor, encoded), wanted)
    found = predictor.regularise(encoded, 1.0)
    torch.testing.assert_close(found.loss, differences(wanted).square().mean())


# ------------------------------------------------------------------ the scale of the loss

SCALES = [
    # space, latents on the sphere, scale, divided
    ("lookup", True, "auto", False),
    ("lookup", False, "auto", True),
    ("projected", True, "auto", True),
    ("encoder", True, "auto", True),
    ("projected", False, "auto", True),
    ("lookup", True, "none", False),
    ("lookup", False, "none", False),
    ("encoder", True, "none", False),
    ("lookup", True, "variance", True),
    ("lookup", False, "variance", True),
    ("projected", True, "variance", True),
]


@pytest.mark.parametrize(("space", "on_sphere", "scale", "divided"), SCALES)
def test_the_loss_is_divided_by_the_variance_where_latents_have_a_free_scale(
    space, on_sphere, scale, divided
):
    latents = 3 * some_latents()
    found = small_predictor(space=space, scale=scale).regularise(
        encoded_of(latents, on_sphere=on_sphere), 1.0
    )
    targets = in_raster_order(latents)[:, 1:]
    variance = targets.var((0, 1), correction=0).mean()
    torch.testing.assert_close(found.latent_variance, variance)
    wanted = found.next_latent_mse / variance if divided else found.next_latent_mse
    torch.testing.assert_close(found.loss, wanted)


@given(st.sampled_from([0.125, 0.5, 4.0, 64.0]), st.sampled_from(["lookup", "projected"]))
def test_off_the_sphere_the_size_of_the_latents_leaves_the_loss_unchanged(times, space):
    # Exact where the prediction grows with the latents, as the last cell itself does.
    predictor, latents = last_cell_predictor(space=space), some_latents()
    small, large = (predictor.regularise(encoded_of(c * latents), 1.0) for c in (1.0, times))
    assert large.loss == small.loss
    raw = last_cell_predictor(space=space, scale="none")
    small, large = (raw.regularise(encoded_of(c * latents), 1.0) for c in (1.0, times))
    assert large.loss == times**2 * small.loss


def test_the_variance_is_a_constant_to_the_gradient():
    latents = some_latents().requires_grad_()
    divided = last_cell_predictor(scale="variance").regularise(encoded_of(latents), 1.0)
    plain = last_cell_predictor(scale="none").regularise(encoded_of(latents), 1.0)
    (found,) = torch.autograd.grad(divided.loss, latents)
    (wanted,) = torch.autograd.grad(plain.loss, latents)
    torch.testing.assert_close(found, wanted / divided.latent_variance)


def test_latents_that_never_vary_give_a_finite_loss():
    found = small_predictor().regularise(encoded_of(torch.ones(2, CHANNELS, 2, 2)), 1.0)
    assert found.latent_variance == 0
    assert found.loss.isfinite()
    assert found.next_latent_r2.isfinite()


def test_the_cosine_loss_sees_directions_only():
    latents = some_latents()
    sequence = in_raster_order(latents)
    cosines = F.cosine_similarity(sequence[:, :-1], sequence[:, 1:], dim=-1)
    predictor = last_cell_predictor(loss="cosine")
    for times in (1.0, 8.0):
        found = predictor.regularise(encoded_of(times * latents), 1.0)
        torch.testing.assert_close(found.loss, 1 - cosines.mean())
    still = some_latents(rows=1, cols=1).expand(3, CHANNELS, 2, 3)
    assert predictor.regularise(encoded_of(still), 1.0).loss.abs() < 1e-6
    turning = still * torch.tensor([1.0, -1.0, 1.0, -1.0, 1.0, -1.0]).view(1, 1, 2, 3)
    assert predictor.regularise(encoded_of(turning), 1.0).loss == pytest.approx(2)


# ------------------------------------------------------------------ what is watched


def test_a_perfect_prediction_has_r2_of_1():
    still = some_latents(rows=1, cols=1).expand(3, CHANNELS, 2, 3)
    found = last_cell_predictor().regularise(encoded_of(still), 1.0)
    assert found.next_latent_r2 == 1
    assert found.next_latent_mse == 0
    assert found.latent_variance > 0.1


@STARTS
def test_predicting_the_mean_has_r2_of_0_and_worse_is_below(start):
    latents = some_latents()
    sequence = in_raster_order(latents)[:, 1 if start == "skip" else 0 :]
    predictor = small_predictor(start=start)
    with torch.no_grad():
        predictor.write.weight.zero_()
        predictor.write.bias.copy_(sequence.mean((0, 1)))
    assert predictor.regularise(encoded_of(latents), 1.0).next_latent_r2.abs() < 1e-6
    with torch.no_grad():
        predictor.write.bias.add_(1.0)
    found = predictor.regularise(encoded_of(latents), 1.0)
    variance = sequence.var((0, 1), correction=0).mean()
    torch.testing.assert_close(found.next_latent_r2, -1 / variance)


@given(st.sampled_from([0.5, 0.25, 0.0625]))
def test_shrinking_latents_lowers_the_error_but_not_r2(times):
    latents, predictor = some_latents(), last_cell_predictor()
    before, after = (predictor.regularise(encoded_of(c * latents), 1.0) for c in (1.0, times))
    assert after.next_latent_mse == times**2 * before.next_latent_mse
    assert after.latent_variance == times**2 * before.latent_variance
    assert after.next_latent_r2 == before.next_latent_r2


def test_what_is_watched_carries_no_gradient():
    latents = some_latents().requires_grad_()
    found = small_predictor().regularise(encoded_of(latents), 4.0)
    assert isinstance(found, CausalLoss)
    assert found.loss.requires_grad
    for name in ("next_latent_mse", "next_latent_r2", "latent_variance"):
        assert not getattr(found, name).requires_grad, name


def test_under_autocast_the_loss_is_float32_and_near_the_plain_one():
    encoded, predictor = encoded_of(some_latents(8)), small_predictor()
    plain = predictor.regularise(encoded, 4.0).loss
    with torch.autocast("cpu", torch.bfloat16):
        found = predictor.regularise(encoded, 4.0)
    assert found.loss.dtype == found.next_latent_mse.dtype == torch.float32
    assert found.loss.item() == pytest.approx(plain.item(), rel=0.05)


# ------------------------------------------------------------------ the config


@given(st.floats(0, 15), st.integers(1, 2000), st.integers(0, 5000))
def test_the_weight_rises_in_a_straight_line_and_stays(weight, anneal, step):
    found = CausalConfig(weight=weight, anneal_steps=anneal).weight_at(step)
    assert found == pytest.approx(weight * min(step, anneal) / anneal)


def test_the_papers_weight_is_0_at_first_half_after_500_steps_and_4_after_1000():
    config = CausalConfig()
    assert [config.weight_at(step) for step in (0, 500, 1000, 400_000)] == [0, 2, 4, 4]


def test_without_annealing_the_weight_is_full_at_once():
    assert CausalConfig(weight=4.0, anneal_steps=0).weight_at(0) == 4


@pytest.mark.parametrize("space", ["lookup", "projected", "encoder"])
@pytest.mark.parametrize("reads", ["latents", "codes", "noisy"])
def test_codes_and_noise_belong_to_the_latents_that_enter_the_look_up(space, reads):
    if space == "lookup" or reads == "latents":
        assert config_with(space=space, reads=reads).reads == reads
        return
    with pytest.raises(ConfigError, match="space must then be 'lookup'") as caught:
        config_with(space=space, reads=reads)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "change",
    [{"weight": -1.0}, {"anneal_steps": -1}, {"weight": float("nan")}, {"reads": "tokens"},
     {"start": "zero"}, {"loss": "l1"}, {"scale": "std"}],
)  # fmt: skip
def test_senseless_choices_are_refused(change):
    with pytest.raises(ConfigError):
        config_with(**change)


def test_a_predictor_exists_if_it_regularises_or_watches():
    assert CausalConfig(weight=4.0, watch=False).is_used
    assert CausalConfig(weight=0.0, watch=True).is_used
    assert not CausalConfig(weight=0.0, watch=False).is_used
