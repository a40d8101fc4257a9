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
    assert found.rows[0][2] == ["5.500", "–", "4.250", "–", "0.1250", "–", "–"]


def counted(study, name, seed, **receipts):
    """Gives a run scores with a receipt of one field each."""
    run = next(run for run in study["runs"] if (run["arm"], run["seed"]) == (name, seed))
    for key, receipt in receipts.items():
        run["scores"][key] = {"value": 1.0, "unit": "", "receipt": receipt}


def column(study, heading):
    found = why_of(study)
    return [cells[found.columns.index(heading)] for _, _, cells in found.rows]


def test_skew_stands_beside_what_chance_alone_shows_over_the_seeds_of_an_arm(study, tmp_path):
    for seed, share in ((0, 0.0625), (1, 0.125)):
        counted(study, "base", seed, code_skew={"by_chance": share})
    counted(study, "causal", 0, code_skew={"by_chance": 0.5})
    counted(study, "causal", 1, code_skew={})
    assert column(study, "skew") == ["0.1250", "0.1250"]
    assert column(study, "by chance") == ["0.09375", "–"]
    (tmp_path / "study.json").write_text(json.dumps(study))
    assert "dealt out to positions at random" in write_report(tmp_path).read_text()


def test_bits_at_a_position_are_corrected_where_all_arms_can_be_and_else_said_to_be_low(
    study, tmp_path
):
    for arm in study["arms"]:
        arm["scores"]["position_bits"] = {"value": 5.0, "unit": "", "receipt": {}}
    said = {True: "are corrected to first order", False: "which come out low"}
    for name, bits in (("base", 5.25), ("causal", 5.125)):
        assert column(study, "at its position") == ["5", "5"]
        (tmp_path / "study.json").write_text(json.dumps(study))
        page = write_report(tmp_path).read_text()
        assert [said[which] in page for which in (True, False)] == [False, True]
        for seed in (0, 1):
            counted(study, name, seed, position_bits={"corrected": bits})
    assert column(study, "at its position") == ["5.250", "5.125"]
    (tmp_path / "study.json").write_text(json.dumps(study))
    page = write_report(tmp_path).read_text()
    assert [said[which] in page for which in (True, False)] == [True, False]


def test_the_section_stands_on_the_page_where_there_is_something_to_show(study, tmp_path):
    (tmp_path / "study.json").write_text(json.dumps(study))
    assert "Why some tokens are easier" in write_report(tmp_path).read_text()
    for arm, run in zip(study["arms"] * 2, study["runs"], strict=True):
        arm["scores"], run["scores"] = {}, {}
    (tmp_path / "study.json").write_text(json.dumps(study))
    assert "Why some tokens are easier" not in write_report(tmp_path).read_text()
