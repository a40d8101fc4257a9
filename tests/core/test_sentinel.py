import json
import math
import signal

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from cartok.core import loop as loop_module
from cartok.core.average import Average
from cartok.core.checkpoint import TrainingState, load_state, save_state
from cartok.core.fault import Fault
from cartok.core.job import LoopConfig, NonFiniteError
from cartok.core.loop import fit
from cartok.core.run import Run, read_log
from cartok.core.sentinel import Sentinel
from cartok.core.snapshot import tensors_of_training

FAULTS = ["nan", "inf", "-inf", "gradient"]


@pytest.fixture
def begin(toy, tmp_path):
    """A function that makes a toy and its run; some samples' numbers are not finite."""

    def begin(spoilt, fault="nan", policy="recover", **loop):
        settings = toy.LOOP | {"best": "", "on_non_finite": policy} | loop
        config = toy.ToyConfig(loop=LoopConfig(**settings), spoilt=tuple(spoilt), fault=fault)
        run = Run.open(tmp_path / "run", config, kind="toy", resume=True)
        return toy.ToyJob(config), run

    return begin


def batches(*numbers):
    """The first sample of each of these batches of four."""
    return [4 * number for number in numbers]


def train(job, run, **given):
    return fit(job, job.config.loop, run, **given)


@pytest.fixture
def watch(monkeypatch):
    """A function that records all of a job's state, as it is before each batch."""

    def watch(job):
        averages, states = [], []
        monkeypatch.setattr(
            loop_module, "Average", lambda *given: averages.append(Average(*given)) or averages[-1]
        )
        plain = job.prepare

        def prepare(batch, step):
            found = tensors_of_training(job, averages[0], job.world)
            states.append({name: value.detach().clone() for name, value in found.items()})
            return plain(batch, step)

        job.prepare = prepare
        return states

    return watch


def without_noise(state):
    return {name: value for name, value in state.items() if not name.startswith("random/")}


# ------------------------------------------------------------------ stop


@pytest.mark.parametrize("fault", FAULTS)
def test_what_is_not_finite_stops_a_training_before_any_weight_moves(toy, begin, fault):
    job, run = begin(batches(4), fault, policy="stop")
    what = "gradient/codec" if fault == "gradient" else "loss term 'codec/please'"
    with pytest.raises(NonFiniteError) as caught:
        train(job, run)
    assert f"the {what} is not finite at step 4 (samples [16, 17, 18, 19]); no" in str(caught.value)
    assert len(str(caught.value).splitlines()) == 1
    assert len(job.trace) == 5
    assert toy.same(toy.weights_of(job), job.trace[-1])
    assert load_state(run.checkpoints).step == 3


def test_of_a_batch_in_parts_the_samples_of_the_part_are_named(begin):
    job, run = begin([18], policy="stop", accumulate=2)
    with pytest.raises(NonFiniteError, match=r"'codec/please' .* step 4 \(samples \[18, 19\]\)"):
        train(job, run)


def test_a_loss_is_blamed_before_the_gradients_it_spoils(toy, begin, monkeypatch):
    plain = toy.sample_values
    job, run = begin([], policy="stop")
    monkeypatch.setattr(
        toy, "sample_values", lambda indices: plain(indices) * (math.nan if 8 in indices else 1)
    )
    with pytest.raises(NonFiniteError, match="'codec/rebuild' is not finite at step 2"):
        train(job, run)
    found = json.loads((run.folder / "fault.json").read_text())
    assert found["culprits"] == ["codec/rebuild", "codec/predict", "codec/please", "critic/hinge"]
    assert found["gradient_norms"] == {"codec": "nan", "predictor": "nan", "critic": "nan"}


def test_a_watched_value_that_is_not_finite_stops_nothing(begin):
    job, run = begin([])
    plain = job.codec_terms

    def codec_terms(forward, step):
        terms = plain(forward, step)
        terms.watched["size"] *= math.nan
        return terms

    job.phases = (loop_module.Phase("codec", job.phases[0].movers, codec_terms), job.phases[1])
    outcome = train(job, run)
    assert (outcome.step, outcome.skips) == (12, 0)
    assert {line["codec/size"] for line in read_log(run.folder)} == {None}


# ------------------------------------------------------------------ recover: skip


@pytest.mark.parametrize("fault", FAULTS)
@pytest.mark.parametrize("parts", [1, 2])
def test_a_batch_left_out_changes_nothing_to_the_bit(toy, begin, watch, fault, parts):
    job, run = begin(batches(5), fault, accumulate=parts, save_every=99)
    states = watch(job)
    job.codec.register_buffer("forwards", torch.tensor(0))
    job.in_prepare = lambda step: job.codec.forwards.add_(1)
    outcome = train(job, run)
    assert len(states) == 13 * parts
    before, after = (without_noise(states[number * parts]) for number in (5, 6))
    assert {name.split("/")[0] for name in before} == {"module", "optimizer", "average"}
    assert toy.same(before, after)
    assert not toy.same(after, without_noise(states[7 * parts]))
    assert (outcome.step, outcome.skips, outcome.rollbacks) == (12, 1, 0)
    assert job.codec.forwards == 12 * parts
    assert len(job.trace) == 13  # the job was told of 12 steps


def test_a_batch_left_out_is_followed_by_the_next_and_the_log_names_what_was_wrong(begin):
    job, run = begin(batches(5))
    train(job, run)
    assert job.seen == list(range(4 * 13))
    log = read_log(run.folder)
    assert [line["step"] for line in log] == [2, 4, 6, 6, 8, 10, 12]
    assert log[2] == {"step": 6, "fault/skips": 1, "fault/rollbacks": 0, "codec/please": None}
    assert log[3]["codec/please"] is not None


def test_a_person_is_told_of_a_batch_left_out(begin):
    job, run = begin(batches(5))
    told = []
    train(job, run, tick=lambda done, words: told.append((done, words)))
    words = "the loss term 'codec/please' is not finite at step 5 (samples [20, 21, 22, 23]); "
    assert (5, words + "skipped") in told


def test_three_batches_may_be_left_out_between_two_checkpoints(begin):
    job, run = begin(batches(1, 2, 3, 7, 8, 9, 12, 14, 16))
    outcome = train(job, run)
    assert (outcome.step, outcome.skips, outcome.rollbacks) == (12, 9, 0)
    state = load_state(run.checkpoints)
    assert (state.step, state.values["drawn"]) == (12, 21)
    assert state.values["counts"] == {"skips": 9, "rollbacks": 0}


# ------------------------------------------------------------------ recover: go back


def test_a_fourth_bad_batch_takes_the_training_back_to_the_newest_checkpoint(toy, begin, watch):
    job, run = begin(batches(5, 6, 7, 8))
    states = watch(job)
    stored = {}
    job.in_prepare = lambda step: stored.update({len(states): load_state(run.checkpoints)})
    outcome = train(job, run)
    assert (outcome.step, outcome.skips, outcome.rollbacks) == (12, 3, 1)
    assert stored[10].step == 3
    assert toy.same(states[9], stored[10].tensors)  # weights, optimizers, averages, noise
    assert not toy.same(without_noise(states[8]), without_noise(states[9]))
    # Five batches moved the weights, of which two were undone; four were bad; nine more.
    assert job.seen == list(range(4 * (5 + 4 + 9)))


def test_the_log_after_going_back_holds_what_led_to_the_weights_there_are(begin):
    job, run = begin(batches(5, 6, 7, 8), log_every=1)
    train(job, run)
    log = read_log(run.folder)
    assert [line["step"] for line in log] == [1, 2, 3, 4, *range(4, 13)]
    assert log[3] == {"step": 4, "fault/skips": 3, "fault/rollbacks": 1, "codec/please": None}


def test_a_training_goes_back_once_and_stops_when_it_fails_again(toy, begin):
    job, run = begin(batches(*range(5, 99)))
    with pytest.raises(
        NonFiniteError, match=r"\(skips before: 6, rollbacks before: 1\); lower the"
    ):
        train(job, run)
    assert toy.same(toy.weights_of(job), job.trace[3])  # where it went back to
    assert job.seen[-1] == 4 * (5 + 3 + 1 + 3 + 1) - 1


def test_going_back_is_not_allowed_again_after_a_resume(begin):
    job, run = begin([*batches(5, 6, 7, 8), *batches(*range(15, 99))])
    with pytest.raises(NonFiniteError):
        train(job, run)
    assert load_state(run.checkpoints).step == 9
    job, run = begin([*batches(5, 6, 7, 8), *batches(*range(15, 99))])
    with pytest.raises(NonFiniteError, match="skips before: 6, rollbacks before: 1"):
        train(job, run)
    assert job.seen == list(range(4 * 15, 4 * 19))


def test_without_a_checkpoint_to_go_back_to_a_training_stops(toy, begin):
    job, run = begin(batches(0, 1, 2, 3))
    with pytest.raises(NonFiniteError, match="skips before: 3, rollbacks before: 0"):
        train(job, run)
    assert toy.same(toy.weights_of(job), job.trace[0])


# ------------------------------------------------------------------ the budget


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A run's folder with a checkpoint."""
    folder = tmp_path_factory.mktemp("sentinel")
    save_state(folder / "checkpoints", TrainingState(3, {"a": torch.zeros(1)}))
    return folder


FAULT = Fault(
    step=3, phase="codec", culprits=("codec/please",), terms={"codec/please": math.nan},
    weights={"codec/please": 1.0}, gradient_norms={}, rates={"codec": 0.1}, clips={"codec": 0.0},
    ranks=(0,), samples=(),
)  # fmt: skip


@given(st.lists(st.booleans(), max_size=30))
def test_no_more_is_forgiven_than_three_batches_at_a_time_and_one_return(folder, are_faults):
    config = LoopConfig(steps=9, batch=1, on_non_finite="recover")
    sentinel = Sentinel(config, Run(folder, "toy", config))
    story = ""  # s: skipped, b: went back, c: checkpoint, x: stopped
    for is_fault in are_faults:
        if not is_fault:
            sentinel.forgive()
            story += "c"
            continue
        try:
            story += "s" if sentinel.answer(FAULT) is None else "b"
        except NonFiniteError:
            story += "x"
            break
    assert "ssss" not in story
    assert story.count("b") <= 1
    assert "b" not in story or story[: story.index("b")].endswith("sss")
    assert "x" not in story or ("b" in story and story[:-1].endswith("sss"))
    assert sentinel.counts == {"skips": story.count("s"), "rollbacks": story.count("b")}


# ------------------------------------------------------------------ two ranks


def errand_of(toy, folder, policy, spoilt=(20, 21), **more):
    """Batches of eight; of each, the second four samples are the second rank's."""
    loop = {"steps": 6, "batch": 8, "save_every": 2, "log_every": 1, "ema": 0.75, "trackers": (),
            "on_non_finite": policy}  # fmt: skip
    changes = {"double": True, "dropout": 0.0, "spoilt": spoilt, "fault": "inf"}
    return toy.Errand(str(folder), loop, changes, **more)


def test_a_loss_that_one_rank_alone_finds_infinite_is_left_out_by_both(toy, apart, tmp_path):
    whole, outcome, _ = toy.train(errand_of(toy, tmp_path / "one", "recover"))
    assert outcome.skips == 1
    assert apart(errand_of(toy, tmp_path / "two", "recover"), ranks=2) == [0, 0]
    found = load_state(tmp_path / "two" / "checkpoints").tensors
    for name, weights in whole.trace[-1].items():
        torch.testing.assert_close(found[f"module/{name}"], weights, rtol=0, atol=1e-10)
    record = json.loads((tmp_path / "two" / "record.json").read_text())
    assert (record["skips"], record["rollbacks"]) == (1, 0)


def test_a_loss_that_one_rank_alone_finds_infinite_stops_both_and_its_samples_are_named(
    toy, apart, tmp_path
):
    assert apart(errand_of(toy, tmp_path / "run", "stop"), ranks=2) == [3, 3]
    found = json.loads((tmp_path / "run" / "fault.json").read_text())
    assert (found["culprits"], found["ranks"]) == (["codec/please"], [1])
    assert found["samples"] == [20, 21, 22, 23]
    assert load_state(tmp_path / "run" / "checkpoints").step == 2


def test_two_ranks_go_back_together_and_end_alike_when_killed_after_it(toy, apart, tmp_path):
    spoilt = (28, 36, 40, 52)  # batches 3 to 6, on one rank or the other
    for name in ("whole", "killed"):
        errand = errand_of(toy, tmp_path / name, "recover", spoilt)
        if name == "killed":
            errand.strike, errand.at = "step", 5
            assert apart(errand, ranks=2) == [-signal.SIGKILL] * 2
            errand.strike, errand.resume = "", True
        assert apart(errand, ranks=2) == [0, 0]
        record = json.loads((tmp_path / name / "record.json").read_text())
        assert (record["steps"], record["skips"], record["rollbacks"]) == (6, 3, 1)
    states = [load_state(tmp_path / name / "checkpoints") for name in ("whole", "killed")]
    assert states[0].values["drawn"] == states[1].values["drawn"] == 11
    assert toy.same(states[0].tensors, states[1].tensors)
