import json

from hypothesis import given
from hypothesis import strategies as st

from cartok.metrics.score import FREE, Score, comparable

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
