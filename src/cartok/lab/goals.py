"""What a measured number is held against: our target, and the same number of the peer.

Both were set on one H100 80GB. The peer is LlamaGen, run by its own scripts in bfloat16 with torch
2.11: its VQ-16 is the network that our 16k recipes train, its training step theirs without the
regulariser, at batch 32, since 64 do not fit. So it is held against that step alone, and the target
against the step with the regulariser too.
"""

from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any, Literal

from cartok.scaling.numbers import shown

Say = Callable[[str], None]
"""Takes a line for people as soon as it is known."""


@dataclass(frozen=True)
class Goal:
    """What a number should be."""

    target: float | None = None
    peer: float | None = None
    better: Literal["higher", "lower"] = "higher"

    def is_met_by(self, value: float) -> bool:
        """True if a value is as good as the target, or better."""
        if self.target is None:
            return True
        return value >= self.target if self.better == "higher" else value <= self.target


GOALS = {
    "training.speed": Goal(target=280.0),
    "training.speed_without_regulariser": Goal(target=280.0, peer=70.5),
    "training.memory": Goal(target=60.0, peer=67.1, better="lower"),
    "regulariser.overhead": Goal(target=5.0, better="lower"),
    "encode.speed": Goal(target=2000.0, peer=634.0),
    "decode.speed": Goal(target=1200.0, peer=390.0),
}
"""By the names of the numbers of ``bench tokenizer``, in their units."""

PEER_PRIOR = {
    ("111m", 256): (2161.0, 33.3), ("343m", 128): (775.0, 38.8), ("775m", 64): (329.0, 40.2),
}  # fmt: skip
"""Pictures a second and GiB of LlamaGen's compiled training step, by size and batch."""

FASTER = 1.35
"""How many times the peer's pictures a second a prior should train on."""

PEER_TOKEN = {
    ("111m", 64): 1.46, ("111m", 128): 1.84, ("343m", 64): 2.82, ("343m", 128): 4.17,
    ("775m", 64): 4.69, ("775m", 1): 2.34,
}  # fmt: skip
"""Milliseconds a token of LlamaGen's sampler, compiled, by size and pictures at once."""

GAPS = {("775m", 1): 1.5, ("775m", 64): 1.6}
"""How far from the floor our sampler may be."""

WARM_UP = 10.0
"""Seconds before it is at its speed; the peer's compiler takes 50 to 76."""

LEAST_BATCH = 64
"""The targets of a training step hold from this batch on."""


@dataclass(frozen=True)
class Number:
    """Something measured, and what it is held against."""

    name: str
    value: float
    unit: str
    goal: Goal | None = None

    @property
    def verdict(self) -> str:
        """Target and peer in words; '' if it is held against nothing."""
        if self.goal is None:
            return ""
        words, goal = [], self.goal
        if goal.target is not None:
            side = "at least" if goal.better == "higher" else "at most"
            said = "met" if goal.is_met_by(self.value) else "missed"
            words.append(f"target {side} {shown(goal.target)}: {said}")
        if goal.peer is not None:
            words.append(f"peer {shown(goal.peer)}: {self.value / goal.peer:.2f}x")
        return "; ".join(words)

    @property
    def row(self) -> str:
        """A line of a table that can be printed before the next is known."""
        return f"{self.name:<34}{shown(self.value):>10}  {self.unit:<14}{self.verdict}".rstrip()

    def to_json(self) -> dict[str, Any]:
        """As plain JSON values."""
        plain: dict[str, Any] = {"value": self.value, "unit": self.unit}
        if self.goal is None:
            return plain
        plain |= asdict(self.goal)
        if self.goal.target is not None:
            plain["is_met"] = self.goal.is_met_by(self.value)
        if self.goal.peer is not None:
            plain["of_peer"] = self.value / self.goal.peer
        return plain


class Numbers:
    """Numbers of a bench in the order they are known, each said at once."""

    def __init__(self, say: Say, goals: dict[str, Goal] | None = None):
        self._say, self._goals = say, goals or {}
        self._known: dict[str, Number] = {}

    def add(self, name: str, value: float, unit: str) -> None:
        """Takes a number, and says what it is held against."""
        self._known[name] = Number(name, value, unit, self._goals.get(name))
        self._say(self._known[name].row)

    def to_json(self) -> dict[str, Any]:
        """By name, as plain JSON values."""
        return {name: number.to_json() for name, number in self._known.items()}


def goals_at(batch: int, ranks: int = 1) -> dict[str, Goal]:
    """The goals of a bench whose training step has this batch; of two GPUs, one more."""
    if batch >= LEAST_BATCH:
        both = {"together.speedup": Goal(target=1.9)} if ranks == 2 else {}
        return GOALS | both
    of_any = {name: goal for name, goal in GOALS.items() if not name.startswith("training.")}
    return of_any | {
        name: Goal(peer=goal.peer, better=goal.better)
        for name, goal in GOALS.items()
        if name.startswith("training.")
    }


def prior_goals(recipe: str, batch: int) -> dict[str, Goal]:
    """The goals of ``bench prior`` for a size and a batch; none where the peer was not measured."""
    if (recipe, batch) not in PEER_PRIOR:
        return {}
    speed, memory = PEER_PRIOR[recipe, batch]
    return {
        "training.speed": Goal(target=FASTER * speed, peer=speed),
        "training.memory": Goal(target=memory, peer=memory, better="lower"),
    }


def sampler_goals(recipe: str, images: tuple[int, ...]) -> dict[str, Goal]:
    """The goals of ``bench sampler`` for a size of prior and numbers of pictures drawn at once."""
    goals = {}
    for num in images:
        goals[f"at_{num}.warm_up"] = Goal(target=WARM_UP, better="lower")
        if (recipe, num) in PEER_TOKEN:
            goals[f"at_{num}.token"] = Goal(peer=PEER_TOKEN[recipe, num], better="lower")
        if (recipe, num) in GAPS:
            goals[f"at_{num}.gap"] = Goal(target=GAPS[recipe, num], better="lower")
    return goals


def has_goals(device: str, side: int, codebook_size: int) -> bool:
    """Targets and peer of priors are of 16x16 tokens of 16,384 codes on an H100."""
    return "H100" in device and (side, codebook_size) == (16, 16384)
