"""Pictures drawn into a folder: of which classes, and what is said of them."""

from collections import Counter

import pytest
import torch
from rich.console import Console

from cartok.core.progress import Progress
from cartok.lab.pictures import SampleConfig, run_sample
from cartok.prior.model import Prior, PriorConfig
from cartok.recipes.prior import toy
from cartok.recipes.tokenizer import causal_toy
from cartok.tokenizer.model import Tokenizer


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    """A tokenizer and a prior of five classes, two of which it never saw; both untrained."""
    folder = tmp_path_factory.mktemp("models")
    torch.manual_seed(0)
    tokenizer = Tokenizer(causal_toy().model)
    tokenizer.save(folder / "tokenizer")
    config = PriorConfig(
        transformer=toy().transformer, codebook_size=tokenizer.codebook_size, grid=(2, 2),
        num_classes=5,
    )  # fmt: skip
    classes = ("ant", "bee", "cat", "dog", "emu")
    prior = Prior(config, tokenizer_digest=tokenizer.digest, classes=classes, unseen=(1, 3))
    prior.save(folder / "prior")
    return folder


def drawn(models, out, **options):
    """How many pictures of each class there are, and what was said."""
    console = Console(record=True, width=200)
    run_sample(str(models / "prior"), str(models / "tokenizer"), SampleConfig(**options), out,
               "cpu", Progress(console))  # fmt: skip
    found = Counter(path.parent.name for path in (out / "pictures").glob("*/*.png"))
    return found, console.export_text()


def test_classes_that_were_never_trained_on_are_not_drawn_unless_they_are_named(models, tmp_path):
    found, said = drawn(models, tmp_path, num=7)
    assert found == {"ant": 3, "cat": 2, "emu": 2}
    assert "warning" not in said


@pytest.mark.parametrize("labels", [("cat", "bee"), ("2", "1"), ("cat", "ant+bee")])
def test_a_class_that_was_never_trained_on_is_drawn_with_a_warning(models, tmp_path, labels):
    found, said = drawn(models, tmp_path, num=4, labels=labels)
    assert sum(found.values()) == 4
    assert said.count("warning: this prior was trained on no picture of class 'bee'") == 1
