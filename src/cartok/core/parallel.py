"""The world a process lives in: its rank, its device, and what all ranks agree on.

The only module that talks to ``torch.distributed``. Started plainly, a program is a world of one;
started by ``torchrun``, one of many. Models never ask: they are made parallel from outside.

Weights are copied, every rank holding all, or divided: of each tensor a rank holds some rows, as a
``DTensor``, whose elementwise operations are local. Only the functions here tell the two apart.
"""

import os
import re
import sys
import warnings
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any, Literal, TypeVar, cast

import torch
import torch.distributed as dist
from torch import Tensor, nn

from cartok.core.errors import UserError
from cartok.core.joined import joined

M = TypeVar("M", bound=nn.Module)
T = TypeVar("T")

Weights = Literal["copied", "divided"]
"""What each of several ranks holds of a network and of its optimizer: all, or its share (FSDP2)."""


@dataclass(frozen=True)
class World:
    """Which of how many processes this is, and the device it computes on."""

    rank: int = 0
    size: int = 1
    device: torch.device = field(default_factory=lambda: torch.device("cpu"))

    @classmethod
    def join(cls, device: str = "auto") -> "World":
        """Joins the world that ``torchrun`` describes, or makes one of a single process.

        ``auto`` takes a CUDA GPU when there is one, else the CPU; MPS, which nobody has tried, only
        when it is named.

        Raises:
            UserError: the named device is not there; the other processes do not come.
        """
        rank, size = int(os.environ.get("RANK", 0)), int(os.environ.get("WORLD_SIZE", 1))
        found = _device(device, int(os.environ.get("LOCAL_RANK", 0)))
        if size > 1 and not dist.is_initialized():
            _meet(size, "nccl" if found.type == "cuda" else "gloo")
        return cls(rank=rank, size=size, device=found)

    @property
    def is_main(self) -> bool:
        """True in the one process that writes files and talks to the user."""
        return self.rank == 0

    def mean(self, value: Tensor) -> Tensor:
        """The mean of a tensor over all ranks; every rank gets the same."""
        if self.size == 1:
            return value
        total = value.detach().clone()
        dist.all_reduce(total)
        return total / self.size

    def gather(self, value: Tensor) -> Tensor:
        """All ranks' tensors, concatenated along the first axis in order of rank."""
        if self.size == 1:
            return value
        parts = [torch.empty_like(value) for _ in range(self.size)]
        dist.all_gather(parts, value.contiguous())
        return torch.cat(parts)

    def parts(self, rows: Tensor) -> list[Tensor]:
        """Every rank's tensor, in order of rank, on its own device; first axes may differ."""
        if self.size == 1:
            return [rows]
        counts = self.gather(torch.tensor([len(rows)], device=self.device)).tolist()
        padded = rows.new_zeros(max(1, *counts), *rows.shape[1:])
        padded[: len(rows)] = rows
        everyone = self.gather(padded.to(self.device)).to(rows.device).chunk(self.size)
        return [part[:count] for part, count in zip(everyone, counts, strict=True)]

    def any(self, claim: bool) -> bool:
        """True on all ranks if it is true on one."""
        if self.size == 1:
            return claim
        return bool(self.mean(torch.tensor(float(claim), device=self.device)) > 0)

    def barrier(self) -> None:
        """Waits until every rank has come here."""
        if self.size > 1:
            dist.barrier()

    def first(self, action: Callable[[], T]) -> T:
        """What an action returns on every rank; the main one goes first, as to download a file.

        Raises:
            UserError: on the other ranks, where the action failed on the main one.
        """
        if not self.is_main:
            if self.any(False):
                raise UserError("the main rank failed; its own message says why")
            return action()
        failed = True
        try:
            done = action()
            failed = False
        finally:
            self.any(failed)  # the others wait for it
        return done

    def together(self, action: Callable[[], T]) -> T:
        """What an action returns; if it fails on one rank, it fails on all.

        Raises:
            UserError: on the other ranks.
        """
        failed = True
        try:
            done = action()
            failed = False
        finally:
            failed_somewhere = self.any(failed)
        if failed_somewhere:
            raise UserError("another rank failed; its own message says why")
        return done

    def shard(
        self,
        module: M,
        weights: Weights = "copied",
        *,
        units: Iterable[nn.Module] = (),
        methods: Iterable[str] = (),
    ) -> M:
        """Makes a plain model parallel: on the device, equal on all ranks, batch norms joined.

        On a GPU the weights of convolutions lie channels last, as activations do: cuDNN would turn
        them round in every call.

        Divided weights come together for the time that they are needed, those of each of ``units``
        (a transformer's blocks) for its own forward and backward pass, the rest in those of the
        module. ``methods`` are what is called of the module beside ``forward``. One rank alone has
        nothing to divide.
        """
        if self.size > 1 and weights == "divided":
            return self._divide(module, list(units), methods)
        if self.size > 1:
            module = cast(M, joined(module, self.mean, self.size))
        module = module.to(self.device)
        self._equalise(module)
        if self.device.type == "cuda":
            module = module.to(memory_format=torch.channels_last)
        return module

    def _divide(self, module: M, units: list[nn.Module], methods: Iterable[str]) -> M:
        from torch.distributed.device_mesh import init_device_mesh  # seconds, and only here
        from torch.distributed.fsdp import fully_shard, register_fsdp_forward_method

        # Said of every network that returns a view; nobody here writes into what one returned.
        warnings.filterwarnings("ignore", message="FSDP2-wrapped module .* returned a view")
        mesh = init_device_mesh(self.device.type, (self.size,))
        for part in [*units, module]:  # so the device never holds more than one of them whole
            self._equalise(part.to(self.device))
            fully_shard(part, mesh=mesh, reshard_after_forward=True)
        for name in methods:
            register_fsdp_forward_method(module, name)
        return module

    def _equalise(self, module: nn.Module) -> None:
        for tensor in module.state_dict().values() if self.size > 1 else ():
            if not is_divided(tensor):
                dist.broadcast(tensor, src=0)

    def average_gradients(self, parameters: Iterable[nn.Parameter]) -> None:
        """Replaces every gradient by its mean over the ranks, in one flat exchange.

        Those of divided weights are means already: the backward pass leaves them so.
        """
        found = [p.grad for p in parameters if p.grad is not None]
        gradients = [as_stored(gradient) for gradient in found if not is_divided(gradient)]
        if self.size == 1 or not gradients:
            return
        flat = torch.cat([gradient.reshape(-1) for gradient in gradients])
        dist.all_reduce(flat)
        flat /= self.size
        for gradient, part in zip(
            gradients, flat.split([g.numel() for g in gradients]), strict=True
        ):
            gradient.copy_(part.view_as(gradient))

    def gathered(self, module: nn.Module) -> dict[str, Tensor]:
        """A module's whole state on the main rank's CPU, nothing on others; every rank must ask."""
        found = {}
        for name, tensor in module.state_dict().items():
            together = whole(tensor)  # one by one, so a GPU need not hold all of them
            if self.is_main:
                found[name] = together.cpu()
        return found

    def leave(self) -> None:
        """Leaves the group, if there is one."""
        if self.size > 1 and dist.is_initialized():
            dist.destroy_process_group()


def is_divided(tensor: Tensor) -> bool:
    """Whether this rank holds but some rows of a tensor."""
    loaded = sys.modules.get("torch.distributed.tensor")  # loading it takes seconds
    return loaded is not None and isinstance(tensor, loaded.DTensor)


def divides(module: nn.Module) -> bool:
    """Whether a module's weights are divided among ranks."""
    return any(map(is_divided, module.parameters()))


def held(tensor: Tensor) -> Tensor:
    """What this rank holds of a tensor: its rows, which may be none, or all; shares memory."""
    return cast(Any, tensor).to_local() if is_divided(tensor) else tensor


def whole(tensor: Tensor) -> Tensor:
    """All of a tensor; if it is divided, every rank must ask."""
    return cast(Any, tensor).full_tensor() if is_divided(tensor) else tensor


@torch.no_grad()
def divided_as(tensor: Tensor, value: Tensor) -> Tensor:
    """A whole ``value``, divided if a ``tensor`` of its shape is."""
    if not is_divided(tensor) or tensor.shape != value.shape:
        return value
    made, mesh = torch.empty_like(tensor), cast(Any, tensor).device_mesh
    mine = held(made)
    rows_each = -(-len(value) // mesh.size())  # as torch.chunk divides; the last may have fewer
    start = min(len(value), mesh.get_local_rank() * rows_each)
    mine.copy_(value[start : start + len(mine)])
    return made


def backward(total: Tensor, parameters: list[nn.Parameter]) -> None:
    """Adds the gradient of ``total`` to these parameters, and to no others.

    Unless they are divided: what comes together of them for a pass are other tensors, so that all
    that the graph reaches get their gradient. A job that divides weights has but one phase.
    """
    total.backward(inputs=None if any(map(is_divided, parameters)) else parameters)


def clip_gradients(parameters: list[nn.Parameter], most: float) -> Tensor:
    """Scales gradients down to a norm of ``most`` over all of them; returns their norm before."""
    norm = whole(nn.utils.get_total_norm([p.grad for p in parameters if p.grad is not None]))
    nn.utils.clip_grads_with_norm_(parameters, most, norm)
    return norm


def gpus_of(device: str, world: World) -> list[int]:
    """The visible GPUs, if work may be dealt out to all of them; none where one device is named."""
    if world.device.type != "cuda" or ":" in device:
        return []
    return list(range(torch.cuda.device_count()))


def see_one_gpu(index: int) -> None:
    """Lets this process, which has touched none yet, see one of the visible GPUs alone.

    So each calls its own the first, and takes up what another has compiled for that name.
    """
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    os.environ["CUDA_VISIBLE_DEVICES"] = visible.split(",")[index] if visible else str(index)


def as_stored(tensor: Tensor) -> Tensor:
    """A view whose axes follow each other as in memory: flattening it takes no scattered reads."""
    last = tensor.ndim == 4 and tensor.is_contiguous(memory_format=torch.channels_last)
    return tensor.permute(0, 2, 3, 1) if last else tensor


def _meet(size: int, backend: str) -> None:
    try:
        dist.init_process_group(backend)
    except (ValueError, RuntimeError) as error:
        raise UserError(
            f"the {size} processes that WORLD_SIZE promises did not meet "
            f"({str(error).splitlines()[0]}); start them with torchrun, or unset WORLD_SIZE"
        ) from None


def _device(name: str, local_rank: int) -> torch.device:
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    known = re.fullmatch(r"cpu|cuda(:\d+)?|mps", name)
    if not known:
        raise UserError(f"--device is auto, cpu, cuda, cuda:N or mps, but got '{name}'")
    device = torch.device(name)
    if name == "mps" and not torch.backends.mps.is_available():
        raise UserError("this machine has no MPS, but --device is 'mps'; use --device cpu")
    if device.type == "cuda":
        if not torch.cuda.is_available():
            raise UserError(f"no CUDA GPU is visible, but --device is '{name}'; use --device cpu")
        index = local_rank if device.index is None else device.index
        if index >= torch.cuda.device_count():
            raise UserError(f"--device {name} was asked for, but {torch.cuda.device_count()} exist")
        device = torch.device("cuda", index)
        torch.cuda.set_device(device)
        torch.backends.cudnn.benchmark = True  # the fastest kernel of each shape, tried once
    return device
