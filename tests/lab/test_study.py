import importlib.util
import math
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from cartok.__main__ import main
from cartok.core.config import ConfigError
from cartok.core.errors import UserError
from cartok.core.files import write_json
from cartok.core.parallel import World
from cartok.core.progress import Progress
from cartok.data.images import open_splits
from cartok.lab import study as study_module
from cartok.lab import study_work
from cartok.lab.arm import once
from cartok.lab.inputs import ArmInputs
from cartok.lab.plan import cost_of, job_of, plan_of
from cartok.lab.records import StudyRun, new_record, records_of, runs_of, twins_of
from cartok.lab.study import StudyLaunch, in_turn, run_study
from cartok.recipes import Recipe, recipe_of
from cartok.recipes import study as recipes_module
from cartok.recipes.arms import StudyArm, adapted
from cartok.recipes.prior import toy
from cartok.recipes.study import STUDIES
from cartok.recipes.tokenizer import baseline_toy
from cartok.recipes.yardstick import Yardstick
from cartok.scaling.study_file import read_study

_TOYS = Path(__file__).with_name("study_toys.py")
_SPEC = importlib.util.spec_from_file_location(_TOYS.stem, _TOYS)
toys = importlib.util.module_from_spec(_SPEC)
_SPEC.loader.exec_module(toys)

FEW, go, score, small_study = toys.FEW, toys.go, toys.score, toys.small_study


# ------------------------------------------------------------------ the engine


def test_scores_of_a_stage_are_measured_once_unless_one_is_not_a_number(tmp_path):
    measured = []

    def measure(value):
        measured.append(value)
        return {"gfd": score(value)}

    path = tmp_path / "arm" / "2x64-scores.json"
    assert math.isnan(once(path, lambda: measure(math.nan))["gfd"]["value"])
    for _ in range(2):
        assert once(path, lambda: measure(3.5)) == {"gfd": score(3.5)}
    assert measured[1:] == [3.5]


@pytest.mark.parametrize(("gpus", "seen"), [([], [None] * 3), ([0, 1], [0, 1, 0])])
def test_runs_are_dealt_out_to_processes_and_those_to_gpus(gpus, seen, tmp_path, monkeypatch):
    dealt = []
    monkeypatch.setattr(study_module, "run_together", lambda tasks, _: dealt.extend(tasks.values()))
    study = small_study(0, 1, 2, 3, 4)
    inputs = object.__new__(ArmInputs)
    study_module._run_all(study, runs_of(study), tmp_path, inputs, gpus, 3, Progress())
    assert [task[1][0] for task in dealt] == seen
    assert all(len(task[1][3]) == 5 for task in dealt)  # any process may take up any run


@given(st.lists(st.tuples(st.integers(0, 2), st.integers(1, 40)), min_size=1, max_size=12))
def test_one_seed_comes_after_the_other_and_of_each_the_longest_run_first(drawn):
    runs = [_lasting(seed, steps) for seed, steps in drawn]
    order = [
        (group[0].seed, -group[0].priors[0].loop.steps) for group in in_turn([[r] for r in runs])
    ]
    assert order == sorted((seed, -steps) for seed, steps in drawn)


def test_of_equal_steps_more_tokens_and_more_layers_come_first():
    run = _lasting(0, 20)
    deep = replace(toy(), transformer=replace(toy().transformer, depth=3))
    groups = [[run], [replace(run, pixels=24)], [replace(run, priors=(deep,))]]
    assert in_turn(groups) == [groups[1], groups[2], groups[0]]


def _lasting(seed: int, steps: int) -> StudyRun:
    prior = replace(toy(), loop=replace(toy().loop, steps=steps))
    return replace(runs_of(small_study(0))[0], seed=seed, priors=(prior,))


def test_a_grid_has_a_run_and_a_record_for_every_prior_and_grows_by_them(tmp_path, trainings):
    short, long = (replace(toy(), loop=replace(toy().loop, steps=steps)) for steps in (5, 20))
    found = go(small_study(0, 1, apart=True, priors=(short, long)), tmp_path)
    names = ["lambda-0@2x32-5", "lambda-0@2x32-20", "lambda-1@2x32-5", "lambda-1@2x32-20"]
    assert [run["arm"] for run in found["runs"]] == names
    assert trainings == [f"{names[i]}-s0" for i in (1, 3, 0, 2)]  # the longest first
    longer = replace(toy(), loop=replace(toy().loop, steps=40))
    grown = small_study(0, 1, apart=True, priors=(short, long, longer))
    go(grown, tmp_path)
    small = runs_of(small_study(0, 1, apart=True, priors=(short,)))
    for part in ("tokenizer", "tokens"):
        before, after = ({run.shared(tmp_path)[part] for run in some} for some in (
            small, runs_of(grown)))  # fmt: skip
        assert before == after
    assert trainings[4:] == ["lambda-0@2x32-40-s0", "lambda-1@2x32-40-s0"]


@pytest.mark.parametrize(("steps", "most"), [(5, 12_000), (2_000, 16_000)])
def test_a_grid_takes_the_tokens_of_all_pictures_and_another_study_of_those_it_shows(
    steps, most, monkeypatch
):
    """A law needs one validation set for all lengths, those that are added later too."""
    asked = []

    def noted(inputs, most_tokenised):
        asked.append(most_tokenised)
        return inputs

    shared = object.__new__(ArmInputs)
    object.__setattr__(shared, "most_tokenised", 12_000)
    splits = {"train": [], "val": []}
    monkeypatch.setattr(study_module, "arm_inputs", lambda *given, **sizes: shared)
    monkeypatch.setattr(study_module, "open_splits", lambda *source, size: splits)
    monkeypatch.setattr(study_module, "replace", noted)
    prior = replace(toy(), loop=replace(toy().loop, steps=steps, batch=8))
    for apart in (False, True):
        study_module._inputs(small_study(0, apart=apart, priors=(prior,)), World(), "cpu")
    assert asked == [most, 0]


def test_runs_of_one_tokenizer_share_its_folder_and_nothing_else(tmp_path):
    short, long = (replace(toy(), loop=replace(toy().loop, steps=steps)) for steps in (5, 20))
    study = small_study(0, 1, apart=True, seeds=2, priors=(short, long))
    first = study.arms[0]
    wide = StudyArm(name="wide", tokenizer=first.tokenizer, pixels=32)
    runs = runs_of(replace(study, arms=(*study.arms, wide)))
    assert len({run.folder(tmp_path) for run in runs}) == len(runs) == 12
    by_tokenizer = {}
    for run in runs:
        places = run.shared(tmp_path)
        by_tokenizer.setdefault(places["tokenizer"], set()).add(places["tokens"])
    assert sorted(len(tokens) for tokens in by_tokenizer.values()) == [1, 1, 2, 2]


def test_a_tokenizer_that_fails_is_trained_once_and_fails_all_that_is_made_from_it(
    tmp_path, trainings, monkeypatch
):
    tried = []

    def broken(arm, recipe):
        tried.append(arm.name)
        raise UserError("a loss is not finite")

    monkeypatch.setattr(study_work, "run_stage_one", broken)
    short, long = (replace(toy(), loop=replace(toy().loop, steps=steps)) for steps in (5, 20))
    study = small_study(0, apart=True, priors=(short, long))
    found = go(study, tmp_path)
    assert tried == ["lambda-0-s0"]
    reasons = [run["reason"] for run in found["runs"]]
    assert reasons == ["its tokenizer failed: a loss is not finite"] * 2
    assert trainings == []
    first, second = runs_of(study)
    write_json(first.folder(tmp_path) / "arm.json", new_record(first, "finished", scores={}))
    go(study, tmp_path, retry=True)  # one is left, and shares its tokenizer with no other
    assert trainings == [second.title]


def test_every_arm_runs_with_every_seed_and_is_told_in_the_order_given(tmp_path, trainings):
    found = go(small_study(4, 0, 1, seeds=2), tmp_path)
    names = ["lambda-4", "lambda-0", "lambda-1"]
    assert trainings == [f"{name}-s{seed}" for seed in (0, 1) for name in names]
    assert [arm["name"] for arm in found["arms"]] == names
    assert [arm["finished"] for arm in found["arms"]] == [2, 2, 2]
    assert [arm["scores"]["gfd"]["value"] for arm in found["arms"]] == [4.5, 0.5, 1.5]
    assert all((tmp_path / run["folder"] / "arm.json").exists() for run in found["runs"])


def test_what_is_recorded_is_not_run_again_and_more_seeds_or_arms_are_added(tmp_path, trainings):
    go(small_study(0, 1), tmp_path)
    before = (tmp_path / "study.json").read_bytes()
    go(small_study(0, 1), tmp_path)
    assert (tmp_path / "study.json").read_bytes() == before
    go(small_study(0, 1, 2, seeds=2), tmp_path)
    assert trainings[2:] == ["lambda-2-s0", "lambda-0-s1", "lambda-1-s1", "lambda-2-s1"]


@pytest.mark.parametrize(
    "changed",
    [
        {"yardstick": replace(FEW, samples=600)},
        {"yardstick": replace(FEW, guidances=(1.0, 2.0))},
        {"priors": (replace(toy(), class_dropout=0.2),)},
    ],
    ids=["samples", "guidances", "priors"],
)
def test_a_run_that_would_end_otherwise_is_another_run(changed, tmp_path, trainings):
    go(small_study(0), tmp_path)
    go(small_study(0, **changed), tmp_path)
    assert trainings == ["lambda-0-s0"] * 2
    assert len(list((tmp_path / "arms").iterdir())) == 2


def test_a_study_that_was_killed_goes_on_with_the_same_command(tmp_path, trainings):
    study = small_study(0, 15, 1)
    with pytest.raises(KeyboardInterrupt):
        go(study, tmp_path)
    assert trainings == ["lambda-0-s0", "lambda-15-s0"]
    found = go(study, tmp_path)
    assert trainings[2:] == ["lambda-15-s0", "lambda-1-s0"]
    assert [run["status"] for run in found["runs"]] == ["finished"] * 3


def test_an_arm_that_fails_is_recorded_with_its_reason_and_the_others_go_on(tmp_path, trainings):
    found = go(small_study(13, 14, 1), tmp_path)
    assert [run["status"] for run in found["runs"]] == ["failed", "failed", "finished"]
    reasons = [arm["failures"] for arm in found["arms"]]
    assert reasons == [
        ["a loss is not finite; lower the rate"], ["RuntimeError: shapes differ"], [],
    ]  # fmt: skip
    traces = [(tmp_path / run["folder"] / "traceback.txt").exists() for run in found["runs"]]
    assert traces == [False, True, False]


def test_a_process_whose_device_is_dead_ends_and_fails_none_of_what_waits(
    tmp_path, trainings, monkeypatch
):
    study = small_study(0, 14, 1, 2)
    with monkeypatch.context() as patch:
        patch.setattr(study_work, "computes", lambda device: False)
        with pytest.raises(UserError, match=r"lambda-14-s0 ended .* the same command goes on") as e:
            go(study, tmp_path)
    assert "RuntimeError: shapes differ" in str(e.value)
    found = [record["status"] for record in records_of(runs_of(study), tmp_path)]
    assert found == ["finished", "waiting", "waiting", "waiting"]
    found = go(study, tmp_path)
    assert [run["status"] for run in found["runs"]] == [
        "finished", "failed", "finished", "finished",
    ]  # fmt: skip
    assert trainings.count("lambda-0-s0") == 1


def test_tokenizers_that_a_dead_device_leaves_unmade_have_not_failed(
    tmp_path, trainings, monkeypatch
):
    def broken(arm, recipe):
        raise RuntimeError("CUDA error: an illegal memory access was encountered")

    short, long = (replace(toy(), loop=replace(toy().loop, steps=steps)) for steps in (5, 20))
    study = small_study(0, 1, apart=True, priors=(short, long))
    with monkeypatch.context() as patch:
        patch.setattr(study_work, "run_stage_one", broken)
        patch.setattr(study_work, "computes", lambda device: False)
        with pytest.raises(UserError, match="an illegal memory access"):
            go(study, tmp_path)
    assert not list(tmp_path.rglob(study_work.FAILED))
    assert [run["status"] for run in go(study, tmp_path)["runs"]] == ["finished"] * 4


@pytest.mark.parametrize(
    ("error", "alive"),
    [
        (None, True),
        (torch.OutOfMemoryError("CUDA out of memory"), True),
        (RuntimeError("CUDA error: device-side assert triggered"), False),
    ],
)
def test_a_device_is_dead_if_it_cannot_add_up_unless_its_memory_is_full(error, alive, monkeypatch):
    def ones(*shape, device):
        raise error

    if error:
        monkeypatch.setattr(torch, "ones", ones)
    assert study_work.computes("cpu") is alive


def test_a_failure_is_run_again_only_when_asked(tmp_path, trainings):
    study = small_study(13, 1)
    go(study, tmp_path)
    go(study, tmp_path)
    assert trainings == ["lambda-13-s0", "lambda-1-s0"]
    go(study, tmp_path, retry=True)
    assert trainings[2:] == ["lambda-13-s0"]


def test_a_folder_of_something_else_is_left_alone(tmp_path, trainings):
    (tmp_path / "thesis.tex").write_text("years of work")
    (tmp_path / "arms" / "coats-s2-of-france").mkdir(parents=True)
    with pytest.raises(UserError, match="holds files but no study"):
        go(small_study(0), tmp_path)
    with pytest.raises(UserError, match="is a file"):
        go(small_study(0), tmp_path / "thesis.tex")
    go(small_study(0), tmp_path / "new")
    with pytest.raises(UserError, match="holds the study 'small', not 'other'"):
        go(replace(small_study(0), name="other"), tmp_path / "new")
    assert trainings == ["lambda-0-s0"]


def test_a_twin_differs_in_the_regulariser_alone(trainings):
    study = small_study(4, 0, 1)
    wide = replace(baseline_toy(), seed=0, loop=replace(baseline_toy().loop, steps=3))
    study = replace(study, arms=(*study.arms, StudyArm(name="short", tokenizer=wide)))
    assert twins_of(study) == {"lambda-4": "lambda-0", "lambda-1": "lambda-0"}


@pytest.mark.parametrize("name", STUDIES)
def test_every_regularised_arm_of_a_study_has_a_twin(name):
    study = recipe_of(STUDIES, name)
    twins = {name.partition("@")[0] for name in twins_of(study)}
    assert twins == {a.name for a in study.arms if a.tokenizer.causal.weight}


# ------------------------------------------------------------------ the verb


@pytest.fixture
def verb(monkeypatch, small_pictures, tmp_path):
    """A function that starts ``cartok study run`` on toy arms, and gives its exit code."""
    table = {
        "small": Recipe("small", lambda: small_study(0, 1)),
        "seeded": Recipe("seeded", lambda: small_study(0, seeds=2)),
        "half": Recipe("half", lambda: small_study(13, 1)),
        "failing": Recipe("failing", lambda: small_study(13, 14)),
    }
    monkeypatch.setattr(recipes_module, "STUDIES", table)
    fixed = ["--data", str(small_pictures), "--out", str(tmp_path / "out"), "--device", "cpu",
             "--at-once", "1"]  # fmt: skip
    return lambda *arguments: main(["study", "run", *arguments, *fixed])


def test_the_verb_prints_tables_and_the_file_they_come_from(verb, tmp_path, trainings, capsys):
    assert verb("small", "--seeds", "2", "--scale", "0.5") == 0
    printed = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in printed[:3]] == ["arm", "lambda-0", "lambda-1"]
    assert printed[-2:] == [
        str(tmp_path / "out" / "study.json"), f"its page: cartok report {tmp_path / 'out'}",
    ]  # fmt: skip
    found = read_study(tmp_path / "out" / "study.json")
    assert len(found["runs"]) == len(trainings) == 4
    assert found["config"]["arms"][0]["tokenizer"]["loop"]["steps"] == 10


@pytest.mark.parametrize(("name", "code"), [("half", 0), ("failing", 1)])
def test_the_exit_code_is_1_if_nothing_has_finished(name, code, verb, trainings, capsys):
    assert verb(name) == code
    assert "failed: a loss is not finite" in capsys.readouterr().out
    assert verb(name) == code  # recorded, and not run again
    assert len(trainings) == 2


def test_a_dry_run_refuses_what_a_run_would(verb, tmp_path, capsys):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "letter.txt").write_text("to a friend")
    assert verb("small", "--dry-run") == 2
    assert "holds files but no study" in capsys.readouterr().err


def test_without_a_number_of_seeds_a_study_has_its_own(verb, trainings):
    assert verb("seeded") == 0
    assert trainings == ["lambda-0-s0", "lambda-0-s1"]


def test_a_dry_run_trains_and_writes_nothing(verb, tmp_path, trainings, capsys):
    assert verb("small", "--dry-run") == 0
    assert "lambda-1-s0" in capsys.readouterr().out
    assert trainings == []
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["smal"], "did you mean 'small'?"),
        (["small", "--scale", "0"], "above 0, but is 0"),
        (["small", "--seeds", "0"], "seeds are 1 or more, but are 0"),
        (["small", "--arms", "lambda-2"], "has no arm 'lambda-2'; did you mean 'lambda-"),
    ],
)
def test_a_mistake_is_one_line(arguments, said, verb, trainings, capsys):
    assert verb(*arguments) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert said in line
    assert trainings == []


def test_a_number_of_arms_at_once_is_not_negative():
    with pytest.raises(ConfigError, match="at_once must not be negative"):
        StudyLaunch(out=Path("x"), at_once=-1)


# ------------------------------------------------------------------ for real


def test_the_plan_says_what_waits_and_what_it_costs(small_pictures, tmp_path, trainings):
    both, one = (adapted(small_study(*some), data=str(small_pictures)) for some in ((0, 1), (0,)))
    go(one, tmp_path)
    lines = plan_of(both, tmp_path).splitlines()
    _, first, second, total, left = (line.split() for line in lines)
    assert first[:3] == ["lambda-0-s0", "finished", "20"]
    assert second[:2] == ["lambda-1-s0", "waiting"]
    assert int(second[2]) < 20
    assert (total[:3], int(total[3])) == (["all", "2", "runs"], 20 + int(second[2]))
    assert left[:5] == ["1", "to", "be", "run", second[2]]
    assert trainings == ["lambda-0-s0"]


def test_the_plan_of_a_claim_has_every_seed_though_none_is_0(small_pictures, tmp_path):
    study = replace(small_study(0, 1), seeds=2, first_seed=5)
    lines = plan_of(adapted(study, data=str(small_pictures)), tmp_path).splitlines()
    titles = [line.split()[0] for line in lines[1:-2]]
    assert titles == ["lambda-0-s5", "lambda-1-s5", "lambda-0-s6", "lambda-1-s6"]


@pytest.mark.slow
@pytest.mark.usefixtures("coarse_look")
def test_more_pixels_give_more_tokens_of_one_tokenizer_and_scores_of_one_size(
    few_pictures, tmp_path, monkeypatch
):
    least = Yardstick(samples=512, reference=512, held=512)
    study = adapted(small_study(0, apart=True, yardstick=least), data=str(few_pictures))
    first = study.arms[0]
    study = replace(
        study, arms=(first, StudyArm(name="wide", tokenizer=first.tokenizer, pixels=24))
    )
    inputs = study_module._inputs(study, World(), "cpu")
    inputs = replace(inputs, probe=replace(inputs.probe, steps=3))
    assert inputs.seen_at(24).held_image.shape[-1] == 24
    monkeypatch.setattr(study_module, "_inputs", lambda *arguments: inputs)
    found = go(study, tmp_path)
    assert [run["reason"] for run in found["runs"]] == ["", ""]
    few, many = (run["scores"] for run in found["runs"])
    tokens = [s["prior_flops"]["receipt"]["tokens_per_picture"] for s in (few, many)]
    assert tokens[1] == tokens[0] * 24**2 // 16**2
    assert few["tokenizer_steps"] == many["tokenizer_steps"]
    assert [s["gfd"]["receipt"]["picture_size"] for s in (few, many)] == [[16, 16]] * 2
    assert few["gfd"]["receipt"]["reference"] == many["gfd"]["receipt"]["reference"]
    assert few["rfd"]["value"] != many["rfd"]["value"]
    assert len(list(tmp_path.glob("tokenizers/*/tokenizer/record.json"))) == 1
    pictures = open_splits(few_pictures, size=16)["train"]
    for run, scores in zip(runs_of(study), (few, many), strict=True):
        assert cost_of(run, job_of(run, pictures)).prior_flops == scores["prior_flops"]["value"]
    paper = [s["prior_flops"]["receipt"]["paper_flops"] for s in (few, many)]
    assert paper[1] == pytest.approx(paper[0] * tokens[1] / tokens[0])
    for scores, number in zip((few, many), tokens, strict=True):
        bits = scores["prior_bits_per_image"]
        nats = bits["receipt"]["per_position"]
        assert len(nats) == math.prod(bits["receipt"]["grid"]) == number
        assert sum(nats) / math.log(2) == pytest.approx(bits["value"], abs=1e-4 * number)
        entropy = scores["unigram_bits"]["value"]
        assert 0 < scores["position_bits"]["value"] <= entropy
        skew = 1 - 2 ** (scores["position_bits"]["value"] - entropy)
        assert scores["code_skew"]["value"] == pytest.approx(skew)
        assert scores["bits_given_left"]["value"] > 0
        assert scores["code_skew"]["receipt"]["maps"]["grid"] == bits["receipt"]["grid"]
        assert 0 < scores["embedding_plane"]["value"] <= 1


@pytest.mark.slow
def test_a_study_from_pictures_to_scores_interrupted_and_with_a_failing_arm(
    few_pictures, tmp_path, monkeypatch
):
    least = Yardstick(samples=512, reference=512, held=512)
    study = adapted(small_study(0, 1, yardstick=least), data=str(few_pictures))
    wild = replace(study.arms[1].tokenizer.optim, lr=1e30)
    broken = replace(study.arms[1].tokenizer, optim=wild)
    study = replace(study, arms=(*study.arms, StudyArm(name="broken", tokenizer=broken)))

    def interrupted(arm, recipe, part):
        raise KeyboardInterrupt

    inputs = study_module._inputs(study, World(), "cpu")
    inputs = replace(inputs, probe=replace(inputs.probe, steps=3))
    monkeypatch.setattr(study_module, "_inputs", lambda *arguments: inputs)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(study_work, "run_stage_two", interrupted)
        with pytest.raises(KeyboardInterrupt):
            go(study, tmp_path)
    first = runs_of(study)[0]
    record = first.shared(tmp_path)["tokenizer"] / "record.json"
    before = record.read_bytes()

    means = run_study(study, StudyLaunch(out=tmp_path, device="cpu", at_once=2), Progress())
    assert record.read_bytes() == before
    found = read_study(tmp_path / "study.json")
    assert [run["status"] for run in found["runs"]] == ["finished", "finished", "failed"]
    assert "not finite at step" in found["runs"][2]["reason"]
    pictures = open_splits(few_pictures, size=16)["train"]
    for run, arm in zip(runs_of(study)[:2], means, strict=False):
        cost = cost_of(run, job_of(run, pictures))
        assert arm.scores["tokenizer_steps"]["value"] == cost.steps
        assert arm.scores["tokenizer_flops"]["value"] == cost.tokenizer_flops
        assert arm.scores["prior_flops"]["value"] == cost.prior_flops
        assert not [key for key in arm.scores if "/" in key]  # of one prior nothing is said twice
        assert arm.scores["loss_commitment"]["value"] > 0
        for key in ("rfd", "gfd", "prior_nats_per_token", "prior_bits_per_image", "code_usage",
                    "code_perplexity", "next_latent_r2", "probe_r2_quantised", "next_latent_mse",
                    "commitment_mse", "floor", "seconds"):  # fmt: skip
            assert key in arm.scores
