"""The files that can be imported: what they are called, what they hold, who publishes them.

They are large and come with their projects' terms, so none is fetched: a person does. No hash
stands here, since neither project states one; what was imported is hashed, and the hash kept.
"""

from dataclasses import dataclass
from pathlib import Path

_LLAMAGEN = "FoundationVision/LlamaGen"
_TAMING = "CompVis/taming-transformers"


@dataclass(frozen=True)
class Published:
    """A file that somebody publishes."""

    file: str
    """Its name; its folder before it where the name alone says nothing."""
    holds: str
    project: str
    size: int = 0
    """Pixels a side of what a prior draws; 0 for a tokenizer, which takes any."""


FILES = (
    Published("vq_ds16_c2i.pt", "the tokenizer VQ-16, 72M parameters", _LLAMAGEN),
    Published("vq_ds8_c2i.pt", "the tokenizer VQ-8, 70M parameters", _LLAMAGEN),
    Published("c2i_B_256.pt", "the prior B, 111M parameters, of 256 pixels", _LLAMAGEN, 256),
    Published("c2i_B_384.pt", "the prior B, 111M parameters, of 384 pixels", _LLAMAGEN, 384),
    Published("c2i_L_256.pt", "the prior L, 343M parameters, of 256 pixels", _LLAMAGEN, 256),
    Published("c2i_L_384.pt", "the prior L, 343M parameters, of 384 pixels", _LLAMAGEN, 384),
    Published("c2i_XL_384.pt", "the prior XL, 775M parameters, of 384 pixels", _LLAMAGEN, 384),
    Published("c2i_XXL_384.pt", "the prior XXL, 1.4B parameters, of 384 pixels", _LLAMAGEN, 384),
    Published("c2i_3B_384.pt", "the prior 3B, 3.1B parameters, of 384 pixels", _LLAMAGEN, 384),
    Published("vqgan_imagenet_f16_1024/ckpts/last.ckpt", "the VQGAN of 1,024 codes", _TAMING),
    Published("vqgan_imagenet_f16_16384/ckpts/last.ckpt", "the VQGAN of 16,384 codes", _TAMING),
)


def named_like(path: Path) -> tuple[Published, ...]:
    """The published files that a path may mean: those of its name, of its folders where they say.

    Several, if one name is that of several files.
    """
    alike = tuple(file for file in FILES if Path(file.file).name == path.name)
    within = tuple(
        file for file in alike if set(Path(file.file).parts) & set(path.parts[:-1]) - {"ckpts"}
    )
    return within or alike


def advice_on(path: Path) -> str:
    """What file is missing at a path, whose it is and where it belongs; what there is, else."""
    if alike := named_like(path):
        which = " or ".join(f"{file.file} ({file.holds})" for file in alike)
        return f"fetch {which}, which {alike[0].project} publishes, and put it there"
    known = "; ".join(
        f"{', '.join(file.file for file in FILES if file.project == project)} of {project}"
        for project in (_LLAMAGEN, _TAMING)
    )
    return f"published are {known}"
