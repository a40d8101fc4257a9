"""What a source holds before any picture is opened: rows, labels, classes and its own splits."""

import re
from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Int

from cartok.core.errors import UserError
from cartok.data.stores import Store

NO_CLASS = -1
"""The label of a row that has no class although others have one."""

VALIDATION_WORDS = ("val", "valid", "validation", "test")
"""The names a validation split may have; the first one found is taken."""

_SPLIT_WORD = re.compile(r"(train|validation|valid|val|test)(?![a-z])", re.IGNORECASE)


@dataclass(frozen=True, eq=False)
class Listing:
    """The rows of a source. ``held`` marks its validation rows; None where it has no splits.

    ``classes`` is empty and every label 0 when the source has no classes.
    """

    store: Store
    labels: Int[np.ndarray, " row"]
    classes: tuple[str, ...]
    held: Bool[np.ndarray, " row"] | None


def split_word(name: str) -> str:
    """The split that a file or folder name begins with, such as "train"; "" for none."""
    match = _SPLIT_WORD.match(name)
    return match.group(1).lower() if match else ""


def validation_word(words: set[str]) -> str:
    """The word of the validation split among those present; "" for none."""
    return next((word for word in VALIDATION_WORDS if word in words), "")


def check_classes(train: set[str], held: set[str]) -> None:
    """Refuses a validation split whose classes are not trained: its labels would be wrong.

    Raises:
        UserError: a class is missing from the training split, or only one split has classes.
    """
    strange = sorted(held - train)
    if strange:
        raise UserError(
            f"validation pictures must have the classes of the training pictures, but "
            f"'{strange[0]}' is not one of those {len(train)}; sort both into the same classes"
        )
    if train and not held:
        raise UserError(
            f"validation pictures must have the classes of the training pictures, but "
            f"they have none of those {len(train)}; sort both into the same classes"
        )
