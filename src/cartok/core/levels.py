"""Many numbers in little room: one character each, where two digits are enough to draw them."""

from collections.abc import Iterable

LEVELS = "0123456789abcdefghijklmnopqrstuvwxyz"
"""From 0 to the stated maximum in even steps."""


def text_of_levels(values: Iterable[float], most: float) -> str:
    """A character for each value of 0 to ``most``: the nearest of 36 levels.

    Raises:
        ValueError: a value lies outside, or ``most`` is not above 0.
    """
    values = list(values)
    if not most > 0 or not all(0 <= value <= most for value in values):
        raise ValueError(f"levels are of values of 0 to a maximum above it, but that is {most:g}")
    return "".join(LEVELS[round(value / most * (len(LEVELS) - 1))] for value in values)


def values_of_levels(text: str, most: float) -> list[float]:
    """The values again, each at most a 70th of ``most`` from what it was.

    Raises:
        ValueError: a character is no level.
    """
    return [LEVELS.index(level) / (len(LEVELS) - 1) * most for level in text]
