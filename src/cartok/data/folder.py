"""Pictures by their paths: class subfolders or flat, with or without splits of their own.

The first folder below the split names the class; how deep the files lie below it does not
matter. A subfolder is a class when at least one file in it opens as a picture, so no list of
classes is kept anywhere.
"""

import os
from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np

from cartok.core.errors import UserError
from cartok.data.listing import NO_CLASS, Listing, check_classes, validation_word
from cartok.data.stores import FolderStore, Store


@dataclass(frozen=True, slots=True)
class _File:
    name: str  # the path below the root
    split: str  # the split's folder; "" where there are no splits
    folder: str  # the class's folder; "" for a loose file


def files_below(root: Path) -> list[str]:
    """The paths below a folder, sorted, with forward slashes; hidden files are left out.

    Raises:
        UserError: a folder cannot be listed.
    """

    def refuse(error: OSError) -> None:
        raise UserError(f"every folder of the data must be readable, but {error}") from error

    names = []
    for folder, subfolders, files in os.walk(root, onerror=refuse, followlinks=True):
        subfolders[:] = [name for name in subfolders if not name.startswith(".")]
        place = Path(folder).relative_to(root).as_posix()
        prefix = "" if place == "." else f"{place}/"
        names += [prefix + name for name in files if not name.startswith(".")]
    return sorted(names)


def folder_listing(root: Path, names: Sequence[str]) -> Listing:
    """The listing of a folder whose files are ``names``; see ``tree_listing``."""
    return tree_listing(names, partial(FolderStore, root))


def tree_listing(names: Sequence[str], store_of: Callable[[list[str]], Store]) -> Listing:
    """The listing of files by their paths; ``store_of`` makes the store of some of them.

    A single split folder counts as no split. Files beside the split folders are no part of the
    data. The classes are those of the training pictures.

    Raises:
        UserError: the validation folder has other classes than the training folder.
    """
    tops = {name.split("/", 1)[0] for name in names if "/" in name}
    held_word = validation_word(tops)
    words = {"train", held_word} & tops
    files = [file for file in (_file(name, words) for name in names) if file.split or not words]
    found = _classes_by_split(store_of([file.name for file in files]), files)
    train_word = next(iter(words - {held_word}), held_word)
    if len(words) == 2:
        check_classes(found[train_word], found[held_word])
    classes = tuple(sorted(found[train_word]))
    numbers = {name: number for number, name in enumerate(classes)}
    return Listing(
        store=store_of([file.name for file in files]),
        labels=np.array([numbers.get(file.folder, NO_CLASS) if classes else 0 for file in files]),
        classes=classes,
        held=np.array([file.split == held_word for file in files]) if len(words) == 2 else None,
    )


def _file(name: str, words: set[str]) -> _File:
    top, *below = name.split("/")
    split = top if below and top in words else ""
    folders = below[:-1] if split else [top, *below][:-1]
    return _File(name, split, folders[0] if folders else "")


def _classes_by_split(store: Store, files: Sequence[_File]) -> dict[str, set[str]]:
    members: dict[tuple[str, str], list[int]] = defaultdict(list)
    for row, file in enumerate(files):
        members[file.split, file.folder].append(row)
    found: dict[str, set[str]] = defaultdict(set)
    for (split, folder), rows in members.items():
        if folder and any(_opens(store, row) for row in rows):
            found[split].add(folder)
    return found


def _opens(store: Store, row: int) -> bool:
    try:
        with store.open(row):
            return True
    except Exception:  # decoders fail in any way; each means that this is no picture
        return False
