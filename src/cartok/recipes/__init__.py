"""Every choice, by name: functions that return frozen configs. Choices live here and only here."""

from collections.abc import Callable
from dataclasses import dataclass
from types import FunctionType
from typing import Any

from cartok.core.config import nearest
from cartok.core.errors import UserError


@dataclass(frozen=True)
class Recipe:
    """A named config; its function's docstring says what it is."""

    name: str
    build: Callable[[], Any]

    @property
    def summary(self) -> str:
        """One line."""
        return (self.build.__doc__ or "").strip().splitlines()[0]


def table_of(*functions: FunctionType) -> dict[str, Recipe]:
    """Recipes by name: the function's, with dashes."""
    names = [function.__name__.strip("_").replace("_", "-") for function in functions]
    return {name: Recipe(name, function) for name, function in zip(names, functions, strict=True)}


def recipe_of(table: dict[str, Recipe], name: str) -> Any:
    """The config of a recipe.

    Raises:
        UserError: there is no such recipe; names the nearest.
    """
    if name not in table:
        raise UserError(f"there is no recipe '{name}'; {nearest(name, list(table))}")
    return table[name].build()
