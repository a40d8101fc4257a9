import json
import re

import pytest

from cartok.core.errors import UserError
from cartok.scaling.report import write_report
from cartok.scaling.study import (
    COLUMNS,
    families_of,
    learning_figures,
    rows_of_study,
    study_figures,
)


def score(value, **receipt):
    return {"value": value, "unit": "", "receipt": receipt}


def study_of(arms, **changes):
    """A study of arms: name to codes, weight, and a seed's (rFD, gFD, bits) each."""
    config = [
        {
            "name": name,
            "tokenizer": {
                "model": {"quantizer": {"kind": "vq", "codebook_size": codes}},
                "causal": {"weight": weight},
            },
        }
        for name, (codes, weight, _) in arms.items()
    ]
    runs = [
        {"arm": name, "seed": seed, "digest": f"{name}-{seed}", "status": "finished", "scores": {
            "rfd": score(rfd), "gfd": score(gfd), "prior_bits_per_image": score(bits)}}
        for name, (_, _, seeds) in arms.items()
        for seed, (rfd, gfd, bits) in enumerate(seeds)
    ]  # fmt: skip
    means = [
        {"name": name, "finished": len(seeds), "failures": [] if seeds else ["a loss is nan"],
         "scores": {"rfd": score(seeds[0][0], bootstrap={"interval": [1.0, 9.0]}),
                    "gfd": score(4.5, over_seeds={"interval": [4.0, 5.0]})} if seeds else {}}
        for name, (_, _, seeds) in arms.items()
    ]  # fmt: skip
    return {"name": "small", "config": {"arms": config, "yardstick": {"samples": 512}},
            "arms": means, "runs": runs, "warnings": ["causal: it shrank"],
            "provenance": {"device": "cpu"}} | changes  # fmt: skip


ARMS = {
    "base": (512, 0.0, [(3.0, 20.0, 1500.0), (3.2, 22.0, 1520.0)]),
    "causal": (512, 1.0, [(3.4, 18.0, 1400.0)]),
    "base-256": (256, 0.0, [(4.0, 21.0, 1300.0)]),
    "broken": (512, 2.0, []),
}


def test_arms_that_differ_in_codes_alone_are_one_family_from_fewest_to_most():
    assert families_of(study_of(ARMS)) == [["base-256", "base"], ["causal"], ["broken"]]


def test_a_plane_shows_every_arm_that_has_ended_at_the_mean_of_its_seeds():
    gfd, bits = study_figures(study_of(ARMS))
    label = re.search(r'aria-label="([^"]*)"', str(gfd.svg)).group(1)
    assert label == (
        "Generation against reconstruction: rFD and gFD of each arm: "
        "base-256 4 and 21, base 3.100 and 21, causal 3.400 and 18."
    )
    for name in ("base", "base-256", "causal"):
        assert f">{name}<" in str(gfd.svg)
    assert "broken" not in str(gfd.svg)
    assert "bits/image" in str(bits.svg)


def test_an_arm_that_lies_far_off_is_told_and_does_not_press_the_others_into_a_corner():
    near = {f"arm-{i}": (512, float(i), [(2 + i / 10, 14 - i / 4, 1500.0)]) for i in range(9)}
    gfd, bits = study_figures(study_of(near | {"odd": (512, 99.0, [(3.0, 27.4, 1500.0)])}))
    assert gfd.note.endswith("; beyond the plane: odd at (3, 27.40)")
    assert ">odd<" not in str(gfd.svg)
    assert all(f">{name}<" in str(gfd.svg) for name in near)
    assert ">odd<" in str(bits.svg)
    few = dict(list(near.items())[:3])
    gfd, _ = study_figures(study_of(few | {"odd": (512, 99.0, [(3.0, 27.4, 1500.0)])}))
    assert ">odd<" in str(gfd.svg)


def test_what_a_prior_learned_is_drawn_as_the_mean_over_seeds_a_figure_a_prior():
    study = study_of(ARMS)
    for run in study["runs"]:
        bits = run["scores"].pop("prior_bits_per_image")["value"]
        for steps in (100, 200):
            way = [[steps // 2, bits + steps], [steps, bits]]
            key = f"prior_bits_per_image/2x64-{steps}"
            run["scores"][key] = score(bits, over_steps=way)
    short, long = learning_figures(study)
    ends = {name: value for name, _, value in short.ends}
    assert ends == {"base": 1510.0, "causal": 1400.0, "base-256": 1300.0}
    assert long.title == "What is left to learn 2x64-200"
    assert "base ends at 1,510" in str(long.svg)


def test_without_a_finished_run_there_is_no_plane():
    assert study_figures(study_of({"broken": (512, 0.0, [])})) == []


def test_a_row_has_means_with_intervals_dashes_and_the_reason_of_a_failure():
    rows = {row.name: row for row in rows_of_study(study_of(ARMS))}
    cells = dict(zip(COLUMNS, rows["base"].cells, strict=True))
    assert cells["rfd"] == "3 [1, 9]"
    assert cells["gfd"] == "4.500 [4, 5]"
    assert cells["psnr_db"] == "–"
    assert rows["base"].tone == rows["base-256"].tone != rows["causal"].tone
    assert (rows["broken"].finished, rows["broken"].note) == (0, "a loss is nan")
    assert set(rows["broken"].cells) == {"–"}


def test_the_page_names_every_machine_that_had_a_part(tmp_path):
    study = study_of(ARMS)
    study["runs"][0]["provenance"] = {"device": "cuda: A", "torch": "2.11", "commit": ""}
    study["runs"][1]["provenance"] = {"device": "cuda: B", "torch": "2.11", "commit": "abc"}
    (tmp_path / "study.json").write_text(json.dumps(study))
    page = write_report(tmp_path).read_text()
    assert "cuda: A, cuda: B" in page
    assert "<dd>abc</dd>" in page


def test_the_page_of_a_study_says_how_many_runs_have_not_finished(tmp_path):
    study = study_of(ARMS)
    (tmp_path / "study.json").write_text(json.dumps(study))
    assert "have finished" not in write_report(tmp_path).read_text()
    study["runs"] += [
        {"arm": "broken", "seed": seed, "digest": f"w{seed}", "status": "waiting", "reason": ""}
        for seed in (0, 1)
    ]
    (tmp_path / "study.json").write_text(json.dumps(study))
    page = write_report(tmp_path).read_text()
    assert page.index("4 of 6 runs have finished; 2 wait.") < page.index("Warnings")


def test_the_page_says_of_what_pictures_and_priors_its_numbers_are(tmp_path):
    study = study_of(ARMS)
    study["config"]["arms"][0]["tokenizer"] |= {
        "data": "/home/me/cifar10", "view": {"size": 32}, "loop": {"steps": 10_000}
    }  # fmt: skip
    study["config"]["priors"] = [
        {"transformer": {"depth": depth, "width": width}, "loop": {"steps": 6000}}
        for depth, width in ((6, 256), (8, 384))
    ]
    (tmp_path / "study.json").write_text(json.dumps(study))
    page = write_report(tmp_path).read_text()
    assert "<dd>cifar10, 32 pixels</dd>" in page
    assert "6x256, 6,000 steps; 8x384, 6,000 steps" in page
    assert "gFD is the mean over priors 6x256, 8x384" in page
    assert "/home/me" not in page


def test_no_arm_has_the_colour_of_the_first_ones_curve():
    arms = {f"arm-{place}": (512, float(place), [(3.0, 20.0, 1500.0)]) for place in range(20)}
    first, *others = rows_of_study(study_of(arms))
    assert first.tone == 0
    assert 0 not in {row.tone for row in others}


def test_the_page_of_a_study_stands_alone(tmp_path):
    (tmp_path / "study.json").write_text(json.dumps(study_of(ARMS)))
    page = write_report(tmp_path).read_text()
    assert "<h1>small</h1>" in page
    assert page.count("<svg role=") == 2
    assert "causal: it shrank" in page
    assert not re.search(r"https?://(?!www\.w3\.org)", page)


@pytest.mark.parametrize("content", ["[]", "{}", '{"name": "x"}'])
def test_what_is_no_study_is_refused_in_one_line(tmp_path, content):
    (tmp_path / "study.json").write_text(content)
    with pytest.raises(UserError, match="a study is what 'cartok study run' wrote") as refusal:
        write_report(tmp_path)
    assert "\n" not in str(refusal.value)
