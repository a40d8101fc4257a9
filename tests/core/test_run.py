import errno
import json
import math
import os
import subprocess
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from cartok.core import run as run_module
from cartok.core.config import config, digest_of
from cartok.core.errors import UserError
from cartok.core.parallel import World
from cartok.core.run import (
    Run,
    curves_of,
    first_difference,
    peak_memory_bytes,
    provenance,
    read_log,
    refuse_occupied,
)


@config
class Inner:
    rate: float = 0.5
    sizes: tuple[int, ...] = (1, 2)


@config
class RunConfig:
    inner: Inner = Inner()
    steps: int = 10


def opened(folder, changed=None, kind="toy", **settings):
    return Run.open(folder, changed or RunConfig(), kind=kind, **settings)


def refusal_of(folder, changed=None, kind="toy", **settings):
    with pytest.raises(UserError) as refusal:
        opened(folder, changed, kind, **settings)
    assert len(str(refusal.value).splitlines()) == 1
    return str(refusal.value)


def content(folder):
    return {str(p.relative_to(folder)): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


# ------------------------------------------------------------------ opening


def test_a_new_run_holds_its_config_kind_and_digest(tmp_path):
    run = opened(tmp_path / "deep" / "run")
    stored = json.loads((run.folder / "config.json").read_text())
    assert stored == {"kind": "toy", "digest": digest_of(RunConfig()),
                      "config": {"inner": {"rate": 0.5, "sizes": [1, 2]}, "steps": 10}}  # fmt: skip
    assert not run.is_finished


def test_an_empty_folder_will_do(tmp_path):
    assert opened(tmp_path).folder == tmp_path


def test_a_folder_that_holds_files_is_refused_and_left_alone(tmp_path):
    (tmp_path / "thesis.tex").write_text("all of it")
    before = content(tmp_path)
    assert "--out must be new or empty" in refusal_of(tmp_path)
    assert "holds files but no run" in refusal_of(tmp_path, resume=True)
    assert "holds files but no run" in refusal_of(tmp_path, overwrite=True)
    assert content(tmp_path) == before


def test_what_will_be_refused_can_be_known_before_anything_is_made(tmp_path):
    asked = Run(tmp_path / "new", "toy", RunConfig())
    refuse_occupied(asked)
    assert not asked.folder.exists()
    opened(tmp_path / "new")
    before = content(tmp_path)
    with pytest.raises(UserError, match="give --resume to go on"):
        refuse_occupied(asked)
    refuse_occupied(asked, resume=True)
    refuse_occupied(asked, overwrite=True)
    with pytest.raises(UserError, match="steps was 10 there and is 11 now"):
        refuse_occupied(Run(asked.folder, "toy", RunConfig(steps=11)), resume=True)
    assert content(tmp_path) == before


def test_a_file_and_a_path_below_a_file_are_refused(tmp_path):
    (tmp_path / "file").write_text("")
    assert "is a file; name another" in refusal_of(tmp_path / "file")
    assert "name another" in refusal_of(tmp_path / "file" / "run")


def test_a_folder_that_cannot_be_written_to_is_refused(tmp_path, monkeypatch):
    def denied(path, value):
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(path))

    monkeypatch.setattr(run_module, "write_json", denied)
    assert "Permission denied" in refusal_of(tmp_path / "run")


def test_a_run_goes_on_with_an_equal_config_only(tmp_path):
    opened(tmp_path)
    (tmp_path / "record.json").write_text("{}")
    assert opened(tmp_path, resume=True).is_finished
    for changed, said in [
        (RunConfig(steps=11), "steps was 10 there and is 11 now"),
        (RunConfig(inner=Inner(rate=0.25)), "inner.rate was 0.5 there and is 0.25 now"),
        (RunConfig(inner=Inner(sizes=(1, 3))), "inner.sizes was [1, 2] there and is [1, 3] now"),
    ]:
        assert said in refusal_of(tmp_path, changed, resume=True)
    assert json.loads((tmp_path / "config.json").read_text())["config"]["steps"] == 10


def test_a_field_that_a_newer_version_added_stood_at_its_default(tmp_path):
    opened(tmp_path)
    stored = json.loads((tmp_path / "config.json").read_text())
    del stored["config"]["inner"]["rate"]
    text = json.dumps(stored | {"digest": "of an older version"})
    (tmp_path / "config.json").write_text(text)
    changed = RunConfig(inner=Inner(rate=0.25))
    assert "inner.rate was 0.5 there and is 0.25 now" in refusal_of(tmp_path, changed, resume=True)
    opened(tmp_path, resume=True)


def test_a_long_value_is_told_by_its_beginning():
    said = first_difference({"classes": list(range(1000))}, {"classes": []})
    assert said.startswith("classes was [0, 1, 2,")
    assert said.endswith("... (4,890 characters) there and is [] now")


def test_a_field_that_a_newer_version_has_no_more_is_named(tmp_path):
    opened(tmp_path)
    stored = json.loads((tmp_path / "config.json").read_text())
    stored["config"]["old"] = 1
    (tmp_path / "config.json").write_text(json.dumps(stored | {"digest": "of an older version"}))
    assert "old was 1 there and is None now" in refusal_of(tmp_path, resume=True)


def test_a_run_resumed_before_it_began_begins(tmp_path):
    assert opened(tmp_path / "new", resume=True).folder.is_dir()


def test_what_a_kill_left_half_written_is_no_obstacle_and_is_cleared_away(tmp_path):
    left = tmp_path / ".config.json.12345.part"
    left.write_text("{")
    run = opened(tmp_path)
    assert not left.exists()
    half = run.checkpoints / ".step-00000004.12345.part"
    half.mkdir(parents=True)
    (half / "state.safetensors").write_text("half")
    opened(tmp_path, resume=True)
    assert not half.exists()


@pytest.mark.parametrize("flag", ["resume", "overwrite"])
def test_another_kind_of_run_is_refused_and_left_alone(tmp_path, flag):
    opened(tmp_path, kind="tokenizer")
    before = content(tmp_path)
    assert "not a prior's run" in refusal_of(tmp_path, kind="prior", **{flag: True})
    assert content(tmp_path) == before


@pytest.mark.parametrize(
    "stored",
    ["[]", "{}", '{"kind": "toy", "config": {}}', '{"model_type": "llama"}', "null", "{", ""],
)
def test_a_folder_whose_config_is_no_runs_is_never_overwritten(tmp_path, stored):
    """The second is what a model's folder holds."""
    (tmp_path / "config.json").write_text(stored)
    (tmp_path / "model.safetensors").write_text("weeks of work")
    before = content(tmp_path)
    refusal_of(tmp_path, overwrite=True)
    assert content(tmp_path) == before


def test_overwriting_removes_a_runs_own_parts_and_nothing_else(tmp_path):
    run = opened(tmp_path)
    for part in run_module._PARTS:
        path = run.folder / part
        if "." in part:
            path.write_text("old")
        else:
            (path / "deep").mkdir(parents=True)
            (path / "deep" / "file").write_text("old")
    (tmp_path / "notes.md").write_text("mine")
    (tmp_path / "mine" / "checkpoints").mkdir(parents=True)
    (tmp_path / "mine" / "checkpoints" / "file").write_text("mine")
    opened(tmp_path, RunConfig(steps=11), overwrite=True)
    assert sorted(content(tmp_path)) == ["config.json", "mine/checkpoints/file", "notes.md"]
    assert json.loads((tmp_path / "config.json").read_text())["config"]["steps"] == 11


def test_overwriting_leaves_what_a_link_leads_to(tmp_path):
    far = tmp_path / "scratch"
    far.mkdir()
    (far / "file").write_text("kept")
    run = opened(tmp_path / "run")
    run.checkpoints.symlink_to(far)
    opened(tmp_path / "run", overwrite=True)
    assert (far / "file").read_text() == "kept"
    assert not run.checkpoints.exists()


def test_overwriting_cut_short_leaves_a_run_that_can_be_overwritten(tmp_path, monkeypatch):
    run = opened(tmp_path)
    run.log(1, {"loss": 1.0})

    def killed(path, value):
        raise KeyboardInterrupt

    plain = run_module.write_json
    monkeypatch.setattr(run_module, "write_json", killed)
    with pytest.raises(KeyboardInterrupt):
        opened(tmp_path, overwrite=True)
    monkeypatch.setattr(run_module, "write_json", plain)
    assert opened(tmp_path, overwrite=True).folder == tmp_path


def test_other_ranks_write_nothing(tmp_path):
    run = Run(folder=tmp_path, kind="toy", config=RunConfig(), world=World(rank=1))
    run.start_log(0, ("tensorboard",))
    run.log(1, {"loss": 1.0})
    assert run.finish()["kind"] == "toy"
    assert not list(tmp_path.iterdir())


# ------------------------------------------------------------------ the log


def test_the_log_is_one_line_a_step(tmp_path):
    run = opened(tmp_path)
    run.log(1, {"loss": 2.5, "rate": 1.0})
    run.log(2, {"loss": 1.5})
    assert read_log(tmp_path) == [{"step": 1, "loss": 2.5, "rate": 1.0}, {"step": 2, "loss": 1.5}]
    assert (tmp_path / "log.jsonl").read_text().count("\n") == 2


def test_there_is_no_log_before_the_first_line(tmp_path):
    assert read_log(tmp_path) == []


def test_a_log_taken_up_again_is_cut_at_the_step(tmp_path):
    run = opened(tmp_path)
    for step in range(1, 8):
        run.log(step, {"loss": float(step)})
    run.log(4, {"held/loss": 0.5})
    with open(tmp_path / "log.jsonl", "a", encoding="utf-8") as file:
        file.write('{"step": 8, "lo')  # cut short by a kill
    run.start_log(4, ())
    run.log(5, {"loss": 50.0})
    steps = [line["step"] for line in read_log(tmp_path)]
    assert steps == [1, 2, 3, 4, 4, 5]
    assert read_log(tmp_path)[-1]["loss"] == 50.0


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_a_value_that_is_not_finite_is_null_and_told_to_no_tracker(tmp_path, value):
    told = []

    class Listener:
        def log(self, step, values):
            told.append((step, values))

        def close(self):
            told.append("closed")

    run = replace(opened(tmp_path), trackers=(Listener(),))
    run.log(3, {"loss": value, "rate": 0.5})
    run.close()
    assert (tmp_path / "log.jsonl").read_text() == '{"step": 3, "loss": null, "rate": 0.5}\n'
    assert told == [(3, {"rate": 0.5}), "closed"]


def test_a_log_on_a_full_disk_is_one_line(tmp_path):
    if not os.path.exists("/dev/full"):
        pytest.skip("this system has no /dev/full")
    run = opened(tmp_path)
    (tmp_path / "log.jsonl").symlink_to("/dev/full")
    with pytest.raises(UserError, match=r"the disk is full: .*log.jsonl was not written"):
        run.log(1, {"loss": 1.0})


def test_curves_hold_the_numbers_of_every_name():
    lines = [{"step": 1, "a": 1.0, "b": None}, {"step": 2, "a": 2.0, "note": "x"}]
    assert curves_of(lines) == {"a": [[1, 1.0], [2, 2.0]]}


@given(st.integers(1, 1000), st.integers(2, 300))
def test_curves_are_thinned_evenly_between_their_ends(num, most):
    lines = [{"step": step, "loss": float(step)} for step in range(num)]
    points = curves_of(lines, most)["loss"]
    assert len(points) == min(num, most)
    assert points[0][0] == 0
    assert points[-1][0] == num - 1
    steps = [step for step, _ in points]
    gaps = {after - before for before, after in pairwise(steps)}
    assert not gaps or (min(gaps) >= 1 and max(gaps) - min(gaps) <= 1)


# ------------------------------------------------------------------ the record


def test_a_record_is_strict_json_of_facts_config_provenance_and_curves(tmp_path):
    run = opened(tmp_path)
    run.log(1, {"loss": 2.5})
    record = run.finish(
        steps=1, scores={"psnr": {"value": math.nan, "unit": "dB"}, "all": (1.0, math.inf)}
    )

    def refuse(name):
        raise AssertionError(name)

    text = (tmp_path / "record.json").read_text()
    assert json.loads(text, parse_constant=refuse) == record
    assert record["kind"] == "toy"
    assert record["digest"] == digest_of(RunConfig())
    assert record["config"]["steps"] == 10
    assert record["steps"] == 1
    assert record["scores"] == {"psnr": {"value": None, "unit": "dB"}, "all": [1.0, None]}
    assert record["curves"] == {"loss": [[1, 2.5]]}
    assert record["peak_memory_bytes"] > 1e6
    assert run.is_finished


def test_provenance_names_versions_device_and_world():
    made = provenance(World(size=2))
    assert made["torch"] == torch.__version__
    assert made["world_size"] == 2
    assert made["device"].startswith("cpu: ")
    assert made["device"] != "cpu: "


def test_the_commit_is_ours_or_none(tmp_path, monkeypatch):
    """A copy installed below somebody else's repository does not take that one's commit."""

    def git(*arguments):
        who = ["-c", "user.name=a", "-c", "user.email=a@b.c"]
        command = ["git", "-C", str(tmp_path), *who, *arguments]
        done = subprocess.run(command, capture_output=True, text=True, check=True)
        return done.stdout.strip()

    git("init", "-q")
    monkeypatch.setattr(run_module, "__file__", str(tmp_path / "cartok" / "run.py"))
    Path(run_module.__file__).parent.mkdir()
    Path(run_module.__file__).write_text("")
    (tmp_path / "theirs.txt").write_text("")
    git("add", "theirs.txt")
    git("commit", "-q", "-m", "theirs")
    assert provenance(World())["commit"] == ""
    git("add", "cartok")
    git("commit", "-q", "-m", "ours")
    assert provenance(World())["commit"] == git("rev-parse", "HEAD")


def test_provenance_needs_no_git(monkeypatch):
    monkeypatch.setenv("PATH", "")
    assert provenance(World())["commit"] == ""


def test_peak_memory_is_in_bytes_and_never_falls():
    before = peak_memory_bytes(torch.device("cpu"))
    held = torch.ones(60_000_000)
    after = peak_memory_bytes(torch.device("cpu"))
    del held
    assert after >= before > 50e6
    assert after >= 240e6
    assert peak_memory_bytes(torch.device("cpu")) >= after
