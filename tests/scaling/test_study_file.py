"""A study's file holds each fact once, and is read as if everything stood in its place."""

import copy
import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cartok.core.errors import UserError
from cartok.scaling.means import arms_of_runs
from cartok.scaling.study_file import LINE, packed, read_study, unpacked, write_study

KEYS = st.sampled_from(["&", "a", "b", "scores", "receipt"])
PLAIN = st.none() | st.booleans() | st.sampled_from([0, 1, 1.0, -0.0, 0.1, "x" * 30, "& yes"])
ANY = st.recursive(PLAIN, lambda some: st.lists(some) | st.dictionaries(KEYS, some), max_leaves=40)


def score(value, **receipt):
    return {"value": value, "unit": "squared feature distance", "receipt": receipt}


def study_of(tokenizers=2, priors=3):
    """Every tokenizer with every prior, and the floor that all have."""
    judged = {
        "network_sha256": "the judge".ljust(64),
        "crop": "central square of the short side, resized",
    }
    floor = score(9.25, reference="5b41", **judged)
    runs = [
        {
            "arm": f"t{t}@p{p}", "seed": 0, "digest": f"d{t}-{p}", "status": "finished",
            "reason": "",
            "scores": {
                "rfd": score(1000.5 + t, bootstrap={"interval": [1.0, 3.0]}, **judged),
                "gfd": score(100.5 + 10 * t + p, generated=f"g{t}-{p}", **judged),
                "floor": floor,
            },
        }
        for t in range(tokenizers) for p in range(priors)
    ]  # fmt: skip
    return {"name": "small", "config": {}, "provenance": {}, "arms": arms_of_runs(runs),
            "runs": runs, "earlier": [], "warnings": ["one"]}  # fmt: skip


@given(st.dictionaries(KEYS, ANY))
def test_what_is_packed_unpacks_to_the_same_whatever_it_was(study):
    stored = packed(study)
    again = unpacked(json.loads(json.dumps(stored)))
    assert json.dumps(again, sort_keys=True) == json.dumps(study, sort_keys=True)
    assert json.dumps(packed(again)) == json.dumps(stored)


def test_packing_leaves_the_study_as_it_was():
    study = study_of()
    before = copy.deepcopy(study)
    packed(study)
    assert study == before


def test_a_written_study_is_read_as_it_was(tmp_path):
    write_study(tmp_path / "study.json", study_of())
    assert read_study(tmp_path / "study.json") == study_of()
    written = (tmp_path / "study.json").read_bytes()
    write_study(tmp_path / "study.json", read_study(tmp_path / "study.json"))
    assert (tmp_path / "study.json").read_bytes() == written


def test_a_tokenizers_scores_stand_once_however_many_runs_are_made_from_it(tmp_path):
    write_study(tmp_path / "study.json", study_of(tokenizers=2, priors=9))
    text = (tmp_path / "study.json").read_text()
    once = ("1000.5", "1001.5", "9.25", "the judge")
    assert [text.count(value) for value in once] == [1, 1, 1, 1]
    assert all(text.count(f'"d{t}-{p}"') == 1 for t in range(2) for p in range(9))


def test_another_run_of_a_tokenizer_costs_its_own_scores_alone(tmp_path):
    sizes = []
    for priors in (10, 110):
        write_study(tmp_path / "study.json", study_of(priors=priors))
        sizes.append((tmp_path / "study.json").stat().st_size)
    assert (sizes[1] - sizes[0]) / 200 < 200
    plain = json.dumps(study_of(priors=110), separators=(",", ":"))
    assert len(plain) > 5 * sizes[1]


def test_means_that_do_not_follow_from_the_runs_are_kept(tmp_path):
    study = study_of()
    study["arms"][0]["finished"] = 7
    write_study(tmp_path / "study.json", study)
    assert read_study(tmp_path / "study.json") == study


def test_a_file_of_an_earlier_version_is_read_as_it_is(tmp_path):
    (tmp_path / "study.json").write_text(json.dumps(study_of(), indent=2))
    assert read_study(tmp_path / "study.json") == study_of()


def test_runs_and_long_scores_have_lines_of_their_own(tmp_path):
    study = study_of()
    for run in study["runs"]:
        run["scores"]["gfd"]["receipt"]["note"] = run["digest"] * 100
    write_study(tmp_path / "study.json", study)
    lines = (tmp_path / "study.json").read_text().splitlines()
    assert [line.count('"digest"') for line in lines if '"digest"' in line] == [1] * 6
    assert sum('"gfd"' in line for line in lines) == 6
    assert all(len(line) <= LINE or '"note"' in line for line in lines)


@pytest.mark.parametrize(
    ("also", "shared"),
    [
        (["aa"], {}),
        (["aa"], {"aa": 3}),
        (["aa"], {"aa": {"receipt": {"&": ["aa"]}}}),  # within itself
        (["aa"], 5),
        ([["aa"]], {"aa": {}}),
        (5, {"aa": {}}),
        (None, {"aa": {}}),
    ],
)
def test_a_damaged_file_is_refused_in_one_line_that_names_it(tmp_path, also, shared):
    stored = {"name": "x", "runs": [{"&": also}], "shared": shared}
    (tmp_path / "study.json").write_text(json.dumps(stored))
    with pytest.raises(UserError, match=r"study\.json is damaged: .* take another") as refusal:
        read_study(tmp_path / "study.json")
    assert "\n" not in str(refusal.value)


def changed(**fields):
    return study_of(1, 1) | fields


def with_run(**fields):
    (run,) = study_of(1, 1)["runs"]
    return changed(runs=[run | fields])


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ("", "cannot be read"),
        (json.dumps(study_of())[:500], "cannot be read"),
        ("[]", "damaged: it holds no object"),
        ("null", "damaged: it holds no object"),
        ("{}", "damaged: it has no 'name'"),
        (json.dumps(changed(runs=None)), "damaged: its 'runs' is of no use"),
        (json.dumps(changed(earlier={})), "damaged: its 'earlier' is of no use"),
        (json.dumps(changed(runs=[{}])), "damaged: a run has no 'arm'"),
        (json.dumps(changed(earlier=[None])), "damaged: a run is no object"),
        (json.dumps(with_run(digest=5)), "damaged: a run's 'digest' is of no use"),
        (json.dumps(with_run(scores=None)), "damaged: a run's 'scores' is of no use"),
        (json.dumps(with_run(status="failed", reason=None)), "a run's 'reason' is of no use"),
        (json.dumps(with_run(scores={"gfd": {}})), "damaged: 'gfd' of t0@p0-s0 is no score"),
        (json.dumps(with_run(scores={"gfd": score("1")})), "'gfd' of t0@p0-s0 is no score"),
    ],
)
def test_a_file_of_another_shape_is_refused_in_one_line_that_says_what_to_do(
    tmp_path, content, said
):
    path = tmp_path / "study.json"
    path.write_text(content)
    with pytest.raises(UserError, match=r"study\.json") as refusal:
        read_study(path)
    (line,) = str(refusal.value).splitlines()
    assert said in line
    assert "delete it: 'cartok study run' then goes on" in line


def test_what_json_lacks_is_refused_and_nothing_is_written(tmp_path):
    study = study_of()
    study["runs"][0]["scores"]["gfd"]["value"] = float("nan")
    with pytest.raises(ValueError, match="JSON compliant"):
        write_study(tmp_path / "study.json", study)
    assert not (tmp_path / "study.json").exists()
