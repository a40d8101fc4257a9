"""Reads a stage-1 run, or a demo's two, and asks the doctor: what is wrong, and what to change.

Needs the folder's text files alone: no weights, no GPU. A run may be finished, running, stopped or
of an older version.
"""

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from cartok.core.errors import UserError
from cartok.core.files import read_json
from cartok.lab.chart import Chart, read_chart
from cartok.lab.vitals import Vital, beside_run, beside_scores, vitals_of
from cartok.tokenizer.doctor import Measures, measures_of
from cartok.tokenizer.findings import Finding

_DEMO = "demo.json"
_KEPT = ("model", "losses", "view", "causal.space")
"""What a baseline must have alike, or it tells of more than the regulariser."""


@dataclass(frozen=True)
class Diagnosis:
    """All that was looked at in one run."""

    name: str
    """The run's folder, as it was given."""
    vitals: tuple[Vital, ...]

    @property
    def findings(self) -> list[Finding]:
        """What was found, faults first."""
        found = [finding for vital in self.vitals for finding in vital.findings]
        return sorted(found, key=lambda finding: finding.severity != "fault")

    @property
    def is_healthy(self) -> bool:
        """True if there is no fault; what is to be watched is none."""
        return all(finding.severity != "fault" for finding in self.findings)

    def to_json(self) -> dict[str, Any]:
        """As plain JSON values."""
        return {
            "run": self.name,
            "is_healthy": self.is_healthy,
            "vitals": [{"name": v.name, "value": v.value, "verdict": v.verdict}
                       for v in self.vitals],
            "findings": [asdict(finding) for finding in self.findings],
        }  # fmt: skip


def diagnose(folder: Path, baseline: Path | None = None) -> list[Diagnosis]:
    """Looks at a run, or at both arms of a demo; ``baseline`` is a run without the regulariser.

    Raises:
        UserError: the folder holds no run of a tokenizer; the baseline has the regulariser, or
            another model, losses or view.
    """
    if (folder / _DEMO).exists():
        if baseline is not None:
            raise UserError(
                f"a demo has its own baseline, but --baseline is {baseline}; leave it out"
            )
        return _of_demo(folder)
    chart = read_chart(folder)
    vitals = vitals_of(chart)
    if baseline is not None:
        vitals.append(beside_run(chart, _twin(chart, baseline)))
    return [Diagnosis(str(folder), tuple(vitals))]


def describe(diagnosis: Diagnosis) -> str:
    """The table of what was looked at, then every finding in words."""
    width = max(len(vital.name) for vital in diagnosis.vitals)
    wide = max(len(vital.value) for vital in diagnosis.vitals)
    lines = [diagnosis.name, ""]
    lines += [f"  {v.name:<{width}}  {v.value:<{wide}}  {v.verdict}" for v in diagnosis.vitals]
    for found in diagnosis.findings:
        lines += ["", f"{found.severity}: {found.fault}",
                  f"  seen: {found.seen}", f"  means: {found.means}",
                  f"  change: {found.change}"]  # fmt: skip
    return "\n".join([*lines, ""])


def _twin(chart: Chart, folder: Path) -> Chart:
    twin = read_chart(folder)
    if weight := twin.setting("causal.weight", 0):
        raise UserError(
            f"--baseline is a run without the regulariser, but causal.weight of {folder} is "
            f"{weight:g}; give one where it is 0"
        )
    for part in _KEPT:
        if fault := _difference(part, chart.setting(part, {}), twin.setting(part, {})):
            raise UserError(
                f"--baseline is a run that is equal but for the regulariser, but {fault} in "
                f"{folder}; give one of the same recipe"
            )
    return twin


def _difference(name: str, mine: Any, its: Any) -> str:
    """The first that two configs have unlike; what one of them lacks is of another version."""
    if not (isinstance(mine, dict) and isinstance(its, dict)):
        return f"{name} is {mine!r} here and {its!r}" if mine != its else ""
    both = [key for key in mine if key in its]
    return next(filter(None, (_difference(f"{name}.{k}", mine[k], its[k]) for k in both)), "")


def _of_demo(folder: Path) -> list[Diagnosis]:
    """Its arms, as far as they have begun, the causal one beside its baseline."""
    arms = [folder / name / "tokenizer" for name in ("baseline", "causal")]
    charts = [read_chart(arm) for arm in arms if (arm / "config.json").exists()]
    if not charts:
        raise UserError(f"the demo in {folder} has not begun a training; run it, then ask again")
    vitals = [vitals_of(chart) for chart in charts]
    scores = [_scores(arm) for arm in arms]
    if scores[0] and scores[1]:
        vitals[-1].append(beside_scores(scores[1], scores[0]))
    elif len(charts) == 2:
        vitals[-1].append(beside_run(charts[1], charts[0]))
    return [
        Diagnosis(str(chart.folder), tuple(found))
        for chart, found in zip(charts, vitals, strict=True)
    ]


def _scores(arm: Path) -> Measures | None:
    """An arm's scores, if it has got so far."""
    path = arm.parent / "scores.json"
    return measures_of(read_json(path, "an arm's scores")) if path.exists() else None
