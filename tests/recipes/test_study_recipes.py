import json
from dataclasses import replace
from itertools import product

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cartok.core.config import ConfigError, config_of, dict_of, digest_of
from cartok.core.errors import UserError
from cartok.recipes import recipe_of
from cartok.recipes.arms import StudyArm, StudyConfig, adapted, names_of, with_quantizer
from cartok.recipes.grids import grid
from cartok.recipes.prior import demo, toy
from cartok.recipes.study import STUDIES
from cartok.recipes.tokenizer import baseline_demo, causal_demo, causal_toy
from cartok.recipes.yardstick import Yardstick
from cartok.tokenizer.model import Tokenizer
from cartok.tokenizer.quantize.fsq import FSQConfig

each = pytest.mark.parametrize("name", STUDIES)
of_the_demos_size = pytest.mark.parametrize(
    "name", [n for n in STUDIES if not n.startswith(("cifar-", "tiny-", "demo"))]
)


def study(name):
    return recipe_of(STUDIES, name)


def arms(name):
    return {arm.name: arm.tokenizer for arm in study(name).arms}


# ------------------------------------------------------------------ every study


@each
def test_a_study_comes_back_from_json_as_it_was_under_its_own_name(name):
    built = study(name)
    assert built.name == name
    again = config_of(StudyConfig, json.loads(json.dumps(dict_of(built))))
    assert again == built
    assert digest_of(again) == digest_of(built)


@each
def test_a_summary_is_one_short_sentence(name):
    summary = STUDIES[name].summary
    assert 10 < len(summary) <= 90
    assert summary.endswith(".")


@each
def test_no_two_arms_are_equal_and_one_has_no_regulariser(name):
    built = study(name)
    digests = {(digest_of(arm.tokenizer), arm.pixels) for arm in built.arms}
    assert len(digests) == len(built.arms)
    assert any(not arm.tokenizer.causal.weight for arm in built.arms)


@of_the_demos_size
def test_arms_compute_as_much_and_differ_from_the_demo_in_what_is_asked_alone(name):
    asked = {"causal"} if name not in ("quantizers", "loss-forms") else {"causal", "model"}
    base = dict_of(causal_demo())
    for arm in study(name).arms:
        plain = dict_of(arm.tokenizer)
        assert plain["equal_compute"]
        assert {key for key in base if base[key] != plain[key]} <= asked


@of_the_demos_size
def test_scores_are_averaged_over_several_sizes_of_prior(name):
    priors = study(name).priors
    assert len(set(names_of(priors))) == len(priors) >= 2
    assert demo() in priors


# ------------------------------------------------------------------ grids


@pytest.mark.parametrize("name", ["demo", "cifar-tradeoff"])
def test_every_length_of_a_grid_has_its_own_whole_schedule(name):
    built = study(name)
    assert built.apart
    shares = {prior.optim.warmup_steps / prior.loop.steps for prior in built.priors}
    assert max(shares) - min(shares) < 0.03
    by_size = {}
    for prior in built.priors:
        by_size.setdefault(prior.transformer.width, []).append(prior.loop.steps)
    for lengths in by_size.values():
        assert lengths == sorted(set(lengths)) == next(iter(by_size.values()))
        assert max(lengths) >= 16 * min(lengths)
    assert all(prior.optim.schedule == "cosine" for prior in built.priors)
    assert any(arm.pixels for arm in built.arms)
    for arm in built.arms:
        if arm.pixels:
            assert arm.tokenizer in [a.tokenizer for a in built.arms if not a.pixels]


def test_the_grid_for_a_gpu_has_three_sizes_for_a_joint_form_and_each_learns_by_its_width():
    nets = {p.transformer: p.optim.lr for p in study("cifar-tradeoff").priors}
    assert len(nets) == 3  # two could not tell L_min from what parameters buy
    assert len({round(net.width * lr, 9) for net, lr in nets.items()}) == 1
    assert len({net.width / net.heads for net in nets}) == 1


values = st.lists(st.integers(1, 40).map(lambda n: 4 * n), max_size=3, unique=True)


@given(values, values, st.lists(st.floats(0, 9), max_size=3, unique=True), values)
def test_a_grid_has_every_combination_once_and_nothing_else(codes, pixels, weights, steps):
    axes = {"codes": codes, "pixels": pixels, "weights": weights, "steps": steps}
    base, sizes = causal_demo(), [demo(), toy()]
    built = grid(base, sizes, Yardstick(), **axes)
    assert built.apart
    made = [
        (arm.tokenizer.model.quantizer.codebook_size, arm.tokenizer.causal.weight, arm.pixels or 32)
        for arm in built.arms
    ]
    wanted = product(codes or [256], weights or [base.causal.weight], pixels or [32])
    assert sorted(made) == sorted(wanted)
    lengths = [(prior.transformer.width, prior.loop.steps) for prior in built.priors]
    kept = [(size.transformer.width, size.loop.steps) for size in sizes]
    assert lengths == [(size.transformer.width, n) for size in sizes for n in steps] or (
        not steps and lengths == kept
    )


@pytest.mark.parametrize(
    ("base", "axes", "message"),
    [
        (causal_demo(), {"codes": [64, 64]}, "--codes are all different, but 64 came twice"),
        (causal_demo(), {"weights": [-1.0]}, "--weights are above 0, but -1 came"),
        (causal_demo(), {"steps": [0, 5]}, "--steps are above 0, but 0 came"),
        (causal_demo(), {"pixels": [34]}, "multiples of 4"),
        (with_quantizer(causal_demo(), FSQConfig()), {"codes": [64]}, "but fsq has none"),
    ],
)
def test_a_grid_that_cannot_be_trained_is_refused_before_anything_is(base, axes, message):
    with pytest.raises(UserError, match=message):
        grid(base, [demo()], Yardstick(), **axes)


# ------------------------------------------------------------------ the paper's ablations


def test_the_loss_forms_are_those_of_table_4_and_noisy_latents():
    forms = {
        name: (run.causal.reads, run.causal.target, run.causal.loss, run.causal.weight)
        for name, run in arms("loss-forms").items()
    }
    assert forms == {
        "baseline": ("noisy", "latents", "l2", 0.0),
        "l2-before": ("latents", "latents", "l2", 4.0),
        "l2-after": ("codes", "codes", "l2", 4.0),
        "ce-after": ("codes", "latents", "ce", 0.03),
        "drawn-baseline": ("noisy", "latents", "l2", 0.0),
        "larp-style": ("codes", "latents", "ce", 0.03),
        "noisy": ("noisy", "latents", "l2", 1.0),
    }


def test_larps_style_draws_codes_on_the_sphere_and_samples_half_of_what_it_reads():
    run = arms("loss-forms")["larp-style"]
    assert run.causal.scheduled_sampling == 0.5
    assert run.model.quantizer.temperature == 0.03
    assert run.model.quantizer.normalise
    drawing = {name for name, run in arms("loss-forms").items() if run.model.quantizer.temperature}
    assert drawing == {"larp-style", "drawn-baseline"}


def test_the_weights_span_the_papers_range_in_its_own_form():
    grid = arms("weights")
    values = [run.causal.weight for run in grid.values()]
    assert values == sorted(values)
    assert (values[0], values[-1]) == (0, 15)
    assert 4 in values
    assert {run.causal.reads for run in grid.values()} == {"latents"}


def test_the_layers_span_the_papers_range():
    grid = arms("layers")
    assert grid.pop("layers-0").causal.weight == 0
    assert [run.causal.transformer.depth for run in grid.values()] == [1, 2, 4, 8, 12]
    assert {run.causal.weight for run in grid.values()} == {4}


def test_reads_cross_what_is_read_with_what_is_predicted():
    grid = arms("reads")
    assert grid.pop("baseline") == baseline_demo()
    found = {(run.causal.reads, run.causal.target) for run in grid.values()}
    assert len(found) == len(grid) == 9
    assert grid["noisy-to-latents"] == causal_demo()


def test_orders_have_all_there_are():
    grid = arms("orders")
    assert {run.causal.order for run in grid.values()} == {
        "raster", "columns", "snake", "spiral", "random",
    }  # fmt: skip
    assert grid["raster"] == causal_demo()


def test_every_quantizer_is_there_with_and_without_the_regulariser_at_equal_bits():
    grid = arms("quantizers")
    assert len(grid) == 10
    for name, run in grid.items():
        kind, form = name.rsplit("-", 1)
        assert run.model.quantizer.kind == kind
        assert (run.causal.weight > 0) == (form == "causal")
        quantizer = Tokenizer(run.model).quantizer
        assert quantizer.codebook_size**quantizer.tokens_per_cell == 256
        twin = replace(run, causal=replace(run.causal, weight=0.0))
        assert twin == grid[f"{kind}-baseline"]


# ------------------------------------------------------------------ a study's rules


def test_a_study_is_taken_to_other_pictures_more_seeds_and_fewer_steps():
    found = adapted(study("weights"), data="somewhere", seeds=3, scale=0.1)
    assert found.seeds == 3
    assert {arm.tokenizer.data for arm in found.arms} == {"somewhere"}
    assert {arm.tokenizer.loop.steps for arm in found.arms} == {70}
    assert {prior.loop.steps for prior in found.priors} == {40}
    assert adapted(study("weights")) == study("weights")


def test_a_studys_own_seeds_stay_unless_others_are_given():
    own = replace(study("weights"), seeds=3)
    assert adapted(own, scale=0.5).seeds == 3
    assert adapted(own, seeds=1).seeds == 1


@pytest.mark.parametrize("scale", [3.0, 0.1, 0.03, 0.01, 0.001])
def test_at_any_scale_an_arm_ends_at_the_weight_of_its_name(scale):
    for arm in adapted(study("weights"), scale=scale).arms:
        last = arm.tokenizer.loop.steps - 1
        assert arm.name == f"lambda-{arm.tokenizer.causal.weight_at(last):g}"


def counted_in_steps(found: StudyConfig) -> list[int]:
    """Of the first arm and the first prior, all that is."""
    run, prior = found.arms[0].tokenizer, found.priors[0]
    critic = run.losses.critic
    return [run.loop.steps, run.optim.warmup_steps, run.causal.anneal_steps, critic.start,
            critic.ramp, critic.warm, run.model.quantizer.revive_after,
            prior.loop.steps, prior.optim.warmup_steps]  # fmt: skip


def test_all_that_is_counted_in_steps_keeps_its_share():
    small = StudyConfig(
        name="x", arms=(StudyArm(name="a", tokenizer=causal_toy()),), priors=(toy(),)
    )
    assert counted_in_steps(small) == [20, 2, 4, 6, 4, 3, 5, 20, 2]
    assert counted_in_steps(adapted(small, scale=2.0)) == [40, 4, 8, 12, 8, 6, 10, 40, 4]
    least = counted_in_steps(adapted(small, scale=0.01))
    assert least == [1, 0, 0, 0, 0, 0, 1, 1, 0]  # codes are still revived
    never = replace(causal_toy().model.quantizer, revive_after=0)
    never = replace(causal_toy(), model=replace(causal_toy().model, quantizer=never))
    small = replace(small, arms=(StudyArm(name="a", tokenizer=never),))
    assert counted_in_steps(adapted(small, scale=2.0))[6] == 0


ARM = StudyArm(name="a", tokenizer=causal_demo())


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"arms": ()}, "a study has arms"),
        ({"arms": (ARM, ARM)}, "no two of one name"),
        ({"arms": (ARM, StudyArm(name="b", tokenizer=replace(causal_demo(), data="x")))}, "equal"),
        ({"priors": ()}, "priors differ"),
        ({"priors": (demo(), replace(demo(), seed=1))}, "priors differ in depth, width or steps"),
        ({"seeds": 0}, "seeds must be at least 1"),
        ({"first_seed": -1}, "first_seed not negative, but they are 1 and -1"),
    ],
)
def test_a_study_that_could_not_be_judged_is_refused(fields, said):
    with pytest.raises(ConfigError, match=said):
        StudyConfig(**({"name": "x", "arms": (ARM,), "priors": (demo(),)} | fields))


@pytest.mark.parametrize("name", ["../up", "Two Words", "", "a_b"])
def test_an_arms_name_can_begin_a_folders(name):
    with pytest.raises(ConfigError, match="small letters"):
        StudyArm(name=name, tokenizer=causal_demo())


def test_a_scale_of_nothing_is_refused():
    with pytest.raises(UserError, match="above 0, but is 0"):
        adapted(study("weights"), scale=0.0)


def test_a_size_that_comes_twice_is_named_with_its_steps():
    short, other = demo(), replace(demo(), transformer=replace(demo().transformer, depth=2))
    long = replace(short, loop=replace(short.loop, steps=900))
    assert names_of((short, other, long)) == ["4x96-400", "2x96", "4x96-900"]
