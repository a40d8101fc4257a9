"""What is kept on disk of a model: its weights for use, its whole state for going on.

Everything is safetensors and JSON. Nothing is ever unpickled, so a file from a stranger can be
wrong but cannot run code.
"""

import hashlib
import json
import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from cartok.core.config import dict_of
from cartok.core.errors import UserError
from cartok.core.files import read_json, remove, staged, write_json

# ------------------------------------------------------------------ models, for use


@dataclass(frozen=True)
class StoredModel:
    """A model folder, read: what builds the network, its weights, and a name for both."""

    config: dict[str, Any]
    tensors: dict[str, Tensor]
    extra: dict[str, Any]
    digest: str


def save_model(
    folder: Path, module: nn.Module, *, kind: str, config: Any, extra: dict[str, Any] | None = None
) -> None:
    """Writes ``config.json`` and ``model.safetensors``, both or neither."""
    with staged(Path(folder)) as temporary:
        temporary.mkdir()
        description = {"kind": kind, "config": dict_of(config), "extra": extra or {}}
        (temporary / "config.json").write_text(json.dumps(description, indent=2) + "\n")
        save_file(_plain(module.state_dict()), temporary / "model.safetensors")


def load_model(source: str | Path, *, kind: str) -> StoredModel:
    """Reads a model folder, a run folder that holds one, or a model of the Hugging Face hub.

    Raises:
        UserError: there is no such folder, it holds another kind of model, or it is damaged.
    """
    folder = _model_folder(source)
    description = read_json(folder / "config.json", f"a {kind}'s config")
    found = description.get("kind") if isinstance(description, dict) else None
    if found != kind:
        raise UserError(f"{source} should hold a {kind}, but it holds {found or 'something else'}")
    config, extra = description.get("config"), description.get("extra", {})
    if not isinstance(config, dict) or not isinstance(extra, dict):
        raise UserError(f"the config.json of {source} is damaged: it says nothing of the {kind}")
    try:
        tensors = load_file(folder / "model.safetensors")
    except (OSError, SafetensorError) as error:
        raise UserError(f"the weights of {source} cannot be read: {error}") from None
    return StoredModel(config, tensors, extra, digest_of_weights(config, tensors))


def put_tensors(
    module: nn.Module, tensors: dict[str, Tensor], what: str, *, assign: bool = False
) -> None:
    """Loads weights into a module, strictly; with ``assign`` the tensors become the module's own.

    Raises:
        UserError: a tensor is missing, left over, or of another shape.
    """
    try:
        module.load_state_dict(tensors, strict=True, assign=assign)
    except RuntimeError as error:
        reason = " ".join(str(error).split())[:200]
        raise UserError(f"the weights do not fit {what}: {reason}") from None


def digest_of_weights(config: dict[str, Any], tensors: dict[str, Tensor]) -> str:
    """Sixteen hex digits that name a network with its weights."""
    digest = hashlib.sha256(json.dumps(config, sort_keys=True).encode())
    for name in sorted(tensors):
        digest.update(name.encode())
        flat = tensors[name].detach().cpu().reshape(-1).contiguous()  # a scalar has no byte view
        digest.update(flat.view(torch.uint8).numpy().data)
    return digest.hexdigest()[:16]


def _model_folder(source: str | Path) -> Path:
    folder = Path(source)
    for candidate in (folder, folder / "model"):
        if (candidate / "model.safetensors").is_file():
            return candidate
    looks_like_a_hub_name = isinstance(source, str) and source.count("/") == 1
    if folder.exists() or not looks_like_a_hub_name:
        raise UserError(
            f"a model is a folder with config.json and model.safetensors, but {source} "
            + ("holds none; has its run ended?" if folder.exists() else "does not exist")
        )
    from huggingface_hub import snapshot_download  # 0.3 s, and only here

    try:
        return Path(snapshot_download(source, allow_patterns=["config.json", "model.safetensors"]))
    except Exception as error:
        raise UserError(
            f"'{source}' is no folder here, and the hub did not give it ({type(error).__name__}); "
            "give the path of a folder that holds config.json and model.safetensors"
        ) from None


# ------------------------------------------------------------------ states, for going on


@dataclass(frozen=True)
class TrainingState:
    """Everything a training needs to go on as if it had never stopped."""

    step: int  # optimizer steps done
    tensors: dict[str, Tensor]
    values: dict[str, Any] = field(default_factory=dict)


def save_state(folder: Path, state: TrainingState, *, is_best: bool = False) -> None:
    """Writes ``step-N`` into ``folder`` and drops all older ones but the best.

    A kill at any instant leaves at least one whole state, which says which one is the best.
    """
    folder = Path(folder)
    name = f"step-{state.step:08d}"
    best = name if is_best else _best_in(folder)
    head = {"step": state.step, "best": best, "values": state.values}
    with staged(folder / name) as temporary:
        temporary.mkdir()
        save_file(_plain(state.tensors), temporary / "state.safetensors")
        write_json(temporary / "state.json", head)
    for other in _states_in(folder):
        if other.name not in (name, best):
            remove(other)


def load_state(folder: Path) -> TrainingState | None:
    """The newest whole state in ``folder``, or ``None`` when a run has not saved yet.

    Raises:
        UserError: the newest state is damaged.
    """
    found = _states_in(folder)
    if not found:
        return None
    head = read_json(found[-1] / "state.json", "a checkpoint's state")
    try:
        tensors = load_file(found[-1] / "state.safetensors")
        return TrainingState(head["step"], tensors, head["values"])
    except (OSError, SafetensorError, KeyError, TypeError) as error:
        raise UserError(
            f"the checkpoint {found[-1]} is damaged ({error}); delete that folder to go on from "
            "the one before it, if there is one"
        ) from None


def tensors_of_optimizer(optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
    """An optimizer's state as named tensors: ``index/key``."""
    state = optimizer.state_dict()["state"]
    return {
        f"{index}/{key}": torch.as_tensor(value)
        for index, entry in state.items()
        for key, value in entry.items()
    }


def put_optimizer(optimizer: torch.optim.Optimizer, tensors: dict[str, Tensor]) -> None:
    """Restores what ``tensors_of_optimizer`` gave; settings such as the rate stay the config's."""
    state: dict[int, dict[str, Tensor]] = {}
    for name, tensor in tensors.items():
        index, key = name.split("/")
        state.setdefault(int(index), {})[key] = tensor
    groups = optimizer.state_dict()["param_groups"]
    optimizer.load_state_dict({"state": state, "param_groups": groups})
    for parameter, entry in optimizer.state.items():
        for key, value in entry.items():
            if (
                key != "step" and value.shape == parameter.shape
            ):  # fused optimizers need both to lie alike in memory
                entry[key] = torch.empty_like(parameter, dtype=value.dtype).copy_(value)


def _states_in(folder: Path) -> list[Path]:
    """The states, oldest first; a copy that a person keeps under another name is none."""
    found = [p for p in Path(folder).glob("step-*") if re.fullmatch(r"step-\d{8,}", p.name)]
    return sorted(found, key=lambda path: int(path.name.removeprefix("step-")))


def _best_in(folder: Path) -> str:
    found = _states_in(folder)
    head = read_json(found[-1] / "state.json", "a checkpoint's state") if found else {}
    return head.get("best", "")


def _plain(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name: tensor.detach().cpu().clone().contiguous() for name, tensor in tensors.items()}
