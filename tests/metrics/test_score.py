import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cartok.core.errors import UserError
from cartok.metrics.score import FREE, Score, comparable, difference, interval_of, read_scores

RECEIPT = {"metric": "fd_effnet64", "reference": "ab", "size": 96, "generated": "cd"}


def score(unit="squared feature distance", **changes):
    return Score(1.5, unit, RECEIPT | changes)


def test_scores_of_other_generated_pictures_compare():
    assert comparable(score(), score(generated="ef", bootstrap={"interval": [1, 2]})) == []


@given(st.sets(st.sampled_from(["metric", "reference", "size", "network", "projection"])))
def test_every_other_difference_is_named(changed):
    changes = dict.fromkeys(changed, "other")
    assert set(comparable(score(), score(**changes))) == changed
    assert set(comparable(score(**changes), score())) == changed
    assert not changed & FREE


def test_a_missing_field_is_a_difference():
    assert comparable(score(), score(crop="centre")) == ["crop"]


def test_scores_in_different_units_do_not_compare():
    assert comparable(score(), score(unit="dB")) == ["unit"]


def test_a_score_is_plain_json():
    plain = score().to_json()
    assert json.loads(json.dumps(plain)) == {
        "value": 1.5,
        "unit": "squared feature distance",
        "receipt": RECEIPT,
    }


def measured(value, **receipt):
    return Score(value, "u", {"metric": "fid", **receipt})


def test_a_difference_has_the_interval_of_two_independent_errors():
    found = difference(measured(10.0, interval=[9.0, 11.0]), measured(7.0, interval=[5.0, 9.0]))
    assert found.value == -3
    assert found.interval == pytest.approx((-3 - 5**0.5, -3 + 5**0.5))


def test_a_standard_error_gives_an_interval_of_90_percent():
    assert interval_of(measured(2.0, standard_error=1.0)) == pytest.approx(
        (0.35515, 3.64485), abs=1e-5
    )
    assert interval_of(measured(2.0, bootstrap={"interval": [1.0, 4.0]})) == (1, 4)
    assert interval_of(measured(2.0)) is None
    assert difference(measured(1.0), measured(2.0, standard_error=1.0)).interval is None


def test_a_difference_of_other_receipts_is_refused_with_every_field():
    words = r"fid differs in k \(3 against 5\), crop \(nothing against square\)"
    with pytest.raises(UserError, match=words):
        difference(measured(1.0, k=3), measured(1.0, k=5, crop="square"))


def test_what_is_no_file_of_scores_is_refused(tmp_path):
    (tmp_path / "a.json").write_text('{"fid": 3}')
    with pytest.raises(UserError, match="numbers with receipts"):
        read_scores(tmp_path / "a.json")


def test_scores_are_read_as_they_were_written(tmp_path):
    (tmp_path / "a.json").write_text(json.dumps({"fid": score().to_json()}))
    assert read_scores(tmp_path / "a.json") == {"fid": score()}
