import os
import sys
from types import SimpleNamespace

import pytest

from cartok.core.errors import UserError
from cartok.lab import cluster
from cartok.lab.cluster import call_elsewhere, options_of


@pytest.fixture(params=["slurm", "ray"])
def somewhere(request, monkeypatch):
    """Another machine that is this one: submitit's own stand-in for it, and Ray's interface."""
    monkeypatch.setattr(cluster, "_SECONDS_BETWEEN_LOOKS", 0.01)
    if request.param == "slurm":
        pytest.importorskip("submitit")
        monkeypatch.setattr(cluster, "_SCHEDULER", "local")
    else:
        monkeypatch.setitem(sys.modules, "ray", ray_of_this_process())
    return request.param


def ray_of_this_process():
    """What of Ray is called, at once and here; a reference is a function that tells the outcome."""

    def remote(function):
        def submitted(*arguments):
            try:
                function(*arguments)
            except Exception as error:
                return SimpleNamespace(error=error)
            return SimpleNamespace(error=None)

        return SimpleNamespace(remote=submitted)

    def get(reference):
        if reference.error:
            raise reference.error

    return SimpleNamespace(
        init=lambda **options: None,
        remote=lambda *function, **options: remote(*function) if function else remote,
        wait=lambda references, timeout: (references, []),
        get=get,
        cancel=lambda reference: None,
    )


def test_every_call_is_made_in_a_job_and_told_as_it_ends(somewhere, tmp_path):
    paths, ended = [tmp_path / name for name in "abc"], []
    calls = [(os.mkdir, (path,)) for path in paths]
    call_elsewhere(somewhere, calls, {}, tmp_path, ended.append)
    assert all(path.is_dir() for path in paths)
    assert sorted(ended) == [0, 1, 2]


def test_a_job_that_dies_is_told_when_the_others_have_ended(somewhere, tmp_path):
    calls = [(os.mkdir, (tmp_path / "no" / "a",)), (os.mkdir, (tmp_path / "b",))]
    with pytest.raises(UserError, match=r"1 of 2 died \(.*No such file.*; see .*the same command"):
        call_elsewhere(somewhere, calls, {}, tmp_path)
    assert (tmp_path / "b").exists()


def test_without_a_scheduler_or_its_library_that_is_said_in_a_line(monkeypatch, tmp_path):
    calls = [(os.mkdir, (tmp_path / "a",))]
    pytest.importorskip("submitit")
    with pytest.raises(UserError, match="by submitit, which says"):
        call_elsewhere("slurm", calls, {}, tmp_path)
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(UserError, match=r"--on ray needs ray, .*cartok\[ray\]"):
        call_elsewhere("ray", calls, {}, tmp_path)


def test_options_are_names_with_values_and_whole_numbers_are_numbers():
    given = ("timeout_min=240", "slurm_partition=gpu=a100")
    assert options_of(given) == {"timeout_min": 240, "slurm_partition": "gpu=a100"}
    for text in ("timeout", "=3"):
        with pytest.raises(UserError, match="NAME=VALUE"):
            options_of((text,))


def test_an_unknown_option_is_refused_by_name(monkeypatch, tmp_path):
    pytest.importorskip("submitit")
    monkeypatch.setattr(cluster, "_SCHEDULER", "local")
    with pytest.raises(UserError, match=r"by submitit, which says.*partitoin"):
        call_elsewhere("slurm", [(os.mkdir, (tmp_path / "a",))], {"partitoin": 1}, tmp_path)
