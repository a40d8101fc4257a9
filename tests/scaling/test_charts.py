import re
from itertools import pairwise

import pytest

from cartok.scaling.charts import (
    DASHES,
    TONES,
    Dot,
    Mark,
    Pair,
    Series,
    heat_map,
    interval_chart,
    line_chart,
    pair_chart,
    plane_chart,
    position_chart,
)

LINES = [
    Series("baseline", [[1, 0.5], [2, 0.25], [3, 0.125]], 0),
    Series("causal", [[1, 0.5], [2, 0.2], [3, 0.1]], 1),
]

CHARTS = {
    "line": lambda label: line_chart(LINES, label),
    "position": lambda label: position_chart(LINES, 2, label),
    "map": lambda label: heat_map([[1.0, 2.0], [3.0, 4.0]], (1.0, 4.0), label),
    "change": lambda label: heat_map([[-1.0, 2.0], [0.0, 1.0]], (-2.0, 2.0), label),
    "interval": lambda label: interval_chart([Mark("a", 2.0, 1.0, 3.0, 0)], label),
    "pair": lambda label: pair_chart([Pair("a", 0.3, 0.2, 1)], label),
}


@pytest.mark.parametrize("chart", CHARTS.values(), ids=CHARTS)
def test_a_chart_is_one_element_that_takes_its_colours_from_the_page(chart):
    svg = chart("what it shows")
    assert re.fullmatch(r"<svg .*</svg>\s*", svg, flags=re.DOTALL)
    assert "<style" not in svg
    assert "<metadata" not in svg
    assert "currentColor" in svg
    assert not any(stand_in in svg for stand_in in (*TONES, "#010203", "#040506"))
    assert "#ffffff" not in svg  # a white ground would hide the dark page


@pytest.mark.parametrize("chart", CHARTS.values(), ids=CHARTS)
def test_a_chart_is_the_same_every_time(chart):
    assert chart("label") == chart("label")


def test_labels_are_escaped():
    svg = line_chart(LINES, '"><script>alert(1)</script>')
    assert "<script" not in svg


def test_the_two_arms_differ_by_colour_and_dash():
    strokes = re.findall(r'style="([^"]*stroke: var\(--tone-\d\)[^"]*)"', line_chart(LINES, "x"))
    assert len(strokes) == 2
    assert "var(--tone-0)" in strokes[0]
    assert "stroke-dasharray" in strokes[0]
    assert "var(--tone-1)" in strokes[1]
    assert "stroke-dasharray" not in strokes[1]


def test_twenty_eight_lines_can_be_told_apart():
    styles = {(tone % len(TONES), tone % len(DASHES)) for tone in range(28)}
    assert len(styles) == 28


def heights(svg):
    """The vertical places of the first line's points."""
    path = re.search(r'd="(M [^"]*)"[^>]*--tone-0', svg).group(1)
    return [float(y) for y in re.findall(r"[ML] \S+ (\S+)", path)]


def test_an_axis_is_logarithmic_only_for_a_long_fall():
    falling = [[i, 10.0**-i] for i in range(4)]
    rising = [[i, value] for i, (_, value) in enumerate(reversed(falling))]
    steps = [b - a for a, b in pairwise(heights(line_chart([Series("a", falling, 0)], "x")))]
    assert steps == pytest.approx([steps[0]] * 3, rel=1e-3)
    steps = [a - b for a, b in pairwise(heights(line_chart([Series("a", rising, 0)], "x")))]
    assert steps[2] > 5 * steps[1]


def test_a_single_value_and_a_flat_curve_are_drawn():
    assert line_chart([Series("a", [[5, 1.0]], 0)], "x")
    assert line_chart([Series("a", [[1, 0.0], [2, 0.0]], 0)], "x")
    assert heat_map([[0.0]], (0.0, 1.0), "x")


def test_names_of_dots_that_lie_close_do_not_lie_on_each_other():
    lines = [[Dot(f"arm-{i}", 1.0 + 0.1 * (i % 4), 2.0 + 0.1 * (i // 4), i)] for i in range(12)]
    lines += [[Dot("far", 3.0, 4.0, 0)]]
    corners = [Dot("", 0.5, 1.5, 0), Dot("", 3.6, 4.6, 0)]  # so that both planes are as large
    bare, ringed = (
        re.search(r'x="[-\d.]+" y="[-\d.]+"[^>]*>far<', plane_chart(lines, alone, "x", "y", "l"))[0]
        for alone in (corners, [*corners, Dot("", 3.1, 4.1, 0)])
    )
    assert bare != ringed  # the name makes room for a small dot
    text = plane_chart(lines, [], "x", "y", "label")
    found = re.findall(r'x="([-\d.]+)" y="([-\d.]+)"[^>]*>(arm-\d+|far)<', text)
    assert len(found) == 13
    boxes = [(float(x), float(y), 0.5 * 7 * len(name)) for x, y, name in found]
    for place, (x, y, width) in enumerate(boxes):
        for other_x, other_y, other_width in boxes[:place]:
            apart_across = x >= other_x + other_width or other_x >= x + width
            assert apart_across or abs(y - other_y) >= 5
