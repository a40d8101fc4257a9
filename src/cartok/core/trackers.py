"""Where a run's numbers go besides ``log.jsonl``: one small protocol, three services behind it."""

from pathlib import Path
from typing import Literal, Protocol

from cartok.core.errors import UserError

TrackerName = Literal["tensorboard", "wandb", "trackio"]


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
        # The folder's name is the run's; a resumed run goes on under the same one.
        module.init(project="cartok", name=folder.name, config=config, resume="allow")

    def log(self, step: int, values: dict[str, float]) -> None:
        """Sends the values of one step."""
        self._module.log(values, step=step)

    def close(self) -> None:
        """Ends the service's run."""
        self._module.finish()


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
