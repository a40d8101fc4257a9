"""A run is a folder, its summary a record.

runs/NAME/
  config.json      the whole frozen config, its kind and its digest
  log.jsonl        one line per log step
  record.json      the summary; written when the run ends
  checkpoints/     full training state, newest and best
  model/           what inference needs
  samples/         pictures a person looks at
  tensorboard/     the log's numbers again, for TensorBoard
"""

import json
import platform
import resource
import shutil
import subprocess
import sys
import time
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from cartok.core.config import dict_of, digest_of
from cartok.core.errors import UserError
from cartok.core.files import read_json, write_json, write_text
from cartok.core.parallel import World
from cartok.core.trackers import Tracker, open_tracker

_PARTS = ("config.json", "log.jsonl", "record.json", "checkpoints", "model", "samples",
          "tensorboard")  # fmt: skip


@dataclass
class Run:
    """One run's folder, open for writing. Ranks other than the main one write nothing."""

    folder: Path
    kind: str
    config: Any
    world: World = field(default_factory=World)
    trackers: tuple[Tracker, ...] = ()
    started: float = field(default_factory=time.time)

    @classmethod
    def open(
        cls,
        folder: str | Path,
        config: Any,
        *,
        kind: str,
        world: World | None = None,
        resume: bool = False,
        overwrite: bool = False,
    ) -> "Run":
        """Makes the folder, or takes up one that is there.

        Raises:
            UserError: the folder is not empty and neither ``resume`` nor ``overwrite`` is given;
                it resumes another config; it would overwrite something that is no run.
        """
        folder, world = Path(folder), world or World()
        run = cls(folder=folder, kind=kind, config=config, world=world)
        refused = _refusal(run, resume, overwrite)
        if refused:
            raise UserError(refused)
        if world.is_main:
            if overwrite:
                _clear(folder)
            folder.mkdir(parents=True, exist_ok=True)
            write_json(
                folder / "config.json",
                {"kind": kind, "digest": digest_of(config), "config": dict_of(config)},
            )
        world.barrier()
        return run

    @property
    def checkpoints(self) -> Path:
        """Where training states go."""
        return self.folder / "checkpoints"

    @property
    def samples(self) -> Path:
        """Where pictures for people go."""
        return self.folder / "samples"

    @property
    def is_finished(self) -> bool:
        """True once the record is written."""
        return (self.folder / "record.json").exists()

    def start_log(self, step: int, trackers: Iterable[str]) -> None:
        """Opens the log to go on after ``step``: lines of later steps, if any, are cut off."""
        if not self.world.is_main:
            return
        lines = [json.dumps(line) for line in read_log(self.folder) if line["step"] <= step]
        write_text(self.folder / "log.jsonl", "".join(line + "\n" for line in lines))
        plain = dict_of(self.config)
        self.trackers = tuple(
            open_tracker(name, self.folder, plain, step + 1)  # type: ignore[arg-type]
            for name in trackers
        )

    def log(self, step: int, values: dict[str, float]) -> None:
        """Adds a line to the log and tells the trackers; a value that is not finite is null."""
        if not self.world.is_main:
            return
        finite = {name: value if _is_finite(value) else None for name, value in values.items()}
        with open(self.folder / "log.jsonl", "a", encoding="utf-8") as file:
            file.write(json.dumps({"step": step, **finite}) + "\n")
        for tracker in self.trackers:
            tracker.log(step, {k: v for k, v in finite.items() if v is not None})

    def close(self) -> None:
        """Closes the trackers; the run can be taken up again."""
        for tracker in self.trackers:
            tracker.close()

    def finish(self, **facts: Any) -> dict[str, Any]:
        """Writes ``record.json``: the facts given, the config, provenance and thinned curves."""
        self.close()
        record = {
            "kind": self.kind,
            "digest": digest_of(self.config),
            "config": dict_of(self.config),
            "provenance": provenance(self.world),
            "peak_memory_bytes": peak_memory_bytes(self.world.device),
            **facts,
            "curves": curves_of(read_log(self.folder)),
        }
        if self.world.is_main:
            write_json(self.folder / "record.json", record)
        return record


def read_log(folder: Path) -> list[dict[str, Any]]:
    """The lines of a run's log; a last line cut short by a kill is left out."""
    path = Path(folder) / "log.jsonl"
    lines = []
    for text in path.read_text(encoding="utf-8").splitlines() if path.exists() else []:
        try:
            lines.append(json.loads(text))
        except json.JSONDecodeError:
            break
    return lines


def curves_of(lines: list[dict[str, Any]], most: int = 200) -> dict[str, list[list[float]]]:
    """Each logged value as [[step, value], ...], thinned evenly to ``most`` points."""
    curves: dict[str, list[list[float]]] = {}
    for line in lines:
        for name, value in line.items():
            if name != "step" and isinstance(value, int | float):
                curves.setdefault(name, []).append([line["step"], value])
    return {name: _thinned(points, most) for name, points in curves.items()}


def provenance(world: World) -> dict[str, Any]:
    """What made a number: code version, libraries, machine and device, in words."""
    from cartok import __version__

    device = world.device
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else platform.processor()
    return {
        "cartok": __version__,
        "commit": _commit(),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "platform": platform.platform(),
        "device": f"{device.type}: {name or platform.machine()}",
        "threads": torch.get_num_threads(),
        "world_size": world.size,
    }


def peak_memory_bytes(device: torch.device) -> int:
    """The most memory this process has held: on the GPU if it computes there, else resident."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024  # kibibytes but on macOS


def _refusal(run: Run, resume: bool, overwrite: bool) -> str:
    folder = run.folder
    if folder.exists() and not folder.is_dir():
        return f"--out is a folder to write to, but {folder} is a file; name another"
    if not folder.is_dir() or not any(folder.iterdir()):
        return ""
    if not resume and not overwrite:
        return (
            f"--out must be new or empty, but {folder} holds files; "
            "give --resume to go on, --overwrite to start again, or another --out"
        )
    if not (folder / "config.json").exists():
        return f"{folder} holds files but no run (no config.json); name another folder"
    stored = read_json(folder / "config.json", "a run's config")
    if not isinstance(stored, dict) or stored.get("kind") != run.kind:
        return f"{folder} holds another kind of run, not a {run.kind}; name another folder"
    if resume and not overwrite and stored.get("digest") != digest_of(run.config):
        changed = _first_difference(stored.get("config", {}), dict_of(run.config))
        return (
            f"--resume goes on with an equal config, but {changed}; "
            "give --overwrite to start again, or another --out"
        )
    return ""


def _first_difference(old: Any, new: Any, where: str = "") -> str:
    if isinstance(old, dict) and isinstance(new, dict):
        for key in {**old, **new}:
            if old.get(key) != new.get(key):
                return _first_difference(old.get(key), new.get(key), f"{where}.{key}".strip("."))
    return f"{where} was {old!r} there and is {new!r} now"


def _clear(folder: Path) -> None:
    for part in _PARTS:
        path = folder / part
        shutil.rmtree(path) if path.is_dir() else path.unlink(missing_ok=True)


def _thinned(points: list, most: int) -> list:
    if len(points) <= most:
        return points
    last = len(points) - 1
    return [points[round(i * last / (most - 1))] for i in range(most)]


def _is_finite(value: float) -> bool:
    return value == value and abs(value) != float("inf")


def _commit() -> str:
    here = Path(__file__).parent
    command = ["git", "-C", str(here), "rev-parse", "HEAD"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=5, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return ""
    return done.stdout.strip()
