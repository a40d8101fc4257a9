"""Pictures in Arrow tables: parquet in the Hugging Face layout, and data sets of the hub.

A table has a column of pictures, bytes or ``{bytes, path}``, and perhaps one of labels. Class
names are those of the schema's metadata where it has them. Labels are renumbered to the classes
that occur, so gaps and subsets need no care.
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from cartok.core.errors import UserError
from cartok.data.listing import NO_CLASS, Listing, check_classes, split_word, validation_word
from cartok.data.stores import RowStore, reason_of

MAX_PARQUET_BYTES = 8 << 30
"""The most parquet that is held in memory; the hub's loader maps more from disk."""

_IMAGE_COLUMNS = ("image", "img", "picture")
_LABEL_COLUMNS = ("label", "labels", "fine_label", "class")


@dataclass(frozen=True, eq=False)
class NamedTable:
    """A table with the name of its file or split."""

    name: str
    table: pa.Table


@dataclass(frozen=True)
class _Columns:
    """Which columns hold what; ``label`` is "" without labels, ``names`` empty without names."""

    image: str
    label: str
    names: tuple[str, ...]


def parquet_listing(files: Sequence[Path]) -> Listing:
    """The listing of parquet files; a file's or its folder's name tells the split.

    Raises:
        UserError: a file is damaged or in another layout, or all are too large for memory.
    """
    num_bytes = sum(file.stat().st_size for file in files)
    if num_bytes > MAX_PARQUET_BYTES:
        raise UserError(
            f"parquet is held in memory up to {MAX_PARQUET_BYTES >> 30} GiB, but this is "
            f"{num_bytes >> 30} GiB; open the folder as hub:{files[0].parent}, which maps it"
        )
    parts: dict[str, list[NamedTable]] = {}
    for file in files:
        word = split_word(file.name) or split_word(file.parent.name)
        parts.setdefault(word, []).append(NamedTable(file.name, _read(file)))
    return tables_listing(parts)


def hub_listing(name: str) -> Listing:
    """The listing of a hub data set, or of a local folder that ``datasets`` can load.

    Raises:
        UserError: the package ``datasets`` is missing, or it cannot load the data set.
    """
    try:
        import datasets
    except ImportError:
        raise UserError(
            "a hub: data set needs the package 'datasets', which is not installed; "
            "install it with: uv sync --extra hub"
        ) from None
    try:
        splits = datasets.load_dataset(name)
    except Exception as error:  # whatever the loader or the network beneath it raises
        raise UserError(
            f"the data set '{name}' could not be loaded: {reason_of(error)}; check the name and "
            "the connection, or download it and give the folder"
        ) from error
    parts: dict[str, list[NamedTable]] = {}
    for split, rows in splits.items():
        table = rows.data.table.replace_schema_metadata(rows.features.arrow_schema.metadata)
        parts.setdefault(split_word(str(split)), []).append(NamedTable(str(split), table))
    return tables_listing(parts)


def tables_listing(parts: dict[str, list[NamedTable]]) -> Listing:
    """The listing of tables by split word, "" for tables whose name tells none.

    Those are the training data where nothing is called so. A single split counts as no split.

    Raises:
        UserError: no column holds pictures, tables differ, or labels are no integers or words.
    """
    held_word = validation_word(set(parts))
    train = parts.get("train") or parts.get("", [])
    held = parts.get(held_word, []) if held_word else []
    chosen = [*train, *held]
    columns = _columns_of(chosen[0])
    _refuse_other_classes(chosen, columns.names)
    try:
        table = pa.concat_tables([_narrowed(named, columns) for named in chosen])
    except pa.ArrowException as error:
        raise UserError(f"all tables must have one layout, but {reason_of(error)}") from error
    is_held = np.repeat([False, True], [_rows(train), _rows(held)])
    labels, classes = _labels_of(table, columns, is_held)
    return Listing(
        store=RowStore(table["image"], [(named.name, named.table.num_rows) for named in chosen]),
        labels=labels,
        classes=classes,
        held=is_held if train and held else None,
    )


def _refuse_other_classes(tables: Sequence[NamedTable], names: tuple[str, ...]) -> None:
    """Class numbers of two data sets would be taken for one another."""
    for named in tables[1:]:
        others = _columns_of(named).names
        if names and others and names != others:
            raise UserError(
                f"tables of one data set name its classes alike, but {tables[0].name} has "
                f"{len(names)} from '{names[0]}' on and {named.name} {len(others)} from "
                f"'{others[0]}' on; give the folder of one"
            )


def _read(file: Path) -> pa.Table:
    try:
        return pq.read_table(file)
    except (pa.ArrowException, OSError) as error:
        raise UserError(
            f"{file} is not readable parquet: {reason_of(error)}; fetch it again"
        ) from error


def _rows(tables: Sequence[NamedTable]) -> int:
    return sum(named.table.num_rows for named in tables)


def _columns_of(named: NamedTable) -> _Columns:
    schema = named.table.schema
    features = _features_of(named)
    typed = [name for name in schema.names if _kind(features.get(name)) == "Image"]
    plain = [name for name in schema.names if name in _IMAGE_COLUMNS]
    if not typed and not plain:
        raise UserError(
            f"a table needs a column 'image' of bytes, but {named.name} has "
            f"{', '.join(schema.names)}; rename the column that holds the pictures"
        )
    classed = [name for name in schema.names if _kind(features.get(name)) == "ClassLabel"]
    label = next((name for name in _LABEL_COLUMNS if name in schema.names), "")
    label = label or next(iter(classed), "")
    names = features[label].get("names", ()) if label in classed else ()
    return _Columns((typed or plain)[0], label, tuple(names))


def _features_of(named: NamedTable) -> dict[str, Any]:
    try:
        about = json.loads((named.table.schema.metadata or {}).get(b"huggingface", b"{}"))
        return dict(about.get("info", {}).get("features", {}))
    except (ValueError, TypeError, AttributeError) as error:
        raise UserError(
            f"the metadata 'huggingface' of a table must be JSON, but that of {named.name} is "
            f"damaged ({reason_of(error)}); write the file again"
        ) from error


def _kind(feature: Any) -> str:
    return feature.get("_type", "") if isinstance(feature, dict) else ""


def _narrowed(named: NamedTable, columns: _Columns) -> pa.Table:
    """The picture and label columns alone, without metadata, so that files can be joined."""
    wanted = {"image": columns.image, **({"label": columns.label} if columns.label else {})}
    missing = [column for column in wanted.values() if column not in named.table.schema.names]
    if missing:
        raise UserError(
            f"all tables must have one layout, but {named.name} has no column '{missing[0]}'; "
            "add it, or move the file away"
        )
    return pa.table({name: named.table.column(column) for name, column in wanted.items()})


def _labels_of(
    table: pa.Table, columns: _Columns, held: np.ndarray
) -> tuple[np.ndarray, tuple[str, ...]]:
    values = table["label"].to_pylist() if columns.label else [None] * table.num_rows
    if not all(value is None or isinstance(value, int | str) for value in values):
        raise UserError(
            f"labels must be integers or words, but the column '{columns.label}' holds "
            f"{table['label'].type}; choose one class for each picture"
        )
    # A negative label is how the hub writes "not labelled".
    values = [None if isinstance(value, int) and value < 0 else value for value in values]
    found = [
        (value, is_held) for value, is_held in zip(values, held, strict=True) if value is not None
    ]
    in_train = {value for value, is_held in found if not is_held}
    in_held = {value for value, is_held in found if is_held}
    names = {value: _class_name(value, columns.names) for value in in_train | in_held}
    if held.any() and not held.all():
        check_classes({names[v] for v in in_train}, {names[v] for v in in_held})
    present = sorted(in_train or in_held)
    numbers = {value: number for number, value in enumerate(present)}
    labels = [numbers.get(value, NO_CLASS) if present else 0 for value in values]
    return np.array(labels, dtype=np.int64), tuple(names[value] for value in present)


def _class_name(value: int | str, names: tuple[str, ...]) -> str:
    return names[value] if isinstance(value, int) and value < len(names) else str(value)
