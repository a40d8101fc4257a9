"""The search on CIFAR-10, the studies that follow it, and the claims."""

import re
from dataclasses import replace

import pytest

from cartok.core.config import dict_of, digest_of
from cartok.lab.records import runs_of
from cartok.recipes import recipe_of
from cartok.recipes.arms import names_of
from cartok.recipes.study import STUDIES
from cartok.scaling.claim import claims_of
from cartok.tokenizer.model import Tokenizer

SEARCHES, CLAIMS = ("cifar-search", "tiny-forms"), ("cifar-claim", "tiny-claim")
SEEDED = ("cifar-literal", "cifar-dimensions")


def study(name):
    return recipe_of(STUDIES, name)


def arms(name):
    return {arm.name: arm.tokenizer for arm in study(name).arms}


@pytest.mark.parametrize(
    ("name", "parts"),
    [
        ("cifar-search", {"losses", "model", "optim", "loop", "causal"}),
        ("tiny-forms", {"losses", "causal"}),
    ],
)
def test_an_arm_of_a_search_is_the_base_with_one_thing_changed_or_a_form_beside_another(
    name, parts
):
    made = {name: dict_of(run) for name, run in arms(name).items()}
    base = made.pop("base")
    changed = {arm: {key for key in base if base[key] != plain[key]} for arm, plain in made.items()}
    single = {next(iter(keys)) for keys in changed.values() if len(keys) == 1}
    assert single == parts
    pairs = [keys for keys in changed.values() if len(keys) > 1]
    assert all(keys in ({"causal", "model"}, {"causal", "losses"}) for keys in pairs)


def test_every_form_of_the_search_can_be_read_against_a_curve_of_baselines():
    name = "cifar-search"
    study_file = {"config": dict_of(study(name)), "runs": []}
    for place, (arm, run) in enumerate(arms(name).items()):
        rfd = 2.5 if run.causal.weight else 1.0 + place
        scores = {"rfd": {"value": rfd}, "gfd": {"value": 9.0}}
        study_file["runs"].append({"arm": arm, "seed": 0, "scores": scores})
    claims = [c for c in claims_of(study_file) if (c.key, c.at) == ("gfd", "at equal rFD")]
    regularised = {name for name, run in arms(name).items() if run.causal.weight}
    assert regularised & {c.arm for c in claims if c.differences} == {
        arm for arm in regularised if "critic" not in arm
    }
    assert {c.minus for c in claims} == {"base", "codes-256", "codes-1024"}


def test_arms_that_are_run_with_more_seeds_are_those_of_the_search():
    """Else what is recorded of them there would be run again."""
    search = {digest_of(run) for run in arms("cifar-search").values()}
    assert {digest_of(run) for run in arms("cifar-literal").values()} <= search
    assert study("cifar-literal").priors == study("cifar-search").priors
    assert study("cifar-literal").yardstick == study("cifar-search").yardstick


def test_every_number_of_dimensions_is_run_with_the_papers_form_and_without():
    grid = arms("cifar-dimensions")
    bare = {name: run for name, run in grid.items() if re.fullmatch(r"dim-\d", name)}
    assert [run.model.quantizer.dim for run in bare.values()] == [8, 5, 4, 3]
    for name, run in bare.items():
        causal = grid[f"{name}-latents-4"]
        assert (causal.causal.reads, causal.causal.weight) == ("latents", 4.0)
        assert replace(causal, causal=run.causal) == run


@pytest.mark.parametrize(
    ("name", "seeds", "priors"),
    [("cifar-claim", 5, ["6x256"]), ("tiny-claim", 3, ["6x256", "8x384"])],
)
def test_a_claim_has_seeds_and_a_curve_that_reaches_far_below_its_codes(name, seeds, priors):
    built = study(name)
    assert built.seeds == seeds
    assert names_of(built.priors) == priors
    sizes = {
        kind: [run.model.quantizer.codebook_size for arm, run in arms(name).items() if kind in arm]
        for kind in ("codes", "causal")
    }
    assert sizes["causal"] == [max(sizes["codes"])]
    # Halving the codes costs about what the form does, or less: the curve goes on from there.
    assert len([size for size in sizes["codes"] if size <= max(sizes["codes"]) / 2]) > 1
    found = arms(name)
    forms = {digest_of(run.causal) for arm, run in found.items() if "causal" in arm}
    assert forms == {digest_of(arms("cifar-search")["latents-4"].causal)}


@pytest.mark.parametrize("name", CLAIMS)
def test_a_claim_has_other_seeds_than_those_that_chose_its_form(name):
    choosing = [run.seed for s in SEARCHES + SEEDED for run in runs_of(study(s))]
    claiming = [run.seed for run in runs_of(study(name))]
    assert max(choosing) < min(claiming)
    assert {run.tokenizer.seed for run in runs_of(study(name))} == set(claiming)


@pytest.mark.parametrize("name", SEARCHES + CLAIMS + SEEDED)
def test_searches_and_claims_have_the_papers_number_of_tokens_and_firm_scores(name):
    built = study(name)
    assert all(prior.loop.replay and prior.compile for prior in built.priors)
    for arm in built.arms:
        size = arm.tokenizer.view.size
        assert Tokenizer(arm.tokenizer.model).grid_of(size, size) == (16, 16)
        assert arm.tokenizer.loop.replay
        assert arm.tokenizer.equal_compute
    assert built.yardstick.samples == 10_000
    assert built.yardstick.size == 224
