"""The regulariser's config: which fields go together, and that all that do can be trained."""

import importlib.util
import itertools
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from cartok.core.config import ConfigError, config_of, dict_of
from cartok.layers import TransformerConfig
from cartok.tokenizer.causal import CausalPredictor
from cartok.tokenizer.forms import CausalConfig
from cartok.tokenizer.quantize.vq import VQConfig

_TOYS = Path(__file__).with_name("causal_toys.py")
_SPEC = importlib.util.spec_from_file_location(_TOYS.stem, _TOYS)
toys = importlib.util.module_from_spec(_SPEC)
_SPEC.loader.exec_module(toys)

# ------------------------------------------------------------------ the weight


@given(st.floats(0, 15), st.integers(1, 2000), st.integers(0, 5000))
def test_the_weight_rises_in_a_straight_line_and_stays(weight, anneal, step):
    found = CausalConfig(weight=weight, anneal_steps=anneal).weight_at(step)
    assert found == pytest.approx(weight * min(step, anneal) / anneal)


def test_the_papers_weight_is_0_at_first_half_after_500_steps_and_4_after_1000():
    config = CausalConfig()
    assert [config.weight_at(step) for step in (0, 500, 1000, 400_000)] == [0, 2, 4, 4]


def test_the_cosine_rises_slowly_at_both_ends():
    config = CausalConfig(anneal="cosine")
    at = [config.weight_at(step) for step in (0, 250, 500, 750, 1000, 400_000)]
    assert at == pytest.approx([0, 2 - 2**0.5, 2, 2 + 2**0.5, 4, 4])


@pytest.mark.parametrize("anneal", ["linear", "cosine"])
def test_without_annealing_the_weight_is_full_at_once(anneal):
    assert CausalConfig(weight=4.0, anneal_steps=0, anneal=anneal).weight_at(0) == 4


# ------------------------------------------------------------------ which fields go together

OFF_LOOKUP, NOT_L2 = ("projected", "encoder"), ("cosine", "ce", "rate")
CONTRADICTIONS = [
    # what is refused: a value of each field with any of the other's; and what is said of it
    (
        "space",
        OFF_LOOKUP,
        "reads",
        ("codes", "noisy"),
        "puts codes beside .* must then be 'lookup'",
    ),
    ("space", OFF_LOOKUP, "target", ("codes",), "target 'codes' puts codes beside"),
    ("loss", NOT_L2, "reduction", ("sum", "norm"), "is of loss 'l2'; take it back to 'mean'"),
    ("loss", NOT_L2, "scale", ("variance", "live"), "is of loss 'l2'; take it back to 'auto'"),
    ("loss", ("ce",), "target", ("detached", "codes"), "loss 'ce' predicts tokens, not"),
    ("scale", ("live",), "target", ("detached",), "scale 'live' has no gradient"),
    ("loss", ("rate",), "reads", ("latents", "codes"), "loss 'rate' is of noisy latents"),
    ("loss", ("rate",), "target", ("detached", "codes"), "loss 'rate' is of noisy latents"),
]


def _is_of_codes(form: dict) -> bool:
    return form["loss"] == "ce" and form["space"] in OFF_LOOKUP


def contradicts_itself(form: dict) -> bool:
    is_sampled = form["scheduled_sampling"] > 0
    if is_sampled and (form["loss"] == "rate" or _is_of_codes(form)):
        return True
    return any(
        form[one] in ones and form[other] in others
        for one, ones, other, others, _ in CONTRADICTIONS
    )


@pytest.mark.parametrize(("one", "ones", "other", "others", "reason"), CONTRADICTIONS)
def test_what_contradicts_itself_is_refused_in_one_line(one, ones, other, others, reason):
    for first, second in itertools.product(ones, others):
        with pytest.raises(ConfigError, match=reason) as caught:
            toys.config_with(**{one: first, other: second})
        assert "\n" not in str(caught.value)


@pytest.mark.parametrize("space", OFF_LOOKUP)
def test_sampled_tokens_belong_to_the_look_up(space):
    with pytest.raises(ConfigError, match="scheduled_sampling of loss 'ce' puts codes") as caught:
        toys.config_with(space=space, loss="ce", scheduled_sampling=0.5)
    assert "\n" not in str(caught.value)


def test_a_rate_is_not_sampled():
    with pytest.raises(ConfigError, match="loss 'rate' predicts deviations, too; take") as caught:
        toys.config_with(loss="rate", reads="noisy", scheduled_sampling=0.5)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "change",
    [{"weight": -1.0}, {"anneal_steps": -1}, {"weight": float("nan")}, {"reads": "tokens"},
     {"start": "zero"}, {"loss": "l1"}, {"scale": "std"}, {"order": "hilbert"}, {"anneal": "step"},
     {"target": "tokens"}, {"reduction": "max"}, {"scheduled_sampling": 1.0},
     {"scheduled_sampling": -0.1}, {"detach_target": True}, {"weight_decay": -0.1},
     {"twin_transformer": TransformerConfig(width=16, depth=2, heads=2, dropout=0.1)}],
    ids=str,
)  # fmt: skip
def test_senseless_choices_are_refused(change):
    with pytest.raises(ConfigError) as caught:
        toys.config_with(**change)
    assert "\n" not in str(caught.value)


CHOICES = {
    "space": ["lookup", "projected", "encoder"],
    "loss": ["l2", "cosine", "ce", "rate"],
    "reads": ["latents", "codes", "noisy"],
    "target": ["latents", "detached", "codes"],
    "reduction": ["mean", "sum", "norm"],
    "scale": ["auto", "none", "variance", "live"],
}
TURNS = {  # contradict next to nothing, so they take turns along the rest
    "order": ["raster", "columns", "snake", "spiral", "random"],
    "start": ["skip", "learned"],
    "scheduled_sampling": [0.0, 0.5],
    "on_sphere": [True, False],
}


@pytest.mark.parametrize("loss", CHOICES["loss"])
@pytest.mark.parametrize("space", CHOICES["space"])
def test_every_combination_is_refused_or_can_be_trained(space, loss):
    turns = itertools.cycle(itertools.product(*TURNS.values()))
    for values in itertools.product(*(CHOICES | {"space": [space], "loss": [loss]}).values()):
        form = dict(zip(CHOICES, values, strict=True)) | dict(zip(TURNS, next(turns), strict=True))
        on_sphere = form.pop("on_sphere")
        if contradicts_itself(form):
            with pytest.raises(ConfigError):
                toys.config_with(**form)
        else:
            can_be_trained(form, on_sphere)


def can_be_trained(form: dict, on_sphere: bool) -> None:
    """Asserts a finite loss, whose gradient reaches the encoder unless the weight is 0."""
    quantizer = VQConfig(codebook_size=toys.CODES, dim=toys.CHANNELS, normalise=on_sphere)
    stage = toys.Stage(quantizer)
    predictor = toys.fresh_predictor(toys.channels_of(form), **form)
    for weight in (0.0, 4.0):
        encoded = stage(toys.some_image())
        found = predictor.regularise(encoded, weight, codes_of=stage.quantizer.codes_of)
        found.loss.backward()
        assert found.loss.isfinite(), form
        assert all(value.isfinite() for value in found.watched.values()), form
        felt = [p.grad for p in stage.encoder.parameters() if p.grad is not None]
        assert all(gradient.isfinite().all() for gradient in felt), form
        assert any(gradient.abs().max() > 0 for gradient in felt) == (weight > 0), form


@pytest.mark.parametrize("form", [
    {},
    {"reads": "codes", "target": "codes"},
    {"reads": "codes", "loss": "ce", "weight": 0.03},
    {"reads": "codes", "loss": "ce", "weight": 0.03, "scheduled_sampling": 0.5},
], ids=str)  # fmt: skip
@pytest.mark.parametrize("temperature", [0.0, 0.03])
def test_the_forms_of_table_4_train_three_steps(form, temperature):
    quantizer = VQConfig(codebook_size=16, dim=toys.CHANNELS, temperature=temperature)
    stage, config = toys.Stage(quantizer), toys.config_with(**form)
    predictor = CausalPredictor(config, toys.CHANNELS, stage.quantizer.codebook_size)
    before = [p.detach().clone() for p in stage.encoder.parameters()]
    optimizer = torch.optim.AdamW([*stage.parameters(), *predictor.parameters()], lr=1e-2)
    losses = []
    for _ in range(3):
        encoded = stage(toys.some_image())
        codes_of = stage.quantizer.codes_of
        found = predictor.regularise(encoded, config.weight, codes_of=codes_of)
        (found.loss + sum(encoded.quantized.losses.values())).backward()
        losses.append(found.loss.item())
        assert 0 < found.causal_share < 10
        optimizer.step()
        optimizer.zero_grad()
    assert losses[2] < losses[0]
    for old, new in zip(before, stage.encoder.parameters(), strict=True):
        assert not torch.equal(old, new)


# ------------------------------------------------------------------ what exists


def test_a_predictor_exists_if_it_regularises_or_watches():
    assert CausalConfig(weight=4.0, watch=False).is_used
    assert CausalConfig(weight=0.0, watch=True).is_used
    assert not CausalConfig(weight=0.0, watch=False).is_used


def test_a_twin_exists_where_it_says_something_new():
    assert CausalConfig().has_twin
    assert CausalConfig(weight=0.0).has_twin  # the baseline needs its numbers, too
    assert not CausalConfig(twin=False).has_twin
    assert not CausalConfig(weight=0.0, watch=False).has_twin
    assert not CausalConfig(reads="codes").has_twin
    assert not CausalConfig(reads="codes", target="detached").has_twin
    assert CausalConfig(reads="codes", target="codes").has_twin
    assert CausalConfig(reads="codes", loss="ce").has_twin


def test_the_twin_takes_order_start_and_shape_and_is_alike_in_every_arm():
    net = TransformerConfig(width=32, depth=1, heads=2)
    arm = CausalConfig(order="snake", start="learned", twin_transformer=net, weight_decay=0.2)
    twin = arm.of_twin
    assert (twin.order, twin.start, twin.transformer) == ("snake", "learned", net)
    assert (twin.weight, twin.weight_decay, twin.has_twin) == (0, 0.2, False)
    for change in ({"weight": 0.0}, {"reads": "codes", "loss": "ce"}, {"space": "encoder"},
                   {"scheduled_sampling": 0.5}, {"target": "codes"}):  # fmt: skip
        assert replace(arm, **change).of_twin == twin


def test_a_config_survives_json():
    config = CausalConfig(order="random", scale="live", scheduled_sampling=0.25, anneal="cosine")
    assert config_of(CausalConfig, dict_of(config)) == config
