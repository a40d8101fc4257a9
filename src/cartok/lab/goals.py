"""What a measured number is held against: our target, and the same number of the peer.

Both were set on one H100 80GB. The peer is LlamaGen, run by its own scripts in bfloat16 with torch
2.11: its VQ-16 is the network that our 16k recipes train, its training step theirs without the
regulariser, at batch 32, since 64 do not fit. So it is held against that step alone, and the target
against the step with the regulariser too.
"""

from dataclasses import asdict, dataclass
from typing import Any, Literal

from cartok.scaling.numbers import shown


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


def sampler_goals(recipe: str, images: int) -> dict[str, Goal]:
    """The goals of ``bench sampler`` for a size of prior and pictures drawn at once."""
    case = (recipe, images)
    goals = {"warm_up": Goal(target=WARM_UP, better="lower")}
    if case in PEER_TOKEN:
        goals["token"] = Goal(peer=PEER_TOKEN[case], better="lower")
    if case in GAPS:
        goals["gap"] = Goal(target=GAPS[case], better="lower")
    return goals
