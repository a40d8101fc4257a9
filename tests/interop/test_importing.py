import hashlib
import json

import pytest
import torch
from PIL import Image

from cartok.__main__ import main
from cartok.data.tokens import read_manifest
from cartok.interop.importing import Facts, import_model
from cartok.interop.published import FILES
from cartok.prior.model import Prior
from cartok.tokenizer.model import Tokenizer


@pytest.fixture(scope="module")
def files(originals, tmp_path_factory):
    """Small files as each project lays its own out: a tokenizer of f=8, its prior, a VQGAN."""
    folder = tmp_path_factory.mktemp("published")
    small = {"channels": 32, "latent": 8, "codes": 50}
    llamagen = originals.vqgan(originals.LLAMAGEN, (1, 1, 1, 1), dim=8, **small)
    taming = originals.vqgan(originals.TAMING, (1, 1, 1), dim=8, **small)
    state = {"optimizer": {}, "steps": 300_000, "args": None}
    torch.save({"model": llamagen, **state}, folder / "vq_ds16_c2i.pt")
    prior = originals.gpt(32, 2, codes=50, classes=4)
    torch.save({"model": prior, **state}, folder / "c2i_B_256.pt")
    torch.save(prior, folder / "mine.pt")
    losses = {f"loss.{name}": value for name, value in taming.items()}
    ckpts = folder / "vqgan_imagenet_f16_1024" / "ckpts"
    ckpts.mkdir(parents=True)
    torch.save({"epoch": 9, "state_dict": taming | losses}, ckpts / "last.ckpt")
    return folder


@pytest.fixture
def tokenizer(files, tmp_path):
    """An imported tokenizer's folder."""
    import_model(files / "vq_ds16_c2i.pt", tmp_path / "tokenizer", Facts())
    return tmp_path / "tokenizer"


def refusal(capsys, *arguments):
    assert main(["import", *map(str, arguments)]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    return line


def test_from_a_published_file_to_pictures_and_tokens(files, tmp_path, capsys):
    tokenizer, prior = tmp_path / "tokenizer", tmp_path / "prior"
    assert main(["import", str(files / "vq_ds16_c2i.pt"), "--out", str(tokenizer)]) == 0
    digest = Tokenizer.from_pretrained(tokenizer).digest
    said = capsys.readouterr().out
    assert said.splitlines() == [
        f"taken: 'model' of {files / 'vq_ds16_c2i.pt'}",
        f"tokenizer {digest} of 50 codes, one for 8x8 pixels: {tokenizer}",
    ]
    arguments = ["--tokenizer", str(tokenizer), "--size", "16", "--heads", "2"]
    assert main(["import", str(files / "mine.pt"), "--out", str(prior), *arguments]) == 0
    assert f"a prior of 4 classes and 2x2 tokens of tokenizer {digest}" in capsys.readouterr().out
    samples = tmp_path / "samples"
    assert main(["sample", "--prior", str(prior), "--tokenizer", str(tokenizer), "--num", "5",
                 "--labels", "3", "0", "--out", str(samples), "--device", "cpu"]) == 0  # fmt: skip
    pictures = sorted(str(p.relative_to(samples)) for p in samples.glob("pictures/*/*.png"))
    assert pictures == [f"pictures/{'30'[i % 2]}/{i:06d}.png" for i in (1, 3, 0, 2, 4)]
    with Image.open(samples / pictures[0]) as picture:
        assert picture.size == (16, 16)


def test_pictures_become_token_shards_with_an_imported_tokenizer(tokenizer, tmp_path, capsys):
    generator = torch.Generator().manual_seed(0)
    for index in range(20):
        noise = torch.randint(256, (24, 24, 3), generator=generator, dtype=torch.uint8)
        path = tmp_path / "data" / "ab"[index % 2] / f"{index}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(noise.numpy()).save(path)
    arguments = [
        "--tokenizer",
        str(tokenizer),
        "--out",
        str(tmp_path / "tokens"),
        "--device",
        "cpu",
    ]
    assert main(["extract", *arguments]) == 2  # it is no run that knows its pictures
    assert "give --data and --size" in capsys.readouterr().err
    data = ["--data", str(tmp_path / "data"), "--size", "24"]
    assert main(["extract", *arguments, *data]) == 0
    manifest = read_manifest(tmp_path / "tokens")
    assert manifest.tokenizer_digest == Tokenizer.from_pretrained(tokenizer).digest
    assert manifest.grid == (3, 3)


def test_a_vqgan_is_imported_from_its_lightning_checkpoint_alone(files, tmp_path):
    source = files / "vqgan_imagenet_f16_1024" / "ckpts" / "last.ckpt"
    tokenizer = import_model(source, tmp_path / "vqgan", Facts())
    assert tokenizer.factor == 4
    assert not tokenizer.config.quantizer.normalise
    kept = json.loads((tmp_path / "vqgan" / "imported.json").read_text())
    assert kept == {
        "file": "last.ckpt", "sha256": hashlib.sha256(source.read_bytes()).hexdigest(),
        "key": "state_dict",
    }  # fmt: skip


def test_a_published_priors_name_says_what_size_it_draws(files, tokenizer, tmp_path):
    out = tmp_path / "prior"
    import_model(files / "c2i_B_256.pt", out, Facts(tokenizer=str(tokenizer), heads=2))
    prior = Prior.from_pretrained(out)
    assert prior.config.grid == (32, 32)  # 256 pixels by 8
    assert prior.tokenizer_digest == Tokenizer.from_pretrained(tokenizer).digest


@pytest.mark.parametrize("file", [f for f in FILES if not f.file.endswith("last.ckpt")])
def test_a_missing_file_is_named_with_whose_it_is_and_where_it_belongs(file, tmp_path, capsys):
    line = refusal(capsys, tmp_path / file.file, "--out", tmp_path / "out")
    assert f"there is no file {tmp_path / file.file}: fetch {file.file} ({file.holds}), " in line
    assert line.endswith("which FoundationVision/LlamaGen publishes, and put it there")


def test_a_missing_checkpoint_is_told_by_its_folder_or_both_are_named(tmp_path, capsys):
    one, other = (file.file for file in FILES if file.file.endswith("last.ckpt"))
    line = refusal(capsys, tmp_path / one, "--out", tmp_path / "out")
    assert "of 1,024 codes" in line
    assert other not in line
    line = refusal(capsys, tmp_path / "last.ckpt", "--out", tmp_path / "out")
    assert f"fetch {one} (the VQGAN of 1,024 codes) or {other} (" in line
    assert "CompVis/taming-transformers publishes" in line


def test_of_a_missing_file_of_another_name_all_that_are_published_are_listed(tmp_path, capsys):
    line = refusal(capsys, tmp_path / "net.pt", "--out", tmp_path / "out")
    assert all(file.file in line for file in FILES)


def test_a_prior_needs_its_tokenizer_and_its_size(files, tokenizer, tmp_path, capsys):
    out = ["--out", tmp_path / "out"]
    assert "give its folder as --tokenizer" in refusal(capsys, files / "mine.pt", *out)
    given = ["--tokenizer", tokenizer]
    assert "give --size, as 256 or 384" in refusal(capsys, files / "mine.pt", *given, *out)
    assert "give --heads" in refusal(capsys, files / "mine.pt", *given, *out, "--size", "16")
    assert not (tmp_path / "out").exists()


def test_what_is_unknown_is_refused_by_the_names_it_holds(tmp_path, capsys):
    torch.save({"bert.a": torch.ones(1)}, tmp_path / "net.pt")
    line = refusal(capsys, tmp_path / "net.pt", "--out", tmp_path / "out")
    assert "holds others (bert.a, ...)" in line


@pytest.mark.parametrize(
    ("name", "value", "said"),
    [
        ("quantize.embedding.weight", torch.zeros(50, 8).long(), "is of torch.int64"),
        ("quant_conv.bias", torch.full((8,), torch.nan), "holds NaN or infinity"),
    ],
)
def test_weights_that_are_no_fractions_or_not_finite_are_refused(
    files, tmp_path, capsys, name, value, said
):
    content = torch.load(files / "vq_ds16_c2i.pt", weights_only=True)
    content["model"][name] = value
    torch.save(content, tmp_path / "net.pt")
    line = refusal(capsys, tmp_path / "net.pt", "--out", tmp_path / "out")
    assert f"{name} {said}" in line
    assert not (tmp_path / "out").exists()


def test_of_several_state_dicts_that_is_taken_which_its_project_takes(files, tokenizer, tmp_path):
    """Of a tokenizer's the running means; of a prior's the weights they are of."""
    found = {}
    for name, file, facts in (
        ("codec", "vq_ds16_c2i.pt", Facts()),
        ("prior", "c2i_B_256.pt", Facts(tokenizer=str(tokenizer), size=16, heads=2)),
    ):
        model = torch.load(files / file, weights_only=True)["model"]
        means = {key: value + 1 for key, value in model.items()}
        torch.save({"ema": means, "model": model}, tmp_path / file)
        import_model(tmp_path / file, tmp_path / name, facts)
        found[name] = json.loads((tmp_path / name / "imported.json").read_text())["key"]
    assert found == {"codec": "ema", "prior": "model"}
    once = import_model(files / "c2i_B_256.pt", tmp_path / "once", facts)
    again = Prior.from_pretrained(tmp_path / "prior")
    assert torch.equal(once.head.weight, again.head.weight)


def test_what_a_tokenizer_does_not_need_is_refused(files, tmp_path, capsys):
    for option, value in (("--size", 256), ("--tokenizer", "mine"), ("--heads", 2)):
        line = refusal(capsys, files / "vq_ds16_c2i.pt", "--out", tmp_path / "out", option, value)
        assert "holds a tokenizer; leave them away" in line
    assert not (tmp_path / "out").exists()


def test_a_folder_and_a_picture_are_called_what_they_are(tmp_path, capsys):
    out = ["--out", tmp_path / "out"]
    assert f"{tmp_path} is a folder" in refusal(capsys, tmp_path, *out)
    Image.new("RGB", (8, 8)).save(tmp_path / "s.png")
    assert "it is no checkpoint" in refusal(capsys, tmp_path / "s.png", *out)


def test_a_folder_that_holds_files_is_left_alone(files, tmp_path, capsys):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "mine.txt").write_text("mine")
    line = refusal(capsys, files / "vq_ds16_c2i.pt", "--out", tmp_path / "out")
    assert "--out must be new or empty" in line
    assert (tmp_path / "out" / "mine.txt").read_text() == "mine"
