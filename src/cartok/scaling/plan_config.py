"""A plan as what can be started: the config of its prior, and the tokens the study has made."""

import copy
from pathlib import Path
from typing import Any

from cartok.scaling.arm_plan import ArmPlan


def prior_config(study: dict[str, Any], plan: ArmPlan) -> dict[str, Any]:
    """The study's own prior of that size for the planned steps, its warm-up and evaluations in
    proportion, as ``cartok train-prior --config`` reads it."""
    same = [
        prior
        for prior in study["config"]["priors"]
        if f"{prior['transformer']['depth']}x{prior['transformer']['width']}" == plan.size
    ]
    config = copy.deepcopy(max(same, key=lambda prior: prior["loop"]["steps"]))
    times = plan.steps / config["loop"]["steps"]
    config["loop"]["steps"] = plan.steps
    config["optim"]["warmup_steps"] = max(1, round(config["optim"]["warmup_steps"] * times))
    for evaluation in config["evaluations"]:
        evaluation["every"] = max(1, round(evaluation["every"] * times))
    return config


def tokens_of(study: dict[str, Any], plan: ArmPlan, folder: Path) -> Path | None:
    """Where a study's folder holds the tokens of a tokenizer, of its first seed; None if it does
    not, as where ``study.json`` alone was carried."""
    arms = {arm["name"]: arm for arm in study["config"]["arms"]}
    mine = arms[plan.arm]
    first = next(name for name, arm in arms.items() if arm["tokenizer"] == mine["tokenizer"])
    pixels = mine["pixels"] or mine["tokenizer"]["view"]["size"]
    found = sorted(folder.glob(f"tokenizers/{first}-s[0-9]*/{pixels}px-*/tokens/manifest.json"))
    return found[0].parent if found else None
