"""The page of a grid study shows its laws, where they cross, and what is not borne, in words."""

import base64
import csv
import io
import json
import math
import re

import pytest

from cartok.scaling import paper
from cartok.scaling.arm_fits import fits_of
from cartok.scaling.grid import at_longest
from cartok.scaling.law import Law
from cartok.scaling.laws_of_study import crossings_of
from cartok.scaling.numbers import shown
from cartok.scaling.report import write_report
from cartok.scaling.study import rows_of_study
from cartok.scaling.tradeoff import paper_figure, tradeoff_of

SMALL, LARGE = Law(5.0, -0.9, 32.5), Law(1.5, -0.6, 23.0)


def at(law):
    return lambda flops, parameters, pictures: law.score_at(flops)


@pytest.fixture
def crossed(grid_study):
    return grid_study(
        {
            "small": (64, 64, 3.5, at(SMALL)),
            "large": (4096, 64, 1.2, at(LARGE)),
            "flat": (16, 64, 9.0, lambda flops, n, d: 9.0),
        }
    )


@pytest.fixture
def page(crossed, tmp_path):
    (tmp_path / "study.json").write_text(json.dumps(crossed))
    return write_report(tmp_path).read_text()


def rows_of(figure):
    return list(csv.DictReader(io.StringIO(figure.csv)))


def test_a_figure_of_laws_holds_every_run_with_its_law(crossed):
    gfd, bits = tradeoff_of(crossed).scores
    assert (gfd.name, bits.name) == ("gFD", "bits/image")
    rows = rows_of(gfd.figures[0])
    assert [row["run"] for row in rows if row["arm"] == "small"] == [
        run["digest"]
        for steps in (500, 1000, 2000, 4000, 8000)
        for run in crossed["runs"]
        if run["arm"] == f"small@6x256-{steps}"
    ]
    for row in rows:
        if row["arm"] == "flat":
            assert row["law"] == ""
        else:
            assert float(row["law"]) == pytest.approx(float(row["gFD"]), rel=1e-4)
    left = rows_of(gfd.figures[1])
    assert {row["arm"] for row in left} == {"small", "large"}
    assert max(abs(float(row["% off the law"])) for row in left) < 0.01


def test_parameters_stand_in_a_table_and_a_refusal_in_place_of_a_law(crossed):
    rows = {row.arm: row for row in tradeoff_of(crossed).scores[0].rows}
    assert [cell.split(" ")[0] for cell in rows["large"].cells] == [
        "1.500", "−0.6000", "23.00", "1.000", "10",
    ]  # fmt: skip
    assert rows["flat"].cells == ()
    assert "scores must fall with compute" in rows["flat"].note


@pytest.fixture
def of_sizes(grid_study):
    sizes = {"2x64": 200_000, "4x128": 1_000_000, "6x256": 6_000_000}

    def gfd(flops, parameters, pictures):
        return 2 + 300 / parameters**0.4 + 900 / pictures**0.5

    return grid_study({"many": (64, 64, 1.5, gfd), "flat": (16, 64, 9.0, lambda *_: 9.0)}, sizes)


def test_the_joint_form_of_several_sizes_stands_in_a_table_of_its_own(of_sizes, tmp_path):
    many, flat = tradeoff_of(of_sizes).scores[0].joint
    values = [cell.split(" ")[0] for cell in many.cells]
    assert values[:4] == ["2.000", "0.4000", "0.5000", "1.000"]
    assert values[6:] == ["5.704", "6.802"]
    assert "scores must fall" in flat.note
    assert not flat.cells
    (tmp_path / "study.json").write_text(json.dumps(of_sizes))
    assert "joint form of gFD" in write_report(tmp_path).read_text()


def test_the_best_parameters_and_pictures_spend_the_most_compute_that_was_seen(of_sizes):
    fit = fits_of(of_sizes, "gfd")[0]
    best = fit.joint.best_under(max(point.flops for point in fit.points))
    assert best.parameters * best.seen == pytest.approx(6_000_000 * 256 * 8_000)
    cells = tradeoff_of(of_sizes).scores[0].joint[0].cells
    assert cells[4].startswith(shown(best.parameters))
    assert cells[5].startswith(shown(best.seen))


def test_what_a_joint_form_leaves_is_of_all_runs_not_of_the_best(of_sizes):
    left = rows_of(tradeoff_of(of_sizes).scores[0].figures[1])
    assert len(left) == len(fits_of(of_sizes, "gfd")[0].points) == 30
    assert max(abs(float(row["% off the law"])) for row in left) < 0.01


def after_tables(page, heading):
    """What follows each table of laws, or of joint forms, up to the next table."""
    parts = page.split(f'<th scope="col">{heading} of ')[1:]
    return [" ".join(re.split("</table>|<table>", part)[1].split()) for part in parts]


def test_every_table_says_of_what_its_r2_is(crossed, of_sizes, tmp_path):
    paper_has = "R² is of log(L − L<sub>min</sub>), as the paper has it"
    of_best = f"{paper_has}; where priors have several sizes, of the runs on the frontier alone."
    for study, said in ((crossed, f"{paper_has}."), (of_sizes, of_best)):
        (tmp_path / "study.json").write_text(json.dumps(study))
        page = write_report(tmp_path).read_text()
        laws = after_tables(page, "law")
        assert len(laws) == 2
        assert all(text.count("R² is") == 1 for text in laws)
        assert all(said in text for text in laws)
    joint = after_tables(page, "joint form")
    assert len(joint) == 2
    assert all("R² is of log L, of all runs." in text for text in joint)
    assert all(paper_has not in text for text in joint)


def test_one_size_of_prior_has_no_joint_form(crossed, page):
    assert tradeoff_of(crossed).scores[0].joint == []
    assert "joint form" not in page


def test_which_is_best_at_either_end_and_where_it_changes_is_said(crossed):
    found = tradeoff_of(crossed)
    assert re.search(r"FLOPs small \(in 100% .* FLOPs large \(in 100%", found.first)
    (sentence,) = found.crossings["in the number of codes alone"]
    assert sentence.startswith("small is better below ")
    assert sentence.endswith("The smaller codebook wins at low compute and loses at high.")


@pytest.mark.parametrize("earlier", [1, 9.5])
def test_that_small_codebooks_win_at_first_is_said_only_if_refits_agree_at_both_ends(
    grid_study, earlier
):
    """Laws cross at ten times the least compute that both have seen, or so many times earlier."""
    small, large = (
        Law(law.l_min, law.alpha, law.intercept + law.alpha * math.log(earlier))
        for law in (SMALL, LARGE)
    )
    arms = {"small": (64, 64, 3.5, at(small)), "large": (4096, 64, 1.2, at(large))}
    study = grid_study(arms, noise=0.09)
    (found,) = crossings_of(fits_of(study, "gfd"))
    assert found.is_seen
    assert found.below == "small"
    assert found.sure_high > 0.9
    assert (found.sure_low > 0.9) == (earlier == 1)
    (sentence,) = tradeoff_of(study).crossings["in the number of codes alone"]
    assert sentence.startswith(found.words)
    assert ("wins at low compute" in sentence) == (earlier == 1)


def test_strict_flops_are_called_near_the_papers_unit_not_that_unit(page):
    """Of a small prior with many codes they are .6 of it, as embeddings count there alone."""
    assert (
        page.count("256 FLOPs: about the paper's unit") == page.count("FLOPs of the training") > 0
    )
    assert "the paper's unit, 256 FLOPs" not in page


def test_the_papers_curves_stand_at_its_compute_in_a_figure_of_their_own():
    figure = paper_figure("gFID")
    high = paper.COMPUTE_RANGE[1]
    ends = {name: value for name, _, value in figure.ends}
    assert set(ends) == {name for name, fit in paper.FITS.items() if fit.metric == "gFID"}
    for name, value in ends.items():
        assert value == pytest.approx(paper.FITS[name].law.score_at(high))
    last = [row for row in rows_of(figure) if row["line"] == "baseline"][-1]
    assert float(last["FLOPs"]) == pytest.approx(256 * high)


def test_the_page_lists_every_tokenizer_once_not_every_run(page):
    assert 'id="trade-off"' in page
    assert "@" not in page.partition("<body>")[2].replace("data:", "")
    assert page.index("The trade-off") < page.index("Planes of the costliest prior, 6x256-8000")
    arms = page.partition("<h2>Arms with the costliest prior, 6x256-8000</h2>")[2].partition(
        "</table>"
    )[0]
    assert len(re.findall(r'<th scope="row">', arms)) == 3


def test_a_grid_whose_runs_have_not_all_finished_says_so_before_all_else(crossed, page, tmp_path):
    assert "runs have finished" not in page
    assert re.search(r"in\s+10 trainings on every tokenizer \(5 priors,\s+2 seeds\)", page)
    for run in crossed["runs"][5:8]:
        run |= {"status": "waiting", "scores": {}}
    crossed["runs"][-1] |= {"status": "failed", "reason": "not finite", "scores": {}}
    (tmp_path / "study.json").write_text(json.dumps(crossed))
    page = write_report(tmp_path).read_text()
    said = "26 of 30 runs have finished; 3 wait and 1 failed."
    assert page.index(said) < page.index('id="trade-off"')
    assert re.search(r"in\s+7 to 10 trainings on every tokenizer", page)
    assert "* of 1 of 2 seeds" in page


def test_tables_of_the_page_can_be_taken_along(page):
    found = re.findall(r'href="data:text/csv;base64,([^"]+)"', page)
    tables = [base64.b64decode(each).decode() for each in found]
    assert sum(table.startswith("arm,prior,seed,run,") for table in tables) == 2
    assert page.count('<svg role="img"') == len(tables)
    assert not re.search(r"https?://(?!www\.w3\.org|arxiv\.org)", page)


def test_a_grid_of_which_nothing_has_finished_has_a_page(crossed, tmp_path):
    for run in crossed["runs"]:
        run |= {"status": "waiting", "scores": {}}
    (tmp_path / "study.json").write_text(json.dumps(crossed))
    assert "no run of it has finished" in write_report(tmp_path).read_text()


def test_what_two_tokenizers_differ_in_heads_the_sentences_about_them(grid_study):
    study = grid_study(
        {
            "codes-64": (64, 64, 3.5, at(SMALL)),
            "codes-64-48px": (64, 144, 3.0, at(LARGE)),
            "codes-4096": (4096, 64, 1.2, at(LARGE)),
            "causal-64": (64, 64, 3.6, at(Law(5.0, -0.9, 32.4))),
        }
    )
    study["config"]["arms"][1]["pixels"] = 48
    study["config"]["arms"][3]["tokenizer"]["causal"]["weight"] = 4.0
    found = {heading: len(some) for heading, some in tradeoff_of(study).crossings.items()}
    assert found == {
        "in the tokens of a picture alone": 1,
        "in the number of codes alone": 1,
        "in their training alone": 1,
        "in several things": 3,
    }


def test_a_tokenizer_has_one_colour_all_over_the_page(crossed):
    legend = {name: tone for tone, name in tradeoff_of(crossed).legend}
    assert {row.name: row.tone for row in rows_of_study(at_longest(crossed)[1])} == legend
    assert len(set(legend.values())) == 3


def test_the_longest_prior_alone_is_a_study_under_its_tokenizers_names(crossed):
    prior, study = at_longest(crossed)
    assert prior == "6x256-8000"
    assert {run["arm"] for run in study["runs"]} == {"small", "large", "flat"}
    assert len(study["runs"]) == 6
    assert [one["loop"]["steps"] for one in study["config"]["priors"]] == [8000]
    assert [arm["name"] for arm in study["arms"]] == ["small", "large", "flat"]
    assert crossed["runs"][0]["arm"] == "small@6x256-500"
