"""Configs: frozen dataclasses that check themselves, with JSON both ways and a digest.

A config is written with ``@config`` beside the thing it configures. Unknown keys are refused with
the nearest right one, whether they come from a file or from the command line.
"""

import dataclasses
import difflib
import functools
import hashlib
import json
from pathlib import Path
from typing import Any, TypeVar, dataclass_transform, get_args, get_type_hints

from pydantic import ConfigDict, TypeAdapter, ValidationError
from pydantic.dataclasses import dataclass as pydantic_dataclass

from cartok.core.errors import UserError

T = TypeVar("T")


class ConfigError(UserError):
    """A config that breaks a rule: which key, what was expected, what came."""


@dataclass_transform(frozen_default=True, kw_only_default=True)
def config(cls: type[T]) -> type[T]:
    """Turns a class into a frozen, keyword-only dataclass that validates and forbids extra keys."""
    strict = ConfigDict(extra="forbid", allow_inf_nan=False)
    made = pydantic_dataclass(frozen=True, kw_only=True, config=strict)(cls)
    build = made.__init__

    @functools.wraps(build)
    def explained(self, *args, **kwargs):
        try:
            build(self, *args, **kwargs)
        except ValidationError as error:
            raise ConfigError(explain(made, error)) from None

    made.__init__ = explained
    return made


def dict_of(value: Any) -> dict[str, Any]:
    """The config as plain JSON values."""
    return TypeAdapter(type(value)).dump_python(value, mode="json")


def digest_of(value: Any) -> str:
    """Sixteen hex digits that name a config (or any JSON value): equal content, equal digest."""
    plain = dict_of(value) if dataclasses.is_dataclass(value) else value
    text = json.dumps(plain, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def config_of(cls: type[T], plain: Any) -> T:
    """Builds a config from plain JSON values.

    Raises:
        ConfigError: a key is unknown (names the nearest right one) or a value breaks a rule.
    """
    try:
        return TypeAdapter(cls).validate_python(plain)
    except ValidationError as error:
        raise ConfigError(explain(cls, error)) from None


def read_config(cls: type[T], path: Path) -> T:
    """Reads a config from a run's ``config.json``; the ``digest`` beside it is not read."""
    try:
        plain = json.loads(Path(path).read_text())
    except (OSError, UnicodeDecodeError, json.JSONDecodeError) as error:
        raise ConfigError(f"a config is a JSON file, but {path} is not: {error}") from None
    if not isinstance(plain, dict):
        raise ConfigError(f"a config is a JSON object, but {path} holds a {type(plain).__name__}")
    return config_of(cls, plain.get("config", plain))


def explain(cls: type, error: ValidationError) -> str:
    """One line for a failed validation: the first fault, with the nearest key if one is unknown."""
    fault = error.errors()[0]
    keys, found = _at(cls, fault["loc"])
    where = ".".join(keys)
    if fault["type"] == "unexpected_keyword_argument":
        return f"unknown key '{where}'; {_nearest(found[0], keys)}"
    if fault["type"] == "union_tag_invalid":
        kind = fault["ctx"]["tag"]
        return f"'{where}' has no kind '{kind}'; {nearest(kind, [c.kind for c in found])}"
    if fault["type"] == "missing":
        return f"the key '{where}' is missing"
    reason = fault["msg"].removeprefix("Value error, ")
    if not where:
        return f"{cls.__name__}: {reason}"
    return f"'{where}': {reason}, but got {fault.get('input')!r}"


def nearest(word: str, choices: list[str]) -> str:
    """A hint for a mistyped word: the closest choice, or all of them when none is close."""
    close = difflib.get_close_matches(word, choices, n=1, cutoff=0.5)
    return f"did you mean '{close[0]}'?" if close else f"choose one of: {', '.join(choices)}"


def _at(cls: type, location: tuple) -> tuple[list[str], list[Any]]:
    """The keys of a location, and the configs it may lie in; a union's tag is no key."""
    keys: list[str] = []
    found: list[Any] = [cls]
    for part in map(str, location):
        tagged = [option for option in found if getattr(option, "kind", None) == part]
        if len(found) > 1 and tagged:
            found = tagged
            continue
        keys.append(part)
        if dataclasses.is_dataclass(found[0]):
            # An index into a tuple is a part too, and has no type of its own.
            found = _configs_in(get_type_hints(found[0]).get(part)) or found
    return keys, found


def _nearest(cls: Any, location: list[str]) -> str:
    *parents, word = location
    if not dataclasses.is_dataclass(cls):
        return "take it out"
    keys = [".".join([*parents, field.name]) for field in dataclasses.fields(cls)]
    return nearest(".".join([*parents, word]), keys)


def _configs_in(hint: Any) -> list[type]:
    """The configs a type names, also inside a tuple or an option."""
    if dataclasses.is_dataclass(hint):
        return [hint]
    return [found for part in get_args(hint) for found in _configs_in(part)]
