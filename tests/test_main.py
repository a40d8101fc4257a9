import errno
import json
import subprocess
import sys
from types import SimpleNamespace

import numpy as np
import pytest
from PIL import Image

from cartok import verbs
from cartok.__main__ import VERBS, main


def test_help_lists_every_verb_and_imports_no_torch():
    code = (
        "import sys; from cartok.__main__ import main; main(['--help']); "
        "assert not {'torch', 'pydantic', 'numpy'} & set(sys.modules), sorted(sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    for verb in VERBS:
        assert f"  {verb.name} " in done.stdout


def test_the_version_is_that_of_the_package(capsys):
    import importlib.metadata

    assert main(["--version"]) == 0
    assert capsys.readouterr().out.strip() == f"cartok {importlib.metadata.version('cartok')}"


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["tran-tokenizer"], "did you mean 'train-tokenizer'?"),
        (["train-tokenizer"], "needs a recipe or --config FILE, but got neither"),
        (["train-tokenizer", "--out", "x", "causal-toy"], "got neither; a recipe comes first"),
        (["train-tokenizer", "causal-61k"], "did you mean 'causal-16k'?"),
        (["train-prior", "775"], "did you mean '775m'?"),
        (["inspect", "nowhere"], "nowhere"),
        (["doctor", "nowhere"], "a tokenizer's run was expected at"),
        (["doctro", "runs"], "did you mean 'doctor'?"),
        (["demo", "--device", "gpu"], "--device"),
        (["inspect", "photos", "--num", "0"], "1 picture or more, but got 0"),
        (["demo", "--resume", "--overwrite"], "give one"),
        (["train-tokenizer", "causal-toy", "--resume", "--overwrite"], "give one"),
        (
            ["train-prior", "toy", "--config", "c.json"],
            "a recipe or --config FILE, but got both toy and c.json",
        ),
        (["train-tokenizer", "--config=c.json", "causal-toy"], "but got both"),
        (
            ["train-tokenizer", "causal-toy", "--model.quantizer", "residul"],
            "--model.quantizer has no kind 'residul'; did you mean 'residual'?",
        ),
    ],
)
def test_a_mistake_is_one_line_and_exit_code_two(arguments, said, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert main(arguments) == 2
    error = capsys.readouterr().err.strip()
    assert said in error
    assert len(error.splitlines()) == 1
    assert not list(tmp_path.iterdir())


def test_a_mistyped_option_is_refused_with_the_nearest_right_one(capsys):
    with pytest.raises(SystemExit, match="2"):
        main(["train-tokenizer", "causal-16k", "--optim.lrr", "1e-4"])
    assert "--optim.lr" in capsys.readouterr().err


def test_a_value_that_breaks_a_rule_is_refused_with_the_rule(capsys):
    with pytest.raises(SystemExit, match="2"):
        main(["train-tokenizer", "causal-16k", "--causal.weight", "-1"])
    assert "must not be negative" in " ".join(capsys.readouterr().err.split())


def test_an_unknown_key_in_a_config_file_names_the_nearest_right_one(tmp_path, capsys):
    path = tmp_path / "config.json"
    path.write_text('{"optim": {"lrr": 1e-4}}')
    assert main(["train-tokenizer", "--config", str(path), "--out", str(tmp_path / "x")]) == 2
    assert "did you mean 'optim.lr'?" in capsys.readouterr().err


@pytest.fixture
def trained(monkeypatch):
    """A function that gives back the config a command line would train."""
    from cartok.lab import stages

    def trained(*arguments):
        found = []
        monkeypatch.setattr(
            stages,
            "run_tokenizer",
            lambda config, launch, progress: (
                found.append(config) or SimpleNamespace(folder=launch.out, is_finished=True)
            ),
        )
        assert main(["train-tokenizer", *arguments, "--device", "cpu"]) == 0
        return found[0]

    return trained


def test_another_quantizer_is_one_option_and_its_fields_are_the_next_ones(trained):
    from cartok.recipes.tokenizer import causal_toy
    from cartok.tokenizer.quantize.fsq import FSQConfig
    from cartok.tokenizer.quantize.kinds import KINDS

    found = trained("causal-toy", "--model.quantizer", "fsq", "--model.quantizer.levels", "8", "5")
    assert found.model.quantizer == FSQConfig(levels=(8, 5))
    assert found.model.codec == causal_toy().model.codec
    assert found.causal == causal_toy().causal
    for kind, (config, _) in KINDS.items():
        if kind != "vq":
            for option in ("--model.quantizer", "--model.quantizer.kind"):
                found = trained("causal-toy", f"{option}={kind}", "--seed", "3")
                assert found.model.quantizer == config()
                assert found.seed == 3


def test_a_quantizer_of_the_recipes_kind_is_the_recipes(trained):
    from cartok.recipes.tokenizer import causal_toy

    assert trained("causal-toy", "--model.quantizer", "vq") == causal_toy()


def test_a_stored_config_of_another_quantizer_loads_again_and_can_change_it(trained, tmp_path):
    from cartok.core.config import dict_of
    from cartok.core.files import write_json
    from cartok.tokenizer.quantize.binary import BSQConfig

    config = trained("causal-toy", "--model.quantizer", "bsq", "--model.quantizer.bits", "9")
    assert config.model.quantizer == BSQConfig(bits=9)
    path = tmp_path / "config.json"
    write_json(path, {"config": dict_of(config), "digest": "0"})
    assert trained("--config", str(path)) == config
    again = trained("--config", str(path), "--model.quantizer.bits", "5")
    assert again.model.quantizer == BSQConfig(bits=5)
    assert trained("--config", str(path), "--model.quantizer", "lfq").model.quantizer.kind == "lfq"


def test_the_help_of_a_quantizer_lists_its_options_and_no_subcommands(capsys):
    for kind, field in (("fsq", "levels"), ("residual", "beam"), ("vq", "revive-after")):
        with pytest.raises(SystemExit, match="0"):
            main(["train-tokenizer", "causal-toy", "--model.quantizer", kind, "--help"])
        shown = capsys.readouterr().out
        assert f"--model.quantizer.{field}" in shown
        assert "subcommands" not in shown


def test_a_mistyped_field_of_a_quantizer_is_refused_with_the_nearest(capsys):
    with pytest.raises(SystemExit, match="2"):
        main(
            ["train-tokenizer", "causal-toy", "--model.quantizer=fsq", "--model.quantizer.levls=5"]
        )
    assert "--model.quantizer.levels" in capsys.readouterr().err


def test_recipes_lists_each_with_one_line(capsys):
    from cartok.recipes.prior import PRIORS
    from cartok.recipes.tokenizer import TOKENIZERS

    assert main(["recipes"]) == 0
    lines = capsys.readouterr().out.splitlines()
    for name, recipe in (TOKENIZERS | PRIORS).items():
        assert sum(line.split()[:1] == [name] and recipe.summary in line for line in lines) == 1


def test_inspect_describes_the_embedded_photographs(capsys, tmp_path):
    sheet = tmp_path / "sheet.png"
    assert main(["inspect", "photos", "--sheet", str(sheet)]) == 0
    assert "coffee" in capsys.readouterr().out
    assert sheet.exists()


def one_line(capsys):
    """The only line of standard error."""
    (line,) = capsys.readouterr().err.splitlines()
    return line


def test_inspect_makes_a_sheet_of_what_is_readable(capsys, tmp_path):
    for seed in range(9):
        noise = np.random.default_rng(seed).integers(0, 256, (32, 32, 3), dtype=np.uint8)
        Image.fromarray(noise).save(tmp_path / f"{seed}.png")
    (tmp_path / "broken.png").write_bytes(b"no picture")
    sheet = tmp_path / "sheets" / "sheet.png"
    assert main(["inspect", str(tmp_path), "--sheet", str(sheet)]) == 0
    assert "1 of 10 files" in capsys.readouterr().out
    with Image.open(sheet) as picture:
        assert picture.size == (8 * 96, 2 * 110)


def test_a_sheet_below_a_file_is_refused_before_anything_is_read(capsys, tmp_path):
    (tmp_path / "file").write_text("")
    assert main(["inspect", "photos", "--sheet", str(tmp_path / "file" / "x.png")]) == 2
    printed = capsys.readouterr()
    assert "is a file; name another" in printed.err
    assert not printed.out


@pytest.mark.parametrize("code", [errno.EACCES, errno.ENOTDIR, errno.EEXIST, errno.ENOSPC])
def test_a_failure_of_the_file_system_is_one_line(code, capsys, monkeypatch):
    def fail(arguments):
        raise OSError(code, "words of the system", "some/file")

    monkeypatch.setattr(verbs, "report", fail)
    assert main(["report", "runs"]) == 2
    line = one_line(capsys)
    assert "words of the system: 'some/file'; check the path" in line


def test_resume_goes_on_with_a_demo(tmp_path, monkeypatch):
    from cartok.core.files import write_json
    from cartok.lab import demo

    calls = []
    monkeypatch.setattr(demo, "run_demo", lambda *arguments: calls.append(arguments))
    config = demo.DemoConfig(seed=3, minutes=0.5)
    write_json(tmp_path / "demo.json", demo.dict_of(config))
    assert main(["resume", str(tmp_path), "--device", "cpu"]) == 0
    ((stored, launch, _),) = calls
    assert stored == config
    assert (launch.out, launch.device, launch.resume, launch.overwrite) == (
        tmp_path, "cpu", True, False
    )  # fmt: skip


@pytest.mark.parametrize(
    "question",
    [["score", "photos", "photos"], ["doctor", "run"], ["guide", "p", "--tokenizer", "t"]],
)
def test_an_answer_never_takes_the_place_of_a_folder(question, capsys, tmp_path, monkeypatch):
    from cartok.lab import diagnosis, guidance, scoring

    begun = []
    monkeypatch.setattr(scoring, "run_score", lambda *a, **k: begun.append(a))
    monkeypatch.setattr(diagnosis, "diagnose", lambda *a: begun.append(a))
    monkeypatch.setattr(guidance, "run_guide", lambda *a: begun.append(a))
    monkeypatch.chdir(tmp_path)
    (tmp_path / "kept.txt").touch()
    for folder in (".", str(tmp_path)):
        assert main([*question, "--json", folder]) == 2
        assert "an answer is written to a file" in one_line(capsys)
    assert not begun  # refused before any work
    assert [path.name for path in tmp_path.iterdir()] == ["kept.txt"]


@pytest.mark.parametrize(
    "arguments",
    [
        ["demo"],
        ["inspect", "photos"],
        ["extract", "--tokenizer", "t", "--out", "o"],
        ["sample", "--prior", "p", "--tokenizer", "t", "--out", "o"],
        ["guide", "p", "--tokenizer", "t"],
        ["doctor", "runs"],
        ["study", "run", "weights"],
        ["report", "runs"],
    ],
    ids=lambda arguments: arguments[0],
)
def test_what_runs_in_one_process_refuses_ranks(arguments, capsys, tmp_path, monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.chdir(tmp_path)
    assert main(arguments) == 2
    assert "runs in one process, but there are 2; start it without torchrun" in one_line(capsys)
    assert not list(tmp_path.iterdir())


@pytest.fixture
def rank(monkeypatch):
    """A function that makes this process one of two; gives back who has left the group."""
    from cartok.core.parallel import World

    def rank(number):
        left = []
        joined = classmethod(lambda cls, device="auto": World(rank=number, size=2))
        monkeypatch.setattr(World, "join", joined)
        monkeypatch.setattr(World, "leave", lambda world: left.append(world.rank))
        return left

    return rank


@pytest.mark.parametrize("number", [0, 1])
def test_the_main_rank_alone_speaks_and_every_rank_leaves(number, rank, capsys, monkeypatch):
    from cartok.lab import stages

    def train(config, launch, progress):
        progress.say("step 1")
        return SimpleNamespace(folder="runs/it", is_finished=True)

    left = rank(number)
    monkeypatch.setattr(stages, "run_tokenizer", train)
    assert main(["train-tokenizer", "causal-toy"]) == 0
    printed = capsys.readouterr()
    assert (printed.out, printed.err) == (("runs/it\n", "step 1\n") if number == 0 else ("", ""))
    assert left == [number]


def test_a_training_that_was_asked_to_stop_is_told_from_one_that_has_ended(monkeypatch, capsys):
    """By its exit code, so that a script does not go on with it."""
    from cartok.lab import stages

    stopped = SimpleNamespace(folder="runs/it", is_finished=False)
    monkeypatch.setattr(stages, "run_tokenizer", lambda *_: stopped)
    assert main(["train-tokenizer", "causal-toy"]) == 130
    assert capsys.readouterr().out == "runs/it\n"


def test_a_rank_leaves_when_its_training_fails(rank, capsys, tmp_path):
    left = rank(1)
    assert main(["resume", str(tmp_path / "nowhere")]) == 2
    assert "no such file" in one_line(capsys)
    assert left == [1]


def test_a_demo_is_not_resumed_on_ranks(rank, capsys, tmp_path):
    rank(0)
    (tmp_path / "demo.json").write_text("{}")
    assert main(["resume", str(tmp_path)]) == 2
    assert "resume without torchrun" in one_line(capsys)


def test_the_verb_of_studies_names_both_its_forms_and_options_of_jobs_need_jobs(capsys):
    assert main(["study", "--help"]) == 0
    shown = capsys.readouterr().out
    assert "cartok study run NAME" in shown
    assert "cartok study grid" in shown
    assert main(["study", "run", "demo", "--with", "timeout_min=3"]) == 2
    assert "give --on slurm or --on ray" in one_line(capsys)


def test_an_interrupted_study_says_what_is_recorded_and_how_it_goes_on(
    capsys, tmp_path, monkeypatch
):
    from cartok.lab import study

    def stopped(*arguments):
        raise SystemExit(130)

    monkeypatch.setattr(study, "run_study", stopped)
    assert main(["study", "run", "demo", "--out", str(tmp_path / "new")]) == 130
    assert one_line(capsys).endswith("no run is recorded, and the same command goes on")
    runs = [
        {"arm": "one", "seed": seed, "digest": str(seed), "status": status, "scores": {}}
        for seed, status in enumerate(("finished", "waiting"))
    ]
    (tmp_path / "study.json").write_text(json.dumps({"name": "demo", "config": {}, "runs": runs}))
    assert main(["study", "run", "demo", "--out", str(tmp_path)]) == 130
    assert "1 of 2 runs are recorded" in one_line(capsys)
