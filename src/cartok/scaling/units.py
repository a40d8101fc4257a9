"""Compute in three units: FLOPs, the paper's, and hours of a GPU.

FLOPs of a training are ``6 N tokens`` (Kaplan et al. 2020) or counted. The paper's axes hold
``6 N images`` for pictures of 256 tokens, and for others that times T / 256; so its unit is about
256 FLOPs, and just that where FLOPs are 6 N tokens with all of N, tables of embeddings too.
Budgets therefore name their unit: ``3e18flop``, ``3e18paper``, ``2gpuh``.
"""

import re
from dataclasses import dataclass
from typing import Literal

from cartok.core.errors import UserError
from cartok.scaling.numbers import Number

FLOPS_PER_PAPER_UNIT = 256
"""Tokens of the picture that the paper's axis counts as one token (its figures start at 1e15, where
52M parameters for 15k iterations of 256 pictures are 3e17 FLOPs)."""

Unit = Literal["flop", "paper", "gpuh"]

_BUDGET = re.compile(r"\s*([0-9.]+(?:e[+-]?[0-9]+)?)\s*([a-z]*)\s*", re.IGNORECASE)


@dataclass(frozen=True)
class Amount:
    """A budget as it is written."""

    value: float
    unit: Unit

    def flops(self, per_paper_unit: Number, device_flops: Number | None) -> float:
        """FLOPs, where the paper's unit is so many, and a device does so many in a second.

        Raises:
            UserError: hours come without a device.
        """
        if self.unit == "gpuh":
            return self.value * 3600 * _checked_speed(device_flops)
        return float(self.value * (per_paper_unit if self.unit == "paper" else 1))


@dataclass(frozen=True)
class Budget:
    """An amount of training compute, kept in FLOPs."""

    flops: float

    @property
    def paper_units(self) -> float:
        """The place on the paper's axes."""
        return self.flops / FLOPS_PER_PAPER_UNIT

    def gpu_hours(self, device_flops: Number) -> float:
        """Hours on one device that does so many FLOPs a second, as measured, not its peak."""
        return self.flops / (device_flops * 3600)

    def images(self, parameters: Number, tokens_per_image: int) -> float:
        """How many images a prior of so many parameters can be trained on, repeats included."""
        return self.flops / flops_of_training(parameters, 1, tokens_per_image)


def flops_of_training(parameters: Number, images: Number, tokens_per_image: int) -> float:
    """FLOPs of a prior's training by the convention 6 N tokens."""
    return 6.0 * parameters * images * tokens_per_image


def paper_units_of_training(parameters: Number, images: Number, tokens_per_image: int) -> float:
    """The same on the paper's axes: 6 N images, times T / 256."""
    return flops_of_training(parameters, images, tokens_per_image) / FLOPS_PER_PAPER_UNIT


def budget_of(text: str, device_flops: Number | None = None) -> Budget:
    """The budget that is written as ``3e18flop``, ``3e18paper`` or ``2gpuh``.

    ``device_flops`` are what one device does in a second, which hours need.

    Raises:
        UserError: the text is no such budget, has no unit, or hours come without a device.
    """
    return Budget(amount_of(text).flops(FLOPS_PER_PAPER_UNIT, device_flops))


def amount_of(text: str) -> Amount:
    """What is written as ``3e18flop``, ``3e18paper`` or ``2gpuh``.

    Raises:
        UserError: the text is no such budget, or has no unit.
    """
    found = _BUDGET.fullmatch(text)
    try:
        amount = float(found[1]) if found else 0.0
    except ValueError:
        amount = 0.0
    if found is None or not 0 < amount < float("inf"):
        raise UserError(
            "a budget is a number above 0 and a unit (3e18flop, 3e18paper, 2gpuh), but "
            f"{text!r} came; write it so"
        )
    unit = found[2].lower()
    if not unit:
        raise UserError(
            f"a budget names its unit, but {text!r} has none, and units differ "
            f"{FLOPS_PER_PAPER_UNIT}-fold: write {text.strip()}flop for FLOPs, or "
            f"{text.strip()}paper for the paper's axes, which count a picture of 256 tokens as one"
        )
    if unit not in ("flop", "paper", "gpuh"):
        raise UserError(f"a budget's unit is flop, paper or gpuh, but is {unit!r}; write one")
    return Amount(amount, unit)


def budget_text(budget: Budget, unit: Unit = "flop", device_flops: Number | None = None) -> str:
    """The budget as ``budget_of`` reads it, to the last digit.

    Raises:
        UserError: hours come without a device.
    """
    amounts = {"flop": lambda: budget.flops, "paper": lambda: budget.paper_units}
    amounts["gpuh"] = lambda: budget.gpu_hours(_checked_speed(device_flops))
    return f"{amounts[unit]()!r}{unit}"


def _checked_speed(device_flops: Number | None) -> float:
    if device_flops is None or not 0 < device_flops < float("inf"):
        raise UserError(
            "hours of a GPU need the FLOPs that it does in a second, but "
            f"{'none' if device_flops is None else device_flops} came; give them, or a budget in "
            "flop"
        )
    return float(device_flops)
