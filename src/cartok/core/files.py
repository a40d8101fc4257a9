"""Files that are whole or absent: nothing half-written where a finished one belongs."""

import errno
import json
import math
import os
import secrets
import shutil
import tempfile
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from cartok.core.errors import UserError


@contextmanager
def staged(path: Path, temporary: Path | None = None) -> Generator[Path]:
    """Yields a temporary path to write a file or a folder to; renames it to ``path`` at the end.

    If the body fails, the temporary is removed and ``path`` is as it was. ``temporary`` is of this
    call alone, unless one is named, beside ``path``: its name is drawn at random, for machines that
    share a disk have processes of one number.

    Raises:
        UserError: the disk is full.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = temporary or path.with_name(f".{path.name}.{secrets.token_hex(6)}.part")
    remove(temporary)  # one that is named may have been left by a kill
    try:
        with full_disk_explained(path):
            yield temporary
            _sync(temporary)
            _put(temporary, path)
    except BaseException:
        remove(temporary)
        raise


def refuse_unwritable(path: Path) -> None:
    """Tries, before long work, whether a file may be written to a path; leaves nothing behind.

    Raises:
        UserError: the path is a folder or a device, or lies where no file can be made.
    """
    _refuse_taken(path)
    above = next(parent for parent in path.absolute().parents if parent.exists())
    try:
        with tempfile.TemporaryFile(dir=above):
            pass
    except OSError as error:
        raise UserError(
            f"an answer is written to a file, but none can be made in {above} "
            f"({error.strerror}); name another"
        ) from None


@contextmanager
def full_disk_explained(path: Path) -> Generator[None]:
    """Turns the failure of a body that writes ``path`` into a ``UserError`` if the disk is full."""
    try:
        yield
    except Exception as error:
        full = isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT)
        # safetensors reports a failed write as its own exception; only its text tells why.
        if not full and "No space left" not in str(error):
            raise
        raise UserError(
            f"the disk is full: {path} was not written and nothing else was changed; "
            "free some space and run again with --resume"
        ) from error


def remove(path: Path) -> None:
    """Removes a file, a folder with all it holds, or a link but not what it leads to."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def write_text(path: Path, text: str) -> None:
    """Writes a text file atomically.

    Raises:
        UserError: the path is a folder or a device, which would have to go; the disk is full.
    """
    _refuse_taken(path)
    with staged(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def write_json(path: Path, value: Any) -> None:
    """Writes a JSON file atomically, indented; refuses NaN and infinity, which JSON lacks."""
    write_text(path, json.dumps(value, indent=2, allow_nan=False) + "\n")


def finite(value: Any) -> Any:
    """The same JSON value with null in place of NaN and infinity, which JSON lacks."""
    if isinstance(value, dict):
        return {key: finite(part) for key, part in value.items()}
    if isinstance(value, list | tuple):
        return [finite(part) for part in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def read_json(path: Path, what: str, advice: str = "") -> Any:
    """Reads a JSON file that should be ``what``; ``advice`` is for one that cannot be read.

    Raises:
        UserError: the file is missing or no JSON.
    """
    try:
        return json.loads(Path(path).read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise UserError(f"{what} was expected at {path}, but there is no such file") from None
    except (OSError, UnicodeDecodeError, json.JSONDecodeError) as error:
        said = f"{what} was expected at {path}, but it cannot be read: {error}"
        raise UserError(f"{said}; {advice}" if advice else said) from None


def _refuse_taken(path: Path) -> None:
    """Refuses what a file would wipe out or break: a folder, a device, a pipe."""
    if path.exists() and not path.is_file():
        what = "a folder" if path.is_dir() else "a device or a pipe"
        raise UserError(f"an answer is written to a file, but {path} is {what}; name another")


def _sync(path: Path) -> None:
    files = [path] if path.is_file() else [file for file in path.rglob("*") if file.is_file()]
    for file in files:
        with open(file, "rb") as handle:
            os.fsync(handle.fileno())


def _put(temporary: Path, path: Path) -> None:
    if not path.is_dir():
        os.replace(temporary, path)
        return
    # No rename replaces a folder, so the old one steps aside, and goes only when the new is there.
    aside = temporary.with_name(temporary.name.replace(".part", ".old.part"))
    remove(aside)
    os.replace(path, aside)
    os.replace(temporary, path)
    remove(aside)
