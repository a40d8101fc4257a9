import base64
import csv
import io
import json
import re
from html.parser import HTMLParser

import pytest

from cartok.core.errors import UserError
from cartok.scaling.report import closing_table, write_report


class Page(HTMLParser):
    """Elements with their attributes, and the text of table cells that carry a number."""

    def __init__(self, path):
        super().__init__()
        self.elements, self.numbers, self.text = [], {}, ""
        self._open = None
        self.source = path.read_text(encoding="utf-8")
        self.feed(self.source)

    def handle_starttag(self, tag, attributes):
        attributes = dict(attributes)
        self.elements.append((tag, attributes))
        if "data-value" in attributes:
            owner = attributes.get("data-arm") or attributes["data-run"]
            self._open = (owner, attributes["data-key"])
            self.numbers[self._open] = [json.loads(attributes["data-value"]), ""]

    def handle_endtag(self, tag):
        if tag == "td":
            self._open = None

    def handle_data(self, data):
        self.text += data
        if self._open:
            self.numbers[self._open][1] += data

    def all(self, tag):
        return [attributes for name, attributes in self.elements if name == tag]


@pytest.fixture(scope="module")
def page(demo):
    return Page(write_report(demo))


@pytest.fixture
def page_of(summary_only):
    return lambda summary: Page(write_report(summary_only(summary)))


def test_numbers_on_the_page_are_those_of_the_summary(page, summary):
    on_page = {name: value for name, (value, _) in page.numbers.items()}
    stored = {
        (arm, key): score["value"]
        for arm in ("baseline", "causal")
        for key, score in summary[arm].items()
    }
    both = sum(summary[arm]["seconds"]["value"] for arm in ("baseline", "causal"))
    assert on_page == stored | {("all", "seconds"): both}


def test_numbers_are_shown_to_four_digits(page):
    for value, text in page.numbers.values():
        shown = re.search(r"[−\d][\d,.]*", text).group().replace("−", "-")
        assert float(shown.replace(",", "")) == pytest.approx(value, rel=6e-4)


def test_intervals_are_those_of_the_receipts(page):
    assert "[29.02, 33.70]" in page.numbers["baseline", "gfd"][1]
    assert "intervals overlap" in page.text


def test_an_unknown_number_is_shown_by_its_name(page_of, summary):
    for arm in ("baseline", "causal"):
        summary[arm]["novelty_index"] = {"value": 0.125, "unit": "points"}
    page = page_of(summary)
    assert page.numbers["causal", "novelty_index"][0] == 0.125
    assert "novelty_index" in page.text


def test_a_number_that_one_arm_lacks_is_said_to_be_lacking(page_of, summary):
    del summary["causal"]["gfd"]
    page = page_of(summary)
    assert ("causal", "gfd") not in page.numbers
    assert "not comparable: one arm lacks it" in page.text


def test_numbers_with_different_receipts_are_not_subtracted(page_of, summary):
    summary["causal"]["gfd"]["receipt"]["reference"] = "another set"
    page = page_of(summary)
    assert "not comparable: reference" in page.text
    assert "gFD does not compare (reference)" in page.text


def test_the_page_needs_nothing_but_itself(page):
    assert not page.all("script")
    assert not page.all("link")
    assert len(page.all("img")) == 5
    assert all(image["src"].startswith("data:image/png;base64,") for image in page.all("img"))
    assert "url(http" not in page.text
    assert "default-src 'none'" in str(page.all("meta"))


def test_what_comes_from_outside_is_escaped(page_of, summary):
    attack = "<script>alert(1)</script>"
    summary["about"] |= {"device": attack, "data": attack}
    summary["warnings"] = [attack]
    summary["causal"][attack] = {"value": 1.0, "unit": attack, "receipt": {attack: attack}}
    page = page_of(summary)
    assert not page.all("script")
    assert page.text.count(attack) >= 6


def test_every_picture_and_chart_says_what_it_shows(page):
    charts = [svg for svg in page.all("svg") if svg.get("aria-hidden") != "true"]
    assert len(charts) > 15
    assert all(svg["role"] == "img" and len(svg["aria-label"]) > 20 for svg in charts)
    assert all(len(image["alt"]) > 20 for image in page.all("img"))


def test_no_two_elements_share_an_id(page):
    ids = [a["id"] for _, a in page.elements if "id" in a]
    assert len(ids) == len(set(ids))


def test_the_same_folder_gives_the_same_page(summary_only, summary):
    folder = summary_only(summary)
    first = write_report(folder).read_bytes()
    assert write_report(folder).read_bytes() == first


def test_a_summary_alone_makes_a_page(tmp_path, summary):
    (tmp_path / "summary.json").write_text(
        json.dumps({"baseline": {}, "causal": {"gfd": summary["causal"]["gfd"]}})
    )
    page = Page(write_report(tmp_path))
    assert page.numbers["causal", "gfd"][0] == summary["causal"]["gfd"]["value"]


def test_warnings_are_shown_only_when_there_are_any(page, page_of, summary):
    assert "Warnings" not in page.text
    summary["warnings"] = ["causal: latent shrinkage"]
    assert "causal: latent shrinkage" in page_of(summary).text


def test_a_terminal_prints_what_the_page_shows(page, summary):
    rows = {row[0]: row for row in closing_table(summary)}
    assert rows["gFD"] == (
        "gFD", "31.20 [29.02, 33.70]", "29.80 [27.71, 32.18]", "squared feature distance"
    )  # fmt: skip
    assert len(rows) == len(summary["baseline"])
    for row in rows.values():
        assert all(cell.split(" [")[0] in page.text for cell in row[1:3])


def test_the_command_that_repeats_a_demo_is_given(page_of, summary):
    summary["about"] |= {"data": "my pictures", "seed": 3}
    assert "cartok demo --data 'my pictures' --seed 3 --minutes 5.0" in page_of(summary).text


def test_the_folders_above_the_pictures_are_not_published(page_of, summary):
    summary["about"]["data"] = "/home/somebody/photos"
    page = page_of(summary)
    assert "somebody" not in page.source
    assert "cartok demo --data ./photos" in page.text
    for source in ("hub:owner/name", "../mine/photos"):
        summary["about"]["data"] = source
        assert page_of(summary).text.count(source) == 2


def test_the_floor_is_shown_but_no_arm_is_judged_by_it(page):
    assert page.numbers["baseline", "floor"][0] == page.numbers["causal", "floor"][0] == 9.4031127
    charts = [svg.get("aria-label", "") for svg in page.all("svg")]
    assert [label for label in charts if label.startswith("gFD with 90% intervals")]
    assert not [label for label in charts if "floor" in label]


def test_a_folder_of_runs_becomes_a_table_of_records(make_runs):
    page = Page(write_report(make_runs(2)))
    assert page.numbers["run-1", "parameters"][0] == 412_371 + 231_112
    assert page.numbers["run-0", "steps"][0] == 331
    assert page.numbers["run-0", "reconstruction/psnr_db"][0] == 22.4
    assert page.text.count("Pixel error") == 1


def test_one_run_is_named_by_its_folder(make_runs):
    page = Page(write_report(make_runs(1) / "run-0"))
    assert ("run-0", "steps") in page.numbers


def test_a_record_without_curves_or_scores_is_a_row(tmp_path):
    (tmp_path / "record.json").write_text('{"kind": "probe"}')
    assert "probe" in Page(write_report(tmp_path)).text


def test_a_folder_without_summary_or_record_is_refused(tmp_path):
    with pytest.raises(UserError, match="holds none"):
        write_report(tmp_path)
    with pytest.raises(UserError, match="holds none"):
        write_report(tmp_path / "nowhere")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("{", "cannot be read"),
        ("[]", "lacks one"),
        ('{"baseline": {}}', "lacks one"),
        ('{"baseline": {"gfd": {"value": null}}, "causal": {}}', "baseline.gfd"),
        ('{"baseline": {}, "causal": {"gfd": 3}}', "causal.gfd"),
    ],
)
def test_a_broken_summary_is_refused_in_one_line(tmp_path, text, reason):
    (tmp_path / "summary.json").write_text(text)
    with pytest.raises(UserError, match=reason) as caught:
        write_report(tmp_path)
    assert "\n" not in str(caught.value)


def test_a_broken_record_is_refused(tmp_path):
    (tmp_path / "record.json").write_text("[1, 2]")
    with pytest.raises(UserError, match="a record is what a run wrote"):
        write_report(tmp_path)


def test_what_every_chart_draws_can_be_taken_along_as_a_table(page, demo):
    charts = [svg for svg in page.all("svg") if svg.get("aria-hidden") != "true"]
    links = [a for a in page.all("a") if "download" in a]
    assert len(links) == len(charts)
    tables = {
        a["download"]: base64.b64decode(a["href"].removeprefix("data:text/csv;base64,")).decode()
        for a in links
    }
    rows = list(csv.reader(io.StringIO(tables["Pixel error.csv"])))
    assert rows[0] == ["line", "step", "codec/pixel_l2"]
    record = json.loads((demo / "causal" / "tokenizer" / "record.json").read_text())
    drawn = record["curves"]["codec/pixel_l2"]
    assert [[float(x), float(y)] for name, x, y in rows[1:] if name == "causal"] == drawn
    heat = list(csv.reader(io.StringIO(tables["causal − baseline.csv"])))
    assert [len(row) for row in heat] == [8] * 8
