"""``study.json``: every run of a study with its scores and receipts, each fact once.

It is plain JSON: ``name``, ``config``, ``provenance``, ``runs``, finished runs of ``earlier``
configs, ``warnings``, and a grid's ``laws``. **An object with ``"&": [KEY, ...]`` also has the
fields of ``shared[KEY]``.** So the scores of a tokenizer stand once, and each run made from it
names them; so do the settings that receipts have alike. A key begins the SHA-256 of what it names.
What no other object has stands in its place: a run's digest, and the scores of its own prior.

``arms``, the means over seeds, follow from the runs; they are stored only if they were found
otherwise, by an earlier version. A file without ``shared`` is of an earlier version, too, and has
everything in its place. ``read_study`` gives everything in its place whatever the form, exactly.
"""

import hashlib
import json
from collections import Counter
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from cartok.core.errors import UserError
from cartok.core.files import read_json, write_text
from cartok.scaling.means import arms_of_runs

FILE = "study.json"

ALSO = "&"
"""The field of an object that names what it shares with others."""
SHARED = "shared"

_ADVICE = (
    "take another copy of it, or delete it: 'cartok study run' then goes on from what else is "
    "recorded there"
)

WORTH = 24
"""Characters: fields that are shorter together are repeated, which is as short as to name them."""
LINE = 500
"""Characters: a longer object has a line for each part, and so has a longer list of objects."""


def read_study(path: Path) -> Any:
    """What a study's file tells, everything in its place.

    It has a ``name``, a ``config``, ``runs`` as ``fault_of_run`` wants them, and ``arms``.

    Raises:
        UserError: the file is missing, is no JSON, or is damaged.
    """
    stored = read_json(path, "a study", _ADVICE)
    try:
        study = unpacked(stored) if isinstance(stored, dict) and SHARED in stored else stored
        fault = _fault_of(study)
    except UserError as error:
        fault = str(error)
    if fault:
        raise UserError(
            f"a study is what 'cartok study run' wrote, but {path} is damaged: {fault}; {_ADVICE}"
        )
    if "arms" not in study:
        study["arms"] = arms_of_runs(study["runs"])
    return study


def fault_of_run(run: Any) -> str:
    """Why a JSON value is no record of a run, or nothing if it is one.

    A record has a string ``arm``, ``digest`` and ``status``, a whole ``seed``, and if it failed a
    ``reason``; if it has finished ``scores``, each with a ``value`` (a number or null), a ``unit``
    and a ``receipt``.
    """
    if not isinstance(run, dict):
        return "a run is no object"
    wanted = {"arm": str, "seed": int, "digest": str, "status": str}
    if run.get("status") == "failed":
        wanted["reason"] = str
    if run.get("status") == "finished":
        wanted["scores"] = dict
    for key, kind in wanted.items():
        if not isinstance(run.get(key), kind):
            return f"a run has no '{key}'" if key not in run else f"a run's '{key}' is of no use"
    for name, score in run["scores"].items() if "scores" in wanted else ():
        if not _is_score(score):
            return f"'{name}' of {run['arm']}-s{run['seed']} is no score"
    return ""


def write_study(path: Path, study: dict[str, Any]) -> None:
    """Writes a study's file atomically; refuses NaN and infinity, which JSON lacks."""
    if study["arms"] == arms_of_runs(study["runs"]):
        study = {key: part for key, part in study.items() if key != "arms"}
    write_text(path, _lines(packed(study)) + "\n")


def packed(study: dict[str, Any]) -> dict[str, Any]:
    """A copy in which fields that several objects have alike stand once, under ``shared``.

    Objects that lie as deep are compared, from the outside inwards, and fields that the same ones
    have go together. ``study`` itself must have no field ``shared``.
    """
    whole = json.loads(json.dumps(study, allow_nan=False))
    shared: dict[str, dict[str, Any]] = {}
    level = [whole]
    while level:
        names: list[list[str]] = [[] for _ in level]
        moved = []
        for owners, keys in _alike(level):
            fields = {key: level[owners[0]][key] for key in keys}
            name = _name_of(fields, shared)
            shared[name] = fields
            moved.append(fields)
            for owner in owners:
                names[owner].append(name)
                for key in keys:
                    del level[owner][key]
        for one, also in zip(level, names, strict=True):
            if also:
                own = dict(one)
                one.clear()
                one.update({ALSO: also} | own)
        level = list(_objects_in(part for one in [*level, *moved] for part in one.values()))
    return whole | {SHARED: shared}


def unpacked(stored: dict[str, Any]) -> dict[str, Any]:
    """The study of which ``packed`` made this: everything in its place.

    Raises:
        UserError: an object names what is not under ``shared``, or what it is itself within.
    """
    shared = stored[SHARED]

    def whole(part: Any, within: tuple[str, ...]) -> Any:
        if isinstance(part, list):
            return [whole(item, within) for item in part]
        if not isinstance(part, dict):
            return part
        found: dict[str, Any] = {}
        also = part.get(ALSO, [])
        for name in also if isinstance(also, list) else [also]:
            inside = (*within, name)
            found |= {key: whole(value, inside) for key, value in _fields(shared, inside).items()}
        return found | {key: whole(value, within) for key, value in part.items() if key != ALSO}

    return whole({key: part for key, part in stored.items() if key != SHARED}, ())


def _fault_of(study: Any) -> str:
    if not isinstance(study, dict):
        return "it holds no object"
    for key, kind in {"name": str, "config": dict, "runs": list}.items():
        if not isinstance(study.get(key), kind):
            return f"it has no '{key}'" if key not in study else f"its '{key}' is of no use"
    earlier = study.get("earlier", [])
    if not isinstance(earlier, list):
        return "its 'earlier' is of no use"
    return next(filter(None, map(fault_of_run, [*study["runs"], *earlier])), "")


def _is_score(score: Any) -> bool:
    return (
        isinstance(score, dict)
        and isinstance(score.get("value", ""), int | float | None)
        and isinstance(score.get("unit"), str)
        and isinstance(score.get("receipt"), dict)
    )


def _fields(shared: Any, inside: tuple[Any, ...]) -> dict[str, Any]:
    *within, name = inside
    fields = shared.get(name) if isinstance(shared, dict) and isinstance(name, str) else None
    if name in within or not isinstance(fields, dict):
        raise UserError(f"an object names {name!r}, and '{SHARED}' holds nothing to put there")
    return fields


def _alike(level: list[dict[str, Any]]) -> Iterator[tuple[tuple[int, ...], list[str]]]:
    """Places in a level with the keys that exactly those have alike, where it is worth a name."""
    owners: dict[tuple[str, str], list[int]] = {}
    found = Counter(key for one in level for key in one)
    for place, one in enumerate(level):
        for key, part in one.items():
            if found[key] > 1 or key == ALSO:
                owners.setdefault((key, _text(part)), []).append(place)
    together: dict[tuple[int, ...], list[str]] = {}
    length: dict[tuple[int, ...], int] = {}
    for (key, text), places in owners.items():
        if len(places) > 1 or key == ALSO:  # which would be mistaken for ours in its place
            group = tuple(places)
            together.setdefault(group, []).append(key)
            length[group] = length.get(group, 0) + len(key) + len(text)
    for group, keys in together.items():
        if length[group] > WORTH or ALSO in keys:
            yield group, keys


def _name_of(fields: dict[str, Any], taken: dict[str, Any]) -> str:
    digest = hashlib.sha256(_text(fields).encode()).hexdigest()
    return next(digest[:size] for size in range(6, 65) if digest[:size] not in taken)


def _objects_in(parts: Iterable[Any]) -> Iterator[dict[str, Any]]:
    """The outermost objects in any JSON values."""
    for part in parts:
        if isinstance(part, dict):
            yield part
        elif isinstance(part, list):
            yield from _objects_in(part)


def _text(part: Any) -> str:
    return json.dumps(part, sort_keys=True, separators=(",", ":"))


def _lines(part: Any, indent: str = "") -> str:
    """JSON in lines that a reader, and a comparison of versions, can take one by one."""
    line = json.dumps(part, separators=(",", ":"))
    if len(line) <= LINE or not any(_objects_in([part])):
        return line
    inner = f"{indent} "
    if isinstance(part, dict):
        items = [f"{json.dumps(key)}:{_lines(value, inner)}" for key, value in part.items()]
    else:
        items = [_lines(value, inner) for value in part]
    opened, closed = "{}" if isinstance(part, dict) else "[]"
    return opened + "\n" + ",\n".join(inner + item for item in items) + f"\n{indent}{closed}"
