import math
from types import SimpleNamespace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from cartok.core.job import Terms
from cartok.core.parallel import World
from cartok.core.readings import Column, Reading, Readings

NUMBERS = st.one_of(st.floats(-1024, 1024), st.sampled_from([math.nan, math.inf, -math.inf]))


def terms(*values, weights=(1.0, 0.0), watched=2.0):
    losses = dict(zip(("a", "b"), map(torch.tensor, values), strict=True))
    return Terms(losses, dict(zip("ab", weights, strict=True)), {"c": torch.tensor(watched)})


def read(*parts, norm=1.0, is_stopping=False):
    readings = Readings(World())
    for number, part in enumerate(parts):
        readings.add_part(SimpleNamespace(indices=torch.tensor([number])))
        readings.add_terms("codec", part)
    readings.add_norms({"net": torch.tensor(norm)})
    return readings.read(is_stopping)


@st.composite
def columns_and_rows(draw):
    names = [f"codec/{number}" for number in range(draw(st.integers(1, 3)))]
    weights = [draw(st.sampled_from([0.0, -0.5, 1.0])) for _ in names]
    columns = [
        Column(name, part, weight)
        for part in range(draw(st.integers(1, 2)))
        for name, weight in zip(names, weights, strict=True)
    ] + [Column("gradient/net", -1, 1.0)]
    ranks = range(draw(st.integers(1, 3)))
    return columns, [[draw(NUMBERS) for _ in columns] for _ in ranks]


@given(columns_and_rows())
def test_the_faults_are_what_is_minimised_and_not_finite_losses_first(drawn):
    reading = Reading(*drawn, False, [])
    places = [
        (rank, column)
        for rank, row in enumerate(reading.rows)
        for value, column in zip(row, reading.columns, strict=True)
        if column.weight and not math.isfinite(value)
    ]
    assert set(reading.faults) == set(places)
    assert len(reading.faults) == len(places)
    assert reading.is_finite == (not places)
    order = [reading.columns.index(column) for _, column in reading.faults]
    assert order == sorted(order)


@given(columns_and_rows())
def test_a_mean_is_finite_only_if_all_it_is_of_are(drawn):
    reading = Reading(*drawn, False, [])
    for name, mean in reading.means.items():
        values = [
            value
            for row in reading.rows
            for value, column in zip(row, reading.columns, strict=True)
            if column.name == name
        ]
        assert math.isfinite(mean) == all(map(math.isfinite, values))
        if math.isfinite(mean):
            assert mean == pytest.approx(math.fsum(values) / len(values), rel=1e-9, abs=1e-9)


def test_a_term_of_one_part_is_read_as_it_is_and_of_more_as_their_mean():
    tenth = torch.tensor(0.1).item()
    whole, parts = read(terms(0.1, 3.0)), read(terms(1.0, 3.0), terms(2.0, 5.0), norm=7.0)
    assert whole.means == {"codec/a": tenth, "codec/b": 3.0, "codec/c": 2.0, "gradient/net": 1.0}
    assert parts.means == {"codec/a": 1.5, "codec/b": 4.0, "codec/c": 2.0, "gradient/net": 7.0}
    assert [indices.tolist() for indices in parts.indices] == [[0], [1]]


def test_a_term_of_weight_zero_and_a_watched_one_may_be_anything():
    assert read(terms(1.0, math.nan, watched=math.inf)).is_finite
    assert not read(terms(1.0, math.nan, weights=(1.0, 0.5))).is_finite


def test_a_bad_part_is_named():
    reading = read(terms(1.0, 1.0), terms(math.inf, 1.0))
    assert reading.faults == [(0, Column("codec/a", 1, 1.0))]


def test_a_gradient_alone_is_a_fault():
    assert read(terms(1.0, 1.0), norm=math.nan).faults == [(0, Column("gradient/net", -1, 1.0))]


@pytest.mark.parametrize("is_stopping", [False, True])
def test_the_wish_to_stop_travels_with_the_numbers(is_stopping):
    reading = read(terms(1.0, 1.0), is_stopping=is_stopping)
    assert reading.is_stopping == is_stopping
    assert len(reading.rows[0]) == len(reading.columns)


def test_values_are_taken_as_they_are_when_they_are_added():
    value = torch.tensor(1.0)
    readings = Readings(World())
    readings.add_part(None)
    readings.add_terms("codec", Terms({"a": value}, {"a": 1.0}))
    value.fill_(5.0)
    reading = readings.read()
    assert reading.means == {"codec/a": 1.0}
    assert reading.indices == [None]


def test_a_reading_holds_no_graph_and_takes_any_dtype():
    loss = torch.ones((), dtype=torch.float64, requires_grad=True)
    readings = Readings(World())
    readings.add_part(None)
    readings.add_terms("codec", Terms({"a": loss.bfloat16(), "b": loss}, {"a": 1.0, "b": 1.0}))
    assert not any(value.requires_grad for value in readings._values)
    assert readings.read().means == {"codec/a": 1.0, "codec/b": 1.0}
