import subprocess
import sys

import pytest

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
        (["train-tokenizer"], "needs a recipe or --config FILE"),
        (["train-tokenizer", "causal-61k"], "did you mean 'causal-16k'?"),
        (["train-prior", "775"], "did you mean '775m'?"),
        (["inspect", "nowhere"], "nowhere"),
        (["demo", "--device", "gpu"], "--device"),
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
