"""What is kept on disk of a model: its weights for use, its whole state for going on.

Everything is safetensors and JSON. Nothing is ever unpickled, so a file from a stranger can be
wrong but cannot run code.

Of weights that are divided among ranks every rank writes its rows into a file of its own, and
``state.json`` says how many rows of which tensor lie in which file: any number of ranks goes on
from them. torch's own sharded checkpoints are not used: their default reader unpickles, and the
one for safetensors takes a tensor's size from the files that are there, so that where one is lost
the rows it held silently stay as they were (seen in torch 2.11 and 2.15; pytorch#189945).
"""

import hashlib
import json
import re
from collections.abc import Iterator, Mapping
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from cartok.core.config import dict_of
from cartok.core.errors import UserError
from cartok.core.files import full_disk_explained, read_json, remove, staged, write_json
from cartok.core.parallel import World, divided_as, held, is_divided

# ------------------------------------------------------------------ models, for use


@dataclass(frozen=True)
class StoredModel:
    """A model folder, read: what builds the network, its weights, and a name for both."""

    config: dict[str, Any]
    tensors: dict[str, Tensor]
    extra: dict[str, Any]
    digest: str


def save_model(
    folder: Path,
    module: nn.Module,
    *,
    kind: str,
    config: Any,
    extra: dict[str, Any] | None = None,
    tensors: Mapping[str, Tensor] | None = None,
) -> None:
    """Writes ``config.json`` and ``model.safetensors``, both or neither.

    ``tensors`` is the module's whole state, where this process has but a share of it.
    """
    with staged(Path(folder)) as temporary:
        temporary.mkdir()
        description = {"kind": kind, "config": dict_of(config), "extra": extra or {}}
        (temporary / "config.json").write_text(json.dumps(description, indent=2) + "\n")
        save_file(
            _plain(module.state_dict() if tensors is None else tensors),
            temporary / "model.safetensors",
        )


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
    module: nn.Module, tensors: Mapping[str, Tensor], what: str, *, assign: bool = False
) -> None:
    """Loads weights into a module, strictly; of a module that is divided, this rank's.

    With ``assign`` the tensors become the module's own.

    Raises:
        UserError: a tensor is missing, left over, or of another shape.
    """
    own = module.state_dict()
    try:
        fitting = {k: divided_as(own[k], v) if k in own else v for k, v in tensors.items()}
        module.load_state_dict(fitting, strict=True, assign=assign)
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
    tensors: Mapping[str, Tensor]
    """Those that are divided among ranks as each rank has them; whole once they are read."""
    values: dict[str, Any] = field(default_factory=dict)


def save_state(
    folder: Path, state: TrainingState, world: World | None = None, *, is_best: bool = False
) -> None:
    """Writes ``step-N`` into ``folder`` and drops all older ones but the best.

    Every rank calls it; all but the main one write divided tensors alone, and nothing if there are
    none. A kill at any instant leaves at least one whole state, which says which one is the best.

    Raises:
        UserError: the disk is full; on all ranks, if one failed.
    """
    folder, world = Path(folder), world or World()
    rows = _rows_by_rank(state.tensors, world)
    world = world if rows else World(rank=world.rank)
    name = f"step-{state.step:08d}"
    head: dict[str, Any] = {"step": state.step, "values": state.values}
    if rows:
        head |= {"ranks": world.size, "rows": rows}
    if world.is_main or rows:
        head["best"] = world.together(lambda: name if is_best else _best_in(folder))
        _write(folder / name, state.tensors, head, world)
    for other in _states_in(folder) if world.is_main else ():
        if other.name not in (name, head["best"]):
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
        return TrainingState(head["step"], _read(found[-1], head), head["values"])
    except (OSError, SafetensorError, LookupError, TypeError, ValueError, AttributeError) as error:
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


def put_optimizer(optimizer: torch.optim.Optimizer, tensors: Mapping[str, Tensor]) -> None:
    """Restores what ``tensors_of_optimizer`` gave; settings such as the rate stay the config's."""
    parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    state: dict[int, dict[str, Tensor]] = {}
    for name, tensor in tensors.items():
        index, key = name.split("/")
        state.setdefault(int(index), {})[key] = divided_as(parameters[int(index)], tensor)
    groups = optimizer.state_dict()["param_groups"]
    optimizer.load_state_dict({"state": state, "param_groups": groups})
    for parameter, entry in optimizer.state.items():
        for key, value in entry.items():
            if (
                key != "step" and value.shape == parameter.shape
            ):  # fused optimizers need both to lie alike in memory
                entry[key] = torch.empty_like(parameter, dtype=value.dtype).copy_(value)


class _Parts(Mapping[str, Tensor]):
    """Named tensors whose rows lie in several files; each is put together when it is read."""

    def __init__(self, parts: dict[str, list[Tensor]]):
        self._parts = parts

    def __getitem__(self, name: str) -> Tensor:
        parts = self._parts[name]
        return parts[0] if len(parts) == 1 else torch.cat(parts)

    def __iter__(self) -> Iterator[str]:
        return iter(self._parts)

    def __len__(self) -> int:
        return len(self._parts)


def _rows_by_rank(tensors: Mapping[str, Tensor], world: World) -> dict[str, list[int]]:
    """How many rows of each divided tensor every rank holds; alike on all ranks."""
    names = [name for name, tensor in tensors.items() if is_divided(tensor)]
    if not names:
        return {}
    mine = torch.tensor([[len(held(tensors[name])) for name in names]], device=world.device)
    return dict(zip(names, world.gather(mine).T.tolist(), strict=True))


def _write(target: Path, tensors: Mapping[str, Tensor], head: dict[str, Any], world: World) -> None:
    """Writes a state's folder together with the other ranks; the main one puts it in its place."""
    temporary = target.with_name(f".{target.name}.ranks.part")

    def make() -> None:
        if world.is_main:
            stack.enter_context(staged(target, temporary))
            temporary.mkdir()

    def see() -> None:
        if not temporary.is_dir():
            raise UserError(
                f"all ranks write a checkpoint into one folder, but rank {world.rank} does not see "
                f"the one that rank 0 has made in {target.parent}; give --out on a disk that all "
                "machines share"
            )

    def write() -> None:
        names = [name for name in tensors if world.is_main or is_divided(tensors[name])]
        mine = _plain({name: held(tensors[name]) for name in names})
        with full_disk_explained(target):
            save_file(mine, temporary / _file_of(world.rank, world.size))

    def publish() -> None:
        if world.is_main:
            write_json(temporary / "state.json", head)
            stack.close()  # which may find the disk full, too

    with ExitStack() as stack:
        for act in (make, see, write, publish):
            world.together(act)


def _read(folder: Path, head: dict[str, Any]) -> Mapping[str, Tensor]:
    ranks, rows = head.get("ranks", 1), head.get("rows", {})  # older states do not say
    files = [load_file(folder / _file_of(rank, ranks)) for rank in range(ranks)]
    parts = {name: [tensor] for name, tensor in files[0].items()}
    for name, counts in rows.items():
        parts[name] = [file[name] for file in files]
        if [len(part) for part in parts[name]] != counts:
            raise ValueError(f"not all rows of {name} are there")
    return _Parts(parts)


def _file_of(rank: int, ranks: int) -> str:
    return "state.safetensors" if ranks == 1 else f"state-{rank + 1:05d}-of-{ranks:05d}.safetensors"


def _states_in(folder: Path) -> list[Path]:
    """The states, oldest first; a copy that a person keeps under another name is none."""
    found = [p for p in Path(folder).glob("step-*") if re.fullmatch(r"step-\d{8,}", p.name)]
    return sorted(found, key=lambda path: int(path.name.removeprefix("step-")))


def _best_in(folder: Path) -> str:
    found = _states_in(folder)
    head = read_json(found[-1] / "state.json", "a checkpoint's state") if found else {}
    return head.get("best", "")


def _plain(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {name: tensor.detach().cpu().clone().contiguous() for name, tensor in tensors.items()}
