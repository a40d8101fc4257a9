"""Pictures to a tokenizer, to tokens, to a prior, to pictures, to scores, through the verbs."""

import json
import shutil

import numpy as np
import pytest
import torch
from PIL import Image

from cartok import Prior, Sampler, Tokenizer
from cartok.__main__ import main
from cartok.core.shapes import pixels_of
from cartok.data.tokens import open_tokens
from cartok.lab import stages


@pytest.fixture(scope="module")
def story(tmp_path_factory, small_pictures):
    folder = tmp_path_factory.mktemp("story")
    done = [
        main(["train-tokenizer", "causal-toy", "--data", str(small_pictures), "--device", "cpu",
              "--out", str(folder / "tokenizer")]),
        main(["extract", "--tokenizer", str(folder / "tokenizer"), "--device", "cpu",
              "--out", str(folder / "tokens")]),
        main(["train-prior", "toy", "--tokens", str(folder / "tokens"), "--device", "cpu",
              "--out", str(folder / "prior")]),
        main(["sample", "--prior", str(folder / "prior"), "--tokenizer", str(folder / "tokenizer"),
              "--num", "12", "--guidance", "1.5", "--device", "cpu",
              "--out", str(folder / "samples")]),
        main(["report", str(folder)]),
    ]  # fmt: skip
    assert done == [0, 0, 0, 0, 0]
    return folder


def record_of(run):
    return json.loads((run / "record.json").read_text())


def test_every_run_folder_holds_what_the_architecture_promises(story):
    for run in (story / "tokenizer", story / "prior"):
        names = {path.name for path in run.iterdir()}
        assert {"config.json", "log.jsonl", "record.json", "checkpoints", "model"} <= names
        assert {path.name for path in (run / "model").iterdir()} == {
            "config.json", "model.safetensors",
        }  # fmt: skip


def test_the_record_says_what_was_done_and_what_it_cost(story):
    record = record_of(story / "tokenizer")
    assert record["steps"] < record["config"]["loop"]["steps"] == 20
    assert record["samples"] == record["steps"] * 8
    assert record["flops"] > 0
    assert record["provenance"]["torch"] == torch.__version__
    assert record["scores"]["reconstruction/psnr_db"]["unit"] == "dB"
    record = record_of(story / "prior")
    assert len(record["nats_per_position"]) == 16
    for number in range(1, 9):
        name = f"validation/nats_in_stretch_{number}"
        assert record["scores"][name]["unit"] == "nats/token"
        assert [step for step, _ in record["curves"][name]] == [10, 20]


def test_the_log_has_what_shows_whether_the_regulariser_is_gamed(story):
    line = json.loads((story / "tokenizer" / "log.jsonl").read_text().splitlines()[0])
    for name in ("next_latent_mse", "next_latent_r2", "latent_variance", "commitment",
                 "batch_usage", "batch_perplexity"):  # fmt: skip
        assert f"codec/{name}" in line


def test_the_classes_are_those_of_the_folders_all_the_way(story):
    assert Prior.from_pretrained(story / "prior").classes == ["blue", "green", "red"]
    assert len(list((story / "samples" / "pictures").glob("*/*.png"))) == 12
    assert {path.name for path in (story / "samples" / "pictures").iterdir()} == {
        "blue", "green", "red",
    }  # fmt: skip
    with Image.open(story / "samples" / "grid.png") as grid:
        assert grid.mode == "RGB"


def test_python_draws_the_pictures_that_the_command_line_wrote(story):
    tokenizer = Tokenizer.from_pretrained(story / "tokenizer")
    sampler = Sampler(Prior.from_pretrained(story / "prior"), tokenizer)
    image = sampler.sample([0, 1, 2], seed=0, guidance=1.5)
    assert image.shape == (3, 3, 16, 16)
    assert float(image.abs().max()) <= 1
    with Image.open(story / "samples" / "pictures" / "blue" / "000000.png") as picture:
        written = np.asarray(picture).astype(int)
    ours = pixels_of(image)[0].permute(1, 2, 0).numpy().astype(int)
    assert abs(ours - written).max() <= 1


def test_a_page_shows_both_runs(story):
    page = (story / "report.html").read_text()
    assert "tokenizer" in page
    assert "prior" in page


def test_a_finished_run_is_left_alone_on_resume(story):
    before = (story / "tokenizer" / "record.json").read_bytes()
    assert main(["resume", str(story / "tokenizer"), "--device", "cpu"]) == 0
    assert (story / "tokenizer" / "record.json").read_bytes() == before


def test_the_config_of_a_run_repeats_it_exactly(story, tmp_path):
    config = str(story / "tokenizer" / "config.json")
    again = tmp_path / "again"
    assert (
        main(["train-tokenizer", "--config", config, "--device", "cpu", "--out", str(again)]) == 0
    )
    model = "model/model.safetensors"
    assert (again / model).read_bytes() == (story / "tokenizer" / model).read_bytes()


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["train-tokenizer", "causal-toy"], "give --resume to go on"),
        (["train-prior", "toy", "--tokens", "{story}/prior"], "manifest.json"),
        (["extract", "--tokenizer", "{story}/prior"], "should hold a tokenizer"),
        (["sample", "--prior", "{story}/prior", "--tokenizer", "{story}/tokenizer",
          "--labels", "purple"], "a label is a class"),
        (["sample", "--prior", "{story}/tokenizer", "--tokenizer", "{story}/tokenizer"],
         "should hold a prior"),
        (["sample", "--prior", "{story}/prior", "--tokenizer", "{story}/tokenizer",
          "--from", "{story}/nowhere.png"], "cannot be read as a picture"),
        (["sample", "--prior", "{story}/prior", "--tokenizer", "{story}/tokenizer",
          "--from", "{story}/record.json", "--keep", "topp"], "did you mean 'top'"),
        (["resume", "{story}/tokens"], "config"),
        (["report", "{story}/tokens"], "record.json"),
        (["score", "{story}/samples/pictures", "{story}/samples/pictures"], "512 pictures"),
    ],
)  # fmt: skip
def test_a_mistake_is_one_line_that_says_what_to_do(story, tmp_path, capsys, arguments, said):
    arguments = [argument.format(story=story) for argument in arguments]
    if arguments[0] not in ("resume", "report", "score"):
        arguments += ["--device", "cpu"]
        out = tmp_path / "new" if arguments[0] != "train-tokenizer" else story / "tokenizer"
        arguments += ["--out", str(out)]
    assert main(arguments) == 2
    *progress, error = capsys.readouterr().err.strip().splitlines()
    assert said in error
    assert not progress or arguments[0] == "score"  # which counts pictures as it reads them
    assert not any(line.startswith("cartok: ") for line in progress)
    assert not (tmp_path / "new").exists()


def test_tokens_of_another_tokenizer_are_refused(story, small_pictures, tmp_path, capsys):
    other = str(tmp_path / "other")
    main(["train-tokenizer", "baseline-toy", "--data", str(small_pictures), "--device", "cpu",
          "--loop.steps", "2", "--out", other])  # fmt: skip
    code = main(["sample", "--prior", str(story / "prior"), "--tokenizer", other,
                 "--device", "cpu", "--out", str(tmp_path / "none")])  # fmt: skip
    assert code == 2
    assert "made by another tokenizer" in capsys.readouterr().err


def test_overwriting_tokens_never_touches_files_that_are_none(story, tmp_path, capsys):
    out = tmp_path / "mine"
    out.mkdir()
    (out / "model.safetensors").write_bytes(b"weeks of work")
    code = main(["extract", "--tokenizer", str(story / "tokenizer"), "--device", "cpu",
                 "--overwrite", "--out", str(out)])  # fmt: skip
    assert code == 2
    assert "holds other files" in capsys.readouterr().err
    assert (out / "model.safetensors").read_bytes() == b"weeks of work"


def test_overwritten_samples_leave_none_of_the_old_ones(story, tmp_path):
    out = tmp_path / "samples"
    for num, extra in (("9", []), ("4", ["--overwrite"])):
        code = main(["sample", "--prior", str(story / "prior"), "--device", "cpu", "--num", num,
                     "--tokenizer", str(story / "tokenizer"), "--batch", "3", "--out", str(out),
                     *extra])  # fmt: skip
        assert code == 0
        assert len(list((out / "pictures").glob("*/*.png"))) == int(num)


def test_a_part_of_a_picture_stays_in_all_samples(story, tmp_path):
    picture = next((story / "samples/pictures").rglob("*.png"))

    def edited(name, share):
        out = tmp_path / name
        code = main(["sample", "--prior", str(story / "prior"), "--device", "cpu", "--num", "5",
                     "--tokenizer", str(story / "tokenizer"), "--batch", "2", "--out", str(out),
                     "--from", str(picture), "--keep-share", share])  # fmt: skip
        assert code == 0
        files = sorted((out / "pictures").glob("*/*.png"), key=lambda path: path.name)
        return torch.stack([torch.from_numpy(np.array(Image.open(path))) for path in files]).int()

    whole, half = edited("whole", "1"), edited("half", "0.5")
    assert (whole == whole[0]).all()
    assert len({tuple(row.flatten().tolist()) for row in half}) > 1
    assert json.loads((tmp_path / "half/samples.json").read_text())["edit"]["keep"] == "top"
    assert (tmp_path / "half/kept.png").exists()


def test_classes_are_mixed_by_a_plus(story, tmp_path):
    first, second, *_ = Prior.from_pretrained(story / "prior").classes
    code = main(["sample", "--prior", str(story / "prior"), "--device", "cpu", "--num", "4",
                 "--tokenizer", str(story / "tokenizer"), "--out", str(tmp_path / "mixed"),
                 "--first-index", "6", "--labels", f"{first}+{second}", first])  # fmt: skip
    assert code == 0
    found = {path.name for path in (tmp_path / "mixed/pictures").iterdir()}
    assert (tmp_path / "mixed/pictures" / first / "000009.png").exists()
    assert found == {f"{first}+{second}", first}


def test_a_recipe_that_names_no_pictures_asks_for_them(tmp_path, capsys):
    out = str(tmp_path / "new")
    assert main(["train-tokenizer", "causal-16k", "--device", "cpu", "--out", out]) == 2
    assert "give --data" in capsys.readouterr().err


def test_what_a_training_refuses_leaves_no_folder_behind(small_pictures, tmp_path, capsys):
    arguments = ["train-tokenizer", "causal-toy", "--data", str(small_pictures), "--device", "cpu",
                 "--start-from", str(tmp_path / "nothing"),
                 "--out", str(tmp_path / "run")]  # fmt: skip
    assert main(arguments) == 2
    assert "nothing" in capsys.readouterr().err
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("arguments", "said"),
    [([], "give --resume to go on"), (["--resume", "--seed", "3"], "seed was 0 there and is 3")],
)
def test_a_folder_that_will_not_do_is_refused_before_a_picture_is_looked_at(
    story, small_pictures, capsys, monkeypatch, arguments, said
):
    monkeypatch.setattr(stages, "open_splits", lambda *_, **__: pytest.fail("pictures were read"))
    code = main(["train-tokenizer", "causal-toy", "--data", str(small_pictures), "--device", "cpu",
                 "--out", str(story / "tokenizer"), *arguments])  # fmt: skip
    assert code == 2
    assert said in capsys.readouterr().err


def test_tokens_can_be_made_in_bf16(story, tmp_path):
    code = main(["extract", "--tokenizer", str(story / "tokenizer"), "--device", "cpu",
                 "--precision", "bf16", "--out", str(tmp_path / "bf16")])  # fmt: skip
    assert code == 0
    plain, short = (
        open_tokens(folder, "train") for folder in (story / "tokens", tmp_path / "bf16")
    )
    assert len(plain) == len(short)
    assert not all(torch.equal(plain[index], short[index]) for index in range(len(plain)))


def test_a_prior_goes_on_only_with_the_tokens_it_began_with(story, tmp_path, capsys):
    tokens, run = tmp_path / "tokens", tmp_path / "prior"
    shutil.copytree(story / "tokens", tokens)
    arguments = ["train-prior", "toy", "--tokens", str(tokens), "--device", "cpu", "--out",
                 str(run), "--loop.steps", "2"]  # fmt: skip
    assert main(arguments) == 0
    (run / "record.json").unlink()  # as if it had been stopped
    assert main([*arguments, "--resume"]) == 0
    (run / "record.json").unlink()
    shutil.rmtree(tokens)
    assert extract(story, tokens, "--views", "center") == 0
    assert main([*arguments, "--resume"]) == 2
    assert "kind was 'flip' there and is 'center' now" in capsys.readouterr().err
    assert main([*arguments, "--overwrite"]) == 0


def extract(story, out, *arguments):
    return main(["extract", "--tokenizer", str(story / "tokenizer"), "--device", "cpu",
                 "--out", str(out), *arguments])  # fmt: skip


def test_tokens_that_were_stopped_go_on_to_the_same_bytes(story, tmp_path, capsys):
    whole = {path.name: path.read_bytes() for path in (story / "tokens").iterdir()}
    (name,) = (name for name in whole if name.startswith("train"))
    out = tmp_path / "tokens"
    out.mkdir()
    (out / name).write_bytes(whole[name])
    assert extract(story, out) == 2
    assert "give --resume to go on" in capsys.readouterr().err
    for _ in range(2):  # the second time they are finished
        assert extract(story, out, "--resume") == 0
        assert {path.name: path.read_bytes() for path in out.iterdir()} == whole
    assert extract(story, out, "--resume", "--views", "center") == 2
    assert "--resume goes on with equal tokens" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--resume", "--overwrite"], "but got both; give one"),
        (["--workers", "-1"], "--workers at least 0"),
        (["--batch", "0"], "--batch is at least 1"),
    ],
)
def test_what_an_extraction_cannot_do_is_refused_at_once(story, tmp_path, capsys, arguments, said):
    assert extract(story, tmp_path / "new", *arguments) == 2
    assert said in capsys.readouterr().err
    assert not (tmp_path / "new").exists()


def test_a_collapsed_codebook_ends_in_a_warning(small_pictures, tmp_path, capsys):
    arguments = ["train-tokenizer", "baseline-toy", "--data", str(small_pictures), "--loop.steps",
                 "40", "--model.quantizer.revive-after", "0", "--optim.lr", "0.2",
                 "--losses.critic.weight", "0", "--device", "cpu",
                 "--out", str(tmp_path / "run")]  # fmt: skip
    assert main(arguments) == 0
    assert "codebook collapse" in capsys.readouterr().err
