"""A file that others publish to a model folder of ours."""

import hashlib
from dataclasses import dataclass
from pathlib import Path

from torch import Tensor

from cartok.core.errors import UserError
from cartok.core.files import write_json
from cartok.interop.codecs import tokenizer_of_llamagen, tokenizer_of_taming
from cartok.interop.doubts import refuse_unusable
from cartok.interop.pickles import STATE_DICTS, read_state_dict
from cartok.interop.priors import prior_of_llamagen
from cartok.interop.published import advice_on, named_like
from cartok.prior.model import Prior
from cartok.tokenizer.model import Tokenizer

_OF_PRIOR = {"tok_embeddings.weight", "cls_embedding.embedding_table.weight"}
_NOT_WEIGHTS = ("quantize.codebook_used", "freqs_cis")  # counts, and a function of the grid


@dataclass(frozen=True)
class Facts:
    """What a file may need to be told with it."""

    tokenizer: str = ""
    """Of a prior: the tokenizer its tokens are of, imported before."""
    size: int = 0
    """Of a prior: pixels a side of what it draws; its file's name says it, if that is the published
    one."""
    heads: int = 0
    """Of a prior: its attention heads; known of all that are published."""


def import_model(source: Path, out: Path, facts: Facts) -> Tokenizer | Prior:
    """Writes a model folder with the weights of ``source``, and ``imported.json`` beside them,
    which says of what file they are and under which key of it they were.

    What the file holds is told from the names and shapes of its tensors. A checkpoint in pickled
    form is read without running anything of it.

    Raises:
        UserError: the file is missing (says whose it is), holds nothing that is known, or is
            damaged; the folder is not empty; a prior comes without its tokenizer or its size.
    """
    if source.is_dir():
        raise UserError(f"what is imported is a file, but {source} is a folder; name a file in it")
    if not source.is_file():
        raise UserError(f"there is no file {source}: {advice_on(source)}")
    if out.is_file() or (out.is_dir() and any(out.iterdir())):
        raise UserError(f"--out must be new or empty, but {out} is not; name another")
    state = read_state_dict(source, skip=("loss.",), order_of=_order_of)
    model = _model(state.tensors, source, facts)
    model.save(out)
    with open(source, "rb") as file:
        sha256 = hashlib.file_digest(file, "sha256").hexdigest()
    write_json(out / "imported.json", {"file": source.name, "sha256": sha256, "key": state.key})
    return model


def _order_of(names: set[str]) -> tuple[str, ...]:
    """Of several state dicts the one that the project's own scripts take.

    LlamaGen samples with ``model`` of a prior's training checkpoint (sample_c2i.py), and
    reconstructs with ``ema`` of a tokenizer's (reconstruction_vq_ddp.py).
    """
    if names >= _OF_PRIOR:
        return ("model", "module", "state_dict", "ema")
    return STATE_DICTS


def _model(tensors: dict[str, Tensor], source: Path, facts: Facts) -> Tokenizer | Prior:
    is_prior = set(tensors) >= _OF_PRIOR
    is_llamagen = "encoder.conv_blocks.0.res.0.conv1.weight" in tensors
    is_taming = {"encoder.down.0.block.0.conv1.weight", "quantize.embedding.weight"} <= set(tensors)
    if not (is_prior or is_llamagen or is_taming):
        first = ", ".join(sorted(tensors)[:3])
        raise UserError(
            "what can be imported are tokenizers and class-conditional priors of LlamaGen, and "
            f"VQGANs of taming-transformers, but {source} holds others ({first}, ...)"
        )
    refuse_unusable({name: value for name, value in tensors.items() if name not in _NOT_WEIGHTS})
    if not is_prior and (facts.tokenizer or facts.size or facts.heads):
        raise UserError(
            "--tokenizer, --size and --heads are told of a prior, but "
            f"{source} holds a tokenizer; leave them away"
        )
    if is_prior:
        return _prior(tensors, source, facts)
    return tokenizer_of_llamagen(tensors) if is_llamagen else tokenizer_of_taming(tensors)


def _prior(tensors: dict[str, Tensor], source: Path, facts: Facts) -> Prior:
    if not facts.tokenizer:
        raise UserError(
            f"{source} holds a prior, whose tokens are another file's; import vq_ds16_c2i.pt "
            "first, and give its folder as --tokenizer"
        )
    size = facts.size or next((file.size for file in named_like(source)), 0)
    if size <= 0:
        raise UserError(
            f"no shape tells how large pictures {source} draws; give --size, as 256 or 384"
        )
    tokenizer = Tokenizer.from_pretrained(facts.tokenizer)
    return prior_of_llamagen(tensors, tokenizer, size=size, heads=facts.heads)
