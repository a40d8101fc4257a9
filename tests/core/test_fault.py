import json
import math
from dataclasses import replace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from cartok.core.fault import Fault, Rise, remove_fault, rises_of, write_fault
from cartok.core.job import LoopConfig, NonFiniteError
from cartok.core.loop import fit
from cartok.core.run import Run, read_log

LOSS = Fault(
    step=41, phase="codec", culprits=("codec/please",),
    terms={"codec/rebuild": 0.5, "codec/please": math.inf}, weights={"codec/please": 0.25},
    gradient_norms={"codec": math.nan}, rates={"codec": 1e-3}, clips={"codec": 0.0}, ranks=(1,),
    samples=tuple(range(10)),
)  # fmt: skip
GRADIENT = replace(LOSS, culprits=("gradient/codec", "gradient/predictor"), samples=())
LOOP = LoopConfig(steps=99, batch=4, precision="bf16")
COUNTS = {"skips": 0, "rollbacks": 0}


def page_of(folder, fault, config=LOOP, lines=()):
    write_fault(folder, fault, config, COUNTS, list(lines))
    return (folder / "fault.md").read_text()


@pytest.fixture
def fail(toy, tmp_path):
    """A function that trains a toy whose samples from 16 to 19 are not finite."""

    def fail(fault="inf", resume=False, overwrite=False, cured=False, **loop):
        settings = toy.LOOP | {"best": "", "log_every": 1} | loop
        config = toy.ToyConfig(loop=LoopConfig(**settings), spoilt=(16,), fault=fault)
        given = {"resume": resume, "overwrite": overwrite}
        run = Run.open(tmp_path / "run", config, kind="toy", **given)
        job = toy.ToyJob(config)
        job.config = replace(config, spoilt=()) if cured else config
        if cured:
            fit(job, config.loop, run)
        else:
            with pytest.raises(NonFiniteError, match=r"run/fault\.md tells more"):
                fit(job, config.loop, run)
        return run

    return fail


# ------------------------------------------------------------------ what a training leaves


def test_the_page_and_the_facts_name_the_term_that_was_planted(fail):
    run = fail()
    found = json.loads((run.folder / "fault.json").read_text())
    assert (found["kind"], found["step"], found["phase"]) == ("non-finite", 4, "codec")
    assert found["culprits"] == ["codec/please"]
    assert found["terms"]["codec/please"] == "inf"
    assert 0 < found["terms"]["codec/rebuild"] < 9
    assert found["weights"] == {"codec/rebuild": 1.0, "codec/predict": 0.5, "codec/please": 0.25,
                                "critic/hinge": 0.5}  # fmt: skip
    assert all(map(math.isfinite, found["gradient_norms"].values()))
    assert (found["samples"], found["ranks"]) == ([16, 17, 18, 19], [0])
    assert (found["policy"], found["skips"], found["rollbacks"]) == ("stop", 0, 0)
    assert found["last"] == read_log(run.folder)
    assert [line["step"] for line in found["last"]] == [1, 2, 3, 4]
    page = (run.folder / "fault.md").read_text()
    assert page.startswith("# Stopped at step 4: `codec/please` not finite\n")
    assert "the loss term `codec/please` of the phase `codec`" in page
    assert "| `codec/please` | **inf** | 0.25 |" in page


def test_a_gradient_is_named_when_all_losses_are_finite(fail):
    run = fail("gradient")
    found = json.loads((run.folder / "fault.json").read_text())
    assert found["culprits"] == ["gradient/codec"]
    assert found["gradient_norms"]["codec"] == "nan"
    assert found["gradient_norms"]["predictor"] > 0
    assert found["rates"].keys() == {"codec", "predictor"}
    page = (run.folder / "fault.md").read_text()
    assert "all losses were finite, but not the `gradient/codec` of the phase `codec`" in page


def test_a_run_that_gets_further_after_a_resume_has_no_page_any_more(fail):
    folder = fail().folder
    fail(resume=True)
    assert (folder / "fault.md").exists()
    fail(resume=True, cured=True)
    assert not [path.name for path in folder.iterdir() if path.name.startswith("fault")]


def test_a_run_begun_again_has_no_page(fail, toy, tmp_path):
    run = fail()
    Run.open(run.folder, run.config, kind="toy", overwrite=True)
    assert sorted(path.name for path in run.folder.iterdir()) == ["config.json"]


def test_removing_a_page_that_is_not_there_is_no_fault(tmp_path):
    remove_fault(tmp_path)
    assert not list(tmp_path.iterdir())


# ------------------------------------------------------------------ what the page says


def test_words_are_short_however_many_samples_there_are():
    assert LOSS.words == (
        "the loss term 'codec/please' is not finite at step 41 "
        "(samples [0, 1, 2, 3, 4, 5, 6, 7] ...)"
    )
    assert (
        GRADIENT.words == "the gradient/codec and the gradient/predictor is not finite at step 41"
    )


def test_the_page_says_what_rose_before(tmp_path):
    lines = [
        {"step": step, "codec/rebuild": 0.75, "codec/please": None, "gradient/codec": 4.0**step,
         "rate/codec": 9.0**step}
        for step in range(3)
    ]  # fmt: skip
    page = page_of(tmp_path, LOSS, lines=lines)
    assert "steps 0 to 2, and the one that failed), `gradient/codec` rose most" in page
    assert "* `gradient/codec`: 16 times, from 1 at step 0 to 16" in page
    assert "rate/codec" not in page


def test_what_was_finite_in_the_step_itself_counts_as_a_rise(tmp_path):
    page = page_of(tmp_path, LOSS, lines=[{"step": 40, "codec/rebuild": 0.001}])
    assert "* `codec/rebuild`: 500 times, from 0.001 at step 40 to 0.5" in page


def test_the_page_says_so_if_nothing_rose_or_was_logged(tmp_path):
    assert "Nothing was logged before." in page_of(tmp_path, LOSS)
    calm = [{"step": 1, "codec/rebuild": 0.4}]
    assert "No loss and no gradient rose" in page_of(tmp_path, LOSS, lines=calm)


def test_advice_fits_the_fault_and_the_config(tmp_path):
    loss = page_of(tmp_path, LOSS)
    for advice in (
        "(it was 0.001 for `codec`)",
        "Clip the gradient of `codec`.",
        "`codec/please` overflows in bf16",
        "Lower the weight of `codec/please` (it was 0.25)",
        "Look at the samples",
        "Set loop.on_non_finite to recover",
    ):
        assert advice in loss
    clipped = replace(GRADIENT, clips={"codec": 1.0})
    recovering = LoopConfig(steps=99, batch=4, on_non_finite="recover")
    gradient = page_of(tmp_path, clipped, recovering)
    assert "Clip harder (it was 1 for `codec`)." in gradient
    for needless in ("bf16", "Lower the weight", "Look at the samples", "Set loop.on_non_finite"):
        assert needless not in gradient


# ------------------------------------------------------------------ rises


@given(st.lists(st.floats(0.001, 1000.0), min_size=1, max_size=9))
def test_a_rise_goes_from_the_least_to_the_last(sizes):
    lines = [{"step": n, "codec/a": -size, "speed/b": size} for n, size in enumerate(sizes)]
    found = rises_of(lines)
    if sizes[-1] / min(sizes) < 2:
        assert found == []
    else:
        (rise,) = found
        assert (rise.least, rise.last, rise.factor) == (
            min(sizes), sizes[-1], sizes[-1] / min(sizes)
        )  # fmt: skip
        assert sizes[rise.step] == rise.least


def test_the_steepest_rise_comes_first_and_one_from_nothing_before_all():
    lines = [{"step": 1, "c/a": 1.0, "c/b": 1.0, "c/c": 0.0, "c/d": 0.0},
             {"step": 2, "c/a": 3.0, "c/b": 5.0, "c/c": 1.0, "c/d": 0.0}]  # fmt: skip
    assert [rise.name for rise in rises_of(lines)] == ["c/c", "c/b", "c/a"]
    assert Rise("c/c", 1, 0.0, 1.0).factor == math.inf


def test_a_fault_of_batches_that_name_no_samples_has_none(toy, tmp_path):
    config = toy.ToyConfig(loop=LoopConfig(**toy.LOOP | {"best": ""}))
    job = toy.ToyJob(config)
    job.prepare = lambda batch, step: toy.Forward(True, *[torch.ones(4, 4)] * 3)
    job.batches = lambda start: iter([[0, 1, 2, 3]])
    job.phases = job.phases[1:]
    job.critic.bias.data.fill_(math.nan)
    with pytest.raises(NonFiniteError, match=r"'critic/hinge' is not finite at step 0; no weight"):
        fit(job, config.loop, Run.open(tmp_path / "run", config, kind="toy"))
    assert "Samples: not named by the batches." in (tmp_path / "run" / "fault.md").read_text()
