import re

import pytest

from cartok.core.config import dict_of
from cartok.tokenizer.code_faults import CodeUse, coarse_codes, code_collapse
from cartok.tokenizer.quantize.kinds import KINDS


def flat(value, points=40):
    return [(10 * (index + 1), value) for index in range(points)]


def looks(*values, every=200):
    """A value at every evaluation."""
    return [(every * (index + 1), value) for index, value in enumerate(values)]


def named(found):
    return [(finding.fault, finding.severity) for finding in found]


@pytest.mark.parametrize(
    ("usage", "perplexity", "reachable", "expected"),
    [
        (0.05, 200.0, 1.0, [("codebook collapse", "fault")]),
        (0.3, 200.0, 1.0, [("idle codes", "watch")]),
        (0.5, 200.0, 1.0, []),
        # 256 tokens of 4,096 codes: not more than 6 % can occur
        (0.05, 200.0, 0.06, []),
        (0.02, 80.0, 0.06, [("idle codes", "watch")]),
        (0.001, 4.5, 0.06, [("codebook collapse", "fault")]),
        (0.9, 3.0, 1.0, [("codebook collapse", "fault")]),
        (None, 3.0, 1.0, [("codebook collapse", "fault")]),
        (1e-6, 200.0, 0.0, []),  # nobody knows how many could occur
        (None, None, 1.0, []),
    ],
)
def test_codes_are_counted_against_those_that_could_occur(usage, perplexity, reachable, expected):
    curves = [[] if value is None else looks(value) for value in (usage, perplexity)]
    use = CodeUse(usage=curves[0], perplexity=curves[1], reachable=reachable)
    assert named(code_collapse(use)) == expected


@pytest.mark.parametrize(
    ("usage", "warm_up", "expected", "said"),
    [
        # 600 steps of a run that warms up for 3,000: it loses codes all the same
        ((0.099, 0.058, 0.046), 3000, "codebook collapse", "ever fewer codes"),
        ((0.099, 0.058, 0.046), 0, "codebook collapse", "ever fewer codes"),
        ((0.02, 0.03, 0.046), 3000, "idle codes", "ever more codes are in use"),
        ((0.02, 0.03, 0.046), 0, "idle codes", "ever more codes are in use"),
        ((0.046,), 3000, "idle codes", "the learning rate still rises"),
        ((0.046, 0.046), 3000, "idle codes", "the learning rate still rises"),
        ((0.046, 0.046), 400, "codebook collapse", "tokens say little"),
        ((0.046,), 0, "codebook collapse", "tokens say little"),
        # all of it long ago: it had risen, and rises no more
        ((0.01, 0.046, 0.046, 0.046), 0, "codebook collapse", "tokens say little"),
    ],
)
def test_a_slow_start_is_told_from_a_collapse_by_where_usage_goes(usage, warm_up, expected, said):
    (found,) = code_collapse(CodeUse(usage=looks(*usage), warm_up=warm_up))
    assert (found.fault, found.severity == "fault") == (expected, expected != "idle codes")
    assert said in found.means
    assert ("train on" in found.change) == (expected == "idle codes")


def test_the_trend_is_said_in_numbers():
    (found,) = code_collapse(CodeUse(usage=looks(0.099, 0.058, 0.046), reachable=0.982))
    assert found.seen == (
        "only 4.6% of the codes occur, of 98.2% that could (step 600), after 9.9% at step 200 and "
        "5.8% at step 400"
    )
    (found,) = code_collapse(CodeUse(perplexity=looks(3.0, 1.5)))
    assert found.seen == "the codes used are as few as 1.5 equal ones (step 400), after 3.0 at " \
                         "step 200"  # fmt: skip


@pytest.mark.parametrize(
    ("dropped", "weight", "expected"),
    [
        (0.2, 1.0, []),
        (0.51, 1.0, [("coarse codes", "watch")]),
        (0.2, 0.0, [("dead gradient", "fault")]),
    ],
)
def test_codes_far_from_their_latents_or_moved_by_nothing_are_named(dropped, weight, expected):
    assert named(coarse_codes(flat(dropped), flat(1.0), weight)) == expected


@pytest.mark.parametrize("kind", KINDS)
def test_what_to_change_is_a_field_of_that_kind_of_quantizer(kind):
    fields = dict_of(KINDS[kind][0]())
    collapse = code_collapse(CodeUse(usage=looks(0.01), kind=kind))
    for found in (*collapse, *coarse_codes(flat(1.0), flat(1.0), 1.0, kind)):
        names = re.findall(r"model\.quantizer\.(\w+)", found.change)
        assert names
        assert set(names) <= set(fields)
