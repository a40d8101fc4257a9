"""A study's numbers: means over priors, warnings, and tables for a terminal."""

import importlib.util
from pathlib import Path

from cartok.lab.means import mean_over_sizes, tables_of, warnings_of
from cartok.scaling.means import ArmMeans, arm_means

_TOYS = Path(__file__).with_name("study_toys.py")
_SPEC = importlib.util.spec_from_file_location(_TOYS.stem, _TOYS)
toys = importlib.util.module_from_spec(_SPEC)
_SPEC.loader.exec_module(toys)

go, score, small_study = toys.go, toys.score, toys.small_study


def test_the_mean_over_sizes_has_the_mean_ends_and_what_all_receipts_say():
    first = score(1.0, network="a", seed=0, bootstrap={"level": 0.9, "interval": [0.0, 3.0]})
    second = score(3.0, network="a", seed=1, bootstrap={"level": 0.9, "interval": [2.0, 4.0]})
    mean = mean_over_sizes([first, second])
    assert mean["value"] == 2
    assert mean["receipt"] == {
        "network": "a", "mean_over": 2, "bootstrap": {"level": 0.9, "interval": [1.0, 3.5]},
    }  # fmt: skip
    assert "bootstrap" not in mean_over_sizes([score(1.0), score(2.0)])["receipt"]


def test_a_score_that_was_not_finite_is_missing():
    def run(arm, seed, variance, rfd):
        measured = {"latent_variance": score(variance), "next_latent_r2": score(0.5),
                    "probe_r2_quantised": score(0.5), "rfd": rfd}  # fmt: skip
        return {"arm": arm, "seed": seed, "status": "finished", "scores": measured}

    runs = [("none", 0, 0.1, score(2.0)), ("wild", 0, 0.1, score(1.0)),
            ("wild", 1, None, score(None))]  # fmt: skip
    arms = arm_means([run(*one) for one in runs])
    assert set(arms[1].scores) == {"next_latent_r2", "probe_r2_quantised"}
    assert warnings_of(arms, {"wild": "none"}) == []
    _, first, second = (line.split() for line in tables_of(arms)[0].splitlines())
    assert first[3:5] == ["2", "-"]  # rFD, and no gFD
    assert second[3:5] == ["-", "-"]


def arm(name, r2_latents, r2_codes):
    values = {"latent_variance": 0.1, "next_latent_r2": r2_latents}
    values["probe_r2_quantised"] = r2_codes
    return ArmMeans(name, 1, [], {key: score(value) for key, value in values.items()})


def test_of_a_grid_each_tokenizer_is_warned_of_once_not_every_run():
    priors = ("2x64-500", "2x64-1000", "4x128-500")
    arms = [arm(f"none@{prior}", 0.3, 0.2) for prior in priors]
    arms += [arm(f"gamed@{prior}", 0.9, 0.2) for prior in priors[1:]]  # the first has not run
    twins = {f"gamed@{prior}": f"none@{prior}" for prior in priors}
    (warning,) = warnings_of(arms, twins)
    assert warning.startswith("gamed: hidden prediction")


def test_a_regulariser_that_was_won_without_helping_is_named_beside_its_twin():
    arms = [arm("none", 0.3, 0.2), arm("good", 0.6, 0.5), arm("gamed", 0.9, 0.2)]
    (warning,) = warnings_of(arms, {"good": "none", "gamed": "none", "gone": "none"})
    assert warning.startswith("gamed: hidden prediction")


def test_a_table_shows_a_dash_for_what_is_missing_and_why_an_arm_failed():
    fine = ArmMeans("fine", 1, [], {"rfd": score(2.5, bootstrap={"interval": [2.0, 3.0]}),
                                    "loss_codebook": score(0.125)})  # fmt: skip
    scores, losses = tables_of([fine, ArmMeans("bad", 0, ["it died"], {})])
    heading, first, second = scores.splitlines()
    assert heading.split()[:4] == ["arm", "steps", "FLOPs", "rFD"]
    assert "2.500 [2, 3]" in first
    assert first.split()[0] == "fine"
    assert second.split()[:3] == ["bad", "-", "-"]
    assert second.endswith("failed: it died")
    assert losses.splitlines()[0].split() == ["arm", "codebook"]
    assert "0.1250" in losses
