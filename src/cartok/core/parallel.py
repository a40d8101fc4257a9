"""The world a process lives in: its rank, its device, and what all ranks agree on.

The only module that talks to ``torch.distributed``. Started plainly, a program is a world of one;
started by ``torchrun``, one of many. Models never ask: they are made parallel from outside.
"""

import os
import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import TypeVar, cast

import torch
import torch.distributed as dist
from torch import Tensor, nn

from cartok.core.errors import UserError
from cartok.core.joined import joined

M = TypeVar("M", bound=nn.Module)
T = TypeVar("T")


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

    def shard(self, module: M) -> M:
        """Makes a plain model parallel: on the device, equal on all ranks, batch norms joined.

        On a GPU the weights of convolutions lie channels last, as activations do: cuDNN would turn
        them round in every call.
        """
        if self.size > 1:
            module = cast(M, joined(module, self.mean, self.size))
        module = module.to(self.device)
        if self.size > 1:
            for tensor in module.state_dict().values():
                dist.broadcast(tensor, src=0)
        if self.device.type == "cuda":
            module = module.to(memory_format=torch.channels_last)
        return module

    def average_gradients(self, parameters: Iterable[nn.Parameter]) -> None:
        """Replaces every gradient by its mean over the ranks, in one flat exchange."""
        if self.size == 1:
            return
        gradients = [as_stored(p.grad) for p in parameters if p.grad is not None]
        flat = torch.cat([gradient.reshape(-1) for gradient in gradients])
        dist.all_reduce(flat)
        flat /= self.size
        for gradient, part in zip(
            gradients, flat.split([g.numel() for g in gradients]), strict=True
        ):
            gradient.copy_(part.view_as(gradient))

    def leave(self) -> None:
        """Leaves the group, if there is one."""
        if self.size > 1 and dist.is_initialized():
            dist.destroy_process_group()


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
