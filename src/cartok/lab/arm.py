"""One arm of a comparison: where its stages lie, and scores that are measured once."""

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from cartok.core.files import finite, read_json, write_json
from cartok.core.parallel import World
from cartok.core.progress import Progress
from cartok.lab.inputs import ArmInputs, Scores
from cartok.lab.stages import Launch, Splits
from cartok.scaling.numbers import Number
from cartok.tokenizer.model import Tokenizer


@dataclass(frozen=True)
class Arm:
    """An arm at work. What is there already, from an earlier try, is taken up."""

    name: str
    folder: Path
    """Holds ``tokenizer``, ``tokens`` and a run folder for each prior."""
    sheets: Path
    """The folder of pictures a person looks at."""
    inputs: ArmInputs
    progress: Progress
    splits: Splits | None = None
    """The pictures, where several arms share them once opened."""
    source: str = ""
    """A tokenizer that is there already; none: the arm's own, once it has trained."""
    pixels: int = 0
    """A side of what the tokenizer is shown; 0: that at which pictures are scored."""
    shared: dict[str, Path] = field(default_factory=dict)
    """Folders of stages that other arms have, too, in place of the arm's own."""

    def place(self, part: str) -> Path:
        """The folder of a stage: ``tokenizer``, ``tokens`` or a prior's."""
        return self.shared.get(part, self.folder / part)

    def launch(self, part: str) -> Launch:
        """Where a stage of this arm goes."""
        return Launch(out=self.place(part), device=self.inputs.device, resume=True)

    def tokenizer(self) -> Tokenizer:
        """The arm's tokenizer, on its device."""
        device = World.join(self.inputs.device).device
        return Tokenizer.from_pretrained(self.source or self.place("tokenizer")).to(device)


def once(path: Path, measure: Callable[[], Scores]) -> Scores:
    """Scores from the file of an earlier try, or measured now and kept there if all are finite."""
    if path.exists():
        return read_json(path, "scores")
    scores = measure()
    if finite(scores) == scores:
        write_json(path, scores)
    return scores


def score_of(value: Number, unit: str, **receipt: Any) -> dict[str, Any]:
    """A number as scores hold it."""
    return {"value": value, "unit": unit, "receipt": receipt}
