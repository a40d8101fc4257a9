import json
import math
import os
from dataclasses import replace

import pytest
import torch

from cartok.__main__ import main
from cartok.core.errors import UserError
from cartok.core.files import read_json, write_json
from cartok.core.run import Run, read_log
from cartok.lab.diagnosis import describe, diagnose
from cartok.lab.evaluations import code_use
from cartok.recipes.tokenizer import causal_demo, without_causal
from cartok.tokenizer.critic import CriticConfig
from cartok.tokenizer.model import Tokenizer
from cartok.tokenizer.quantize.binary import BSQConfig, LFQConfig
from cartok.tokenizer.quantize.fsq import FSQConfig
from cartok.tokenizer.quantize.residual import ResidualVQConfig
from cartok.tokenizer.quantize.vq import VQConfig

STEPS = 1000
CRITIC = CriticConfig(weight=0.5, start=300, ramp=100, warm=100)
BASE = causal_demo()
RECIPE = replace(
    BASE,
    workers=4,
    loop=replace(BASE.loop, steps=STEPS),
    losses=replace(BASE.losses, critic=CRITIC),
)

# A healthy run, as functions of the share of the training that is done.
HEALTHY = {
    "codec/pixel_l2": lambda t: 0.02 + 0.25 * (1 - t) ** 2,
    "codec/pixel_l1": lambda t: 0.1 + 0.3 * (1 - t) ** 2,
    "codec/perceptual": lambda t: 0.3 + 0.4 * (1 - t) ** 2,
    "codec/codebook": lambda t: 0.004,
    "codec/commitment": lambda t: 0.004,
    "codec/quantisation_mse": lambda t: 0.004,
    "codec/critic": lambda t: 0.3 if t > 0.3 else None,
    "codec/causal": lambda t: 0.01,
    "codec/causal_share": lambda t: 0.2,
    "codec/batch_usage": lambda t: 0.8,
    "codec/batch_perplexity": lambda t: 140.0,
    "codec/next_latent_mse": lambda t: 0.01,
    "codec/next_latent_r2": lambda t: 0.65,
    "codec/twin_r2": lambda t: 0.5,
    "codec/latent_variance": lambda t: 0.09 - 0.03 * t,
    "critic/hinge": lambda t: 0.97 if t > 0.3 else 0.0 if t > 0.2 else None,
    "critic/accuracy": lambda t: 0.6 if t > 0.3 else 1.0 if t > 0.2 else None,
    "gradient/tokenizer": lambda t: 2.0 - t,
    "gradient/causal": lambda t: 1.4 - 1.38 * t,
    "gradient/critic": lambda t: 3.0 if t > 0.3 else 0.0 if t > 0.2 else None,
    "speed/seconds_per_step": lambda t: 0.1,
    "speed/stall_share": lambda t: 0.004,
}
SCORES = {"reconstruction/code_usage": 0.97, "reconstruction/code_perplexity": 180.0}


def write_run(folder, *, recipe=RECIPE, curves=None, scores=SCORES, steps=STEPS, ends=False):
    """A run's folder with the log of a healthy training, but for ``curves``."""
    run = Run.open(folder, recipe, kind="tokenizer")
    for step in range(10, steps + 1, 10):
        values = {name: curve(step / STEPS) for name, curve in (HEALTHY | (curves or {})).items()}
        run.log(step, {name: value for name, value in values.items() if value is not None})
    if scores:
        run.log(steps, {"reconstruction/num_pictures": 256.0} | scores)
    if ends:
        run.finish(steps=steps)
    return folder


def found_in(folder, baseline=None):
    (diagnosis,) = diagnose(folder, baseline)
    return [(finding.severity, finding.fault) for finding in diagnosis.findings]


def verdicts_of(folder):
    (diagnosis,) = diagnose(folder)
    return {vital.name: vital.verdict for vital in diagnosis.vitals}


def changed(name, value):
    """The recipe with one field changed, by its dotted name."""

    def put(config, parts):
        here = getattr(config, parts[0])
        return replace(config, **{parts[0]: put(here, parts[1:]) if len(parts) > 1 else value})

    return put(RECIPE, name.split("."))


def test_a_healthy_run_is_looked_at_all_over_and_found_fine(tmp_path):
    folder = write_run(tmp_path / "run", ends=True)
    assert found_in(folder) == []
    assert set(verdicts_of(folder).values()) == {"fine"}
    assert len(verdicts_of(folder)) == 11
    assert diagnose(folder)[0].is_healthy


@pytest.mark.parametrize(
    ("curves", "expected"),
    [
        ({"codec/latent_variance": lambda t: 1e-6}, ("fault", "latent collapse")),
        ({"codec/latent_variance": lambda t: 0.09 - 0.06 * t}, ("fault", "latent shrinkage")),
        ({"codec/twin_r2": lambda t: 0.1}, ("fault", "hidden prediction")),
        ({"codec/twin_r2": lambda t: 0.33}, ("watch", "hidden prediction")),
        ({"codec/causal_share": lambda t: 0.97}, ("fault", "overwhelming regulariser")),
        ({"codec/causal_share": lambda t: 1e-5}, ("watch", "negligible regulariser")),
        ({"codec/quantisation_mse": lambda t: 0.05}, ("watch", "coarse codes")),
        ({"gradient/tokenizer": lambda t: 0.0}, ("fault", "dead gradient")),
        ({"gradient/causal": lambda t: 1e-9}, ("fault", "dead gradient")),
        ({"gradient/causal": lambda t: 0.1 * 1e4**t}, ("fault", "exploding gradient")),
        ({"gradient/tokenizer": lambda t: 70.0}, ("watch", "always clipped")),
        ({"codec/pixel_l2": lambda t: 0.2 if t < 0.5 else 3.0}, ("fault", "critic dominance")),
        ({"codec/pixel_l2": lambda t: min(6 * t, 1.8) if t > 0.15 else 1 - 5 * t},
         ("fault", "divergence")),
        ({"codec/critic": lambda t: -80.0 if t > 0.3 else None}, ("fault", "critic dominance")),
        ({"codec/critic": lambda t: -1.0 if t > 0.3 else None,
          "codec/critic_factor": lambda t: 20.0}, ("fault", "critic dominance")),
        ({"critic/hinge": lambda t: 0.02, "critic/accuracy": lambda t: 0.999,
          "gradient/critic": lambda t: 0.0}, ("fault", "critic dominance")),
        ({"speed/stall_share": lambda t: 0.4}, ("fault", "stalled loader")),
        ({"speed/stall_share": lambda t: 0.05}, ("watch", "stalled loader")),
        ({"fault/skips": lambda t: 2.0 if t == 0.5 else None}, ("watch", "non-finite steps")),
    ],
    ids=lambda value: value[1] if isinstance(value, tuple) else "-".join(value),
)  # fmt: skip
def test_a_fault_planted_in_the_log_is_named(tmp_path, curves, expected):
    assert found_in(write_run(tmp_path / "run", curves=curves)) == [expected]


def test_the_first_minute_says_nothing_of_the_loader(tmp_path):
    curves = {"speed/stall_share": lambda t: 0.4, "speed/seconds_per_step": lambda t: 0.05}
    folder = write_run(tmp_path / "run", curves=curves)
    assert STEPS * 0.05 < 60 <= STEPS * 0.1
    assert found_in(folder) == []
    assert verdicts_of(folder)["waiting for pictures"] == "too early to say"


def test_a_loss_that_does_not_fall_is_a_plateau(tmp_path):
    flat = {name: lambda t: 0.3 for name in HEALTHY if name.startswith("codec/p")}
    assert found_in(write_run(tmp_path / "run", curves=flat)) == [("fault", "plateau")]


@pytest.mark.parametrize(
    ("scores", "expected"),
    [
        ({"reconstruction/code_usage": 0.02}, [("fault", "codebook collapse")]),
        ({"reconstruction/code_usage": 0.4}, [("watch", "idle codes")]),
        ({"reconstruction/code_perplexity": 2.0, "reconstruction/code_usage": 0.9},
         [("fault", "codebook collapse")]),
        ({"probe/r2_latents": 0.9, "probe/r2_codes": 0.2}, [("fault", "hidden prediction")]),
        ({"probe/r2_latents": 0.5, "probe/r2_codes": 0.4}, []),
    ],
)  # fmt: skip
def test_the_last_evaluation_counts_more_than_the_batches(tmp_path, scores, expected):
    assert found_in(write_run(tmp_path / "run", scores=scores)) == expected


def test_without_an_evaluation_the_codes_of_batches_are_counted(tmp_path):
    dead = {"codec/batch_usage": lambda t: 0.01, "codec/batch_perplexity": lambda t: 1.2}
    found = found_in(write_run(tmp_path / "run", curves=dead, scores=None))
    assert found == [("fault", "codebook collapse")]


def test_an_evaluation_of_few_pictures_is_not_expected_to_meet_every_code(tmp_path):
    scores = {"reconstruction/code_usage": 0.3}
    assert found_in(write_run(tmp_path / "few", scores=scores)) == [("watch", "idle codes")]
    large = changed("model.quantizer.codebook_size", 2**15)  # 256 pictures of 64 tokens: 39 %
    assert found_in(write_run(tmp_path / "many", scores=scores, recipe=large)) == []


QUANTIZERS = {
    "vq": VQConfig(codebook_size=2**14, revive_after=20),
    "fsq": FSQConfig(),
    "lfq": LFQConfig(bits=14),
    "bsq": BSQConfig(bits=14),
    "residual": ResidualVQConfig(levels=2, codebook_size=2**13),
}


def even_use(recipe, num):
    """What is logged of this many pictures whose tokens are drawn evenly."""
    with torch.device("meta"):
        tokenizer = Tokenizer(recipe.model)
    shape = num, *tokenizer.grid_of(recipe.view.size, recipe.view.size)
    generator = torch.Generator().manual_seed(0)
    return code_use(torch.randint(tokenizer.codebook_size, shape, generator=generator), tokenizer)


@pytest.mark.parametrize("quantizer", QUANTIZERS.values(), ids=list(QUANTIZERS))
def test_codes_of_any_kind_that_are_used_evenly_are_fine_however_few_are_seen(tmp_path, quantizer):
    recipe = changed("model.quantizer", quantizer)
    asked = {evaluation.name: evaluation.num for evaluation in recipe.evaluations}
    assert asked["reconstruction"] == 256
    # fewer pictures are held out than the recipe asks for
    scores = {f"reconstruction/{name}": value for name, value in even_use(recipe, 10).items()}
    folder = write_run(tmp_path / "scored", recipe=recipe,
                       scores=scores | {"reconstruction/num_pictures": 10.0})  # fmt: skip
    assert found_in(folder) == []
    assert verdicts_of(folder)["codes"] == "fine"
    # a batch of sixteen on one rank that has ended, or on sixteen that have not
    for ranks, num, ends in (("one", 16, True), ("sixteen", 1, False)):
        even = even_use(recipe, num)
        curves = {
            "codec/batch_usage": lambda t, even=even: even["code_usage"],
            "codec/batch_perplexity": lambda t, even=even: even["code_perplexity"],
        }
        folder = write_run(tmp_path / ranks, recipe=recipe, curves=curves, scores=None, ends=ends)
        assert found_in(folder) == []
        assert verdicts_of(folder)["codes"] == "fine"


@pytest.mark.parametrize("quantizer", QUANTIZERS.values(), ids=list(QUANTIZERS))
def test_a_twentieth_of_the_codes_within_reach_is_a_collapse_of_any_kind(tmp_path, quantizer):
    recipe = changed("model.quantizer", quantizer)
    usage = even_use(recipe, 256)["code_usage"] / 20
    folder = write_run(tmp_path / "run", recipe=recipe, scores={"reconstruction/code_usage": usage})
    assert found_in(folder) == [("fault", "codebook collapse")]


def test_of_codes_that_occur_nothing_is_said_where_nobody_knows_how_many_could(tmp_path):
    unknown = {"reconstruction/code_usage": 1e-3, "reconstruction/num_pictures": math.nan}
    few = {"codec/batch_usage": lambda t: 0.2}  # of one picture's tokens no more can occur
    large = changed("model.quantizer.codebook_size", 2**14)
    folder = write_run(tmp_path / "no-number", recipe=large, curves=few, scores=unknown)
    assert found_in(folder) == []
    folder = write_run(tmp_path / "other-version", scores={"reconstruction/code_usage": 1e-3})
    assert found_in(folder) == [("fault", "codebook collapse")]
    stored = read_json(folder / "config.json", "a config")
    stored["config"]["model"]["codec"]["of_another_version"] = 1
    write_json(folder / "config.json", stored)
    assert found_in(folder) == []


def test_codes_that_fall_out_of_use_are_told_from_a_slow_start(tmp_path):
    for name, usages, expected in (
        ("falls", (0.099, 0.058, 0.046), ("fault", "codebook collapse")),
        ("rises", (0.02, 0.03, 0.046), ("watch", "idle codes")),
    ):
        folder = write_run(tmp_path / name, recipe=changed("optim.warmup_steps", 2 * STEPS),
                           scores=None)  # fmt: skip
        with open(folder / "log.jsonl", "a") as log:
            for step, usage in zip((200, 400, 600), usages, strict=True):
                line = {"step": step, "reconstruction/code_usage": usage,
                        "reconstruction/num_pictures": 256.0}  # fmt: skip
                log.write(json.dumps(line) + "\n")
        assert found_in(folder) == [expected]
        assert f"4.6% of the codes occur (step 600), after {usages[0]:.1%} at step 200" in describe(
            diagnose(folder)[0]
        )


@pytest.mark.parametrize(
    ("recipe", "curves", "expected"),
    [
        # what would be the regulariser's fault is none where there is no regulariser
        (without_causal(RECIPE), {"codec/latent_variance": lambda t: 0.09 - 0.06 * t,
                                  "codec/twin_r2": lambda t: 0.1}, []),
        (changed("losses.critic.weight", 0.0), {"critic/hinge": lambda t: 0.0}, []),
        # the variance is then that of other latents than those that are quantised
        (replace(RECIPE, causal=replace(RECIPE.causal, space="encoder", reads="latents")),
         {"codec/quantisation_mse": lambda t: 0.05}, []),
        (changed("causal.reads", "latents"),
         {"codec/next_latent_mse": lambda t: 0.001, "codec/twin_r2": lambda t: None},
         [("watch", "hidden prediction")]),
        (RECIPE,
         {"codec/next_latent_mse": lambda t: 0.001, "codec/twin_r2": lambda t: None},
         []),
        (replace(changed("losses.codebook", 0.0),
                 model=changed("model.quantizer.revive_after", 0).model), {},
         [("fault", "dead gradient")]),
        (changed("losses.codebook", 0.0), {}, []),  # dead codes are moved onto latents
        # the twin always guesses the look-up's latents; these predictors guess something else
        (replace(RECIPE, causal=replace(RECIPE.causal, space="encoder", reads="latents")),
         {"codec/twin_r2": lambda t: 0.05}, []),
        (changed("causal.target", "codes"), {"codec/twin_r2": lambda t: 0.05}, []),
        (replace(changed("causal.loss", "cosine"),
                 model=changed("model.quantizer.normalise", False).model),
         {"codec/twin_r2": lambda t: 0.05}, []),
        (changed("causal.loss", "cosine"), {"codec/twin_r2": lambda t: 0.05},
         [("fault", "hidden prediction")]),
        (changed("causal.reads", "noisy"),
         {"codec/latent_variance": lambda t: 1e-6, "codec/twin_r2": lambda t: 0.05},
         [("fault", "latent collapse")]),  # and nothing is left to hide
        (changed("optim.lr", 1.0), {}, [("fault", "learning rate too high")]),
        # it began where another run had ended
        (changed("start_from", "runs/another"),
         {name: lambda t: 0.3 for name in HEALTHY if name.startswith("codec/p")}, []),
    ],
)  # fmt: skip
def test_the_config_decides_what_a_number_means(tmp_path, recipe, curves, expected):
    assert found_in(write_run(tmp_path / "run", recipe=recipe, curves=curves)) == expected


@pytest.mark.parametrize("name", [name for name in HEALTHY if name != "codec/pixel_l1"])
def test_of_what_was_not_logged_nothing_is_said(tmp_path, name):
    folder = write_run(tmp_path / "run", curves={name: lambda t: None})
    assert found_in(folder) == []


def test_the_share_of_a_regulariser_is_judged_once_it_has_its_full_weight(tmp_path):
    rising = {"codec/causal_share": lambda t: 1e-5}
    slow = changed("causal.anneal_steps", STEPS)
    folder = write_run(tmp_path / "run", recipe=slow, curves=rising)
    assert found_in(folder) == []
    assert verdicts_of(folder)["regulariser's share"] == "too early to say"


def test_a_share_that_a_compiled_graph_hides_is_not_measured(tmp_path):
    folder = write_run(tmp_path / "run", curves={"codec/causal_share": lambda t: 0.0})
    assert verdicts_of(folder)["regulariser's share"] == "not measured"


def test_a_critic_is_judged_once_it_has_been_heard_for_a_while(tmp_path):
    won = {"critic/hinge": lambda t: 0.0, "critic/accuracy": lambda t: 1.0}
    assert found_in(write_run(tmp_path / "early", curves=won, steps=690)) == []
    assert found_in(write_run(tmp_path / "late", curves=won)) == [("fault", "critic dominance")]


def test_faults_come_before_what_is_to_be_watched(tmp_path):
    folder = write_run(tmp_path / "run", curves={"speed/stall_share": lambda t: 0.4},
                       scores={"reconstruction/code_usage": 0.4})  # fmt: skip
    assert found_in(folder) == [("fault", "stalled loader"), ("watch", "idle codes")]


def test_a_run_that_logged_nothing_is_not_measured(tmp_path):
    run = Run.open(tmp_path / "run", RECIPE, kind="tokenizer")
    verdicts = verdicts_of(run.folder)
    assert verdicts.pop("run") == "fine"
    assert verdicts.pop("critic") == "too early to say"
    assert verdicts.pop("learning rate") == "fine"
    assert set(verdicts.values()) == {"not measured"}


def test_the_curves_of_the_record_serve_where_the_log_is_gone(tmp_path):
    folder = write_run(tmp_path / "run", curves={"speed/stall_share": lambda t: 0.5},
                       ends=True)  # fmt: skip
    (folder / "log.jsonl").unlink()
    assert found_in(folder) == [("fault", "stalled loader")]


def test_a_log_cut_short_by_a_kill_and_stray_lines_are_read(tmp_path):
    folder = write_run(tmp_path / "run")
    with open(folder / "log.jsonl", "a") as file:
        file.write('[1, 2]\n{"codec/causal_share": 1.0}\n{"step": 1001, "codec/pix')
    assert found_in(folder) == []


def test_few_lines_are_too_early_to_judge(tmp_path):
    sick = {"gradient/tokenizer": lambda t: 0.0, "codec/latent_variance": lambda t: 0.0}
    folder = write_run(tmp_path / "run", curves=sick, steps=290)
    assert found_in(folder) == []
    assert verdicts_of(folder)["gradient norms"] == "too early to say"


def test_a_running_run_is_fine_and_a_silent_one_was_interrupted(tmp_path):
    folder = write_run(tmp_path / "run", steps=500)
    (folder / "checkpoints" / "step-00000400").mkdir(parents=True)
    assert found_in(folder) == []
    log = folder / "log.jsonl"
    os.utime(log, (log.stat().st_mtime - 3600,) * 2)
    assert found_in(folder) == [("fault", "interrupted run")]
    text = describe(diagnose(folder)[0])
    assert "it goes on from step 400" in text
    assert f"cartok resume {folder}" in text


def test_a_non_finite_stop_is_told_with_its_term_and_not_as_an_interruption(tmp_path):
    folder = write_run(tmp_path / "run", steps=500)
    write_json(folder / "fault.json", {
        "kind": "non-finite", "step": 503, "phase": "codec", "culprits": ["codec/perceptual"],
        "policy": "recover",
    })  # fmt: skip
    os.utime(folder / "log.jsonl", (0, 0))
    assert found_in(folder) == [("fault", "non-finite stop")]
    assert "'codec/perceptual' was not finite at step 503 (policy recover)" in describe(
        diagnose(folder)[0]
    )


def test_a_run_that_was_taken_up_again_has_not_stopped(tmp_path):
    folder = write_run(tmp_path / "run", steps=500)
    lines = (folder / "log.jsonl").read_text().splitlines(keepends=True)
    fault = {"step": 503, "culprits": ["codec/perceptual"], "policy": "recover",
             "last": [json.loads(line) for line in lines[-20:]]}  # fmt: skip
    write_json(folder / "fault.json", fault)
    assert found_in(folder) == [("fault", "non-finite stop")]
    for resumed in (lines[:41], [*lines, json.dumps({"step": 510, "codec/pixel_l2": 0.1}) + "\n"]):
        (folder / "log.jsonl").write_text("".join(resumed))
        assert found_in(folder) == []
    del fault["last"]
    write_json(folder / "fault.json", fault)
    assert found_in(folder) == []  # beyond step 503
    (folder / "log.jsonl").write_text("".join(lines))
    assert found_in(folder) == [("fault", "non-finite stop")]


@pytest.mark.parametrize(
    ("change", "is_told"),
    [
        ({"normalise": False, "scale": "none"}, True),
        ({"normalise": False, "scale": "variance"}, True),
        ({"normalise": False, "scale": "auto"}, False),  # which is live off the sphere
        ({"normalise": False, "scale": "live"}, False),
        ({"normalise": False, "scale": "variance", "target": "detached"}, False),
        ({"normalise": True, "scale": "none"}, False),
    ],
)
def test_collapsed_latents_off_the_sphere_are_told_of_the_live_scale(tmp_path, change, is_told):
    quantizer = replace(RECIPE.model.quantizer, normalise=change.pop("normalise"))
    recipe = replace(changed("model.quantizer", quantizer), causal=replace(RECIPE.causal, **change))
    folder = write_run(
        tmp_path / "run", recipe=recipe, curves={"codec/latent_variance": lambda t: 1e-6}
    )
    (found,) = diagnose(folder)[0].findings
    assert found.fault == "latent collapse"
    assert ("causal.scale to live" in found.change) == is_told


@pytest.mark.parametrize(
    ("name", "value", "said"),
    [
        ("model.quantizer.codebook_size", 512, "model.quantizer.codebook_size is 256 here and 512"),
        ("model.quantizer", FSQConfig(), "model.quantizer.kind is 'vq' here and 'fsq'"),
        ("losses.pixel_l1", 0.5, "losses.pixel_l1 is 1.0 here and 0.5"),
        ("losses.critic.weight", 0.1, "losses.critic.weight is 0.5 here and 0.1"),
        ("view.size", 64, "view.size is 32 here and 64"),
    ],
)
def test_a_baseline_that_differs_in_more_than_the_regulariser_is_refused(
    tmp_path, name, value, said
):
    folder = write_run(tmp_path / "run", steps=50)
    baseline = write_run(tmp_path / "twin", recipe=without_causal(changed(name, value)), steps=50)
    with pytest.raises(
        UserError, match="is a run that is equal but for the regulariser"
    ) as refusal:
        diagnose(folder, baseline)
    assert f"{said} in {baseline}" in str(refusal.value)
    assert len(str(refusal.value).splitlines()) == 1


def test_a_baseline_may_be_of_another_version_length_and_seed(tmp_path):
    folder = write_run(tmp_path / "run")
    baseline = write_run(tmp_path / "twin", recipe=without_causal(changed("seed", 7)), steps=500)
    stored = read_json(baseline / "config.json", "a config")
    del stored["config"]["losses"]["entropy"], stored["config"]["model"]["quantizer"]["decay"]
    write_json(baseline / "config.json", stored)
    assert found_in(folder, baseline) == []


def test_predictors_that_differ_are_not_compared_but_by_their_probes(tmp_path):
    folder = write_run(tmp_path / "run")
    poor = {"codec/next_latent_r2": lambda t: 0.1, "codec/twin_r2": lambda t: 0.5}
    other = without_causal(changed("causal.reads", "latents"))
    baseline = write_run(tmp_path / "twin", recipe=other, curves=poor)
    assert found_in(folder, baseline) == []
    for run, r2 in ((folder, 0.65), (baseline, 0.1)):
        with open(run / "log.jsonl", "a") as log:
            log.write(json.dumps({"step": STEPS, "probe/r2_latents": r2, "probe/r2_codes": 0.4}))
            log.write("\n")
    assert found_in(folder, baseline) == [("fault", "hidden prediction")]


def test_a_twin_shows_what_the_run_alone_does_not(tmp_path):
    folder = write_run(tmp_path / "run")
    twin = {"codec/latent_variance": lambda t: 0.2, "codec/next_latent_r2": lambda t: 0.3,
            "codec/twin_r2": lambda t: 0.49}  # fmt: skip
    baseline = write_run(tmp_path / "twin", recipe=without_causal(RECIPE), curves=twin)
    assert found_in(folder, baseline) == [
        ("fault", "latent shrinkage"), ("fault", "hidden prediction"),
    ]  # fmt: skip
    alike = write_run(tmp_path / "alike", recipe=without_causal(RECIPE))
    assert found_in(folder, alike) == []


def test_a_longer_twin_is_read_up_to_the_same_step(tmp_path):
    folder = write_run(tmp_path / "run", steps=500)
    late = {"codec/latent_variance": lambda t: 0.09 if t <= 0.5 else 9.0}
    baseline = write_run(tmp_path / "twin", recipe=without_causal(RECIPE), curves=late)
    assert found_in(folder, baseline) == []


def arm_scores(variance, latents, codes):
    names = ("latent_variance", "next_latent_r2", "probe_r2_quantised")
    values = zip(names, (variance, latents, codes), strict=True)
    return {name: {"value": value, "unit": "", "receipt": {}} for name, value in values}


def test_the_arms_of_a_demo_are_looked_at_and_compared_by_their_scores(tmp_path, capsys):
    write_json(tmp_path / "demo.json", {})
    for arm, recipe in (("baseline", without_causal(RECIPE)), ("causal", RECIPE)):
        write_run(tmp_path / arm / "tokenizer", recipe=recipe)
    assert main(["doctor", str(tmp_path)]) == 0
    write_json(tmp_path / "baseline" / "scores.json", arm_scores(0.12, 0.3, 0.26))
    write_json(tmp_path / "causal" / "scores.json", arm_scores(0.09, 0.95, 0.26))
    baseline, causal = diagnose(tmp_path)
    assert baseline.is_healthy
    assert [finding.fault for finding in causal.findings] == ["hidden prediction"]
    assert "rose by 0.65 from latents but by 0.00 from codes" in describe(causal)


def test_a_demo_that_is_under_way_shows_the_arm_it_has(tmp_path):
    write_json(tmp_path / "demo.json", {})
    with pytest.raises(UserError, match="has not begun"):
        diagnose(tmp_path)
    write_run(tmp_path / "baseline" / "tokenizer", recipe=without_causal(RECIPE), steps=500)
    (only,) = diagnose(tmp_path)
    assert only.name.endswith("tokenizer")
    assert only.is_healthy


def test_the_exit_code_and_the_file_say_whether_there_is_a_fault(tmp_path, capsys):
    answers = tmp_path / "answers.json"
    healthy = write_run(tmp_path / "healthy")
    assert main(["doctor", str(healthy), "--json", str(answers)]) == 0
    assert json.loads(answers.read_text())["is_healthy"]
    stalled = write_run(tmp_path / "stalled", curves={"speed/stall_share": lambda t: 0.4})
    assert main(["doctor", str(stalled), "--json", str(answers)]) == 1
    shown = capsys.readouterr().out
    assert "fault: stalled loader" in shown
    assert "40% of the time went in waiting for pictures, with 4 workers" in shown
    (run,) = json.loads(answers.read_text())["runs"]
    assert not run["is_healthy"]
    assert run["findings"][0]["fault"] == "stalled loader"
    assert {vital["verdict"] for vital in run["vitals"]} == {"fine", "fault"}
    watched = write_run(tmp_path / "watched", curves={"speed/stall_share": lambda t: 0.05})
    assert main(["doctor", str(watched)]) == 0


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["{tmp}/nowhere"], "no such file"),
        (["{tmp}/prior"], "holds 'prior'; give the folder that --out named"),
        (["{tmp}/run/model"], "holds a tokenizer's model"),
        (["{tmp}/broken"], "cannot be read"),
        (["{tmp}/run", "--baseline", "{tmp}/run"], "causal.weight of"),
        (["{tmp}/demo", "--baseline", "{tmp}/run"], "a demo has its own baseline"),
    ],
)
def test_what_is_no_run_is_refused_in_one_line(tmp_path, capsys, arguments, said):
    write_run(tmp_path / "run")
    write_json(tmp_path / "run" / "model" / "config.json", {"kind": "tokenizer", "config": {}})
    write_json(tmp_path / "prior" / "config.json", {"kind": "prior", "digest": "0"})
    write_json(tmp_path / "demo" / "demo.json", {})
    (tmp_path / "broken").mkdir()
    (tmp_path / "broken" / "config.json").write_text("{")
    assert main(["doctor", *(argument.format(tmp=tmp_path) for argument in arguments)]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert said in line


# ------------------------------------------------------------------ real trainings, spoilt


def train(folder, pictures, *options):
    """The toy, long enough to be judged, and without what makes so short a run sick."""
    usual = "--loop.steps", "32", "--losses.critic.weight", "0", "--no-equal-compute"
    return main(["train-tokenizer", "causal-toy", "--data", str(pictures), "--device", "cpu",
                 "--out", str(folder), *usual, *options])  # fmt: skip


def test_a_healthy_toy_has_no_fault(small_pictures, tmp_path):
    train(tmp_path / "run", small_pictures, "--causal.weight", "0")
    faults = [found for found in found_in(tmp_path / "run") if found[0] == "fault"]
    assert faults == []
    assert verdicts_of(tmp_path / "run")["latent variance"] == "fine"


def test_of_twenty_steps_it_is_too_early_to_say(small_pictures, tmp_path):
    usual = "--loop.steps", "20", "--losses.critic.weight", "0.5"
    assert train(tmp_path / "run", small_pictures, *usual) == 0
    assert found_in(tmp_path / "run") == []
    assert verdicts_of(tmp_path / "run")["latent variance"] == "too early to say"
    logged = set().union(*read_log(tmp_path / "run"))
    # The names above are those of a training, but for what the toy does without.
    assert set(HEALTHY) - logged <= {"codec/pixel_l1", "codec/perceptual"}


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        (["--model.quantizer.revive-after", "0", "--optim.lr", "0.2"], "codebook collapse"),
        (["--causal.weight", "1000", "--causal.scale", "none", "--model.quantizer.no-normalise"],
         "latent shrinkage"),
        (["--losses.pixel-l2", "1e-13", "--losses.commitment", "0", "--losses.codebook", "0",
          "--causal.weight", "0"], "dead gradient"),
        (["--losses.critic.weight", "100", "--losses.critic.start", "0", "--losses.critic.ramp",
          "0", "--losses.critic.warm", "0"], "critic dominance"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)  # fmt: skip
def test_a_training_that_is_spoilt_on_purpose_is_named(small_pictures, tmp_path, options, expected):
    assert train(tmp_path / "run", small_pictures, *options) == 0
    assert ("fault", expected) in found_in(tmp_path / "run")


def test_a_training_that_blows_up_is_told_by_what_the_sentinel_left(small_pictures, tmp_path):
    wild = "--optim.lr", "1e25", "--optim.warmup-steps", "0", "--optim.clip", "0"
    assert train(tmp_path / "run", small_pictures, *wild) == 2
    both = [("fault", "non-finite stop"), ("fault", "learning rate too high")]
    assert found_in(tmp_path / "run") == both
