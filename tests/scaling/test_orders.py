"""What is told before a large prior is trained is held against the order it brings."""

from pathlib import Path

import pytest

from cartok.scaling.orders import orders_of
from cartok.scaling.study_file import read_study

EVIDENCE = Path(__file__).parents[2] / "docs" / "evidence"


def study_of(runs, sizes=("2x8", "4x16")):
    """A study of arms by name and numbers: rFD, bits, the small prior's gFD, the large one's."""
    shapes = [tuple(map(int, size.split("x"))) for size in sizes]
    priors = [{"transformer": {"depth": depth, "width": width}} for depth, width in shapes]
    keys = ("rfd", f"prior_bits_per_image/{sizes[0]}", f"gfd/{sizes[0]}", f"gfd/{sizes[-1]}")
    return {
        "config": {"priors": priors},
        "runs": [
            {
                "arm": arm,
                "status": "finished",
                "scores": {
                    key: {"value": number} for key, number in zip(keys, numbers, strict=True)
                },
            }
            for arm, numbers in runs
        ],
    }


RUNS = [
    ("a", (1.0, 9.0, 11.0, 10.0)),
    ("b", (2.0, 1.0, 4.0, 3.0)),
    ("c", (3.0, 5.0, 9.0, 8.0)),
    ("d", (4.0, 4.0, 9.5, 8.1)),
    ("e", (5.0, 2.0, 7.0, 7.0)),
]
"""The large prior's gFD is rFD plus bits, but for a tenth at most; rFD alone misleads."""


def named(orders):
    return {order.name: (order.alike, order.of) for order in orders}


def test_pairs_are_counted_that_a_number_orders_as_the_large_prior_does():
    large, orders = orders_of(study_of(RUNS))
    assert large == "4x16"
    found = named(orders)
    assert found["gFD of the small prior"] == (10, 10)
    assert found["rFD"] == (4, 10)
    assert found["bits of the small prior"] == (9, 10)


def test_rfd_and_bits_together_are_judged_on_arms_that_were_left_out():
    exact = [(arm, (r, b, g, r + b)) for arm, (r, b, g, _) in RUNS]
    found = named(orders_of(study_of(exact))[1])
    assert found["rFD and bits together"] == (9, 9)  # two arms tie
    noise = [("a", (1.0, 1.0, 1.0, 5.0)), *[(n, (1.0, 1.0, 1.0, 2.0)) for n in "bcd"]]
    found = named(orders_of(study_of(noise))[1])
    assert found["rFD and bits together"] == (0, 3)  # what is left out is never foreseen


def test_runs_of_one_arm_are_not_held_against_each_other():
    twice = [*RUNS, ("a", (1.5, 9.0, 10.0, 12.0))]
    assert named(orders_of(study_of(twice))[1])["rFD"][1] == 14


@pytest.mark.parametrize(
    "study",
    [
        study_of(RUNS[:3]),
        study_of(RUNS, sizes=("2x8",)),
        study_of([]),
    ],
)
def test_nothing_is_said_of_few_arms_or_of_one_prior(study):
    assert orders_of(study) == ("", [])


def test_on_tiny_imagenet_a_small_prior_orders_better_than_reconstruction():
    large, orders = orders_of(read_study(EVIDENCE / "tiny-claim" / "study.json"))
    alike = {name: alike for name, (alike, of) in named(orders).items() if of == 54}
    assert large == "8x384"
    for name in ("gFD of the small prior", "rFD and bits together"):
        assert alike["bits of the small prior"] < 27 < alike["rFD"] < alike[name]
