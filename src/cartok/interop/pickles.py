"""Tensors out of pickled checkpoints, of which nothing is run.

A pickle is a program that may name any function and call it. This one may build containers and
numbers, and name tensors; every other class or function it names becomes ``Inert``. What it says of
a tensor is only noted: the numbers are read later, of the tensors that are wanted, and no further
than their storage reaches. ``torch.load(weights_only=True)`` refuses a file that holds a class it
does not know, as Lightning's checkpoints do; and it reads everything in it.
"""

import io
import math
import mmap
import pickle
import struct
import zipfile
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from cartok.core.errors import UserError
from cartok.interop.pickle_scan import check_pickle

STATE_DICTS = ("ema", "model", "module", "state_dict")
"""Where a checkpoint keeps a network's tensors, if not at its top; the first there is taken."""

_MAGIC = 0x1950A86A20F9469CFC6C  # how files begin that torch wrote before it wrote archives
_HEAD = 30  # bytes before the name of a record in an archive; the last four say what follows
_DTYPES = {
    "FloatStorage": torch.float32, "DoubleStorage": torch.float64, "HalfStorage": torch.float16,
    "BFloat16Storage": torch.bfloat16, "LongStorage": torch.int64, "IntStorage": torch.int32,
    "ShortStorage": torch.int16, "CharStorage": torch.int8, "ByteStorage": torch.uint8,
    "BoolStorage": torch.bool,
}  # fmt: skip


Order = Callable[[set[str]], tuple[str, ...]]
"""From the names of all tensors in a checkpoint to ``STATE_DICTS`` in the order they are wanted."""


class StateDict(NamedTuple):
    """The named tensors of a network."""

    key: str
    """Where in its checkpoint it was; empty, if at the top."""
    tensors: dict[str, Tensor]


def read_state_dict(
    path: Path, skip: tuple[str, ...] = (), order_of: Order = lambda names: STATE_DICTS
) -> StateDict:
    """The named tensors of a file that ``torch.save`` wrote, on the CPU.

    Those whose names begin with one of ``skip`` are not read.

    Raises:
        UserError: the file is no such checkpoint, is damaged, or says of a tensor what cannot be.
    """
    try:
        with open(path, "rb") as file:
            head = file.read(4)
            if not head or head[:1] not in b"P\x80":
                raise ValueError("it is no checkpoint")
            is_archive = head == b"PK\x03\x04"
            source = _Archive(file) if is_archive else _Stream(file)
            key, named = _named_tensors(source.content, order_of)
            tensors = {
                name: _read(tensor, source)
                for name, tensor in named.items()
                if not name.startswith(skip)
            }
            return StateDict(key, tensors)
    except Exception as error:  # a file of another kind, or made to harm, fails in any way
        reason = " ".join(str(error).split())[:120] or type(error).__name__
        raise UserError(
            f"weights are read from a file that torch.save wrote, but {path} is none or is damaged "
            f"({reason}); fetch the one that its project publishes"
        ) from None


# ------------------------------------------------------------------ what the pickle builds


class Inert:
    """Stands for whatever a pickle names; takes all that is given to it, and does nothing."""

    def take(self, *given: Any, **named: Any) -> None:
        """Nothing is kept."""

    __init__ = __setstate__ = __setitem__ = append = extend = add = take  # all that a pickle calls


class _Named(dict):
    """In place of an ordered dict, whose attributes a pickle could set."""

    def __setstate__(self, state: Any) -> None: ...


class StoredStorage(NamedTuple):
    """What a pickle says of a row of numbers in its file."""

    key: Any
    dtype: Any
    size: Any
    """Numbers in it."""


class StoredTensor(NamedTuple):
    """What a pickle says of a tensor; not to be believed before it is checked."""

    storage: Any
    offset: Any
    shape: Any
    stride: Any


class _Call:
    """A function on which a pickle can set nothing."""

    __slots__ = ("_make",)

    def __init__(self, make: Callable[..., Any]) -> None:
        self._make = make

    def __call__(self, *given: Any) -> Any:
        return self._make(*given)

    def __setstate__(self, state: Any) -> None: ...


_TENSOR = _Call(lambda *given: StoredTensor(*given[:4]))  # grad and hooks follow
_KNOWN: dict[tuple[str, str], Any] = {
    ("collections", "OrderedDict"): _Named,
    ("torch._utils", "_rebuild_tensor"): _TENSOR,
    ("torch._utils", "_rebuild_tensor_v2"): _TENSOR,
    ("torch._utils", "_rebuild_parameter"): _Call(lambda tensor, *rest: tensor),
    **{("torch", name): dtype for name, dtype in _DTYPES.items()},
}


class _Reader(pickle.Unpickler):
    """The restricted unpickler."""

    def __init__(self, file: io.BufferedIOBase) -> None:
        super().__init__(file)
        self.storages: dict[str, StoredStorage] = {}

    def find_class(self, module_name: str, global_name: str, /) -> Any:
        return _KNOWN.get((module_name, global_name), Inert)

    def persistent_load(self, pid: Any, /) -> StoredStorage:
        # Exact types first: comparing or hashing anything else may run long, or never end.
        if type(pid) is not tuple or len(pid) not in (5, 6):
            raise ValueError("a storage is named by five or six things")
        kind, dtype, key, place, size, *view = pid
        if not type(kind) is type(key) is type(place) is str or not _is_size(size):
            raise ValueError("a storage has a name, a place and a size")
        if kind != "storage" or any(part is not None for part in view):
            raise ValueError("a tensor's numbers lie in no storage of their own")
        storage = StoredStorage(key, dtype, size)
        self.storages.setdefault(key, storage)
        return storage


def _unpickled(file: mmap.mmap | io.BytesIO) -> tuple[Any, dict[str, StoredStorage]]:
    """What the next pickle of a file builds, and the storages that it names."""
    start = file.tell()
    check_pickle(file)
    stop = file.tell()
    file.seek(start)
    reader = _Reader(io.BytesIO(file.read(stop - start)))
    return reader.load(), reader.storages


def _named_tensors(content: Any, order_of: Order) -> tuple[str, dict[str, StoredTensor]]:
    """The key of a state dict, empty for the top, and its tensors."""
    if not isinstance(content, dict):
        raise ValueError("it holds no named tensors")
    found = {key: _tensors_in(content.get(key)) for key in STATE_DICTS}
    found[""] = _tensors_in(content)
    for key in (*order_of({name for tensors in found.values() for name in tensors}), ""):
        if found[key]:
            return key, found[key]
    raise ValueError("it holds no named tensors")


def _tensors_in(found: Any) -> dict[str, StoredTensor]:
    return {
        name: value
        for name, value in (found.items() if isinstance(found, dict) else ())
        if isinstance(name, str) and isinstance(value, StoredTensor)
    }


# ------------------------------------------------------------------ where the numbers are


class _Archive:
    """A zip file, as torch writes since 1.6: a pickle, and one record for each storage."""

    def __init__(self, file: io.BufferedIOBase) -> None:
        self._content = memoryview(_mapped(file))
        self._zip = zipfile.ZipFile(file)
        self._whole: set[str] = set()
        found = [n for n in self._zip.namelist() if n.split("/")[-1] == "data.pkl"]
        if len(found) != 1:
            raise ValueError(f"an archive of torch has one data.pkl, but this has {len(found)}")
        (self._pickle,) = found
        self._folder = self._pickle.removesuffix("data.pkl")
        order = f"{self._folder}byteorder"
        if order in self._zip.namelist() and self._record(order) != b"little":
            raise ValueError("its bytes are in another order than little-endian")
        self.content, _ = _unpickled(io.BytesIO(self._record(self._pickle)))

    def numbers(self, storage: StoredStorage) -> memoryview:
        """All bytes of a storage, not copied; the archive's checksum is checked."""
        return self._record(f"{self._folder}data/{storage.key}")

    def _record(self, name: str) -> memoryview:
        info = self._zip.getinfo(name)
        if info.compress_type != zipfile.ZIP_STORED or info.file_size != info.compress_size:
            raise ValueError("torch packs no records, but one is packed")  # nor can it swell
        head = self._content[info.header_offset :][:_HEAD]
        start = info.header_offset + _HEAD + sum(struct.unpack_from("<2H", head, _HEAD - 4))
        record = self._content[start : start + info.file_size]
        if name not in self._whole and zlib.crc32(record) != info.CRC:
            raise ValueError("the CRC-32 of a record is another")
        self._whole.add(name)
        return record


class _Stream:
    """One pickle after another, then the storages: as torch wrote before 1.6."""

    def __init__(self, file: io.BufferedIOBase) -> None:
        content = _mapped(file)
        if _unpickled(content)[0] != _MAGIC:
            raise ValueError("it is of another kind")
        for _ in ("version", "machine"):
            _unpickled(content)
        self.content, storages = _unpickled(content)
        keys, _ = _unpickled(content)
        self._file = content
        self._places: dict[str, tuple[int, int]] = {}
        for key in keys:
            if type(key) is not str:
                raise ValueError("a storage has a name")
            storage = _checked(storages[key])
            (size,) = struct.unpack("<q", content.read(8))
            length = storage.size * storage.dtype.itemsize
            start = content.tell()
            if size != storage.size or start + length > len(content):
                raise ValueError("a storage is cut off")
            self._places[key] = (start, length)
            content.seek(start + length)

    def numbers(self, storage: StoredStorage) -> memoryview:
        """All bytes of a storage, not copied."""
        start, length = self._places[storage.key]
        return memoryview(self._file)[start : start + length]


def _mapped(file: io.BufferedIOBase) -> mmap.mmap:
    """The bytes of a file, of which those are read that are looked at."""
    return mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)


def _checked(storage: Any) -> StoredStorage:
    if not isinstance(storage, StoredStorage) or not isinstance(storage.dtype, torch.dtype):
        raise ValueError("a tensor is of numbers of a kind that is not read")
    if not isinstance(storage.key, str) or not _is_size(storage.size):
        raise ValueError("a storage has a name and a size")
    return storage


def _read(tensor: StoredTensor, source: _Archive | _Stream) -> Tensor:
    """The numbers of a tensor, if it lies within its storage."""
    storage = _checked(tensor.storage)
    shape, stride, offset = tensor.shape, tensor.stride, tensor.offset
    if not (_are_sizes(shape) and _are_sizes(stride) and len(shape) == len(stride)
            and _is_size(offset)):  # fmt: skip
        raise ValueError("a tensor has a shape, strides and a place")
    count = math.prod(shape)
    last = offset + sum((n - 1) * s for n, s in zip(shape, stride, strict=True))
    if count == 0:
        return torch.empty(shape, dtype=storage.dtype)
    if last >= storage.size or count > storage.size:
        raise ValueError("a tensor reaches beyond its storage")
    numbers = source.numbers(storage)
    if len(numbers) != storage.size * storage.dtype.itemsize:
        raise ValueError("a storage is not as long as it is said to be")
    size = storage.dtype.itemsize
    own = bytearray(numbers[offset * size : (last + 1) * size])  # many may share one storage
    return torch.frombuffer(own, dtype=storage.dtype).as_strided(shape, stride).contiguous()


def _are_sizes(numbers: Any) -> bool:
    return isinstance(numbers, tuple) and all(_is_size(number) for number in numbers)


def _is_size(number: Any) -> bool:
    return type(number) is int and 0 <= number < 1 << 63
