"""Where a run's numbers go besides ``log.jsonl``: one small protocol, three services behind it."""

import uuid
from pathlib import Path
from typing import Literal, Protocol, runtime_checkable

from cartok.core.errors import UserError
from cartok.core.files import write_text

TrackerName = Literal["tensorboard", "wandb", "trackio"]


@runtime_checkable  # for the checks that run in tests
class Tracker(Protocol):
    """Anything that can be told numbers as a run goes on."""

    def log(self, step: int, values: dict[str, float]) -> None:
        """Takes the values of one step."""
        ...

    def close(self) -> None:
        """Sends what is still held back."""
        ...


class TensorBoard:
    """Event files in the run's ``tensorboard`` folder; no account, no network."""

    def __init__(self, folder: Path, config: dict, start: int):
        from torch.utils.tensorboard import SummaryWriter  # 1 s, and only when used

        self._writer = SummaryWriter(str(folder / "tensorboard"), purge_step=start)

    def log(self, step: int, values: dict[str, float]) -> None:
        """Writes one scalar per value."""
        for name, value in values.items():
            self._writer.add_scalar(name, value, step)

    def close(self) -> None:
        """Writes what is still in memory."""
        self._writer.close()


class Service:
    """Weights & Biases or trackio, which share an interface; each an optional extra."""

    def __init__(self, module, folder: Path, config: dict, start: int):
        self._module = module
        name = _lasting_name(folder, module.__name__, start)
        # Weights & Biases takes a run up again by its id, trackio by its name.
        settings = {"id": name} if module.__name__ == "wandb" else {}
        module.init(project="cartok", name=name, config=config, resume="allow", **settings)

    def log(self, step: int, values: dict[str, float]) -> None:
        """Sends the values of one step."""
        self._module.log(values, step=step)

    def close(self) -> None:
        """Ends the service's run."""
        self._module.finish()


def _lasting_name(folder: Path, service: str, start: int) -> str:
    """The same for a run that goes on, another for one that starts again in the same folder.

    It holds the folder's name and its parent's: what lies above may name the user.
    """
    path = folder / "trackers" / f"{service}.txt"
    if start <= 1 or not path.exists():
        write_text(path, "-".join([*folder.resolve().parts[1:][-2:], uuid.uuid4().hex[:8]]))
    return path.read_text(encoding="utf-8")


def open_tracker(name: TrackerName, folder: Path, config: dict, start: int) -> Tracker:
    """Opens a tracker by name; values from step ``start`` on are new.

    Raises:
        UserError: the optional package is not installed.
    """
    if name == "tensorboard":
        return TensorBoard(folder, config, start)
    import importlib

    try:
        module = importlib.import_module(name)
    except ImportError:
        raise UserError(
            f"the tracker '{name}' needs its package; install it with: uv sync --extra track"
        ) from None
    return Service(module, folder, config, start)
