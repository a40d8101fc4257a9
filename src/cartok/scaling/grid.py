"""A grid study as points: every tokenizer's runs, each a prior's training of its own.

Reads ``study.json`` alone. Runs are named ARM@PRIOR there; what is recorded of a training stands in
the receipt of its ``prior_flops``.
"""

from dataclasses import dataclass, field
from typing import Any

from cartok.scaling.numbers import Number

FLOPS_PER_TOKEN = 6.0
"""Of each parameter in training: forward, and backward twice that (Kaplan et al. 2020)."""


@dataclass(frozen=True)
class Point:
    """One run: a tokenizer of one seed, and a prior that was trained to its end."""

    run: str
    """The digest of its record."""
    seed: int
    prior: str
    """As behind the @: layers x width, with its steps where a size comes twice."""
    steps: int
    pictures: int
    """Seen in training, repeats included."""
    parameters: int
    """Of the prior, embeddings included."""
    tokens: int
    """Of a picture."""
    flops: float
    """Of its training, strictly counted."""
    paper_flops: float
    """6 N pictures T / 256: the place on the paper's axes."""
    scores: dict[str, Number]
    """By key; one that was not finite is missing."""
    seconds: Number | None = None
    peak_memory_bytes: Number | None = None
    device: str = ""

    @property
    def counted(self) -> float:
        """Parameters as FLOPs count them, 6 for each and a token: of tables of embeddings none, of
        attention what it costs. So FLOPs are 6 N D tokens with this N, exactly."""
        return self.flops / (FLOPS_PER_TOKEN * self.pictures * self.tokens)

    @property
    def size(self) -> str:
        """Layers x width."""
        return self.prior.partition("-")[0]


@dataclass(frozen=True)
class GridArm:
    """A tokenizer with its runs, by rising compute."""

    name: str
    codes: int = 0
    tokens: int = 0
    """Of a picture; 0 if no run has finished."""
    rfd: Number | None = None
    """The mean over seeds."""
    points: tuple[Point, ...] = field(default=())

    @property
    def sizes(self) -> dict[int, str]:
        """Names of its priors by their number of parameters, smallest first."""
        return dict(sorted({point.parameters: point.size for point in self.points}.items()))


def is_grid(study: dict[str, Any]) -> bool:
    """True if each of its priors is a run of its own."""
    return bool(study["config"].get("apart", False))


def arm_name(run: str) -> str:
    """The tokenizer's name in that of a run."""
    return run.partition("@")[0]


def grid_of(study: dict[str, Any]) -> list[GridArm]:
    """Every tokenizer of a grid study in the order of its config, whether or not it has runs."""
    found: dict[str, list[dict[str, Any]]] = {arm["name"]: [] for arm in study["config"]["arms"]}
    for run in study["runs"]:
        has_cost = _value(run, "prior_flops") is not None
        if run["status"] == "finished" and has_cost and arm_name(run["arm"]) in found:
            found[arm_name(run["arm"])].append(run)
    return [_arm(name, runs) for name, runs in found.items()]


def _arm(name: str, runs: list[dict[str, Any]]) -> GridArm:
    if not runs:
        return GridArm(name)
    receipt = runs[0]["scores"]["prior_flops"]["receipt"]
    by_seed = {run["seed"]: _value(run, "rfd") for run in runs}
    known = [value for value in by_seed.values() if value is not None]
    points = sorted(map(_point, runs), key=lambda point: (point.flops, point.seed))
    return GridArm(
        name=name,
        codes=receipt["codes"],
        tokens=receipt["tokens_per_picture"],
        rfd=sum(known) / len(known) if known else None,
        points=tuple(points),
    )


def _point(run: dict[str, Any]) -> Point:
    cost = run["scores"]["prior_flops"]
    receipt = cost["receipt"]
    values = {key: score["value"] for key, score in run["scores"].items()}
    return Point(
        run=run["digest"],
        seed=run["seed"],
        prior=run["arm"].partition("@")[2],
        flops=float(cost["value"]),
        paper_flops=float(receipt["paper_flops"]),
        scores={key: value for key, value in values.items() if value is not None},
        device=run.get("provenance", {}).get("device", ""),
        tokens=receipt["tokens_per_picture"],
        **{key: receipt[key] for key in ("steps", "pictures", "parameters")},
        **{key: receipt.get(key) for key in ("seconds", "peak_memory_bytes")},
    )


def _value(run: dict[str, Any], key: str) -> Number | None:
    return run.get("scores", {}).get(key, {}).get("value")


def at_longest(study: dict[str, Any]) -> tuple[str, dict[str, Any]]:
    """The costliest prior that has runs, and the grid with it alone, under its tokenizers' names.

    A page shows that as it shows a study whose arms are followed by one prior.
    """
    points = [point for arm in grid_of(study) for point in arm.points]
    if not points:
        return "", study | {"runs": [], "arms": []}
    prior = max(points, key=lambda point: point.flops).prior
    config = study["config"]
    steps, shape = (
        next(point for point in points if point.prior == prior).steps,
        prior.partition("-")[0],
    )
    priors = [
        one
        for one in config.get("priors", ())
        if one["loop"]["steps"] == steps
        and f"{one['transformer']['depth']}x{one['transformer']['width']}" == shape
    ]
    alone = {
        what: [one | {name: arm_name(one[name])} for one in study[what]
               if one[name].partition("@")[2] == prior]
        for what, name in (("runs", "arm"), ("arms", "name"))
    }  # fmt: skip
    return prior, study | alone | {"config": config | {"priors": priors}}
