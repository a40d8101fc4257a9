"""What a run's folder says of its training: config, record, fault and curves, as far as it got.

Read as plain JSON, so that a run of an older version, whose config no longer builds, can be read.
"""

import math
import time
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from cartok.core.config import config_of
from cartok.core.errors import UserError
from cartok.core.files import read_json
from cartok.core.run import curves_of, read_log
from cartok.tokenizer.findings import Curve
from cartok.tokenizer.model import TokenizerConfig

_PICTURES = ("pixel_l2", "pixel_l1", "perceptual")


@dataclass(frozen=True)
class Chart:
    """What a run's folder says of its training."""

    folder: Path
    config: dict[str, Any]
    record: dict[str, Any]
    """Empty if the run has not ended."""
    fault: dict[str, Any]
    """What the sentinel wrote when it stopped the run; else empty."""
    curves: Mapping[str, Curve]
    silence: float
    """Seconds since the log was last written."""

    def setting(self, name: str, otherwise: Any) -> Any:
        """A value of the config by its dotted name."""
        found: Any = self.config
        for part in name.split("."):
            found = found.get(part) if isinstance(found, dict) else None
        return otherwise if found is None else found

    def curve(self, name: str, after: float = -1.0) -> Curve:
        """A logged value, at steps above ``after``; empty if it was not logged."""
        return [point for point in self.curves.get(name, []) if point[0] > after]

    def last(self, name: str) -> float | None:
        """The newest of a logged value."""
        curve = self.curves.get(name)
        return curve[-1][1] if curve else None

    def until(self, step: int) -> "Chart":
        """The run as it was at a step."""
        cut = {n: [p for p in curve if p[0] <= step] for n, curve in self.curves.items()}
        return replace(self, curves={name: curve for name, curve in cut.items() if curve})

    @property
    def step(self) -> int:
        """Steps that the log knows of."""
        return int(max((curve[-1][0] for curve in self.curves.values()), default=0))

    @property
    def is_stopped(self) -> bool:
        """Whether the fault ended the run: one taken up again has another end of its log."""
        told = [line["step"] for line in self.fault.get("last", [])]
        if told:
            return self.step == told[-1]
        return bool(self.fault) and self.step <= self.fault.get("step", self.step)

    @property
    def model(self) -> TokenizerConfig | None:
        """What the tokenizer is; None if its version no longer builds."""
        try:
            return config_of(TokenizerConfig, self.config["model"])
        except (KeyError, UserError):
            return None

    @property
    def quantizer_kind(self) -> str:
        """One that was stored before there were kinds is a codebook."""
        return self.setting("model.quantizer.kind", "vq")

    @property
    def is_on_sphere(self) -> bool:
        """Whether latents enter the look-up with unit length."""
        kind = self.quantizer_kind
        return kind == "bsq" or self.setting("model.quantizer.normalise", kind == "vq")

    @property
    def shrinking_pays(self) -> bool:
        """Whether the regulariser's latents are off the sphere, and causal.scale could be live."""
        causal = self.setting("causal", {})
        is_free = causal.get("space", "lookup") != "lookup" or not self.is_on_sphere
        is_l2 = causal.get("loss", "l2") == "l2" and causal.get("target") != "detached"
        return is_free and is_l2 and causal.get("scale") in ("none", "variance")

    @property
    def pictures_at_once(self) -> int:
        """Those whose codes a rank counts together; 1, the fewest, while no record tells ranks."""
        ranks = self.record.get("provenance", {}).get("world_size", math.inf)
        parts = self.setting("loop.accumulate", 1) * ranks
        return max(1, int(self.setting("loop.batch", 0) // parts))

    def reach(self, pictures: int | float) -> float:
        """The share of codes that occurs if these pictures' tokens are even; 0 if nobody knows.

        Each level of residual codes is a codebook that every cell draws from once.
        """
        if self.model is None:
            return 0.0
        cells = pictures * (self.setting("view.size", 0) / self.model.codec.factor) ** 2
        return 1 - math.exp(-cells / self.model.quantizer.codebook_size)

    @property
    def reconstruction(self) -> Curve:
        """What ties pictures down, weighted as in the objective."""
        weights = {name: self.setting(f"losses.{name}", 1.0) for name in _PICTURES}
        parts = [(w, dict(self.curve(f"codec/{name}"))) for name, w in weights.items()]
        parts = [(weight, values) for weight, values in parts if values]
        steps = set[int]().union(*(values for _, values in parts))
        return [
            (step, sum(weight * values.get(step, 0.0) for weight, values in parts))
            for step in sorted(steps)
        ]

    @property
    def critic_is_heard_after(self) -> float:
        """The step at which its weight is full; beyond all if there is no critic."""
        if not self.setting("losses.critic.weight", 0.0):
            return math.inf
        return float(self.setting("losses.critic.start", 0) + self.setting("losses.critic.ramp", 0))

    @property
    def saved(self) -> int:
        """The step of the newest checkpoint; 0 if there is none."""
        names = [path.name for path in (self.folder / "checkpoints").glob("step-*")]
        steps = [name.removeprefix("step-") for name in names]
        return max((int(step) for step in steps if step.isdigit()), default=0)


def read_chart(folder: Path) -> Chart:
    """Reads what is there of a run.

    Raises:
        UserError: it is no run of a tokenizer, or a file cannot be read.
    """
    stored = read_json(folder / "config.json", "a tokenizer's run")
    kind = stored.get("kind") if isinstance(stored, dict) else None
    if kind != "tokenizer" or "digest" not in stored:
        held = "a tokenizer's model" if kind == "tokenizer" else f"'{kind or 'something else'}'"
        raise UserError(
            f"doctor looks at a tokenizer's run or a demo, but {folder} holds {held}; "
            "give the folder that --out named"
        )
    record, log = _optional(folder / "record.json"), folder / "log.jsonl"
    lines = [line for line in read_log(folder) if isinstance(line, dict) and "step" in line]
    written = (log if log.exists() else folder / "config.json").stat().st_mtime
    curves = curves_of(lines, most=len(lines) + 2) or record.get("curves", {})
    return Chart(
        folder=folder,
        config=stored.get("config", {}),
        record=record,
        fault=_optional(folder / "fault.json"),
        curves={
            name: [(int(step), float(value)) for step, value in points]
            for name, points in curves.items()
        },
        silence=time.time() - written,
    )


def _optional(path: Path) -> dict[str, Any]:
    found = read_json(path, "a run's own account") if path.exists() else {}
    return found if isinstance(found, dict) else {}
