"""What the tests of studies share: toy studies, and how they are run."""

from dataclasses import replace

from cartok.core.progress import Progress
from cartok.lab.study import StudyLaunch, run_study
from cartok.recipes.arms import StudyArm, StudyConfig
from cartok.recipes.prior import toy
from cartok.recipes.tokenizer import causal_toy
from cartok.recipes.yardstick import Yardstick
from cartok.scaling.study_file import read_study

FEW = Yardstick(samples=512)


def score(value, **receipt):
    return {"value": value, "unit": "", "receipt": receipt}


def small_study(*weights, **fields):
    """Toy arms of these weights, followed by one toy prior."""
    arms = (
        StudyArm(
            name=f"lambda-{weight:g}",
            tokenizer=replace(causal_toy(), causal=replace(causal_toy().causal, weight=weight)),
        )
        for weight in weights
    )
    given = {"priors": (toy(),), "yardstick": FEW} | fields
    return StudyConfig(name="small", arms=tuple(arms), **given)


def go(study, out, **fields):
    run_study(study, StudyLaunch(out=out, device="cpu", at_once=1, **fields), Progress())
    return read_study(out / "study.json")
