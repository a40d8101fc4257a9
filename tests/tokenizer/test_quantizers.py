"""What is true of every quantizer: a new one is tested by being in KINDS."""

import json
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from cartok.core.config import ConfigError, config_of, dict_of
from cartok.layers import TransformerConfig
from cartok.tokenizer.causal import CausalConfig, CausalPredictor
from cartok.tokenizer.losses import watched_of
from cartok.tokenizer.model import Encoded, TokenizerConfig
from cartok.tokenizer.quantize import Quantizer
from cartok.tokenizer.quantize.fsq import ScalarQuantizer
from cartok.tokenizer.quantize.kinds import KINDS, quantizer_of

SMALL: dict[str, dict[str, Any]] = {
    "vq": {"codebook_size": 32, "dim": 4},
    "fsq": {"levels": (5, 4, 3)},
    "lfq": {"bits": 5},
    "bsq": {"bits": 5},
    "residual": {"codebook_size": 8, "dim": 4, "revive_after": 0},
}
CHANGES = {
    "vq off the sphere": ("vq", {"normalise": False}),
    "vq revived": ("vq", {"revive_after": 2}),
    "vq ema": ("vq", {"codebook": "ema", "decay": 0.7}),
    "vq ema off the sphere": ("vq", {"codebook": "ema", "normalise": False, "revive_after": 2}),
    "vq kmeans": ("vq", {"init": "kmeans"}),
    "vq ema kmeans": ("vq", {"init": "kmeans", "codebook": "ema", "revive_after": 2}),
    "vq rotation": ("vq", {"gradient": "rotation"}),
    "vq rotation off the sphere": ("vq", {"gradient": "rotation", "normalise": False}),
    "vq drawn": ("vq", {"temperature": 0.1}),
    "fsq even": ("fsq", {"levels": (8, 6)}),
    "lfq one bit": ("lfq", {"bits": 1}),
    "bsq one bit": ("bsq", {"bits": 1}),
    "residual one level": ("residual", {"levels": 1}),
    "residual three levels": ("residual", {"levels": 3, "codebook_size": 4, "beam": 16}),
    "residual greedy": ("residual", {"beam": 1}),
    "residual revived": ("residual", {"revive_after": 2}),
}

CONFIGS = {kind: KINDS[kind][0](**SMALL.get(kind, {})) for kind in KINDS} | {
    name: KINDS[kind][0](**(SMALL[kind] | changes)) for name, (kind, changes) in CHANGES.items()
}
"""By name; a kind of KINDS that is not listed above takes part with its defaults."""

EXHAUSTIVE = [name for name in CONFIGS if name != "residual greedy"]
"""Those that find the nearest code; a greedy sum may miss it."""


def made(name: str, seed: int = 0, evaluating: bool = True) -> Quantizer:
    """The quantizer of that name; unless told, as it is after training."""
    torch.manual_seed(seed)
    return quantizer_of(CONFIGS[name]).train(not evaluating)


def some_latents(net: Quantizer, batch=3, rows=2, cols=5, seed=0, size=1.0) -> torch.Tensor:
    """Latents that no global state decides."""
    generator = torch.Generator().manual_seed(seed)
    return size * torch.randn(batch, net.dim, rows, cols, generator=generator)


def all_tokens(net: Quantizer) -> torch.Tensor:
    """A row of cells, of every token or combination of tokens that there is."""
    ids = [torch.arange(net.codebook_size)] * net.tokens_per_cell
    return torch.cartesian_prod(*ids).reshape(1, 1, -1)


def all_codes(net: Quantizer) -> torch.Tensor:
    """The codes of ``all_tokens``, one a row."""
    return net.codes_of(all_tokens(net)).detach()[0, :, 0].T


def latents_at(net: Quantizer, codes: torch.Tensor) -> torch.Tensor:
    """Latents that enter the look-up exactly where codes are: those of FSQ pass a tanh before."""
    if not isinstance(net, ScalarQuantizer):
        return codes
    half, reach = net.levels // 2, (net.levels - 1) * (1 + 1e-3) / 2
    offset = 0.5 * (net.levels % 2 == 0)
    return torch.atanh((codes * half + offset) / reach) - torch.atanh(offset / reach)


EVERY = pytest.mark.parametrize("name", CONFIGS)
NEAREST = pytest.mark.parametrize("name", EXHAUSTIVE)


def rows_of(latents: torch.Tensor) -> torch.Tensor:
    return latents.detach().movedim(1, -1).flatten(0, 2).double()


def encoded_of(net: Quantizer, latents: torch.Tensor) -> Encoded:
    return Encoded(latents, latents, net(latents))


# ------------------------------------------------------------------ tokens and codes


def test_every_kind_says_its_name():
    assert {kind: config.kind for kind, (config, _) in KINDS.items()} == {k: k for k in KINDS}


@EVERY
def test_the_network_is_as_large_as_its_config_says(name):
    net, config = made(name), CONFIGS[name]
    assert (net.codebook_size, net.dim) == (config.codebook_size, config.dim)
    assert len(all_codes(net).unique(dim=0)) == config.codebook_size**net.tokens_per_cell


@EVERY
def test_tokens_lie_on_the_grid_and_in_range(name):
    net = made(name)
    tokens = net.tokens_of(some_latents(net, batch=3, rows=2, cols=5, size=3.0))
    assert tokens.shape == (3, 2, 5 * net.tokens_per_cell)
    assert tokens.dtype == torch.int64
    assert 0 <= tokens.min() < tokens.max() < net.codebook_size


@EVERY
def test_training_and_evaluation_take_the_same_tokens(name):
    net = made(name)
    latents = some_latents(net)
    assert torch.equal(net(latents).tokens, net.tokens_of(latents))
    if name != "vq drawn":
        assert torch.equal(net.train()(latents).tokens, net.tokens_of(latents))


@EVERY
def test_the_value_that_goes_on_is_that_of_the_tokens_codes(name):
    net = made(name, evaluating=False)
    quantized = net(some_latents(net))
    torch.testing.assert_close(quantized.codes, net.codes_of(quantized.tokens))


@settings(max_examples=60)
@given(
    name=st.sampled_from(EXHAUSTIVE),
    rows=st.integers(1, 3),
    cols=st.integers(1, 4),
    size=st.sampled_from([0.02, 0.3, 2.0]),
    seed=st.integers(0, 1000),
)
def test_the_nearest_of_all_codes_is_taken(name, rows, cols, size, seed):
    net = made(name, seed)
    quantized = net(some_latents(net, 2, rows, cols, seed, size))
    distances = torch.cdist(rows_of(quantized.latents), all_codes(net).double())
    chosen = (rows_of(quantized.latents) - rows_of(net.codes_of(quantized.tokens))).norm(dim=1)
    # Two codes within float32's reach of each other are both right.
    assert (chosen - distances.min(1).values <= 1e-3 * max(size, chosen.max())).all()


@NEAREST
@pytest.mark.parametrize("seed", range(3))
def test_the_tokens_of_codes_are_the_tokens(name, seed):
    net = made(name, seed)
    tokens = all_tokens(net)
    assert torch.equal(net.tokens_of(latents_at(net, net.codes_of(tokens))), tokens)


@EVERY
def test_tokens_do_not_depend_on_the_batch(name):
    net = made(name)
    latents = some_latents(net, batch=8)
    together = net.tokens_of(latents)
    assert torch.equal(torch.cat([net.tokens_of(one) for one in latents.split(3)]), together)


@EVERY
def test_codes_and_latents_lie_on_the_sphere_where_that_is_said(name):
    net = made(name)
    quantized = net(some_latents(net, size=3.0))
    lengths = torch.stack([quantized.latents.norm(dim=1), quantized.codes.norm(dim=1)])
    assert quantized.on_sphere is ((lengths - 1).abs().max().item() < 1e-3)


@EVERY
def test_tokens_under_autocast_are_those_of_float32(name):
    net = made(name)
    latents = some_latents(net, batch=16)
    plain = net(latents)
    with torch.autocast("cpu", torch.bfloat16):
        quantized = net(latents)
        assert torch.equal(net.tokens_of(latents), plain.tokens)
    assert torch.equal(quantized.tokens, plain.tokens)
    assert torch.equal(quantized.codes, plain.codes)
    assert quantized.losses == plain.losses
    assert quantized.codes.dtype == quantized.latents.dtype == torch.float32


@EVERY
def test_latents_in_bfloat16_are_quantized_as_the_floats_they_stand_for(name):
    net = made(name)
    short = some_latents(net).bfloat16()
    assert torch.equal(net.tokens_of(short), net.tokens_of(short.float()))
    assert torch.equal(net(short).codes, net(short.float()).codes)


# ------------------------------------------------------------------ losses and gradients


@EVERY
def test_losses_have_known_names_and_the_error_has_no_gradient(name):
    net = made(name, evaluating=False)
    quantized = net(some_latents(net).requires_grad_())
    assert set(quantized.losses) <= {"codebook", "commitment", "entropy"}
    assert all(loss.isfinite() and loss.requires_grad for loss in quantized.losses.values())
    distance = (quantized.latents - quantized.codes).square().mean()
    torch.testing.assert_close(quantized.error, distance.detach())
    assert not quantized.error.requires_grad
    if "commitment" in quantized.losses:
        torch.testing.assert_close(quantized.losses["commitment"].detach(), quantized.error)


@EVERY
def test_the_gradient_of_the_codes_reaches_the_latents_and_no_parameter(name):
    net = made(name, evaluating=False)
    latents = some_latents(net).requires_grad_()
    quantized = net(latents)
    gradient = some_latents(net, seed=1)
    entering, given, *others = torch.autograd.grad(
        quantized.codes,
        [quantized.latents, latents, *net.parameters()],
        gradient,
        allow_unused=True,
    )
    assert all(other is None for other in others)
    assert (given.abs().sum(1) > 0).all() or net.dim == 1  # one channel of a sphere cannot move
    if "rotation" not in name:
        assert torch.equal(entering, gradient)


@EVERY
def test_every_parameter_is_moved_by_the_codebook_loss_and_by_no_other(name):
    net = made(name, evaluating=False)
    losses = dict(net(some_latents(net).requires_grad_()).losses)
    parameters = list(net.parameters())
    assert bool(parameters) is ("codebook" in losses)
    if parameters:
        moved = torch.autograd.grad(losses.pop("codebook"), parameters, retain_graph=True)
        assert all(gradient.abs().sum() > 0 for gradient in moved)
        rest = sum(losses.values())
        assert torch.autograd.grad(rest, parameters, allow_unused=True) == (None,) * len(moved)


@EVERY
@pytest.mark.parametrize("autocast", [False, True])
def test_zero_latents_give_finite_gradients(name, autocast):
    net = made(name, evaluating=False)
    encoder = torch.nn.Conv2d(3, net.dim, 1)
    torch.nn.init.zeros_(encoder.weight)
    torch.nn.init.zeros_(encoder.bias)
    with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
        quantized = net(encoder(torch.ones(2, 3, 4, 4)))
    (quantized.codes.sum() + sum(quantized.losses.values())).backward()
    for parameter in [*encoder.parameters(), *net.parameters()]:
        assert parameter.grad is None or parameter.grad.isfinite().all()
    assert encoder.weight.grad is not None


@EVERY
@pytest.mark.parametrize("reads", ["latents", "codes", "noisy"])
def test_the_causal_regulariser_reads_them(name, reads):
    net = made(name, evaluating=False)
    small = TransformerConfig(width=16, depth=1, heads=2, hidden_multiple=16)
    predictor = CausalPredictor(CausalConfig(transformer=small, reads=reads), net.dim)
    latents = some_latents(net).requires_grad_()
    loss = predictor.regularise(encoded_of(net, latents), 1.0).loss
    loss.backward()
    assert loss.isfinite()
    assert latents.grad.isfinite().all()
    assert latents.grad.abs().max() > 0
    assert all(parameter.grad.isfinite().all() for parameter in predictor.parameters())


# ------------------------------------------------------------------ statistics


@EVERY
def test_counts_usage_and_perplexity_are_those_of_the_tokens(name):
    net = made(name)
    encoded = encoded_of(net, some_latents(net))
    tokens, per_cell = encoded.quantized.tokens, net.tokens_per_cell
    by_level = tokens.reshape(-1, per_cell).T
    counted = torch.cat([torch.bincount(t, minlength=net.codebook_size) for t in by_level])
    assert torch.equal(encoded.quantized.statistics.counts, counted.float())
    shares = counted[counted > 0].double() / tokens.numel()
    watched = watched_of(encoded)
    used = len(shares) / (net.codebook_size * per_cell)
    assert watched["batch_usage"].item() == pytest.approx(used)
    perplexity = (-shares * shares.log()).sum().exp().item()
    assert watched["batch_perplexity"].item() == pytest.approx(perplexity, rel=1e-5)


@EVERY
def test_what_update_moves_depends_on_the_step_and_the_statistics_alone(name):
    ends = []
    for seed in (0, 1):
        net = made(name, evaluating=False)
        statistics = [net(some_latents(net, seed=step)).statistics for step in range(4)]
        torch.manual_seed(seed)
        if "drawn" not in name:
            for step, seen in enumerate(statistics):
                net.update(seen, step)
        ends.append(net.state_dict())
    assert all(torch.equal(ends[0][key], value) for key, value in ends[1].items())


@EVERY
def test_update_moves_codes_only_where_that_is_said(name):
    net = made(name, evaluating=False)
    said = net.learns_by_update
    before = all_codes(net)
    for step in range(4):
        net.update(net(some_latents(net, seed=step)).statistics, step)
    assert torch.equal(all_codes(net), before) is not said


@EVERY
def test_a_quantizer_goes_on_from_its_state_as_it_would_have(name):
    net, other = made(name, evaluating=False), made(name, seed=1, evaluating=False)
    for step in range(2):
        net.update(net(some_latents(net, seed=step)).statistics, step)
    other.load_state_dict(net.state_dict())
    latents = some_latents(net, seed=2)
    assert torch.equal(net.tokens_of(latents), other.tokens_of(latents))
    seen = net(latents).statistics
    for one in (net, other):
        one.update(seen, 2)
    state = other.state_dict()
    assert all(torch.equal(state[key], value) for key, value in net.state_dict().items())


@EVERY
def test_shapes_without_numbers_pass_where_costs_are_counted(name):
    with torch.device("meta"):
        net = quantizer_of(CONFIGS[name])
    quantized = net(torch.zeros(2, net.dim, 3, 3, device="meta"))
    assert quantized.codes.shape == (2, net.dim, 3, 3)
    assert quantized.tokens.shape == (2, 3, 3 * net.tokens_per_cell)


# ------------------------------------------------------------------ configs


@EVERY
def test_a_config_comes_back_from_json(name):
    config = TokenizerConfig(quantizer=CONFIGS[name])
    assert config_of(TokenizerConfig, json.loads(json.dumps(dict_of(config)))) == config


def test_a_config_without_a_kind_is_a_codebook_as_before_there_were_kinds():
    found = config_of(TokenizerConfig, {"quantizer": {"codebook_size": 64, "revive_after": 3}})
    assert found.quantizer == KINDS["vq"][0](codebook_size=64, revive_after=3)


@pytest.mark.parametrize(
    ("plain", "said"),
    [
        ({"kind": "fsq", "levls": [5]}, "'quantizer.levls'; did you mean 'quantizer.levels'?"),
        ({"codebok_size": 5}, "did you mean 'quantizer.codebook_size'?"),
        ({"kind": "residul"}, "'quantizer' has no kind 'residul'; did you mean 'residual'?"),
        ({"kind": "lfq", "bits": 0}, "'quantizer': bits are 1 to 24"),
        (7, "'quantizer"),
    ],
)
def test_a_mistake_in_a_stored_config_is_one_line_that_names_the_key(plain, said):
    with pytest.raises(ConfigError) as refusal:
        config_of(TokenizerConfig, {"quantizer": plain})
    assert said in str(refusal.value)
    assert len(str(refusal.value).splitlines()) == 1
