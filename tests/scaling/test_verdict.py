import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from cartok.scaling.measures import rows_of
from cartok.scaling.verdict import NO_CLAIM, gaming_sentence, verdict_of


@pytest.fixture
def judged(summary):
    """A function: the verdict after values and intervals are replaced."""

    def verdict(**changes):
        for key, (baseline, causal) in changes.items():
            for arm, (value, *interval) in (("baseline", baseline), ("causal", causal)):
                score = summary[arm][key]
                score["value"] = value
                if key in ("rfd", "gfd"):
                    score["receipt"]["bootstrap"]["interval"] = interval
                elif interval:
                    score["receipt"]["standard_error"] = interval[0]
        found = verdict_of(rows_of(summary), summary["about"])
        return found.headline, found.findings

    return verdict


def test_overlapping_intervals_bear_no_claim(judged):
    headline, texts = judged()
    assert "whether samples became better cannot be told" in headline
    assert NO_CLAIM in texts["Samples"]
    assert NO_CLAIM in texts["Reconstruction"]


def test_intervals_apart_bear_a_claim_about_these_trainings_only(judged):
    headline, texts = judged(
        gfd=((30.0, 28.0, 32.0), (20.0, 18.0, 22.0)), gkd=((0.04, 0.001), (0.02, 0.001))
    )
    assert headline.endswith("samples came out better.")
    assert "closer to the training pictures" in texts["Samples"]
    assert "another seed may differ" in texts["Samples"]


def test_a_loss_is_told_as_plainly_as_a_gain(judged):
    headline, texts = judged(
        gfd=((20.0, 18.0, 22.0), (30.0, 28.0, 32.0)),
        gkd=((0.02, 0.001), (0.04, 0.001)),
        prior_nats_per_token=((4.0,), (4.4,)),
    )
    assert "harder to predict; samples came out worse" in headline
    assert "farther from the training pictures" in texts["Samples"]
    assert "rose" in texts["Prediction"]


def test_two_distances_that_disagree_settle_nothing(judged):
    headline, texts = judged(gfd=((30.0, 28.0, 32.0), (20.0, 18.0, 22.0)))
    assert "cannot be told" in headline
    assert "The two measures disagree" in texts["Samples"]


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=40)
@given(*[st.floats(1, 100)] * 2, *[st.floats(0, 30)] * 2)
def test_samples_are_never_judged_beyond_their_intervals(judged, a, b, reach_a, reach_b):
    headline, texts = judged(
        gfd=((a, a - reach_a, a + reach_a), (b, b - reach_b, b + reach_b)),
        gkd=((a / 1000, 0.0), (b / 1000, 0.0)),
    )
    claims = any(word in headline for word in ("came out better", "came out worse"))
    apart = a + reach_a < b - reach_b or b + reach_b < a - reach_a
    assert claims == apart
    assert (NO_CLAIM in texts["Samples"]) == (not claims)
    if claims:
        assert ("better" in headline) == (b < a)


def test_a_change_within_the_spread_of_seeds_is_no_change(judged):
    headline, texts = judged(prior_nats_per_token=((4.0,), (3.9,)))
    assert "about as hard to predict" in headline
    assert NO_CLAIM in texts["Prediction"]


def test_easier_tokens_that_say_less_are_not_praised(judged):
    _, texts = judged(code_perplexity=((200.0,), (120.0,)))
    assert "tokens that say less are easier to predict" in texts["Prediction"]
    _, texts = judged(code_perplexity=((200.0,), (200.0,)))
    assert "say less" not in texts["Prediction"]


def test_what_the_run_cannot_show_is_always_said(judged):
    _, texts = judged()
    assert (
        "one seed, 350 tokenizer steps, 5 minutes of computing, pictures of 32 pixels"
        in texts["Not shown"]
    )
    assert "nothing here confirms or refutes it" in texts["Not shown"]
    assert texts["Indicative"].startswith("rFD, rKD, gFD, gKD rest on few pictures (576 against 1,")


def test_without_numbers_nothing_is_claimed():
    found = verdict_of({}, {})
    assert "not measured" in found.headline
    assert list(found.findings) == ["Not shown"]


def test_both_ways_to_game_the_regulariser_are_told_in_numbers(summary):
    text = gaming_sentence(rows_of(summary))
    assert "variance moved by −10.5%" in text
    assert "R² from latents by +0.21" in text
    assert "R² from codes by +0.18" in text
    assert gaming_sentence({}) == ""


@pytest.mark.parametrize(("one", "other"), [(3.489, 3.339), (3.133, 3.001)])
def test_what_two_machines_made_of_one_seed_is_no_difference(judged, one, other):
    """Either arm of the demo, measured."""
    _, texts = judged(prior_nats_per_token=((one,), (other,)))
    assert "hardly moved" in texts["Prediction"]
