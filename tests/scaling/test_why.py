"""Codes of a regularised arm stand beside those of the arm that differs in that alone."""

import csv
import io
import json

import pytest

from cartok.scaling.report import write_report
from cartok.scaling.why import why_of


def arm_of(name, weight):
    quantizer = {"kind": "vq", "codebook_size": 64}
    tokenizer = {"model": {"quantizer": quantizer}, "causal": {"weight": weight}}
    return {"name": name, "tokenizer": tokenizer}


def run_of(name, seed, nats):
    receipt = {"per_position": nats, "grid": [2, 2]}
    bits = {"value": sum(nats), "unit": "bits/image", "receipt": receipt}
    return {"arm": name, "seed": seed, "digest": f"{name}-{seed}", "status": "finished",
            "scores": {"prior_bits_per_image": bits}}  # fmt: skip


@pytest.fixture
def study():
    values = {"unigram_bits": 5.5, "bits_given_left": 4.25, "code_skew": 0.125}
    scores = {key: {"value": value, "unit": "", "receipt": {}} for key, value in values.items()}
    return {
        "name": "two", "warnings": [], "provenance": {},
        "config": {"arms": [arm_of("base", 0.0), arm_of("causal", 4.0)]},
        "arms": [{"name": name, "finished": 2, "failures": [], "scores": scores}
                 for name in ("base", "causal")],
        "runs": [
            run_of("base", 0, [4.0, 3.0, 3.0, 3.0]), run_of("base", 1, [4.0, 3.0, 3.0, 2.0]),
            run_of("causal", 0, [4.1, 2.0, 2.0, 2.0]), run_of("causal", 1, [4.1, 2.0, 2.0, 1.0]),
        ],
    }  # fmt: skip


def test_loss_at_every_position_is_the_mean_over_seeds_of_both_arms(study):
    found = why_of(study)
    assert found is not None
    (figure,) = found.figures
    rows = list(csv.DictReader(io.StringIO(figure.csv)))
    base = [float(row["nats"]) for row in rows if row["line"] == "base"]
    assert base == [4.0, 3.0, 3.0, 2.5]
    assert "causal is lower at 3 of 4 positions" in figure.note
    assert figure.note.endswith("by −0.4500 in the first half and −1 in the second")


def test_a_table_holds_the_statistics_of_every_arm_and_dashes_for_what_is_missing(study):
    found = why_of(study)
    assert found is not None
    assert [name for name, _, _ in found.rows] == ["base", "causal"]
    assert found.rows[0][2] == ["5.500", "–", "4.250", "–", "0.1250", "–"]


def test_the_section_stands_on_the_page_where_there_is_something_to_show(study, tmp_path):
    (tmp_path / "study.json").write_text(json.dumps(study))
    assert "Why some tokens are easier" in write_report(tmp_path).read_text()
    for arm, run in zip(study["arms"] * 2, study["runs"], strict=True):
        arm["scores"], run["scores"] = {}, {}
    (tmp_path / "study.json").write_text(json.dumps(study))
    assert "Why some tokens are easier" not in write_report(tmp_path).read_text()
