from cartok.metrics.score import FREE as METRICS_FREE
from cartok.scaling.measures import FREE, Measure, Row, rows_of
from cartok.scaling.numbers import Cell


def row(a, b, unit="dB", **receipts):
    receipt = receipts.get("receipt", {})
    return row_of(Cell(a, unit, receipt), Cell(b, unit, receipt))


def row_of(baseline, causal):
    return Row("x", "g", Measure("X"), {"baseline": baseline, "causal": causal})


def test_the_fields_that_may_differ_are_those_of_the_metrics():
    assert FREE == METRICS_FREE


def test_scores_compare_only_under_like_receipts():
    one, other = {"metric": "fd", "size": 96}, {"metric": "fd", "size": 224}
    found = row_of(Cell(1.0, "d", one), Cell(2.0, "d", other))
    assert found.obstacles == ["size"]
    assert found.difference is found.total is found.overlaps is found.percent is None
    assert row(1.0, 2.0, receipt=one).difference == 1.0


def test_other_units_do_not_compare():
    assert row_of(Cell(1.0, "s", {}), Cell(1.0, "h", {})).obstacles == ["unit"]


def test_a_percentage_is_given_only_where_it_means_something():
    assert row(4.0, 3.0).percent == -25
    assert row(4.0, 3.0).percent_text == "−25.0%"
    assert row(-0.1, 0.2).percent is None
    assert row(0.0, 0.2).percent is None
    assert row(0.2, 0.4, "share of variance").percent is None


def test_known_numbers_come_first_and_in_their_order(summary):
    summary["causal"]["another"] = {"value": 1.0, "unit": ""}
    keys = list(rows_of(summary))
    assert keys[:2] == ["psnr_db", "rfd"]
    assert keys[5:9] == ["gfd", "floor", "gkd", "floor_kd"]
    assert keys[-1] == "another"
    assert sorted(keys) == sorted(summary["causal"])
