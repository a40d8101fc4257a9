"""A study's records outlive folders, machines, other names and other questions."""

import importlib.util
import json
import shutil
import tempfile
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cartok.core.config import dict_of
from cartok.core.errors import UserError
from cartok.core.files import write_json
from cartok.lab.records import new_record, runs_of, why_none_counts, write_summary
from cartok.lab.study import refuse_folder
from cartok.recipes.arms import adapted
from cartok.recipes.prior import toy
from cartok.scaling.study_file import read_study

_TOYS = Path(__file__).with_name("study_toys.py")
_SPEC = importlib.util.spec_from_file_location(_TOYS.stem, _TOYS)
toys = importlib.util.module_from_spec(_SPEC)
_SPEC.loader.exec_module(toys)

go, score, small_study = toys.go, toys.score, toys.small_study


def test_a_study_goes_on_from_its_study_json_alone(tmp_path, trainings):
    go(small_study(0, 1), tmp_path / "here")
    (tmp_path / "there").mkdir()
    shutil.copy(tmp_path / "here/study.json", tmp_path / "there/study.json")
    found = go(small_study(0, 1, seeds=2), tmp_path / "there")
    assert trainings == ["lambda-0-s0", "lambda-1-s0", "lambda-0-s1", "lambda-1-s1"]
    assert [arm["finished"] for arm in found["arms"]] == [2, 2]
    assert all(run["provenance"]["torch"] for run in found["runs"])


@pytest.mark.parametrize("content", ["", "null", "[]", '{"name": "small", "runs": [{}]}'])
def test_a_study_whose_damaged_file_is_deleted_goes_on_from_what_its_runs_recorded(
    content, tmp_path, trainings
):
    made = go(small_study(0, 1), tmp_path)
    (tmp_path / "study.json").write_text(content)
    with pytest.raises(UserError, match=r"study\.json\b.* delete it"):
        go(small_study(0, 1), tmp_path)
    (tmp_path / "study.json").unlink()
    assert go(small_study(0, 1), tmp_path)["runs"] == made["runs"]
    assert len(trainings) == 2


@pytest.mark.parametrize("content", ["", "{", "[]", "{}", '{"status": "finished"}'])
def test_a_study_goes_on_without_a_record_that_is_damaged_and_deleted(content, tmp_path, trainings):
    study = small_study(0, 1)
    go(study, tmp_path)
    (tmp_path / "study.json").unlink()
    record = runs_of(study)[1].folder(tmp_path) / "arm.json"
    record.write_text(content)
    with pytest.raises(UserError, match=r"arm\.json\b.* delete it") as refusal:
        go(study, tmp_path)
    assert len(str(refusal.value).splitlines()) == 1
    record.unlink()
    assert [run["status"] for run in go(study, tmp_path)["runs"]] == ["finished"] * 2
    assert trainings == ["lambda-0-s0", "lambda-1-s0", "lambda-1-s0"]


def test_a_number_of_seeds_that_is_damaged_costs_no_time(tmp_path):
    study = small_study(0)
    (run,) = runs_of(study)
    record = new_record(run, "finished", scores={"gfd": score(1.0)})
    plain = dict_of(study) | {"seeds": 10**12}
    stored = {"name": "small", "config": plain, "runs": [record], "earlier": []}
    (tmp_path / "study.json").write_text(json.dumps(stored))
    assert "finished" in why_none_counts(small_study(7), tmp_path)
    assert write_summary(study, tmp_path)["runs"][0]["status"] == "finished"


JSON = st.none() | st.integers() | st.text(max_size=3) | st.lists(st.none(), max_size=1)


@given(st.data())
def test_whatever_stands_in_place_of_a_part_of_a_study_is_read_or_refused(data):
    study = small_study(0, 1)
    first, second = runs_of(study)
    records = [
        new_record(first, "finished", scores={"gfd": score(1.0)}),
        new_record(second, "failed", reason="a loss is not finite"),
    ]
    damaged = {"name": "small", "config": dict_of(study), "runs": records, "earlier": []}
    part = damaged
    while True:
        keys = list(part) if isinstance(part, dict) else range(len(part))
        key = data.draw(st.sampled_from(keys))
        if not isinstance(part[key], dict | list) or not part[key] or data.draw(st.booleans()):
            break
        part = part[key]
    part[key] = data.draw(JSON | st.builds(dict) | st.just([{}]))
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder)
        (out / "study.json").write_text(json.dumps(damaged))
        with suppress(UserError):
            refuse_folder(study, out)
            why_none_counts(small_study(7), out)
            write_summary(study, out)


def test_means_carry_intervals_and_leave_the_rest_of_receipts_to_the_runs(tmp_path):
    study = small_study(0)
    (run,) = runs_of(study)
    receipt = {"bootstrap": {"interval": [1.0, 3.0]}, "network": "n", "standard_error": 0.5}
    record = new_record(run, "finished", scores={"gfd": score(2.0, **receipt)})
    write_json(run.folder(tmp_path) / "arm.json", record)
    found = write_summary(study, tmp_path)
    assert found["runs"][0]["scores"]["gfd"]["receipt"] == receipt
    (arm,) = found["arms"]
    assert arm["scores"]["gfd"]["receipt"] == {k: receipt[k] for k in receipt if k != "network"}


def test_a_study_that_is_stopped_leaves_a_study_json_of_all_that_has_finished(tmp_path, trainings):
    with pytest.raises(KeyboardInterrupt):
        go(small_study(0, 1, 15), tmp_path / "here")
    (tmp_path / "there").mkdir()
    shutil.copy(tmp_path / "here/study.json", tmp_path / "there/study.json")
    go(small_study(0, 1, 15), tmp_path / "there")
    assert trainings == ["lambda-0-s0", "lambda-1-s0", "lambda-15-s0", "lambda-15-s0"]


def test_what_has_finished_elsewhere_counts_more_than_what_failed_here(tmp_path, trainings):
    study = small_study(0, 13)
    failed = go(study, tmp_path)
    record = failed["runs"][1] | {"status": "finished", "scores": {"gfd": score(7.0)}}
    failed["runs"][1] = record
    (tmp_path / "study.json").write_text(json.dumps(failed))
    found = go(study, tmp_path)
    assert [run["status"] for run in found["runs"]] == ["finished", "finished"]
    assert found["runs"][1]["scores"]["gfd"]["value"] == 7
    assert len(trainings) == 2


def test_a_failure_known_from_study_json_alone_is_run_again_only_when_asked(tmp_path, trainings):
    go(small_study(0, 13), tmp_path)
    shutil.rmtree(tmp_path / "arms")
    found = go(small_study(0, 13), tmp_path)
    assert len(trainings) == 2
    assert "lower the rate" in found["runs"][1]["reason"]
    go(small_study(0, 13), tmp_path, retry=True)
    assert len(trainings) == 3


def test_a_renamed_arm_takes_its_records_along(tmp_path, trainings):
    study = small_study(0, 1)
    go(study, tmp_path)
    shutil.rmtree(tmp_path / "arms")
    first, second = study.arms
    renamed = replace(study, arms=(first, replace(second, name="renamed")))
    found = go(renamed, tmp_path)
    assert len(trainings) == 2
    assert [arm["name"] for arm in found["arms"]] == ["lambda-0", "renamed"]
    assert found["earlier"] == []


def test_records_of_a_version_that_lacked_a_field_count_as_of_its_default(tmp_path, trainings):
    go(small_study(0), tmp_path)
    shutil.rmtree(tmp_path / "arms")
    made = read_study(tmp_path / "study.json")
    assert made["config"]["priors"][0].pop("token_dropout") == toy().token_dropout
    made["runs"][0]["digest"] = "of that version"
    (tmp_path / "study.json").write_text(json.dumps(made))
    assert go(small_study(0), tmp_path)["runs"][0]["status"] == "finished"
    assert len(trainings) == 1
    made["config"]["priors"][0]["token_dropout"] = 0.25
    (tmp_path / "study.json").write_text(json.dumps(made))
    go(small_study(0), tmp_path)
    assert len(trainings) == 2


def test_runs_scored_against_other_pictures_of_one_name_are_told_apart(tmp_path):
    study = small_study(0, 1)
    for run, pictures in zip(runs_of(study), ("aa", "bb"), strict=True):
        scores = {"gfd": score(1.0, reference=pictures, evaluator=1)}
        write_json(run.folder(tmp_path) / "arm.json", new_record(run, "finished", scores=scores))
    (warning,) = write_summary(study, tmp_path)["warnings"]
    assert "differ in the pictures" in warning
    assert "aa: lambda-0-s0; bb: lambda-1-s0" in warning


def test_arms_that_are_not_named_wait_and_records_of_them_stay(tmp_path, trainings):
    go(small_study(0, 1), tmp_path, arms=("lambda-1",))
    found = go(small_study(0, 1, seeds=2), tmp_path, arms=("lambda-0",))
    assert trainings == ["lambda-1-s0", "lambda-0-s0", "lambda-0-s1"]
    assert [run["status"] for run in found["runs"]] == [
        "finished",
        "finished",
        "finished",
        "waiting",
    ]
    assert found["earlier"] == []
    with pytest.raises(UserError, match=r"has no arm 'lambda-3'; did you mean 'lambda-"):
        go(small_study(0, 1), tmp_path, arms=("lambda-3",))


def test_where_no_record_counts_it_is_said_in_what_they_differ(tmp_path):
    study = small_study(0)
    here = adapted(study, data="here/cifar10")
    (run,) = runs_of(here)
    scores = {"gfd": score(1.0)}
    write_json(run.folder(tmp_path) / "arm.json", new_record(run, "finished", scores=scores))
    write_summary(here, tmp_path)
    assert why_none_counts(adapted(study, data="there/cifar10", seeds=2), tmp_path) == ""
    apart = why_none_counts(adapted(study, data="tiny"), tmp_path)
    assert "none of the 1 finished runs" in apart
    assert apart.endswith("data was 'cifar10' there and is 'tiny' now")
    halved = adapted(study, data="cifar10", scale=0.5)
    assert "tokenizer.model.quantizer.revive_after was 5 there" in why_none_counts(halved, tmp_path)
    assert why_none_counts(study, tmp_path / "new") == ""


def test_where_the_pictures_lie_makes_no_other_run():
    study = small_study(0)
    here, there, others = (
        [run.digest for run in runs_of(adapted(study, data=data))]
        for data in ("cifar10", "/data/cifar10", "other")
    )
    assert here == there != others


def test_looking_at_a_finished_study_changes_nothing_of_it(tmp_path, trainings):
    made = go(small_study(0), tmp_path)
    made["provenance"] = {"device": "cuda: another machine"}
    (tmp_path / "study.json").write_text(json.dumps(made))
    assert go(small_study(0), tmp_path) == made


def test_records_that_are_not_asked_for_now_are_kept(tmp_path, trainings):
    go(small_study(0, 1, seeds=2), tmp_path)
    shutil.rmtree(tmp_path / "arms")
    found = go(small_study(0), tmp_path)
    assert [(run["arm"], run["seed"]) for run in found["earlier"]] == [
        ("lambda-1", 0), ("lambda-0", 1), ("lambda-1", 1)
    ]  # fmt: skip
    again = go(small_study(0, 1, seeds=2), tmp_path)
    assert len(trainings) == 4
    assert (len(again["runs"]), again["earlier"]) == (4, [])


def test_a_grids_study_json_holds_its_laws_and_an_unchanged_one_is_left_alone(tmp_path):
    study = replace(small_study(0), apart=True)
    (run,) = runs_of(study)
    receipt = {"steps": 5, "pictures": 40, "parameters": 9, "tokens_per_picture": 4, "codes": 8,
               "paper_flops": 2.0}  # fmt: skip
    scores = {"gfd": score(2.0), "rfd": score(1.0), "prior_flops": score(500.0, **receipt)}
    write_json(run.folder(tmp_path) / "arm.json", new_record(run, "finished", scores=scores))
    law = write_summary(study, tmp_path)["laws"]["arms"]["lambda-0"]["laws"]["gfd"]
    assert law["runs"] == [run.digest]
    assert "4 computes or more" in law["refused"]
    written = (tmp_path / "study.json").stat().st_mtime_ns
    write_summary(study, tmp_path)
    assert (tmp_path / "study.json").stat().st_mtime_ns == written
    assert "laws" not in write_summary(small_study(0), tmp_path / "other")
