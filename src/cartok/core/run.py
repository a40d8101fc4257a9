"""A run is a folder, its summary a record.

runs/NAME/
  config.json      the whole frozen config, its kind and its digest
  log.jsonl        one line per log step
  record.json      the summary; written when the run ends
  checkpoints/     full training state, newest and best
  model/           what inference needs
  samples/         pictures a person looks at
  tokens.json      of a prior: the manifest of the tokens it is trained on
  tensorboard/     the log's numbers again, for TensorBoard
  trackers/        the names other services know the run by
  fault.md         why it stopped, if something was not finite, until it gets further; for
  fault.json       people and for programs
"""

import json
import platform
import resource
import subprocess
import sys
import time
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from cartok.core.config import ConfigError, config_of, dict_of, digest_of
from cartok.core.errors import UserError
from cartok.core.files import (
    finite,
    full_disk_explained,
    read_json,
    remove,
    write_json,
    write_text,
)
from cartok.core.parallel import World
from cartok.core.trackers import Tracker, TrackerName, open_tracker

_PARTS = ("record.json", "log.jsonl", "checkpoints", "model", "samples", "tensorboard",
          "tokens.json", "trackers", "fault.json", "fault.md")  # fmt: skip


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
                it resumes another config; it would overwrite something that is no run; it cannot
                be written to.
        """
        run = cls(folder=Path(folder), kind=kind, config=config, world=world or World())
        refuse_occupied(run, resume=resume, overwrite=overwrite)
        _raise_on_all(run, _made(run, overwrite) if run.world.is_main else "")
        return run

    @property
    def checkpoints(self) -> Path:
        """Where training states go."""
        return self.folder / "checkpoints"

    @property
    def tokens(self) -> Path:
        """What a prior's tokens were when it began."""
        return self.folder / "tokens.json"

    @property
    def samples(self) -> Path:
        """Where pictures for people go."""
        return self.folder / "samples"

    @property
    def is_finished(self) -> bool:
        """True once the record is written."""
        return (self.folder / "record.json").exists()

    def start_log(self, step: int, trackers: Iterable[TrackerName]) -> None:
        """Opens the log to go on after ``step``: lines of later steps, if any, are cut off."""
        if not self.world.is_main:
            return
        lines = [json.dumps(line) for line in read_log(self.folder) if line["step"] <= step]
        write_text(self.folder / "log.jsonl", "".join(line + "\n" for line in lines))
        plain = dict_of(self.config)
        self.trackers = tuple(open_tracker(name, self.folder, plain, step + 1) for name in trackers)

    def log(self, step: int, values: dict[str, float]) -> None:
        """Adds a line to the log and tells the trackers; a value that is not finite is null."""
        if not self.world.is_main:
            return
        known = finite(values)
        path = self.folder / "log.jsonl"
        with full_disk_explained(path), open(path, "a", encoding="utf-8") as file:
            file.write(json.dumps({"step": step, **known}) + "\n")
        for tracker in self.trackers:
            tracker.log(step, {k: v for k, v in known.items() if v is not None})

    def close(self) -> None:
        """Closes the trackers; the run can be taken up again."""
        for tracker in self.trackers:
            tracker.close()

    def finish(self, **facts: Any) -> dict[str, Any]:
        """Writes ``record.json``: the facts given, the config, provenance and thinned curves.

        A value that is not finite is null.
        """
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
        record = finite(record)
        if self.world.is_main:
            write_json(self.folder / "record.json", record)
        return record


def refuse_occupied(run: Run, *, resume: bool = False, overwrite: bool = False) -> None:
    """Refuses a folder that ``Run.open`` would refuse for what it holds; makes and reads no more.

    For those who must know before they build what takes long. Alike on all ranks.

    Raises:
        UserError: as ``Run.open``.
    """
    # One rank looks, since to the others a folder that it makes next would not be empty.
    _raise_on_all(run, _refusal(run, resume, overwrite) if run.world.is_main else "")


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


def curves_of(lines: list[dict[str, Any]], most: int = 200) -> dict[str, list[list[int | float]]]:
    """Each logged value as [[step, value], ...], thinned evenly to ``most`` points."""
    curves: dict[str, list[list[int | float]]] = {}
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
        "platform": f"{platform.system()} {platform.machine()}",
        "device": f"{device.type}: {name or platform.machine()}",
        "threads": torch.get_num_threads(),
        "world_size": world.size,
    }


def forget_peak(device: torch.device) -> None:
    """Begins to look for a GPU's peak anew: another training may have had it in this process."""
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)


def peak_memory_bytes(device: torch.device) -> int:
    """The most memory this process has held: on the GPU since ``forget_peak``, else resident."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024  # kibibytes but on macOS


def _raise_on_all(run: Run, refused: str) -> None:
    if run.world.any(bool(refused)):
        raise UserError(refused or f"the main rank refused {run.folder}")


def _refusal(run: Run, resume: bool, overwrite: bool) -> str:
    folder = run.folder
    if folder.exists() and not folder.is_dir():
        return f"--out is a folder to write to, but {folder} is a file; name another"
    if not folder.is_dir() or not any(not _is_leftover(path) for path in folder.iterdir()):
        return ""
    if not resume and not overwrite:
        return (
            f"--out must be new or empty, but {folder} holds files; "
            "give --resume to go on, --overwrite to start again, or another --out"
        )
    if not (folder / "config.json").exists():
        return f"{folder} holds files but no run (no config.json); name another folder"
    stored = read_json(folder / "config.json", "a run's config")
    # A model's folder has a config.json of the same kind, but no digest.
    if not isinstance(stored, dict) or stored.get("kind") != run.kind or "digest" not in stored:
        return f"{folder} holds something else, not a {run.kind}'s run; name another folder"
    before = _as_read_today(run, stored.get("config", {}))
    if resume and not overwrite and before != dict_of(run.config):
        changed = first_difference(before, dict_of(run.config))
        return (
            f"--resume goes on with an equal config, but {changed}; "
            "give --overwrite to start again, or another --out"
        )
    return ""


def _as_read_today(run: Run, stored: Any) -> Any:
    """A field that the config has been given since stands at its default: what was done then."""
    try:
        return dict_of(config_of(type(run.config), stored))
    except ConfigError:  # of a version that had other fields
        return stored


def first_difference(old: Any, new: Any, where: str = "") -> str:
    """Where two plain configs part, in words."""
    if isinstance(old, dict) and isinstance(new, dict):
        for key in {**old, **new}:
            if old.get(key) != new.get(key):
                return first_difference(old.get(key), new.get(key), f"{where}.{key}".strip("."))
    return f"{where} was {_short(old)} there and is {_short(new)} now"


def _short(value: Any) -> str:
    """A value as Python writes it; a long one, such as a thousand names, by its beginning."""
    text = repr(value)
    return text if len(text) <= 100 else f"{text[:100]}... ({len(text):,} characters)"


def _made(run: Run, overwrite: bool) -> str:
    """Makes the folder ready; returns why it could not, or nothing."""
    folder = run.folder
    plain = {"kind": run.kind, "digest": digest_of(run.config), "config": dict_of(run.config)}
    try:
        for path in [folder / part for part in _PARTS] if overwrite else []:
            remove(path)
        for inside in (folder, folder / "checkpoints"):
            for path in filter(_is_leftover, inside.glob(".*")):
                remove(path)
        # Last, and replaced rather than removed, so that it stays a run if this is cut short.
        write_json(folder / "config.json", plain)
    except OSError as error:
        return f"--out is a folder to write to, but {folder} is not: {error}; name another"
    return ""


def _is_leftover(path: Path) -> bool:
    """True of what a kill left half-written."""
    return path.name.startswith(".") and path.name.endswith(".part")


def _thinned(points: list, most: int) -> list:
    if len(points) <= most:
        return points
    last = len(points) - 1
    return [points[round(i * last / (most - 1))] for i in range(most)]


def _commit() -> str:
    # An installed copy may lie in somebody else's repository, whose commit says nothing of us.
    is_ours = _git("ls-files", "--error-unmatch", Path(__file__).name)
    return _git("rev-parse", "HEAD") if is_ours else ""


def _git(*arguments: str) -> str:
    command = ["git", "-C", str(Path(__file__).parent), *arguments]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=5, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return ""
    return done.stdout.strip()
