"""The verb that takes in what others publish."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated

from cartok.verbs.arguments import First, Flat, parse


def import_(arguments: list[str]) -> None:
    """Turns a published file into a model folder."""
    from cartok.core.files import read_json
    from cartok.interop.importing import Facts, import_model
    from cartok.prior.model import Prior

    @dataclass(frozen=True)
    class Import:
        """Published weights of LlamaGen or taming-transformers to a model folder."""

        source: First[Path]
        """A file as its project publishes it, such as vq_ds16_c2i.pt, c2i_B_256.pt or last.ckpt."""
        out: Path
        """A new or empty folder."""
        facts: Annotated[Facts, Flat] = field(default_factory=Facts)

    chosen = parse(Import, arguments, "import")
    model = import_model(chosen.source, chosen.out, chosen.facts)
    key = read_json(chosen.out / "imported.json", "what was imported")["key"]
    if key:
        print(f"taken: {key!r} of {chosen.source}")
    if isinstance(model, Prior):
        rows, cols = model.config.grid
        print(f"a prior of {model.config.num_classes} classes and {rows}x{cols} tokens of "
              f"tokenizer {model.tokenizer_digest}: {chosen.out}")  # fmt: skip
    else:
        print(f"tokenizer {model.digest} of {model.codebook_size} codes, one for "
              f"{model.factor}x{model.factor} pixels: {chosen.out}")  # fmt: skip
