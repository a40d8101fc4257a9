"""Whether a pickle can be unpickled without harm to memory or time, told before it is.

A few bytes can ask for gigabytes, or for what never ends: a place in the memo far beyond all that
is in it, or tuples of tuples as a key, whose hash goes through all of them. The opcodes are read
once, with sizes in place of values; nothing is built. Which classes a pickle names is not looked at
here: ``pickles`` replaces them.
"""

import pickletools
from io import BytesIO
from mmap import mmap
from typing import IO, Any, NamedTuple, cast

_MOST_NESTED = 64  # a hash goes down the C stack; checkpoints nest tuples three deep
_MOST_PER_BYTE = 100  # parts of a key, to a byte: each takes one, but for what is said again
_HASHING = {"SETITEM", "SETITEMS", "DICT", "ADDITEMS", "FROZENSET"}
_JOINING = {"TUPLE", "TUPLE1", "TUPLE2", "TUPLE3", "REDUCE", "NEWOBJ", "NEWOBJ_EX", "OBJ", "INST",
            "BINPERSID"}  # fmt: skip


class _Size(NamedTuple):
    """What a value's hash goes through: how many parts, and how deep."""

    parts: int = 1
    depth: int = 0


_MARK = _Size(0, -1)


def check_pickle(file: BytesIO | mmap) -> None:
    """Reads one pickle to its end, and leaves the file there.

    Of the two kinds of file, since no read of them makes more bytes than there are.

    Raises:
        ValueError: it is damaged, or asks for more than a checkpoint of its length does.
    """
    start = file.tell()
    stack: list[_Size] = []
    memo: dict[int, _Size] = {}
    hashed = 0
    given: Any  # by opcode
    for opcode, given, _ in pickletools.genops(cast(IO[bytes], file)):
        name, length = opcode.name, file.tell() - start
        taken = _taken(stack, opcode)
        if name in ("PUT", "BINPUT", "LONG_BINPUT", "MEMOIZE"):
            place = len(memo) if given is None else given
            if not stack or not 0 <= place < length:
                raise ValueError("its pickle counts more values than it has")
            memo[place] = stack[-1]
        if name == "MEMOIZE":
            continue
        made = _made(name, taken, memo.get(given, _Size()) if "GET" in name else _Size())
        hashed += sum(size.parts for size in taken) if name in _HASHING else 0
        if made.depth > _MOST_NESTED or max(made.parts, hashed) > _MOST_PER_BYTE * length + 1000:
            raise ValueError("its pickle nests tuples as no checkpoint does")
        stack += [_MARK if name == "MARK" else made] * len(opcode.stack_after)


def _taken(stack: list[_Size], opcode: pickletools.OpcodeInfo) -> list[_Size]:
    """What an opcode takes off the stack, without a mark."""
    if opcode.name == "MEMOIZE":  # looks at it only
        return []
    wanted = opcode.stack_before
    if pickletools.markobject in wanted:
        while_marked = wanted.index(pickletools.markobject)
        at = len(stack) - 1
        while at >= 0 and stack[at] is not _MARK:
            at -= 1
        first = at - while_marked
        if at < 0 or first < 0:
            raise ValueError("its pickle is damaged")
        taken = [size for size in stack[first:] if size is not _MARK]
    else:
        first = len(stack) - len(wanted)
        if first < 0:
            raise ValueError("its pickle is damaged")
        taken = stack[first:]
    del stack[first:]
    return taken


def _made(name: str, taken: list[_Size], remembered: _Size) -> _Size:
    if "GET" in name:
        return remembered
    if name in _JOINING:
        depth = max((size.depth for size in taken), default=0)
        return _Size(1 + sum(size.parts for size in taken), depth + 1)
    if name in ("DUP", "BUILD"):
        return taken[0]
    return _Size()
