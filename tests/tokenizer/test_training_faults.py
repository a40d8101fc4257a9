import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cartok.core.config import dict_of
from cartok.tokenizer import code_faults, doctor
from cartok.tokenizer import training_faults as faults
from cartok.tokenizer.code_faults import CodeUse
from cartok.tokenizer.findings import LEAST_POINTS
from cartok.tokenizer.train import TokenizerRun


def curve(*levels, each=20):
    """Steps of 10; every level for a while."""
    values = [level for level in levels for _ in range(each)]
    return [(10 * (index + 1), value) for index, value in enumerate(values)]


def named(found):
    return [(finding.fault, finding.severity) for finding in found]


DOMINANCE = [("critic dominance", "fault")]


@pytest.mark.parametrize(
    ("norms", "expected"),
    [
        ({"tokenizer": curve(0.8, 0.2), "causal": curve(2.5, 0.01)}, []),
        ({"tokenizer": curve(0.8, 0.0)}, ["tokenizer"]),
        ({"tokenizer": curve(0.0, 0.0), "causal": curve(1.0)}, ["tokenizer"]),
        ({"tokenizer": curve(1e3, 9e-6)}, ["tokenizer"]),  # against its beginning
        ({"tokenizer": curve(1e3, 2e-5)}, []),
        ({"tokenizer": curve(1e4), "causal": curve(9e-5)}, ["causal"]),  # against the other
    ],
)
def test_what_gets_no_gradient_is_named(norms, expected):
    found = faults.dead_gradients(norms)
    assert [finding.fault for finding in found] == ["dead gradient"] * len(expected)
    for finding, name in zip(found, expected, strict=True):
        assert f"'{name}'" in finding.seen


@pytest.mark.parametrize(
    ("norm", "clip", "expected"),
    [
        (curve(1.0, 2.0, 1.0), 1.0, []),
        (curve(1.0, 101.0), 1.0, [("exploding gradient", "fault")]),
        (curve(1.0, 99.0), 0.0, []),
        # the last five points already tell
        (curve(1.0) + [(1000 + step, 200.0) for step in range(5)], 0.0,
         [("exploding gradient", "fault")]),
        ([*curve(1.0), (1000, 1e6)], 0.0, []),  # one odd batch
        # a critic that was right by a margin while it learned alone
        (curve(0.0, 3.0, 4.0), 1.0, []),
        (curve(50.0, 11.0), 1.0, [("always clipped", "watch")]),
        (curve(50.0, 9.0), 1.0, []),
        (curve(50.0, 11.0), 0.0, []),  # there is no clip
    ],
)  # fmt: skip
def test_gradients_that_explode_or_are_always_clipped_are_named(norm, clip, expected):
    assert named(faults.exploding_gradients({"tokenizer": norm}, clip)) == expected


@pytest.mark.parametrize(
    ("hinge", "accuracy", "expected"),
    [
        (curve(0.5, 0.05), curve(0.7, 0.99), DOMINANCE),
        (curve(0.05), [], DOMINANCE),
        ([], curve(0.99), DOMINANCE),  # of another loss than the hinge
        (curve(0.05), curve(0.9), []),
        (curve(0.11), curve(0.99), []),
        (curve(1.0), curve(0.5), []),  # at chance
        (curve(0.5), curve(0.5), []),  # the paper's figure 12, for 400,000 steps
        (curve(0.05, 1.0), curve(1.0, 0.6), []),  # it had won once
        ([], [], []),
    ],
)
def test_a_critic_that_is_always_right_is_named_and_one_at_chance_is_not(hinge, accuracy, expected):
    assert named(faults.critic_wins(hinge, accuracy)) == expected


@pytest.mark.parametrize(("term", "expected"), [(-5.1, DOMINANCE), (5.1, DOMINANCE), (4.9, [])])
def test_a_critic_that_is_ten_times_as_loud_as_the_pictures_is_named(term, expected):
    assert named(faults.critic_drowns(curve(0.1, term), curve(0.5))) == expected


@pytest.mark.parametrize(
    ("after", "expected"),
    [
        (0.11, []),
        (0.13, [("critic dominance", "watch")]),
        (0.16, DOMINANCE),
    ],
)
def test_a_reconstruction_wrecked_by_the_critic_is_named(after, expected):
    loss = curve(0.4, 0.1, after)  # the critic is heard from step 400
    assert named(faults.critic_wrecks(loss, start=400, ramp=50)) == expected
    assert faults.critic_wrecks(loss, start=10_000, ramp=50) == []


def test_a_reconstruction_that_heals_after_the_critic_set_in_is_fine():
    assert faults.critic_wrecks(curve(0.4, 0.1, 0.9, 0.1), start=400, ramp=50) == []


@pytest.mark.parametrize(
    ("levels", "expected"),
    [
        ((0.5, 0.3, 0.1), []),
        ((0.5, 0.5, 0.48), [("plateau", "fault")]),
        ((0.5, 0.1, 0.2), [("divergence", "fault")]),
        ((0.5, 0.1, 0.14), []),
        ((0.5, 0.1, 0.6), [("divergence", "fault")]),
    ],
)
def test_a_loss_that_never_fell_or_rose_again_is_named(levels, expected):
    assert named(faults.reconstruction_trend(curve(*levels))) == expected


def test_trained_weights_need_get_no_better_but_must_not_get_worse():
    flat, worse = curve(0.5, 0.5), curve(0.5, 0.9)
    assert faults.reconstruction_trend(flat, starts_anew=False) == []
    assert named(faults.reconstruction_trend(worse, starts_anew=False)) == [("divergence", "fault")]


@given(st.integers(LEAST_POINTS, 300), st.floats(0.5, 0.93), st.floats(1e-6, 1e6))
def test_a_loss_that_falls_all_the_time_is_fine(num, end, scale):
    falling = [(step, scale * (1 - (1 - end) * step / num) ** 2) for step in range(num)]
    assert faults.reconstruction_trend(falling) == []


@pytest.mark.parametrize(("share", "expected"), [(0.019, []), (0.05, ["watch"]), (0.11, ["fault"])])
def test_waiting_for_pictures_is_watched_then_a_fault(share, expected):
    assert [finding.severity for finding in faults.stalled_loader(share, 4)] == expected


@pytest.mark.parametrize(
    ("silence", "interval", "is_named"),
    [(599, 1, False), (601, 1, True), (3000, 301, False), (3011, 301, True)],
)
def test_a_silent_log_without_an_end_is_an_interrupted_run(silence, interval, is_named):
    found = faults.interruption(
        300, 400, float(silence), float(interval), 200, "cartok resume runs/it"
    )
    assert bool(found) == is_named
    if is_named:
        assert "step 300 of at most 400" in found[0].seen
        assert "from step 200" in found[0].means
        assert found[0].change == "run: cartok resume runs/it"


def test_a_run_that_went_on_after_bad_steps_is_watched():
    assert faults.recoveries(0, 0) == []
    (found,) = faults.recoveries(3, 1)
    assert "3 batches" in found.seen
    assert found.severity == "watch"


EVERYTHING = [
    *code_faults.code_collapse(CodeUse(usage=curve(0.01))),
    *code_faults.code_collapse(CodeUse(usage=curve(0.1, 0.3), reachable=0.9)),
    *code_faults.code_collapse(CodeUse(perplexity=curve(1.0))),
    *doctor.latent_collapse(1e-9), *doctor.latent_collapse(1e-9, shrinking_pays=True),
    *code_faults.coarse_codes(curve(1.0), curve(1.0), 1.0),
    *code_faults.coarse_codes(curve(1.0), curve(1.0), 0.0),
    *doctor.latent_shrinkage(curve(1.0, 0.1)), *doctor.shrunk_beside_twin(0.1, 1.0),
    *doctor.hidden_prediction(0.9, 0.1),
    *doctor.hidden_beside_twin(doctor.Measures(1.0, 0.9, 0.1), doctor.Measures(1.0, 0.1, 0.1)),
    *doctor.error_below_quantisation(curve(0.1), curve(0.2)),
    *doctor.regulariser_share(curve(2.0)), *doctor.regulariser_share(curve(1e-4)),
    *faults.dead_gradients({"causal": curve(0.0)}),
    *faults.exploding_gradients({"a": curve(1.0, 1e3), "b": curve(50.0)}, 1.0),
    *faults.critic_wins(curve(0.0), curve(1.0)), *faults.critic_drowns(curve(9.0), curve(0.1)),
    *faults.critic_wrecks(curve(0.1, 0.2), 200, 0), *faults.reconstruction_trend(curve(1.0, 2.0)),
    *faults.reconstruction_trend(curve(1.0)), *faults.stalled_loader(0.5, 0),
    *faults.not_finite(7, ["codec/causal"], "stop"), *faults.recoveries(1, 0),
    *faults.interruption(1, 2, 1e4, 1.0, 0, "cartok resume RUN"),
]  # fmt: skip


def test_each_fault_is_in_the_list_of_everything():
    assert len(EVERYTHING) == 26


@pytest.mark.parametrize("finding", EVERYTHING, ids=lambda finding: finding.fault)
def test_every_finding_says_what_to_change_by_names_that_the_config_has(finding):
    assert all([finding.seen, finding.means, finding.change])
    assert "\n" not in finding.line
    text = f"{finding.means} {finding.change}"
    tops = "|".join(dict_of(TokenizerRun()))
    names = re.findall(rf"\b(?:{tops})(?:\.\w+)+", text) + re.findall(r"\bworkers\b", text)
    assert names or finding.fault == "interrupted run"
    for name in names:
        value = dict_of(TokenizerRun())
        for part in name.split("."):
            assert part in value, name
            value = value[part]
