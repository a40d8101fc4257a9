"""Codes of an arm over the grid and in the plane, beside those of the arm it is compared with."""

import csv
import io
import json
import re
from html import unescape

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cartok.core.levels import text_of_levels
from cartok.scaling.code_charts import Disc, Tile, discs_chart, tiles_chart
from cartok.scaling.code_figures import CodeMap, code_figures, map_figure, plane_figure
from cartok.scaling.report import write_report

CORNER = [0.0, 0.0, 0.0, 1.0, 0.0, 0.0]
"""Of a grid of two rows and three columns: the lower left."""
EVEN = [1 / 6] * 6


def line_of(code, uses, bits, shares):
    return f"{code} {uses} {bits:.3f} {max(shares):.6f} {text_of_levels(shares, max(shares))}"


def maps_of(bits=0.5):
    shown = [line_of(17, 60, 2.585, CORNER), line_of(4, 600, 0.0, EVEN)]
    return {"grid": [2, 3], "codes": 40, "bits": bits, "by_chance": 0.02, "shown": shown}


def plane_of():
    dots = "17 -1000 0 100 000000; 4 1000 0 100 ffffff; 9 0 500 50 808080"
    return {"codes": 40, "of": 64, "shares": [0.5, 0.25], "reach": 2.0, "dots": dots}


def scores_of(bits=0.5):
    return {
        "code_skew": {"value": 0.2, "unit": "share", "receipt": {"maps": maps_of(bits)}},
        "embedding_plane": {"value": 0.75, "unit": "share of variance", "receipt": plane_of()},
    }


def arm_of(name, weight=0.0, codes=64):
    quantizer = {"kind": "vq", "codebook_size": codes}
    tokenizer = {"model": {"quantizer": quantizer}, "causal": {"weight": weight}}
    return {"name": name, "tokenizer": tokenizer}


def study_of(*arms, seeds=1):
    return {
        "name": "some", "warnings": [], "provenance": {}, "config": {"arms": list(arms)},
        "arms": [{"name": arm["name"], "finished": seeds, "failures": [], "scores": {}}
                 for arm in arms],
        "runs": [
            {"arm": arm["name"], "seed": seed, "digest": f"{arm['name']}-{seed}",
             "status": "finished", "scores": scores_of(seed + 0.25)}
            for seed in reversed(range(seeds)) for arm in arms
        ],
    }  # fmt: skip


def rows_of(figure):
    return list(csv.DictReader(io.StringIO(figure.csv)))


def names_of(figures):
    return [figure.title.split(": ")[1] for figure in figures]


# ------------------------------------------------------------------ maps


def test_the_table_of_a_map_has_a_line_for_each_row_of_each_code():
    rows = rows_of(map_figure("base", maps_of(), "", {}))
    assert [(row["code"], row["uses"], row["row"]) for row in rows] == [
        ("17", "60", "0"), ("17", "60", "1"), ("4", "600", "0"), ("4", "600", "1"),
    ]  # fmt: skip
    shares = [[row[f"column {at}"] for at in range(3)] for row in rows]
    assert shares == [["0", "0", "0"], ["1", "0", "0"], ["0.167"] * 3, ["0.167"] * 3]


def test_the_words_of_a_map_are_computed_from_its_numbers():
    note = map_figure("causal", maps_of(0.75), "base", {"base": maps_of(0.5)}).note
    told = "its place, 0 to 2.58: 0.75 (0.02 if codes were dealt out by chance); of base 0.50. "
    assert told in note
    assert "the code most bound to its place, 17, fall on 1 place of 6" in note
    assert "of the freest shown, 4, on 3" in note
    assert "of base" not in map_figure("causal", maps_of(0.75), "", {}).note


@given(st.lists(st.integers(0, 9), min_size=1, max_size=12).filter(any))
def test_half_of_the_uses_fall_on_the_fewest_places_that_hold_them(counts):
    shares = [count / sum(counts) for count in counts]
    fewest = CodeMap(0, sum(counts), 0.0, shares).half
    largest = sorted(counts, reverse=True)
    assert 2 * sum(largest[:fewest]) >= sum(counts) * (1 - 1e-9)
    assert 2 * sum(largest[: fewest - 1]) < sum(counts) * (1 + 1e-9)


def cells(svg):
    """Row, column and strength of every cell that is painted, of the first tile."""
    tile = re.search(r"<g [^>]*>(.*?)</g>", svg).group(1)
    return {
        (int(row), int(column) + step): float(strength)
        for strength, path in re.findall(r'fill-opacity="(\S+)".*? d="(\S+ [^"]*)"', tile)
        for column, row, length in re.findall(r"M(\d+) (\d+)h(\d+)v1", path)
        for step in range(int(length))
    }


def test_a_cell_stands_in_its_row_and_column_as_strong_as_its_use():
    chart = tiles_chart([Tile("a", [[0.0, 1.0, 1.0], [4.0, 9.0, 2.0]])], "x")
    assert cells(chart) == {(0, 1): 0.25, (0, 2): 0.25, (1, 0): 1.0, (1, 1): 1.0, (1, 2): 0.5}


def test_the_code_of_one_corner_is_painted_there_alone():
    assert cells(map_figure("base", maps_of(), "", {}).svg) == {(1, 0): 1.0}


@given(st.lists(st.lists(st.floats(0, 10), min_size=5, max_size=5), min_size=1, max_size=4))
def test_every_cell_is_painted_once_with_a_strength_that_rises_with_use(times):
    painted = cells(tiles_chart([Tile("a", times)], "x"))
    for row, values in enumerate(times):
        for column, value in enumerate(values):
            wanted = min(value / 4, 1)
            assert painted.get((row, column), 0) == pytest.approx(wanted, abs=1 / 24 + 0.01)


def test_maps_and_dots_take_their_colours_from_the_page():
    figures = code_figures(study_of(arm_of("base"), arm_of("causal", 4.0)))
    for figure in (*figures.maps, *figures.planes):
        assert re.fullmatch(r'<svg role="img" .*</svg>', figure.svg)
        assert "currentColor" in figure.svg
    for figure in figures.maps:
        assert set(re.findall(r'fill="([^"]*)"', figure.svg)) == {
            "var(--heat)",
            "none",
            "currentColor",
        }


def test_labels_and_names_are_escaped():
    attack = '"><script>alert(1)</script>'
    assert "<script" not in tiles_chart([Tile(attack, [[1.0]])], attack)
    assert "<script" not in discs_chart([Disc(attack, 0, 0, 1, "000000")], (1.0, 0.0), attack)


# ------------------------------------------------------------------ planes


def test_the_table_of_a_plane_holds_places_in_units_of_the_vectors():
    rows = rows_of(plane_figure("base", plane_of()))
    assert [(row["code"], row["x"], row["y"], row["uses"], row["mean colour"]) for row in rows] == [
        ("17", "-2", "0", "100", "#000000"),
        ("4", "2", "0", "100", "#ffffff"),
        ("9", "0", "1", "50", "#808080"),
    ]


def test_the_words_of_a_plane_say_what_it_holds_and_what_a_place_tells_of_a_colour():
    note = plane_figure("base", plane_of()).note
    assert "3 of the 40 codes in use (64 in all)" in note
    assert "holds 75% of how codes differ" in note
    assert "tells 100% of how its mean colour differs" in note  # brightness grows along x


def test_a_place_tells_nothing_of_colours_that_do_not_go_with_it():
    square = (
        "-1000 -1000 5 ff0000",
        "1000 1000 5 ff0000",
        "-1000 1000 5 0000ff",
        "1000 -1000 5 0000ff",
    )
    dots = "; ".join(f"{code} {rest}" for code, rest in enumerate(square))
    assert "tells 0% of how" in plane_figure("base", plane_of() | {"dots": dots}).note
    grey = "; ".join(f"{code} {rest[:-6]}808080" for code, rest in enumerate(square))
    assert "tells 0% of how" in plane_figure("base", plane_of() | {"dots": grey}).note


def test_a_colour_counts_as_often_as_its_code_is_used():
    """One code of 90 uses is as good as nine of 10 at its place."""
    others = ["1 1000 0 10 ffffff", "2 0 900 10 303030", "3 -700 -400 10 a0a0a0"]
    one, nine = (
        plane_figure("base", plane_of() | {"dots": "; ".join([*some, *others])}).note
        for some in (["0 -1000 0 90 000000"], ["0 -1000 0 10 000000"] * 9)
    )
    told = re.compile(r"tells (\d+)% of how")
    assert told.findall(one) == told.findall(nine)
    assert told.findall(one) != ["100"]


def circles(svg):
    found = re.findall(r'<circle cx="(\S+)" cy="(\S+)" r="(\S+)" fill="(#\w+)"', svg)
    return [(float(x), float(y), float(r), colour) for x, y, r, colour in found]


def test_a_disc_has_its_colour_and_an_area_by_uses_and_lies_where_it_should():
    discs = [Disc("small", 1.0, 2.0, 25, "00ff00"), Disc("large", -1.0, 0.0, 100, "ff0000")]
    large, small = circles(discs_chart(discs, (0.5, 0.25), "x"))
    assert (large[3], small[3]) == ("#ff0000", "#00ff00")
    assert large[2] ** 2 / small[2] ** 2 == pytest.approx(4)
    assert small[0] > large[0]  # to the right
    assert small[1] < large[1]  # above: SVG counts downwards
    assert small[0] - large[0] == pytest.approx(large[1] - small[1], abs=0.2)  # one scale for both


def test_every_disc_lies_on_the_chart():
    discs = [Disc("", x, y, 9, "000000") for x, y in ((-5, 0), (90, 1), (3, 40), (0, -7))]
    chart = discs_chart(discs, (0.5, 0.25), "x")
    width, height = map(float, re.search(r'viewBox="0 0 (\S+) (\S+)"', chart).groups())
    for x, y, radius, _ in circles(chart):
        assert radius - 0.1 <= x <= width - radius + 0.1
        assert radius - 0.1 <= y <= height - radius + 0.1


# ------------------------------------------------------------------ which arms, and the page


def test_a_regularised_arm_stands_beside_its_twin_and_arms_without_a_pair_are_left_out():
    study = study_of(arm_of("few", codes=16), arm_of("causal", 4.0), arm_of("base"))
    found = code_figures(study)
    assert names_of(found.maps) == names_of(found.planes) == ["base", "causal"]
    assert "of base" in found.maps[1].note
    assert "of base" not in found.maps[0].note
    assert found.about == "1 more arm not shown"


def test_without_a_pair_arms_come_in_their_order_six_at_most():
    arms = [arm_of(f"codes-{codes}", codes=codes) for codes in range(9, 1, -1)]
    found = code_figures(study_of(*arms))
    assert names_of(found.maps) == [f"codes-{codes}" for codes in range(9, 3, -1)]
    assert found.about == "2 more arms not shown"


def test_of_several_seeds_the_first_is_shown_and_said():
    found = code_figures(study_of(arm_of("base"), arm_of("causal", 4.0), seeds=3))
    assert len(found.maps) == 2
    assert "its place, 0 to 2.58: 0.25 (" in found.maps[0].note
    assert found.about == "of seed 0 alone"


@pytest.mark.parametrize("arms", [("base", "causal"), ("base", "other")])
def test_the_page_shows_both_pictures_with_their_tables(arms, tmp_path):
    weight = 4.0 if "causal" in arms else 0.0
    study = study_of(arm_of(arms[0]), arm_of(arms[1], weight, 64 if weight else 16))
    (tmp_path / "study.json").write_text(json.dumps(study))
    page = write_report(tmp_path).read_text()
    assert "Why some tokens are easier" in page
    for what in ("Where codes are used", "Codes in the plane"):
        for name in arms:
            assert f'download="{what} {name}.csv"' in page
            label = re.search(f'aria-label="({what}: {name}[^"]*)"', page).group(1)
            assert re.search(r"\d", unescape(label).removeprefix(f"{what}: {name}"))


def test_the_page_of_an_older_study_shows_neither(tmp_path):
    study = study_of(arm_of("base"), arm_of("causal", 4.0))
    for run in study["runs"]:
        run["scores"] = {"code_skew": {"value": 0.2, "unit": "share", "receipt": {}}}
    (tmp_path / "study.json").write_text(json.dumps(study))
    page = write_report(tmp_path).read_text()
    assert "Where codes are used" not in page
    assert "Codes in the plane" not in page


def test_codes_without_vectors_have_maps_and_no_plane():
    study = study_of(arm_of("base"))
    del study["runs"][0]["scores"]["embedding_plane"]
    found = code_figures(study)
    assert (len(found.maps), len(found.planes)) == (1, 0)


def test_the_page_of_a_demo_shows_them_side_by_side_and_no_receipt_spells_them_out(
    summary_only, summary
):
    for arm, bits in (("baseline", 0.5), ("causal", 0.75)):
        summary[arm] |= scores_of(bits)
    page = write_report(summary_only(summary)).read_text()
    assert ": 0.75 (0.02 if codes were dealt out by chance); of baseline 0.50." in page
    assert page.count("Codes in the plane: ") > 1
    assert "60 2.585" not in page
    assert "100 000000" not in page
